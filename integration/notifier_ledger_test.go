package integration_test

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/events/natsbus"
	"github.com/keyturn/keyturn/internal/testenv"
)

// A ledger holds what must be stored at the end, and what may be: the ids are
// those that the decoders give to the notices which were sent.
type ledger struct {
	t  *testing.T
	mu sync.Mutex
	// required were promised by an acknowledgement, or will be delivered until
	// they are. allowed were sent where nothing was promised.
	required, allowed map[string]string
}

func newLedger(t *testing.T) *ledger {
	return &ledger{t: t, required: map[string]string{}, allowed: map[string]string{}}
}

func (l *ledger) require(es []events.Event) { l.note(l.required, es) }
func (l *ledger) allow(es []events.Event)   { l.note(l.allowed, es) }

func (l *ledger) note(to map[string]string, es []events.Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range es {
		to[e.ID] = fmt.Sprintf("%s of %s version %s", e.Type, e.Data.Ref, e.Data.Version)
	}
}

func (l *ledger) size() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.required)
}

// decoded is what a decoder says of a notice of ours, which it must understand.
func decoded(t testing.TB, es []events.Event, err error) []events.Event {
	t.Helper()
	must(t, err)
	if len(es) == 0 {
		t.Fatal("a notice of this test means no event")
	}
	return es
}

// A held message is one in a stream.
type held struct {
	id, subject string
	seq         uint64
	e           events.Event
}

// holdings reads a whole stream.
func holdings(t *testing.T, js jetstream.JetStream, stream string) (out []held) {
	t.Helper()
	var err error
	patiently(t, "stream "+stream+" to be read", &err, func() bool {
		out, err = read(t, js, stream)
		return err == nil
	})
	return out
}

// patiently tries again what fails while a cluster elects.
func patiently(t *testing.T, what string, err *error, try func() bool) {
	t.Helper()
	for deadline := time.Now().Add(limit); !try(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("within %s: expected %s: %v", limit, what, *err)
		}
	}
}

func read(t *testing.T, js jetstream.JetStream, stream string) (out []held, err error) {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	s, err := js.Stream(ctx, stream)
	if err != nil {
		return nil, err
	}
	st := s.CachedInfo().State
	if st.Msgs == 0 {
		return nil, nil
	}
	c, err := s.OrderedConsumer(ctx, jetstream.OrderedConsumerConfig{})
	if err != nil {
		return nil, err
	}
	for {
		batch, err := c.Fetch(500, jetstream.FetchMaxWait(10*time.Second))
		if err != nil {
			return nil, err
		}
		got := len(out)
		for m := range batch.Messages() {
			md, err := m.Metadata()
			if err != nil {
				return nil, err
			}
			h := held{id: m.Headers().Get("ce-id"), subject: m.Subject(), seq: md.Sequence.Stream}
			must(t, json.Unmarshal(m.Data(), &h.e.Data))
			h.e.Type = events.Type(m.Headers().Get("ce-type"))
			if h.e.Time, err = time.Parse(time.RFC3339Nano, m.Headers().Get("ce-time")); err != nil {
				t.Errorf("event %d of %s: %v", h.seq, stream, err)
			}
			out = append(out, h)
			if h.seq >= st.LastSeq {
				return out, nil
			}
		}
		if err := batch.Error(); err != nil {
			return nil, err
		}
		if len(out) == got {
			return nil, fmt.Errorf("%d messages came of those up to %d", got, st.LastSeq)
		}
	}
}

// messages is how many a stream has.
func messages(t *testing.T, js jetstream.JetStream, stream string) (n int) {
	t.Helper()
	var err error
	patiently(t, "the state of stream "+stream, &err, func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		var s jetstream.Stream
		if s, err = js.Stream(ctx, stream); err == nil {
			n = int(s.CachedInfo().State.Msgs)
		}
		return err == nil
	})
	return n
}

// settle waits until everything that is required is stored.
func (l *ledger) settle(js jetstream.JetStream) {
	l.t.Helper()
	var missing []string
	deadline := time.Now().Add(limit)
	for {
		if messages(l.t, js, natsbus.EventStream)+messages(l.t, js, natsbus.LateStream) >= l.size() || time.Now().After(deadline) {
			if missing = l.missing(js); len(missing) == 0 {
				return
			}
		}
		if time.Now().After(deadline) {
			l.t.Fatalf("%d of %d events are lost:\n%s", len(missing), l.size(), strings.Join(missing[:min(len(missing), 30)], "\n"))
		}
		time.Sleep(200 * time.Millisecond) // reading all of it costs something
	}
}

func (l *ledger) missing(js jetstream.JetStream) (out []string) {
	there := map[string]bool{}
	for _, stream := range []string{natsbus.EventStream, natsbus.LateStream} {
		for _, h := range holdings(l.t, js, stream) {
			there[h.id] = true
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for id, what := range l.required {
		if !there[id] {
			out = append(out, what)
		}
	}
	return out
}

// check reads what is stored: each event that must be there is, once, and no
// other; nothing is a dead letter; the last of each subject is the newest.
func (l *ledger) check(js jetstream.JetStream) {
	t := l.t
	t.Helper()
	if n := messages(t, js, natsbus.DeadLetterStream); n != 0 {
		t.Errorf("%d dead letters; want none", n)
	}
	news, late := holdings(t, js, natsbus.EventStream), holdings(t, js, natsbus.LateStream)
	at := map[string]string{}
	newest := map[string]held{}
	l.mu.Lock()
	for stream, all := range map[string][]held{natsbus.EventStream: news, natsbus.LateStream: late} {
		for _, h := range all {
			here := fmt.Sprintf("%s %d", stream, h.seq)
			if other, twice := at[h.id]; twice {
				t.Errorf("the %s of %s version %s is stored twice: %s and %s", h.e.Type, h.e.Data.Ref, h.e.Data.Version, other, here)
			}
			at[h.id] = here
			_, must := l.required[h.id]
			_, may := l.allowed[h.id]
			if !must && !may {
				t.Errorf("%s holds an event that nobody told of: %s of %s version %s", here, h.e.Type, h.e.Data.Ref, h.e.Data.Version)
			}
			key := string(h.e.Type) + h.e.Data.Ref.String()
			if n, ok := newest[key]; !ok || newer(h, n) {
				newest[key] = h
			}
		}
	}
	lost := 0
	for id, what := range l.required {
		if at[id] == "" {
			if lost++; lost < 10 {
				t.Errorf("lost: %s", what)
			}
		}
	}
	l.mu.Unlock()
	last := map[string]held{}
	for _, h := range news {
		last[string(h.e.Type)+h.e.Data.Ref.String()] = h
	}
	for key, n := range newest {
		if h := last[key]; h.id != n.id && newer(n, h) {
			t.Errorf("%s ends with version %s of %s; want %s of %s", h.subject, h.e.Data.Version, h.e.Time, n.e.Data.Version, n.e.Time)
		}
	}
	t.Logf("%d events required and %d allowed; %d stored as news and %d as late, on %d subjects; %d lost",
		len(l.required), len(l.allowed), len(news), len(late), len(last), lost)
}

// newer reports that a is certainly newer than b: by a version that counts, or
// by more time than clocks may differ by.
func newer(a, b held) bool {
	x, errX := strconv.Atoi(a.e.Data.Version)
	y, errY := strconv.Atoi(b.e.Data.Version)
	if errX == nil && errY == nil {
		return x > y
	}
	return a.e.Time.After(b.e.Time.Add(natsbus.DefaultSkew))
}

// connectTo is a connection of the test's own.
func connectTo(t *testing.T, url string) (*nats.Conn, jetstream.JetStream) {
	t.Helper()
	var nc *nats.Conn
	testenv.Eventually(t, limit, "a connection to NATS", func() (ok bool) {
		var err error
		nc, err = nats.Connect(url, nats.MaxReconnects(-1), nats.ReconnectWait(100*time.Millisecond))
		return err == nil
	})
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	must(t, err)
	return nc, js
}
