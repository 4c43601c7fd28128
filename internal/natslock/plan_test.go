package natslock

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/keyturn/keyturn/fault"
)

func newWaiter(id string, m mode, ttl time.Duration) *waiter {
	return &waiter{seat: seat{locks: &Locks{ttl: ttl}, name: "n", id: id}, mode: m, seen: map[string]sighting{}}
}

// TestEviction: a holder is evicted when its beat was seen unchanged for its
// own TTL, whatever that of the waiter is, and no sooner.
func TestEviction(t *testing.T) {
	t0 := time.Now()
	w := newWaiter("me", write, time.Second)
	e := &entry{Name: "n", Writer: &member{ID: "a", Beat: 7, TTL: 3000}}
	for _, at := range []time.Duration{0, time.Second, 2999 * time.Millisecond} {
		if p := w.plan(e, t0.Add(at)); p.next != nil {
			t.Fatalf("after %s: %+v; expected to wait", at, p)
		}
	}
	e.Writer.Beat++
	if p := w.plan(e, t0.Add(3*time.Second)); p.next != nil {
		t.Fatalf("a holder that beat was evicted: %+v", p)
	}
	p := w.plan(e, t0.Add(6*time.Second))
	if !p.entered || p.next.Writer.ID != "me" || !slices.Equal(p.evicted, []string{"a"}) {
		t.Fatalf("%+v; expected the holder to be evicted", p)
	}
	if e.Writer.ID != "a" {
		t.Error("a plan changed the entry that it was made from")
	}
	// Another holder with the same beat is another holder.
	e.Writer = &member{ID: "b", Beat: 8, TTL: 3000}
	if p := w.plan(e, t0.Add(7*time.Second)); p.next != nil || !p.wake.After(t0.Add(7*time.Second)) {
		t.Errorf("%+v; expected to wait for the new holder", p)
	}
	// One that was evicted and came back while nobody looked does not come back
	// with a beat that it had.
	c := newWaiter("c", write, 3*time.Second)
	was, is := c.member(), c.member()
	w.plan(&entry{Name: "n", Readers: []member{{ID: "r", TTL: 60000}}, Next: &was}, t0)
	if p := w.plan(&entry{Name: "n", Writer: &is}, t0.Add(time.Minute)); p.next != nil {
		t.Errorf("%+v; expected to wait for the holder that came back", p)
	}
}

func TestPlans(t *testing.T) {
	m := func(id string) *member { return &member{ID: id, TTL: 60000} }
	for name, c := range map[string]struct {
		mode    mode
		e       entry
		entered bool
		next    string // whose note, "" for none; checked if something is stored
		waits   bool
	}{
		"a writer, free":                    {write, entry{}, true, "", false},
		"a reader, free":                    {read, entry{}, true, "", false},
		"a reader beside readers":           {read, entry{Readers: []member{*m("a")}}, true, "", false},
		"a reader beside a writer":          {read, entry{Writer: m("a")}, false, "", true},
		"a reader, a writer is next":        {read, entry{Readers: []member{*m("a")}, Next: m("b")}, false, "", true},
		"a writer beside a writer":          {write, entry{Writer: m("a")}, false, "", true},
		"a writer beside readers":           {write, entry{Readers: []member{*m("a")}}, false, "me", false},
		"a writer, another is next":         {write, entry{Readers: []member{*m("a")}, Next: m("b")}, false, "", true},
		"a writer, another is next, free":   {write, entry{Next: m("b")}, false, "", true},
		"the next writer, readers are gone": {write, entry{Next: m("me")}, true, "", false},
		"a writer that is in":               {write, entry{Writer: m("me")}, true, "", false},
		"a reader that is in":               {read, entry{Readers: []member{*m("a"), *m("me")}, Next: m("b")}, true, "b", false},
		"a full entry":                      {read, entry{Readers: make([]member, maxReaders)}, false, "", true},
	} {
		for i := range c.e.Readers {
			if c.e.Readers[i].ID == "" {
				c.e.Readers[i] = *m("r" + string(rune(i+1)))
			}
		}
		w := newWaiter("me", c.mode, time.Minute)
		p := w.plan(&c.e, time.Now())
		if p.entered != c.entered || (p.next == nil) != c.waits || p.evicted != nil {
			t.Errorf("%s: %+v", name, p)
			continue
		}
		if p.next == nil {
			continue
		}
		next := ""
		if p.next.Next != nil {
			next = p.next.Next.ID
		}
		if next != c.next || p.next.holds("me") != c.entered {
			t.Errorf("%s: stores %+v, next %q", name, p.next, next)
		}
		if before := c.e.find("me"); before != nil && p.next.find("me").Beat == before.Beat {
			t.Errorf("%s: entered by a beat that others may have seen long ago", name)
		}
	}
}

// TestNoteBeats: who is next beats every third of its TTL, and not more often.
func TestNoteBeats(t *testing.T) {
	t0, w := time.Now(), newWaiter("me", write, 3*time.Second)
	w.noted = t0
	e := &entry{Name: "n", Readers: []member{{ID: "a", TTL: 60000}}}
	e.Next = new(member)
	*e.Next = w.member()
	p := w.plan(e, t0.Add(999*time.Millisecond))
	if p.next != nil || !p.wake.Equal(t0.Add(time.Second)) {
		t.Errorf("%+v; expected to wait until the next beat", p)
	}
	p = w.plan(e, t0.Add(time.Second))
	if p.next == nil || p.entered || p.next.Next.Beat <= e.Next.Beat {
		t.Errorf("%+v; expected a beat of the note", p)
	}
}

// An actor is a process in TestExclusion, with a clock of its own.
type actor struct {
	w       *waiter
	offset  time.Duration
	entry   *entry // as it knows it, with the revision
	rev     int
	holding bool
	sent    time.Time // last beat that was stored
	dead    bool      // writes no more, and does not know
}

func (a *actor) now(t time.Time) time.Time { return t.Add(a.offset) }

// holds is whether the actor's context has not ended.
func (a *actor) holds(t time.Time) bool {
	return a.holding && a.now(t).Before(a.sent.Add(grace(a.w.locks.ttl)))
}

// TestExclusion runs processes with clocks of their own against one entry, in
// any order, some of them dead and some answers lost: while a context has not ended nobody else has
// one that excludes it.
func TestExclusion(t *testing.T) {
	for range 20 { // what goes wrong here is rare
		rapid.Check(t, testExclusion)
	}
}

func testExclusion(t *rapid.T) {
	world, rev, now := &entry{Name: "n"}, 0, time.Now()
	actors := make([]*actor, rapid.IntRange(2, 5).Draw(t, "actors"))
	for i := range actors {
		ttl := time.Duration(rapid.IntRange(4, 20).Draw(t, "ttl")) * 250 * time.Millisecond
		m := mode(rapid.IntRange(0, 1).Draw(t, "mode"))
		actors[i] = &actor{w: newWaiter(string(rune('a'+i)), m, ttl), offset: time.Duration(rapid.IntRange(-1000, 1000).Draw(t, "offset")) * time.Hour}
	}
	store := func(a *actor, e *entry) bool {
		if a.rev != rev || a.dead {
			a.entry = nil
			return false
		}
		rev++
		world, a.entry, a.rev = e.clone(), e, rev
		if rapid.IntRange(0, 9).Draw(t, "answer") == 0 { // lost, and the effect took place
			a.entry = nil
			return false
		}
		return true
	}
	for range rapid.IntRange(1, 200).Draw(t, "steps") {
		now = now.Add(time.Duration(rapid.IntRange(0, 600).Draw(t, "ms")) * time.Millisecond)
		a := actors[rapid.IntRange(0, len(actors)-1).Draw(t, "who")]
		if a.entry == nil || rapid.Bool().Draw(t, "read") {
			a.entry, a.rev = world.clone(), rev
		}
		switch act := rapid.SampledFrom([]string{"go", "go", "go", "go", "unlock", "die", "revive"}).Draw(t, "act"); {
		case act == "die":
			a.dead = true
		case act == "revive":
			a.dead = false
		case a.holding && (act == "unlock" || !a.holds(now)):
			next := a.entry.clone()
			next.remove(a.w.id)
			// The context ends first. What a failed unlock leaves behind is
			// evicted; a new acquisition has a new id.
			store(a, next)
			a.holding, a.w = false, newWaiter(a.w.id+"'", a.w.mode, a.w.locks.ttl)
		case a.holding:
			next := a.entry.clone()
			if m := next.find(a.w.id); m == nil {
				a.holding = false
			} else if *m = a.w.member(); store(a, next) {
				a.sent = a.now(now)
			}
		default:
			p := a.w.plan(a.entry, a.now(now))
			if p.next != nil && store(a, p.next) {
				if p.next.Next != nil && p.next.Next.ID == a.w.id {
					a.w.noted = a.now(now)
				}
				a.holding, a.sent = p.entered, a.now(now)
			}
		}
		writers, readers := 0, 0
		for _, a := range actors {
			if a.holds(now) && a.w.mode == write {
				writers++
			} else if a.holds(now) {
				readers++
			}
		}
		if writers > 1 || writers == 1 && readers > 0 {
			t.Fatalf("%d writers and %d readers hold the name: %+v", writers, readers, world)
		}
	}
}

func TestDecode(t *testing.T) {
	for _, raw := range []string{
		"hello", "[]", "null", "1", `{"name":"other"}`, `{"name":"n","writer":{}}`, `{"name":"n","writer":{"id":"x"}}`,
		`{"name":"n","readers":[{"id":"x","ttl":99999999999}]}`, `{"name":"n","next":{"id":"","ttl":1000}}`, `{"name":"n"`, `{"name":"n","writer":"x"}`,
	} {
		if _, err := decode("test", "n", []byte(raw)); raw != "null" && !fault.Is(err, fault.Denied) {
			t.Errorf("%s: %v, expected denied", raw, err)
		}
	}
	e := entry{Name: "n", Writer: &member{"a", 1, 1000}, Next: &member{"b", 2, 2000}, Readers: []member{{"c", 3, 3000}}}
	b, _ := json.Marshal(e)
	const want = `{"name":"n","writer":{"id":"a","beat":1,"ttl":1000},"next":{"id":"b","beat":2,"ttl":2000},"readers":[{"id":"c","beat":3,"ttl":3000}]}`
	if string(b) != want {
		t.Errorf("stored as %s, expected %s", b, want)
	}
}

func TestKeys(t *testing.T) {
	seen := map[string]string{}
	for _, name := range []string{"secret aws://1/us/a.b", "secret aws://1/us/a=2Eb", "a", "A", "a+b", "a b", "a%20b", "a~b", "ünïcode", "\x00\xff", ".", "..", "_kv", "*", ">", "/", strings.Repeat("x", 2000), strings.Repeat("y", 2000)} {
		k := entryKey(name)
		if other, ok := seen[k]; ok {
			t.Errorf("%q and %q have one key", name, other)
		}
		seen[k] = name
		if len(k) > maxKey || strings.Trim(k, "-/_=abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789") != "" {
			t.Errorf("%q has the key %q, which NATS may refuse", name, k)
		}
	}
}
