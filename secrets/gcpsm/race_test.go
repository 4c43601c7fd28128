package gcpsm_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/secrets"
	"github.com/keyturn/keyturn/secrets/gcpsm"
)

// stall is a process that stands still right before it adds a version to the
// main secret, past every deadline, and then sends it after all.
type stall struct {
	once    sync.Once
	reached chan struct{}
	release chan struct{}
}

func newStall() *stall {
	return &stall{reached: make(chan struct{}), release: make(chan struct{})}
}

func (s *stall) intercept(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	if p, ok := req.(interface{ GetParent() string }); ok && method[len(method)-16:] == "AddSecretVersion" && p.GetParent() == mainName {
		s.once.Do(func() {
			close(s.reached)
			<-s.release
			ctx = context.WithoutCancel(ctx)
		})
	}
	return invoke(ctx, method, req, reply, cc, opts...)
}

// TestStalledWriter shows what remains without a lock: a process that stands
// still between its clock and the wire, for longer than others wait for its
// claim, makes a superseded value current.
func TestStalledWriter(t *testing.T) {
	fake, _ := setup(t, nil, "v1")
	opts := &gcpsm.Options{Timeout: 500 * time.Millisecond}
	st := newStall()
	stalled, other := gcpsm.New(fake.Clients(t, st.intercept), opts), gcpsm.New(fake.Clients(t), &gcpsm.Options{Timeout: opts.Timeout})
	if _, err := stalled.PutPending(t.Context(), db, "one", secrets.NewString("v2")); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = stalled.Promote(t.Context(), db, "one")
	}()
	<-st.reached
	// The other waits for the claim to end, and goes on.
	if _, err := other.Promote(t.Context(), db, "one"); err != nil {
		t.Fatal(err)
	}
	rotate(t, other, db, "two", "v3")
	wantValue(t, other, secrets.Current, "v3")
	close(st.release)
	<-done
	if got, _ := fake.Newest(mainName); got != "v2" {
		t.Errorf("plain readers get %q; this test shows that it is the superseded v2, and the package comment says so", got)
	}
}

// TestStalledWriterWithLocker: with a lock the others wait for the one that
// stands still, as long as they like, and nothing goes backwards.
func TestStalledWriterWithLocker(t *testing.T) {
	fake, _ := setup(t, nil, "v1")
	l := &locker{}
	opts := &gcpsm.Options{Timeout: 500 * time.Millisecond, Locker: l}
	st := newStall()
	stalled, other := gcpsm.New(fake.Clients(t, st.intercept), opts), gcpsm.New(fake.Clients(t), opts)
	if _, err := stalled.PutPending(t.Context(), db, "one", secrets.NewString("v2")); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = stalled.Promote(t.Context(), db, "one")
	}()
	<-st.reached
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	_, err := other.Promote(ctx, db, "one")
	wantKind(t, err, fault.Unavailable)
	close(st.release)
	<-done
	if _, err := other.Promote(t.Context(), db, "one"); err != nil {
		t.Fatal(err)
	}
	rotate(t, other, db, "two", "v3")
	wantValue(t, other, secrets.Current, "v3")
	wantValue(t, other, secrets.Previous, "v2")
	if n := len(fake.Versions(mainName)); n != 3 {
		t.Errorf("there are %d versions; expected 3", n)
	}
}

// TestWrittenByHand shows the other race: a version that somebody adds between
// the look and the addition is superseded unseen. One that was there before
// the look is superseded too, and is then the previous one.
func TestWrittenByHand(t *testing.T) {
	fake, _ := setup(t, nil, "v1")
	once := sync.Once{}
	s := gcpsm.New(fake.Clients(t, func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
		if p, ok := req.(interface{ GetParent() string }); ok && method[len(method)-16:] == "AddSecretVersion" && p.GetParent() == mainName {
			once.Do(func() { fake.Add(mainName, "by hand") })
		}
		return invoke(ctx, method, req, reply, cc, opts...)
	}), nil)
	rotate(t, s, db, "one", "v2")
	wantValue(t, s, secrets.Current, "v2")
	wantValue(t, s, secrets.Previous, "v1")
	if n := len(fake.Versions(mainName)); n != 3 {
		t.Errorf("there are %d versions; expected 3", n)
	}

	if _, err := s.PutPending(t.Context(), db, "two", secrets.NewString("v3")); err != nil {
		t.Fatal(err)
	}
	fake.Add(mainName, "by hand again")
	if _, err := s.Promote(t.Context(), db, "two"); err != nil {
		t.Fatal(err)
	}
	wantValue(t, s, secrets.Current, "v3")
	wantValue(t, s, secrets.Previous, "by hand again")
}

// TestRefusedAddition: who is refused takes its claim back, so that the next
// need not wait for it.
func TestRefusedAddition(t *testing.T) {
	fake, s := setup(t, &gcpsm.Options{Timeout: time.Hour}, "v1")
	if _, err := s.PutPending(t.Context(), db, "one", secrets.NewString("v2")); err != nil {
		t.Fatal(err)
	}
	fake.FailNext("AddSecretVersion", status.Error(codes.PermissionDenied, "no"))
	_, err := s.Promote(t.Context(), db, "one")
	wantKind(t, err, fault.Denied)
	if c := fake.Secret(mainName).GetAnnotations()["keyturn-claim"]; c != "" {
		t.Errorf("the claim %s is still there", c)
	}
	if _, err := s.Promote(t.Context(), db, "one"); err != nil {
		t.Fatal(err)
	}
	wantValue(t, s, secrets.Current, "v2")
}

// TestClaimOutlastsCaller: who cannot wait for a claim says so.
func TestClaimOutlastsCaller(t *testing.T) {
	fake, s := setup(t, &gcpsm.Options{Timeout: time.Hour}, "v1")
	if _, err := s.PutPending(t.Context(), db, "one", secrets.NewString("v2")); err != nil {
		t.Fatal(err)
	}
	fake.FailNext("AddSecretVersion", status.Error(codes.Unavailable, "cut"))
	_, err := s.Promote(t.Context(), db, "one")
	wantKind(t, err, fault.Unavailable)
	if n := len(fake.Calls("AddSecretVersion")); n != 2 {
		t.Errorf("a version was added in %d calls; expected one for each secret, never repeated", n)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err = s.Promote(ctx, db, "one")
	wantKind(t, err, fault.Unavailable, "somebody claimed", db.String())
	// So must who holds a lock, which the holder of the claim did not.
	locked := gcpsm.New(fake.Clients(t), &gcpsm.Options{Timeout: time.Hour, Locker: &locker{}})
	ctx, cancel = context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err = locked.Promote(ctx, db, "one")
	wantKind(t, err, fault.Unavailable, "somebody claimed", db.String())
	if got, _ := fake.Newest(mainName); got != "v1" {
		t.Errorf("plain readers get %q", got)
	}
}

// TestClaimUnderLocker: a claim that was made under the lock has ended for
// whoever holds the lock now, and for nobody else.
func TestClaimUnderLocker(t *testing.T) {
	fake, s := setup(t, &gcpsm.Options{Timeout: time.Hour, Locker: &locker{}}, "v1")
	if _, err := s.PutPending(t.Context(), db, "one", secrets.NewString("v2")); err != nil {
		t.Fatal(err)
	}
	fake.FailNext("AddSecretVersion", status.Error(codes.Unavailable, "cut"))
	_, err := s.Promote(t.Context(), db, "one")
	wantKind(t, err, fault.Unavailable)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err = gcpsm.New(fake.Clients(t), &gcpsm.Options{Timeout: time.Hour}).Promote(ctx, db, "one")
	wantKind(t, err, fault.Unavailable, "somebody claimed", db.String())
	if _, err := s.Promote(t.Context(), db, "one"); err != nil {
		t.Fatal(err)
	}
	if got, _ := fake.Newest(mainName); got != "v2" {
		t.Errorf("plain readers get %q", got)
	}
}

// TestFunctionBesideCommand: a process without a lock, as a function is, stands
// still right before it adds its version. A command, which has one, waits for
// its claim nonetheless, so that the superseded value does not come back.
func TestFunctionBesideCommand(t *testing.T) {
	for name, l := range map[string]secrets.Locker{"command": &locker{}, "twin function": nil} {
		t.Run(name, func(t *testing.T) {
			fake, _ := setup(t, nil, "v1")
			const timeout = time.Second
			other := gcpsm.New(fake.Clients(t), &gcpsm.Options{Timeout: timeout, Locker: l})
			adds := 0
			function := gcpsm.New(fake.Clients(t, on("AddSecretVersion", func(context.Context) {
				if adds++; adds != 2 { // the first is the sibling's
					return
				}
				if _, err := other.Promote(t.Context(), db, "one"); err != nil {
					t.Errorf("promote beside a claim: %v", err)
				}
				rotate(t, other, db, "two", "v3")
			})), &gcpsm.Options{Timeout: timeout})
			if _, err := function.PutPending(t.Context(), db, "one", secrets.NewString("v2")); err != nil {
				t.Fatal(err)
			}
			// Its deadline has passed while the other waited, or the other was
			// there first: either way it adds nothing.
			_, _ = function.Promote(t.Context(), db, "one")
			if got, _ := fake.Newest(mainName); got != "v3" {
				t.Errorf("plain readers get %q; expected v3, which was promoted last", got)
			}
			if n := len(fake.Versions(mainName)); n != 3 {
				t.Errorf("there are %d versions; expected 3", n)
			}
		})
	}
}

// TestEmptySecret: a secret that somebody made without a version can be
// rotated, and created once.
func TestEmptySecret(t *testing.T) {
	_, s := setup(t, nil)
	_, err := s.Get(t.Context(), db, secrets.Current)
	wantKind(t, err, fault.NotFound)
	if _, err := s.CreateSecret(t.Context(), db, secrets.NewString("v1")); err != nil {
		t.Fatal(err)
	}
	_, err = s.CreateSecret(t.Context(), db, secrets.NewString("v2"))
	wantKind(t, err, fault.Conflict)
	wantValue(t, s, secrets.Current, "v1")
}

// TestFirstRotation: that of a secret without a version supersedes nothing.
func TestFirstRotation(t *testing.T) {
	fake, s := setup(t, nil)
	rotate(t, s, db, "one", "v1")
	wantValue(t, s, secrets.Current, "v1")
	if a := fake.Secret(mainName).GetVersionAliases(); len(a) != 1 || a["current"] != 1 {
		t.Errorf("the aliases are %v; expected current only", a)
	}
}
