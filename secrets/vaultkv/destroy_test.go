package vaultkv_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/secrets"
	"github.com/keyturn/keyturn/secrets/vaultkv"
)

// hooked calls f right before the nth read of a secret's metadata.
type hooked struct {
	next http.RoundTripper
	n    *int
	f    func()
}

func (h hooked) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, "/metadata/db") {
		if *h.n--; *h.n == 0 {
			h.f()
		}
	}
	return h.next.RoundTrip(r)
}

// TestEnabledBeforeDestroy: a version that somebody restored after it was found
// deleted is looked at once more, and left alone.
func TestEnabledBeforeDestroy(t *testing.T) {
	tg := fake(t)
	_, at := tg.mount(t)
	s, r := tg.store(t, nil), at("db")
	create(t, s, r, "old")
	if _, err := s.PutPending(t.Context(), r, "t1", secrets.NewString("new")); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Promote(t.Context(), r, "t1"); err != nil {
		t.Fatal(err)
	}
	if err := s.Disable(t.Context(), r, "1"); err != nil {
		t.Fatal(err)
	}
	n := 2 // the first finds it deleted
	late, err := vaultkv.New(tg.client(t, "root", hooked{tg.transport, &n, func() {
		if err := s.Enable(t.Context(), r, "1"); err != nil {
			t.Error(err)
		}
	}}), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := late.Destroy(t.Context(), r, "1"); !fault.Is(err, fault.Conflict) {
		t.Errorf("destroy of what was enabled: %v, expected a conflict", err)
	}
	if v, err := s.Get(t.Context(), r, secrets.Previous); err != nil || !v.Value.Equal(secrets.NewString("old")) {
		t.Errorf("previous is not what was enabled: %v", err)
	}
}
