package natslock

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/keyturn/keyturn/fault"
)

const (
	// maxEntry holds maxReaders and a long name.
	maxEntry   = 128 << 10
	maxReaders = 1000
	// maxKey bounds a key in bytes; it becomes a subject.
	maxKey = 512
)

// A mode is how a name is held.
type mode int

const (
	write mode = iota
	read
)

// An entry is who holds a name.
type entry struct {
	Name   string  `json:"name"`
	Writer *member `json:"writer,omitempty"`
	// Next is a writer that waits for the readers to leave.
	Next    *member  `json:"next,omitempty"`
	Readers []member `json:"readers,omitempty"`
}

// A member is a holder, or the writer that is next.
type member struct {
	ID   string `json:"id"`
	Beat uint64 `json:"beat"`
	TTL  int64  `json:"ttl"` // in milliseconds
}

func (m *member) ttl() time.Duration { return time.Duration(m.TTL) * time.Millisecond }

// members returns all of them, to be changed in place.
func (e *entry) members() []*member {
	var out []*member
	if e.Writer != nil {
		out = append(out, e.Writer)
	}
	if e.Next != nil {
		out = append(out, e.Next)
	}
	for i := range e.Readers {
		out = append(out, &e.Readers[i])
	}
	return out
}

func (e *entry) find(id string) *member {
	for _, m := range e.members() {
		if m.ID == id {
			return m
		}
	}
	return nil
}

// holds reports whether id is in, not only next.
func (e *entry) holds(id string) bool {
	return e.find(id) != nil && !(e.Next != nil && e.Next.ID == id)
}

func (e *entry) remove(id string) {
	if e.Writer != nil && e.Writer.ID == id {
		e.Writer = nil
	}
	if e.Next != nil && e.Next.ID == id {
		e.Next = nil
	}
	e.Readers = slices.DeleteFunc(e.Readers, func(m member) bool { return m.ID == id })
}

// free reports whether id may enter.
func (e *entry) free(m mode, id string) bool {
	if e.Writer != nil || e.Next != nil && e.Next.ID != id {
		return false
	}
	if m == read {
		return len(e.Readers) < maxReaders
	}
	return len(e.Readers) == 0
}

// enter makes the member a holder.
func (e *entry) enter(m mode, who member) {
	e.remove(who.ID)
	if m == read {
		e.Readers = append(e.Readers, who)
		return
	}
	e.Writer = &who
}

// clone copies e, so that a change that is not stored leaves no trace.
func (e *entry) clone() *entry {
	c := &entry{Name: e.Name, Readers: slices.Clone(e.Readers)}
	if e.Writer != nil {
		w := *e.Writer
		c.Writer = &w
	}
	if e.Next != nil {
		n := *e.Next
		c.Next = &n
	}
	return c
}

// decode reads the entry of name. No value is an entry that nobody holds. An
// entry that is not ours is Denied: nobody may be taken for its holder.
func decode(op, name string, b []byte) (*entry, error) {
	e := &entry{Name: name}
	if len(b) == 0 {
		return e, nil
	}
	if err := json.Unmarshal(b, e); err != nil || e.Name != name {
		return nil, fault.Newf(fault.Denied, op, "the entry of lock %q was not written by this program; find out who may write to the bucket and delete the entry", name)
	}
	for _, m := range e.members() {
		if m.ID == "" || m.TTL < minTTL.Milliseconds() || m.TTL > maxTTL.Milliseconds() {
			return nil, fault.Newf(fault.Denied, op, "the entry of lock %q names a holder without an id or with a TTL of %d ms; find out who may write to the bucket and delete the entry", name, m.TTL)
		}
	}
	return e, nil
}

// entryKey returns the key of a name: itself, escaped where NATS would refuse
// it, or its digest where that is too long.
func entryKey(name string) string {
	k := "lock/" + strings.NewReplacer("+", "=20", "%2F", "/", "%", "=", "~", "=7E", ".", "=2E").Replace(url.QueryEscape(name))
	if len(k) <= maxKey {
		return k
	}
	sum := sha256.Sum256([]byte(name))
	return "long/" + hex.EncodeToString(sum[:])
}
