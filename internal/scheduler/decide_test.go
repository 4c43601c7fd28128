package scheduler_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/secretsmanager"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/events/natsbus"
	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/awsfake"
	"github.com/keyturn/keyturn/internal/scheduler"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/rotators"
	"github.com/keyturn/keyturn/secrets"
	"github.com/keyturn/keyturn/secrets/awssm"
	"github.com/keyturn/keyturn/secrets/memstore"
)

// A year of a schedule passes in a moment here: the clock is the test's, the
// bus keeps what was put off, and the runner counts.
type year struct {
	*testing.T
	s       *scheduler.Scheduler
	now     time.Time
	later   time.Time // what was put off, zero if nothing
	payload []byte
	reasons []string // of rotation.failed
	runs    int
	err     error // of each rotation
}

func (y *year) Publish(_ context.Context, es ...events.Event) error {
	for _, e := range es {
		y.reasons = append(y.reasons, e.Data.Reason)
	}
	return nil
}

func (y *year) ScheduleFor(_ context.Context, _, _ string, s natsbus.Spec, payload []byte) error {
	y.later, y.payload = s.At, payload
	return nil
}

func (y *year) Fire(context.Context, string, string, []byte) error { return nil }
func (y *year) Due(context.Context, string) (bool, error)          { return false, nil }
func (y *year) Scheduled(context.Context, string) (bool, error)    { return false, nil }
func (y *year) Sweep(context.Context, ref.Ref) (rotators.Retirement, error) {
	return rotators.Retirement{}, nil
}

func (y *year) Rotate(context.Context, ref.Ref, string) (rotators.Result, error) {
	y.runs++
	return rotators.Result{}, y.err
}

func (y *year) Lock(ctx context.Context, _ string) (context.Context, func(), error) {
	return ctx, func() {}, nil
}

func (y *year) RLock(ctx context.Context, _ string) (context.Context, func(), error) {
	return ctx, func() {}, nil
}

func newYear(t *testing.T, jobs ...*scheduler.Job) *year {
	t.Helper()
	y := &year{T: t, now: time.Date(2027, 3, 1, 2, 0, 0, 0, time.UTC)}
	for _, j := range jobs {
		_, st, _ := j.Open(t.Context())
		j.Open = opens(y, st)
	}
	var err error
	if y.s, err = scheduler.New(y, y, "own", jobs, &scheduler.Options{Now: func() time.Time { return y.now }}); err != nil {
		t.Fatal(err)
	}
	return y
}

// fire is a firing of r's schedule, now.
func (y *year) fire(r ref.Ref) error {
	return y.s.Fire(y.Context(), natsbus.Firing{Name: r.String(), ID: y.now.String(), At: y.now, Payload: []byte("own")})
}

// follow fires what was put off, one after the other, and reports whether
// something was.
func (y *year) follow(r ref.Ref) bool {
	y.Helper()
	if y.later.IsZero() {
		return false
	}
	y.now, y.later = y.later, time.Time{}
	if err := y.s.Fire(y.Context(), natsbus.Firing{Name: r.String(), ID: "later", At: y.now, Payload: y.payload}); err != nil {
		y.Fatal(err)
	}
	return true
}

func kept(t *testing.T, refs ...ref.Ref) *memstore.Store {
	t.Helper()
	st := memstore.New()
	for _, r := range refs {
		if _, err := st.CreateSecret(t.Context(), r, secrets.NewString("v0")); err != nil {
			t.Fatal(err)
		}
	}
	return st
}

// Jitter that is longer than a window spreads within it, and never beyond.
func TestJitterWithinTheWindow(t *testing.T) {
	cal, err := scheduler.ParseCalendar([]string{"02:00-04:00"}, nil, time.UTC)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a", "b", "c", "d", "e", "f", "g", "h"} {
		r := id(name)
		y := newYear(t, &scheduler.Job{Ref: r, Calendar: cal, Jitter: 6 * time.Hour, Open: opens(nil, kept(t, r))})
		if err := y.fire(r); err != nil {
			t.Fatal(err)
		}
		for range 5 {
			if y.runs > 0 || !y.follow(r) {
				break
			}
		}
		if y.runs != 1 || !cal.Allows(y.now) || y.now.Sub(time.Date(2027, 3, 1, 2, 0, 0, 0, time.UTC)) > 27*time.Hour {
			t.Errorf("%s: %d rotations, at %s", name, y.runs, y.now)
		}
	}
}

// A newer firing takes the place of one that waits for a master; the wait
// ends all the same.
func TestOrderWaitEnds(t *testing.T) {
	master, child := id("m"), id("a")
	st := kept(t, master, child)
	if _, err := st.PutPending(t.Context(), master, "stuck", secrets.NewString("w")); err != nil {
		t.Fatal(err)
	}
	y := newYear(t, &scheduler.Job{Ref: master, Open: opens(nil, st)}, &scheduler.Job{Ref: child, After: []ref.Ref{master}, Open: opens(nil, st)})
	begin := y.now
	for y.runs == 0 && y.now.Sub(begin) < 5*time.Hour {
		_ = y.fire(child)
		y.now = y.now.Add(10 * time.Minute)
	}
	if waited := y.now.Sub(begin); y.runs != 1 || waited < time.Hour || waited > 2*time.Hour {
		t.Errorf("%d rotations after %s; want one after an hour", y.runs, waited)
	}
}

func TestForeignSweep(t *testing.T) {
	y := newYear(t)
	if err := y.s.Fire(t.Context(), natsbus.Firing{Name: "sweep other", ID: "x"}); !fault.Is(err, fault.Unavailable) {
		t.Errorf("%v; want that it is given back", err)
	}
	if err := y.s.Fire(t.Context(), natsbus.Firing{Name: "sweep own", ID: "x"}); err != nil {
		t.Error(err)
	}
}

// A rotation that is half-way is never given up; that it fails is said once.
func TestHalfWayIsNotGivenUp(t *testing.T) {
	r := id("one")
	st := kept(t, r)
	if _, err := st.PutPending(t.Context(), r, "half", secrets.NewString("set at the target already")); err != nil {
		t.Fatal(err)
	}
	y := newYear(t, &scheduler.Job{Ref: r, Open: opens(nil, st)})
	y.err = fault.New(fault.Unavailable, "promote", errors.New("store away"))
	if err := y.fire(r); err != nil {
		t.Fatal(err)
	}
	for range 50 {
		if !y.follow(r) {
			t.Fatalf("given up after %d attempts", y.runs)
		}
	}
	if len(y.reasons) != 1 || y.reasons[0] != "half-way, and failed 8 times: unavailable" {
		t.Errorf("told %q", y.reasons)
	}
	y.err = nil // and the store is back
	y.follow(r)
	if y.follow(r) {
		t.Error("tried again after success")
	}
}

// Where the store tells when current became so only later than the truth, a
// trigger that was put off is not taken for done.
func TestPutOffOnAWS(t *testing.T) {
	f := awsfake.New(t)
	f.Create("x", "old")
	r := f.Ref("x")
	st := awssm.New(f.SecretsManager(func(o *secretsmanager.Options) { o.RetryMaxAttempts = 1 }), nil)
	y := newYear(t, &scheduler.Job{Ref: r, Open: opens(nil, st)})
	y.now = time.Now().Add(time.Second)
	y.err = fault.New(fault.Unavailable, "set", errors.New("away"))
	if err := y.fire(r); err != nil {
		t.Fatal(err)
	}
	time.Sleep(2 * time.Second)
	f.SetTags("x", map[string]string{"cost": "1"}) // moves LastChangedDate
	y.err = nil
	if !y.follow(r) || y.runs != 2 {
		t.Errorf("%d rotations begun; want the second attempt", y.runs)
	}
	// One that another trigger's rotation has served is.
	y.err = fault.New(fault.Unavailable, "set", errors.New("away"))
	if err := y.fire(r); err != nil {
		t.Fatal(err)
	}
	token := awsfake.Token()
	if _, err := st.PutPending(t.Context(), r, token, secrets.NewString("rotated by another")); err != nil {
		t.Fatal(err)
	}
	if _, err := st.Promote(t.Context(), r, token); err != nil {
		t.Fatal(err)
	}
	runs := y.runs
	if !y.follow(r) || y.runs != runs {
		t.Errorf("%d more rotations after another trigger's", y.runs-runs)
	}
}
