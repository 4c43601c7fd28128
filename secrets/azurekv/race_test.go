package azurekv_test

import (
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/Azure/azure-sdk-for-go/sdk/security/keyvault/azsecrets"

	"github.com/keyturn/keyturn/secrets"
	"github.com/keyturn/keyturn/secrets/azurekv"
)

// A gate stalls one request.
type gate struct {
	next    http.RoundTripper
	match   func(*http.Request) bool
	once    sync.Once
	reached chan struct{}
	open    chan struct{}
}

func (g *gate) RoundTrip(r *http.Request) (*http.Response, error) {
	if g.match(r) {
		g.once.Do(func() {
			close(g.reached)
			<-g.open
		})
	}
	return g.next.RoundTrip(r)
}

// TestRace shows what Key Vault's lack of a compare-and-swap comes to: a
// process stalls between its look and its write, another one finishes its
// rotation for it and then the next rotation, and the first goes on. Without a
// lock a value that was superseded, and may be retired, becomes current.
func TestRace(t *testing.T) {
	for name, locked := range map[string]bool{"without a Locker": false, "with one": true} {
		t.Run(name, func(t *testing.T) {
			b := newBackend(t).(*backend)
			r := b.Create(t, text("v0"))
			with := func(o *azurekv.Options) {
				if locked {
					o.Locker = b.locker
				}
			}
			g := &gate{
				next: b.fake.Transport(), reached: make(chan struct{}), open: make(chan struct{}),
				match: func(q *http.Request) bool {
					// With the token: the client asks for a challenge first.
					return q.Method == http.MethodPut && q.Header.Get("Authorization") != "" && strings.HasSuffix(q.URL.Path, "/"+r.Name)
				},
			}
			slow := b.open(nil, with, func(o *azurekv.Options) { o.Client.Transport = &http.Client{Transport: g} })
			other := b.open(nil, with)

			tok1, tok2 := token(), token()
			if _, err := slow.PutPending(t.Context(), r, tok1, text("v1")); err != nil {
				t.Fatal(err)
			}
			slowDone := make(chan error, 1)
			go func() {
				_, err := slow.Promote(t.Context(), r, tok1)
				slowDone <- err
			}()
			<-g.reached

			otherDone := make(chan error, 1)
			go func() {
				_, err := other.Promote(t.Context(), r, tok1)
				if err == nil {
					_, err = other.PutPending(t.Context(), r, tok2, text("v2"))
				}
				if err == nil {
					_, err = other.Promote(t.Context(), r, tok2)
				}
				otherDone <- err
			}()
			if locked {
				b.locker.awaitWaiter(t)
			} else if err := <-otherDone; err != nil {
				t.Fatal(err)
			}
			close(g.open)
			if err := <-slowDone; err != nil {
				t.Fatal(err)
			}
			if locked {
				if err := <-otherDone; err != nil {
					t.Fatal(err)
				}
			}
			wantCurrent := "v1" // the stale one
			if locked {
				wantCurrent = "v2"
			}
			if got := newest(b, r).Value; got != wantCurrent {
				t.Errorf("plain readers get %q, expected %q", got, wantCurrent)
			}
		})
	}
}

// TestPlainReaders reads with nothing but the official client, without a
// version, while 50 rotations run, one in five of which is discarded.
func TestPlainReaders(t *testing.T) {
	b := newBackend(t).(*backend)
	b.fake.SetPageSize(25)
	r := b.Create(t, text("v-0"))
	s := b.open(nil)
	var promoted sync.Map
	promoted.Store("v-0", true)
	stop := make(chan struct{})
	var reads atomic.Int64
	var wg sync.WaitGroup
	for range 3 {
		o := &azsecrets.ClientOptions{}
		o.Transport = b.fake.Client()
		c, err := azsecrets.NewClient("https://"+vault+"."+"vault.azure.net", b.fake.Credential(), o)
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				got, err := c.GetSecret(t.Context(), r.Name, "", nil)
				if err != nil {
					t.Errorf("a plain reader failed: %v", err)
					return
				}
				reads.Add(1)
				if _, ok := promoted.Load(*got.Value); !ok {
					t.Errorf("a plain reader got %q, which was not promoted", *got.Value)
					return
				}
			}
		})
	}
	for i := range 50 {
		v, tok := "v-"+token(), token()
		if _, err := s.PutPending(t.Context(), r, tok, text(v)); err != nil {
			t.Fatal(err)
		}
		for n := reads.Load(); reads.Load() == n && !t.Failed(); { // somebody reads beside pending
			_ = stage(t, s, r, secrets.Pending)
		}
		if i%5 == 4 {
			if err := s.Discard(t.Context(), r, tok); err != nil {
				t.Fatal(err)
			}
			continue
		}
		promoted.Store(v, true)
		if _, err := s.Promote(t.Context(), r, tok); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	wg.Wait()
	t.Logf("plain reads: %d", reads.Load())
}
