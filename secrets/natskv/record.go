package natskv

import (
	"bytes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"io"
	"time"

	"golang.org/x/crypto/chacha20poly1305"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/secrets"
)

// recordFormat is the version of the stored form.
const recordFormat = 1

// A record is one entry of the bucket: a secret with its three stages.
type record struct {
	Format   int     `json:"format"`
	Current  *sealed `json:"current"`
	Pending  *sealed `json:"pending,omitempty"`
	Previous *sealed `json:"previous,omitempty"`

	written time.Time // when the entry was, by the server's clock
}

// A sealed is one version, its value sealed.
type sealed struct {
	ID      string    `json:"id"`
	Token   string    `json:"token,omitempty"`
	Created time.Time `json:"created"`
	standing
	Key string `json:"key"` // id of the key
	Box []byte `json:"box"` // nonce, then ciphertext and tag
}

// A standing is what a version has come to since it was stored. Entries of
// before it was recorded have none of it.
type standing struct {
	Activated time.Time `json:"activated,omitzero"` // of the current version
	Disabled  bool      `json:"disabled,omitempty"` // of the previous version
	Held      bool      `json:"held,omitempty"`     // of one that was enabled again
}

// at returns what holds stage, or nil.
func (r *record) at(stage secrets.Stage) *sealed {
	switch stage {
	case secrets.Current:
		return r.Current
	case secrets.Pending:
		return r.Pending
	case secrets.Previous:
		return r.Previous
	}
	return nil
}

// has reports whether v was written under token.
func (v *sealed) has(token string) bool { return v != nil && v.Token == token }

// is reports whether v is the version with the id.
func (v *sealed) is(id string) bool { return v != nil && v.ID == id }

// decodeRecord reads an entry. An entry that is not ours is Denied: somebody
// wrote to the bucket who should not. The decoder's error is dropped, since
// it may quote what it read.
func decodeRecord(op string, r ref.Ref, b []byte) (*record, error) {
	var rec record
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&rec); err != nil || dec.Decode(new(any)) != io.EOF {
		return nil, fault.Newf(fault.Denied, op, "the entry of %s was not written by this program, or was tampered with; find out who may write to the bucket and restore the entry", r)
	}
	if rec.Format != recordFormat {
		return nil, fault.Newf(fault.Denied, op, "the entry of %s has format %d; expected %d; use the version of this program that wrote it", r, rec.Format, recordFormat)
	}
	if rec.Current == nil {
		return nil, fault.Newf(fault.Denied, op, "the entry of %s has no current version, so it was tampered with; restore the entry", r)
	}
	return &rec, nil
}

// bind returns what is authenticated along with a value. Each part is
// preceded by its length, so that no two versions bind alike. A standing is
// bound where there is one: what was sealed without still opens.
func bind(r ref.Ref, stage secrets.Stage, v *sealed) []byte {
	parts := []string{r.String(), string(stage), v.ID, v.Token, v.Created.UTC().Format(time.RFC3339Nano)}
	if !v.Activated.IsZero() {
		parts = append(parts, "activated", v.Activated.UTC().Format(time.RFC3339Nano))
	}
	if v.Disabled {
		parts = append(parts, "disabled")
	}
	if v.Held {
		parts = append(parts, "held")
	}
	out := []byte("keyturn natskv 1")
	for _, part := range parts {
		out = binary.AppendUvarint(out, uint64(len(part)))
		out = append(out, part...)
	}
	return out
}

func newAEAD(key secrets.Value) (cipher.AEAD, error) {
	b := key.Reveal()
	defer clear(b)
	return chacha20poly1305.NewX(b)
}

// seal returns v sealed for a stage and a standing with the first key.
func (k Keys) seal(op string, r ref.Ref, stage secrets.Stage, v *secrets.Version, st standing) (*sealed, error) {
	aead, err := newAEAD(k.ring[0].bytes)
	if err != nil {
		return nil, fault.New(fault.Invalid, op, err)
	}
	out := &sealed{ID: v.ID, Token: v.Token, Created: v.Created.UTC(), standing: st, Key: k.ring[0].id}
	nonce := make([]byte, aead.NonceSize(), aead.NonceSize()+v.Value.Len()+aead.Overhead())
	_, _ = rand.Read(nonce) // never fails: crypto/rand since Go 1.24
	plain := v.Value.Reveal()
	defer clear(plain)
	out.Box = aead.Seal(nonce, nonce, plain, bind(r, stage, out))
	return out, nil
}

// open returns the version that v is. What does not open is Denied.
func (k Keys) open(op string, r ref.Ref, stage secrets.Stage, v *sealed) (*secrets.Version, error) {
	key, ok := k.find(v.Key)
	if !ok {
		return nil, &fault.Error{
			Kind: fault.Denied, Class: fault.ClassAuth, Op: op,
			Msg: "the " + string(stage) + " value of " + r.String() + " is sealed with key " + printableID(v.Key) + ", which is not in the keyring; add that key to it",
		}
	}
	aead, err := newAEAD(key)
	if err != nil {
		return nil, fault.New(fault.Invalid, op, err)
	}
	refused := &fault.Error{
		Kind: fault.Denied, Class: fault.ClassAuth, Op: op,
		Msg: "the " + string(stage) + " value of " + r.String() + " does not open: it was tampered with or belongs to another secret or stage; find out who may write to the bucket and restore the entry",
	}
	if len(v.Box) < aead.NonceSize() {
		return nil, refused
	}
	nonce, box := v.Box[:aead.NonceSize()], v.Box[aead.NonceSize():]
	plain, err := aead.Open(nil, nonce, box, bind(r, stage, v))
	if err != nil {
		return nil, refused
	}
	defer clear(plain)
	return &secrets.Version{ID: v.ID, Token: v.Token, Value: secrets.NewValue(plain), Created: v.Created}, nil
}

// move seals again, for another stage or standing, what is sealed for one.
func (k Keys) move(op string, r ref.Ref, from, to secrets.Stage, v *sealed, st standing) (*sealed, error) {
	plain, err := k.open(op, r, from, v)
	if err != nil {
		return nil, err
	}
	defer plain.Value.Wipe()
	return k.seal(op, r, to, plain, st)
}

// printableID keeps a tampered key id from filling an error.
func printableID(id string) string {
	if len(id) > 32 {
		id = id[:32] + "..."
	}
	return "\"" + string(bytes.ToValidUTF8([]byte(id), []byte("?"))) + "\""
}
