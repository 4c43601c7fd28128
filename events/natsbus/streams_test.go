package natsbus

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/testenv"
)

func config(t testing.TB, js jetstream.JetStream, name string) jetstream.StreamConfig {
	t.Helper()
	s, err := js.Stream(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return s.CachedInfo().Config
}

func TestOpenCreates(t *testing.T) {
	srv := testenv.NATS(t)
	var wg sync.WaitGroup
	for range 6 { // replicas that start at once, on an empty server
		nc := srv.Conn(t)
		wg.Go(func() {
			if _, err := Open(context.Background(), nc, nil); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	b := open(t, srv.Conn(t), nil)
	ev := config(t, b.js, EventStream)
	if ev.Storage != jetstream.FileStorage || !ev.AllowDirect || ev.MaxAge != DefaultMaxAge || ev.MaxMsgsPerSubject != DefaultMaxPerSubject || ev.Duplicates != DefaultDuplicates || ev.Discard != jetstream.DiscardOld {
		t.Errorf("events stream %+v", ev)
	}
	if s := config(t, b.js, ScheduleStream); !s.AllowMsgSchedules || !s.AllowMsgTTL || s.MaxMsgsPerSubject != 1 {
		t.Errorf("schedules stream %+v", s)
	}
	if s := config(t, b.js, DeadLetterStream); s.MaxAge == 0 || s.MaxBytes <= 0 {
		t.Errorf("dead letters are unbounded: %+v", s)
	}
}

func TestOpenVerifies(t *testing.T) {
	for what, c := range map[string]struct {
		stream string
		change func(*jetstream.StreamConfig)
		o      Options
		names  []string // in the error; none means that Open accepts it
		fixed  bool     // whether Update can change it
	}{
		"subjects":          {EventStream, func(c *jetstream.StreamConfig) { c.Subjects = []string{"keyturn.v1.x.>"} }, Options{}, []string{EventStream, "subjects", "[keyturn.v1.>]", "[keyturn.v1.x.>]"}, true},
		"no direct get":     {EventStream, func(c *jetstream.StreamConfig) { c.AllowDirect = false }, Options{}, []string{"allow_direct", "expected true, found false", "Options.Update"}, true},
		"window":            {EventStream, func(c *jetstream.StreamConfig) { c.Duplicates = time.Minute }, Options{}, []string{"duplicate_window", "expected 20m0s, found 1m0s"}, true},
		"longer window":     {EventStream, func(c *jetstream.StreamConfig) { c.Duplicates = time.Hour }, Options{}, nil, true},
		"memory":            {EventStream, func(c *jetstream.StreamConfig) { c.Storage = jetstream.MemoryStorage }, Options{}, []string{"storage", "File", "Memory"}, false},
		"two":               {EventStream, func(c *jetstream.StreamConfig) { c.AllowDirect, c.Discard = false, jetstream.DiscardNew }, Options{}, []string{"allow_direct", "discard"}, true},
		"operator's limits": {EventStream, func(c *jetstream.StreamConfig) { c.MaxAge, c.MaxMsgsPerSubject = 48*time.Hour, 10 }, Options{}, nil, true},
		"asked limits":      {EventStream, func(c *jetstream.StreamConfig) { c.MaxMsgsPerSubject = 10 }, Options{MaxPerSubject: 20, MaxAge: time.Hour}, []string{"max_msgs_per_subject", "expected 20, found 10", "max_age"}, true},
		"no schedules":      {ScheduleStream, func(c *jetstream.StreamConfig) { c.AllowMsgSchedules = false }, Options{}, []string{ScheduleStream, "allow_msg_schedules"}, true},
		"many due":          {ScheduleStream, func(c *jetstream.StreamConfig) { c.MaxMsgsPerSubject = 5 }, Options{}, []string{"max_msgs_per_subject"}, true},
		"dead letters":      {DeadLetterStream, func(c *jetstream.StreamConfig) { c.Subjects = []string{"dead.>"} }, Options{}, []string{DeadLetterStream, "subjects"}, true},
	} {
		t.Run(what, func(t *testing.T) {
			srv := testenv.NATS(t)
			nc := srv.Conn(t)
			js, err := jetstream.New(nc)
			if err != nil {
				t.Fatal(err)
			}
			for _, s := range streams((&Options{}).withDefaults()) {
				if s.Name == c.stream {
					c.change(&s)
					if _, err := js.CreateStream(t.Context(), s); err != nil {
						t.Fatal(err)
					}
				}
			}
			_, err = Open(t.Context(), nc, &c.o)
			if len(c.names) == 0 {
				if err != nil {
					t.Errorf("%v; expected it to be accepted", err)
				}
				return
			}
			if !fault.Is(err, fault.Conflict) {
				t.Fatalf("%v; expected an error of kind conflict", err)
			}
			for _, n := range c.names {
				if !strings.Contains(err.Error(), n) {
					t.Errorf("%q does not say %q", err, n)
				}
			}
			c.o.Update = true
			_, err = Open(t.Context(), nc, &c.o)
			if !c.fixed {
				if !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), "delete it") {
					t.Errorf("%v; expected a conflict and what to do", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			c.o.Update = false
			if _, err = Open(t.Context(), nc, &c.o); err != nil {
				t.Errorf("after the update: %v", err)
			}
		})
	}
}

func TestOpenWithoutJetStream(t *testing.T) {
	srv, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: -1, NoSigs: true, NoLog: true})
	if err != nil {
		t.Fatal(err)
	}
	srv.Start()
	defer func() { srv.Shutdown(); srv.WaitForShutdown() }()
	if !srv.ReadyForConnections(limit) {
		t.Fatal("the server did not start")
	}
	nc, err := nats.Connect(srv.ClientURL())
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	if _, err := Open(t.Context(), nc, nil); !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "-js") {
		t.Errorf("%v; expected unavailable and what to do", err)
	}
}
