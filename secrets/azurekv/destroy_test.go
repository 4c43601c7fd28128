package azurekv_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/secrets"
	"github.com/keyturn/keyturn/secrets/azurekv"
)

// nth calls f once, right before the nth request that do is true for.
type nth struct {
	next http.RoundTripper
	do   func(*http.Request) bool
	n    *int
	f    func()
}

func (h nth) RoundTrip(r *http.Request) (*http.Response, error) {
	if h.do(r) {
		if *h.n--; *h.n == 0 {
			h.f()
		}
	}
	return h.next.RoundTrip(r)
}

// TestEnabledBeforeDestroy: a version that somebody enabled after it was found
// disabled is looked at once more, and left alone.
func TestEnabledBeforeDestroy(t *testing.T) {
	b := newBackend(t).(*backend)
	r := b.Create(t, text("old"))
	s := b.open(nil)
	old, err := s.Get(t.Context(), r, secrets.Current)
	if err != nil {
		t.Fatal(err)
	}
	rotate(t, s, r, "new")
	if err := s.Disable(t.Context(), r, old.ID); err != nil {
		t.Fatal(err)
	}
	// The first is the read of the version itself, which finds it disabled.
	n, reads := 1, "/secrets/"+r.Name+"/"+old.ID
	late := b.open(nil, func(o *azurekv.Options) {
		seen := false
		o.Client.Transport = &http.Client{Transport: nth{b.fake.Transport(), func(q *http.Request) bool {
			after := seen
			seen = seen || q.Method == http.MethodGet && strings.HasSuffix(q.URL.Path, reads)
			return after
		}, &n, func() {
			if err := s.Enable(t.Context(), r, old.ID); err != nil {
				t.Error(err)
			}
		}}}
	})
	want(t, "destroy of what was enabled", late.Destroy(t.Context(), r, old.ID), fault.Conflict)
	if got := stage(t, s, r, secrets.Previous); got != "old" {
		t.Errorf("previous is %q, expected what was enabled", got)
	}
}
