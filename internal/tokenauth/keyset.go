package tokenauth

import (
	"context"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/keyturn/keyturn/fault"
)

const (
	// refresh is how old keys are when they are fetched anew: a key that was
	// taken back is accepted that much longer.
	refresh = time.Hour
	// pause is between two fetches, whatever asks for them: unknown key ids, or
	// failures.
	pause = 5 * time.Second
	// maxStale is how old keys may be while the issuer is away.
	maxStale = 24 * time.Hour
)

// A keySet caches the keys of one issuer. It fetches when it has none, when
// they are old, and when a token names one that it does not know; one fetch at
// a time, and one each pause at most, so that a flood of invented key ids stays
// here. A token with a known key never waits for a fetch.
//
// go-oidc's own set is not used: it fetches for every unknown key id, without
// a bound on the answer, and its errors neither tell a forged token from an
// outage nor keep the answer out of the log.
type keySet struct {
	client *http.Client
	locate locator
	algs   []jose.SignatureAlgorithm
	now    func() time.Time
	log    *slog.Logger

	mu      sync.Mutex
	keys    map[string][]key // replaced as a whole, never written to
	fetched time.Time        // when the fetch that brought them began
	began   time.Time        // when the last fetch began
	err     error            // how the last fetch ended
	flight  *flight          // the fetch under way, or nil
}

// A flight is one fetch. err may be read once done is closed.
type flight struct {
	done chan struct{}
	err  error
}

func newKeySet(c *http.Client, locate locator, algs []jose.SignatureAlgorithm, now func() time.Time, log *slog.Logger) *keySet {
	return &keySet{client: client(c), locate: locate, algs: algs, now: now, log: log}
}

// find returns the keys with an id that are for alg. None, without an error,
// means that the issuer has no such key: its set was asked for after the token
// had come, or has that id for another algorithm. Where that is not known the
// error is Unavailable.
func (s *keySet) find(ctx context.Context, id string, alg jose.SignatureAlgorithm) ([]any, error) {
	s.mu.Lock()
	now := s.now()
	if found, ok := s.lookup(id, now); ok {
		if now.Sub(s.fetched) >= refresh {
			s.begin(now) // in the background: the known key will do
		}
		s.mu.Unlock()
		return forAlg(found, alg), nil
	}
	mine := s.begin(now)
	f, last := s.flight, s.err
	s.mu.Unlock()
	if f == nil {
		return nil, unknown(last)
	}
	if err := f.wait(ctx); err != nil {
		return nil, err
	}
	s.mu.Lock()
	found, ok := s.lookup(id, s.now())
	s.mu.Unlock()
	switch {
	case ok:
		return forAlg(found, alg), nil
	case mine:
		return nil, nil
	}
	return nil, unknown(nil) // that fetch may have begun before this token was made
}

// warm fetches the set if there is none.
func (s *keySet) warm(ctx context.Context) error {
	s.mu.Lock()
	if s.keys != nil {
		s.mu.Unlock()
		return nil
	}
	s.begin(s.now())
	f, last := s.flight, s.err
	s.mu.Unlock()
	if f == nil {
		return last
	}
	return f.wait(ctx)
}

func (f *flight) wait(ctx context.Context) error {
	select {
	case <-f.done:
		return f.err
	case <-ctx.Done():
		return &fault.Error{Kind: fault.Unavailable, Op: op, Msg: "the request ended before the issuer's key set had come", Err: ctx.Err()}
	}
}

// unknown is the error about a key that may have come up since the set was
// fetched.
func unknown(last error) error {
	const msg = "the token's key is not known, and the issuer's key set was asked for moments ago; the next request asks again"
	return &fault.Error{Kind: fault.Unavailable, Op: op, Msg: msg, Err: last}
}

// lookup returns the keys with an id, while the set may be used. The caller
// holds the lock.
func (s *keySet) lookup(id string, now time.Time) ([]key, bool) {
	if s.keys == nil || now.Sub(s.fetched) >= maxStale {
		return nil, false
	}
	found, ok := s.keys[id]
	return found, ok
}

func forAlg(keys []key, alg jose.SignatureAlgorithm) []any {
	var out []any
	for _, k := range keys {
		if k.alg == alg {
			out = append(out, k.public)
		}
	}
	return out
}

// begin starts a fetch, unless one is under way or was a moment ago, and
// reports whether it did. The fetch belongs to no request: the one that caused
// it may end, and others wait for it too. The caller holds the lock.
func (s *keySet) begin(now time.Time) bool {
	if s.flight != nil || !s.began.IsZero() && now.Sub(s.began) < pause {
		return false
	}
	f := &flight{done: make(chan struct{})}
	s.flight, s.began = f, now
	go s.run(f, now)
	return true
}

func (s *keySet) run(f *flight, began time.Time) {
	ctx, cancel := context.WithTimeout(context.Background(), fetchTimeout)
	defer cancel()
	keys, err := fetch(ctx, s.client, s.locate, s.algs)
	s.mu.Lock()
	if err == nil {
		s.keys, s.fetched = keys, began
	}
	age := time.Duration(0)
	if s.keys != nil {
		age = began.Sub(s.fetched)
	}
	have := len(s.keys)
	s.err, f.err, s.flight = err, err, nil
	s.mu.Unlock()
	if err != nil {
		s.log.WarnContext(ctx, "the issuer's key set cannot be fetched", "err", err, "known_keys", have, "age", age.Round(time.Second))
	}
	close(f.done)
}
