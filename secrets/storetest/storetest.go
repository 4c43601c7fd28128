// Package storetest is the one suite for [secrets.Store]: conformance to
// every sentence of its contract, concurrency, a crash at every outward call,
// and a search of everything printable for secret values. What a store may be
// able to do besides is tested where it is, and named in the log. A store that
// passes needs no tests of its own for what the contracts say.
package storetest

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"testing"
	"time"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/crashtest"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/secrets"
)

// A Backend is the service behind the stores under test.
type Backend interface {
	// Open returns a store as a process has it that was started just now.
	// Every outward call of it passes in, which may be nil. Open is called
	// repeatedly on one backend, and the stores are used side by side: they
	// are several processes.
	Open(t *testing.T, in *crashtest.Injector) secrets.Store
	// Create makes a fresh secret whose current value is v.
	Create(t *testing.T, v secrets.Value) ref.Ref
	// Begin does what the store's own service does when it opens a rotation;
	// nothing where there is no such thing.
	Begin(t *testing.T, r ref.Ref, token string)
}

// Logged is a [Backend] whose stores log somewhere. Logs returns all that
// they logged, and the suite searches it for values.
type Logged interface {
	Logs() string
}

// Run runs the whole suite and prints the number of crash points and what the
// store is able to do besides. Each part gets a backend of its own, each test a
// secret of its own.
func Run(t *testing.T, newBackend func(t *testing.T) Backend) {
	t.Helper()
	can := probe(t, newBackend(t))
	for _, part := range []struct {
		name    string
		applies bool
		run     func(t *testing.T, b Backend, can abilities)
	}{
		{"conformance", true, conformance},
		{"creator", can.create, creator},
		{"succession", can.succeed, succession},
		{"retire", can.disable, retire},
		{"tags", can.tag, tagger},
		{"concurrency", true, concurrency},
		{"crash", true, crash},
		{"leak", true, leak},
	} {
		if part.applies {
			t.Run(part.name, func(t *testing.T) { part.run(t, newBackend(t), can) })
		}
	}
}

// maxValue is the longest value that every store takes: 64 KiB, the limit of
// AWS Secrets Manager.
const maxValue = 64 << 10

// token returns a fresh rotation token: a version 4 UUID, which is within the
// 32 to 64 characters that AWS wants.
func token() string {
	var b [16]byte
	_, _ = rand.Read(b[:])
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[0:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// value returns a fresh value.
func value() secrets.Value { return secrets.NewString("value-" + token()) }

// tctx bounds one test, so that a store that hangs fails instead.
func tctx(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// wantKind fails t unless err is of one of the kinds.
func wantKind(t *testing.T, what string, err error, kinds ...fault.Kind) {
	t.Helper()
	for _, k := range kinds {
		if fault.Is(err, k) {
			return
		}
	}
	t.Errorf("%s: error is %q of kind %s, expected kind %v", what, errText(err), fault.KindOf(err), kinds)
}

func errText(err error) string {
	if err == nil {
		return "<nil>"
	}
	return err.Error()
}

// must returns v and fails t at once on an error.
func must[T any](t *testing.T, what string) func(v T, err error) T {
	t.Helper()
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		return v
	}
}

// wantVersion fails t unless v is token's and holds want.
func wantVersion(t *testing.T, what string, v *secrets.Version, tok string, want secrets.Value) {
	t.Helper()
	switch {
	case v == nil:
		t.Errorf("%s: the version is nil without an error", what)
	case v.ID == "":
		t.Errorf("%s: the version has no id", what)
	case tok != "" && v.Token != tok:
		t.Errorf("%s: the version's token is %q, expected %q", what, v.Token, tok)
	case !v.Value.Equal(want):
		t.Errorf("%s: the version holds another value (%d bytes), expected %d bytes", what, v.Value.Len(), want.Len())
	}
}

// stages is what a secret should look like. The zero Value means that the
// stage is held by nobody.
type stages struct {
	currentToken, pendingToken string // not checked when empty
	begun                      string // may be described as pending without a value
	current, pending, previous secrets.Value
	standing                   standing // of previous
}

// A standing is what became of a superseded version.
type standing int

const (
	untouched standing = iota
	disabled           // previous holds its stage, but cannot be read
	held               // it was enabled again
)

// wantStages fails t unless Get and Describe of s both tell w.
func wantStages(ctx context.Context, t *testing.T, s secrets.Store, r ref.Ref, w stages) {
	t.Helper()
	d, err := s.Describe(ctx, r)
	if err != nil {
		t.Fatalf("describe: %v", err)
	}
	if d.Ref != r {
		t.Errorf("the description's ref is %s, expected %s", d.Ref, r)
	}
	holders := map[secrets.Stage]int{}
	for _, v := range d.Versions {
		if len(v.Stages) == 0 {
			t.Errorf("version %s is described without holding a stage", v.ID)
		}
		current := false
		for _, st := range v.Stages {
			holders[st]++
			current = current || st == secrets.Current
		}
		if current == v.Activated.IsZero() {
			t.Errorf("version %s holds %v and is described as activated at %s; expected a time for current and none for the others", v.ID, v.Stages, v.Activated)
		}
	}
	for st, n := range holders {
		if n > 1 {
			t.Errorf("%d versions hold %s, expected at most one", n, st)
		}
	}
	for _, c := range []struct {
		stage secrets.Stage
		token string
		want  secrets.Value
	}{
		{secrets.Current, w.currentToken, w.current},
		{secrets.Pending, w.pendingToken, w.pending},
		{secrets.Previous, "", w.previous},
	} {
		v, err := s.Get(ctx, r, c.stage)
		h := d.Holder(c.stage)
		st := untouched
		if c.stage == secrets.Previous {
			st = w.standing
		}
		if h != nil && (h.Disabled != (st == disabled) || h.Held != (st == held)) {
			t.Errorf("version %s, which holds %s, is described with disabled %t and held %t, expected %t and %t", h.ID, c.stage, h.Disabled, h.Held, st == disabled, st == held)
		}
		if st == disabled {
			wantKind(t, "get previous, which is disabled", err, fault.NotFound)
			if h == nil {
				t.Error("nobody is described as previous, expected the disabled version")
			}
			continue
		}
		if c.want.IsZero() {
			wantKind(t, "get "+string(c.stage)+", which nobody holds", err, fault.NotFound)
			// A service may leave the pending label on the version that it
			// promoted; that is not a pending version.
			if h != nil && (c.stage != secrets.Pending || d.Holder(secrets.Current) == nil || h.ID != d.Holder(secrets.Current).ID) &&
				(c.stage != secrets.Pending || h.Token != w.begun) {
				t.Errorf("version %s is described as %s, expected nobody", h.ID, c.stage)
			}
			continue
		}
		if err != nil {
			t.Errorf("get %s: %v", c.stage, err)
			continue
		}
		wantVersion(t, "get "+string(c.stage), v, c.token, c.want)
		switch {
		case h == nil:
			t.Errorf("nobody is described as %s, expected version %s", c.stage, v.ID)
		case h.ID != v.ID || h.Token != v.Token:
			t.Errorf("%s is version %q of rotation %q when read, and %q of %q when described", c.stage, v.ID, v.Token, h.ID, h.Token)
		}
	}
}

// binary returns n bytes of every value, zero and broken UTF-8 among them.
func binary(n int) secrets.Value {
	b := bytes.Repeat([]byte{0, 0xff, 0xc3, 0x28, '\n', '"', '\\', 0x7f}, n/8+1)[:n]
	for i := range min(n, 256) {
		b[n-1-i] = byte(i)
	}
	return secrets.NewValue(b)
}
