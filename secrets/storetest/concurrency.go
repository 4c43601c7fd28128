package storetest

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/secrets"
)

const (
	twins  = 8 // callers at once
	rounds = 6 // how often a race is run
)

func concurrency(t *testing.T, b Backend, can abilities) {
	t.Run("twins store one pending version", func(t *testing.T) { testTwins(tctx(t), t, b) })
	t.Run("rivals have one winner", func(t *testing.T) { testRivals(tctx(t), t, b) })
	t.Run("readers see old or new", func(t *testing.T) { testReaders(tctx(t), t, b) })
	if can.create {
		t.Run("create has one winner", func(t *testing.T) { testCreators(tctx(t), t, b) })
	}
	if can.disable {
		t.Run("disable beside promote", func(t *testing.T) { testDisableRace(tctx(t), t, b) })
		t.Run("enable beside destroy", func(t *testing.T) { testDestroyRace(tctx(t), t, b) })
		t.Run("enable beside promote", func(t *testing.T) { testEnableRace(tctx(t), t, b) })
	}
}

// race calls f n times at once and waits. Odd and even callers have stores of
// their own: two processes.
func race(t *testing.T, b Backend, n int, f func(i int, s secrets.Store)) {
	t.Helper()
	stores := []secrets.Store{b.Open(t, nil), b.Open(t, nil)}
	start := make(chan struct{})
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			<-start
			f(i, stores[i%2])
		})
	}
	close(start)
	wg.Wait()
}

// testTwins lets a service deliver one rotation several times at once. Each
// twin made another value; what is stored is the truth for all of them.
func testTwins(ctx context.Context, t *testing.T, b Backend) {
	for range rounds {
		v0, tok := value(), token()
		r := b.Create(t, v0)
		b.Begin(t, r, tok)
		made := make([]secrets.Value, twins)
		got := make([]*secrets.Version, twins)
		errs := make([]error, twins)
		for i := range made {
			made[i] = value()
		}
		race(t, b, twins, func(i int, s secrets.Store) {
			got[i], errs[i] = s.PutPending(ctx, r, tok, made[i])
		})
		var stored secrets.Value
		for i, err := range errs {
			if err != nil {
				t.Fatalf("twin %d: %v", i, err)
			}
			if stored.IsZero() {
				stored = got[i].Value
			}
			wantVersion(t, "twin's put pending", got[i], tok, stored)
			if got[i].ID != got[0].ID {
				t.Errorf("twins were told of versions %s and %s, expected one", got[i].ID, got[0].ID)
			}
		}
		known := false
		for _, v := range made {
			known = known || v.Equal(stored)
		}
		if !known {
			t.Error("what was stored is none of the twins' values")
		}
		wantStages(ctx, t, b.Open(t, nil), r, stages{current: v0, pending: stored, pendingToken: tok})

		race(t, b, twins, func(i int, s secrets.Store) {
			_, errs[i] = s.Promote(ctx, r, tok)
		})
		won := 0
		for i, err := range errs {
			if err == nil {
				won++
			} else {
				wantKind(t, "twin's promote", errs[i], fault.Conflict)
			}
		}
		if won == 0 {
			t.Error("no twin promoted")
		}
		// A twin that lost reads again and finds its rotation finished.
		must[*secrets.Version](t, "promote again")(b.Open(t, nil).Promote(ctx, r, tok))
		wantStages(ctx, t, b.Open(t, nil), r, stages{current: stored, currentToken: tok, previous: v0})
	}
}

// testRivals lets two rotations store and promote at once. The first is the
// one that the store's service opened, where it opens any.
func testRivals(ctx context.Context, t *testing.T, b Backend) {
	v0 := value()
	r := b.Create(t, v0)
	before := v0
	for range rounds {
		toks := []string{token(), token()}
		vals := []secrets.Value{value(), value()}
		b.Begin(t, r, toks[0])
		errs := make([]error, 2*twins)
		race(t, b, len(errs), func(i int, s secrets.Store) {
			// i/2%2, so that each process plays both parts.
			_, errs[i] = s.PutPending(ctx, r, toks[i/2%2], vals[i/2%2])
		})
		winner := oneWinner(t, "put pending", errs)
		wantStages(ctx, t, b.Open(t, nil), r, stages{
			current: before, pending: vals[winner], pendingToken: toks[winner], previous: previousOf(ctx, t, b.Open(t, nil), r),
		})
		race(t, b, len(errs), func(i int, s secrets.Store) {
			_, errs[i] = s.Promote(ctx, r, toks[i/2%2])
		})
		if p := oneWinner(t, "promote", errs); p != winner {
			t.Fatalf("rotation %d stored pending and rotation %d promoted", winner, p)
		}
		s := b.Open(t, nil)
		_, err := s.Promote(ctx, r, toks[1-winner])
		wantKind(t, "promote of the loser", err, fault.Conflict, fault.NotFound)
		wantStages(ctx, t, s, r, stages{current: vals[winner], currentToken: toks[winner], previous: before})
		before = vals[winner]
	}
}

// previousOf reads the previous value, which is zero where there is none.
func previousOf(ctx context.Context, t *testing.T, s secrets.Store, r secrets.Ref) secrets.Value {
	t.Helper()
	v, err := s.Get(ctx, r, secrets.Previous)
	if fault.Is(err, fault.NotFound) {
		return secrets.Value{}
	}
	return must[*secrets.Version](t, "get previous")(v, err).Value
}

// oneWinner returns which of the two rotations succeeded, and fails t if both
// did, or none, or one failed for another reason than the other.
func oneWinner(t *testing.T, what string, errs []error) int {
	t.Helper()
	won := [2]int{}
	for i, err := range errs {
		if err == nil {
			won[i/2%2]++
		} else {
			wantKind(t, what+" of a rival", err, fault.Conflict, fault.NotFound)
		}
	}
	if (won[0] > 0) == (won[1] > 0) {
		t.Fatalf("%s succeeded %d times for one rotation and %d times for its rival, expected one winner", what, won[0], won[1])
	}
	if won[1] > 0 {
		return 1
	}
	return 0
}

// testReaders reads current without a pause while versions are promoted. A
// reader must get a version that was current at some instant of its read:
// there is always one, and it is never the pending one.
func testReaders(ctx context.Context, t *testing.T, b Backend) {
	const rotations = 12
	vals := make([]secrets.Value, rotations+1)
	index := map[string]int{}
	for i := range vals {
		vals[i] = value()
		index[string(vals[i].Reveal())] = i
	}
	r := b.Create(t, vals[0])
	var begun, done atomic.Int64 // promotions
	stop := make(chan struct{})
	var reads atomic.Int64
	var wg sync.WaitGroup
	for range 4 {
		s := b.Open(t, nil)
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				least := done.Load()
				v, err := s.Get(ctx, r, secrets.Current)
				most := begun.Load()
				reads.Add(1)
				if err != nil {
					t.Errorf("a reader found no current version: %v", err)
					return
				}
				i, ok := index[string(v.Value.Reveal())]
				if !ok || int64(i) < least || int64(i) > most {
					t.Errorf("a reader got value %d (known: %t), expected one of %d to %d", i, ok, least, most)
					return
				}
			}
		})
	}
	s := b.Open(t, nil)
	for i := 1; i <= rotations; i++ {
		tok := token()
		b.Begin(t, r, tok)
		_, err := s.PutPending(ctx, r, tok, vals[i])
		if err == nil {
			// Pending stands until somebody has read beside it.
			for n := reads.Load(); reads.Load() < n+2 && ctx.Err() == nil && !t.Failed(); {
				_, err = s.Get(ctx, r, secrets.Pending)
			}
		}
		if err == nil {
			begun.Store(int64(i))
			_, err = s.Promote(ctx, r, tok)
			done.Store(int64(i))
		}
		if err != nil {
			t.Errorf("rotation %d: %v", i, err)
			break
		}
	}
	close(stop)
	wg.Wait()
}

func testCreators(ctx context.Context, t *testing.T, b Backend) {
	r := b.Create(t, value())
	r.Name += "-race-" + token()[:8]
	errs := make([]error, twins)
	vals := make([]secrets.Value, twins)
	for i := range vals {
		vals[i] = value()
	}
	race(t, b, twins, func(i int, s secrets.Store) {
		_, errs[i] = s.(secrets.Creator).CreateSecret(ctx, r, vals[i])
	})
	winner := -1
	for i, err := range errs {
		switch {
		case err != nil:
			wantKind(t, "create that came second", err, fault.Conflict)
		case winner >= 0:
			t.Errorf("creators %d and %d both succeeded", winner, i)
		default:
			winner = i
		}
	}
	if winner < 0 {
		t.Fatal("nobody created the secret")
	}
	wantStages(ctx, t, b.Open(t, nil), r, stages{current: vals[winner]})
}
