package azurekv_test

import (
	"errors"
	"net/http"
	"testing"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/azurefake"
	"github.com/keyturn/keyturn/secrets"
	"github.com/keyturn/keyturn/secrets/azurekv"
)

// neverCleared is a process that dies before each update of a version's
// attributes, so that a promotion leaves its value in the sibling.
type neverCleared struct{ next http.RoundTripper }

func (n neverCleared) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Method == http.MethodPatch {
		return nil, errors.New("died")
	}
	return n.next.RoundTrip(r)
}

// TestFinishedRotationStaysFinished: a promotion that died before it cleared
// the sibling is known by its tag, however much was written by hand since, and
// what it left is cleared by whoever writes next.
func TestFinishedRotationStaysFinished(t *testing.T) {
	b := newBackend(t).(*backend)
	r := b.Create(t, text("old"))
	s := b.open(nil)
	if _, err := s.PutPending(t.Context(), r, "t1", text("first")); err != nil {
		t.Fatal(err)
	}
	dying := b.open(nil, func(o *azurekv.Options) {
		o.Client.Transport = &http.Client{Transport: neverCleared{b.fake.Transport()}}
	})
	_, err := dying.Promote(t.Context(), r, "t1")
	want(t, "promote that dies", err, fault.Unavailable)
	b.fake.Put(vault, r.Name, azurefake.Version{Value: "by hand"})
	b.fake.Put(vault, r.Name, azurefake.Version{Value: "by hand again"})

	if got := stage(t, s, r, secrets.Pending); got != "" {
		t.Errorf("pending is %q, expected nothing", got)
	}
	_, err = s.Promote(t.Context(), r, "t1")
	want(t, "promote again", err, fault.Conflict)
	rotate(t, s, r, "second")
	if got := stage(t, s, r, secrets.Current); got != "second" {
		t.Errorf("current is %q, expected what was rotated to", got)
	}
	for _, v := range b.fake.Versions(vault, pendingName(r)) {
		if v.Enabled {
			t.Errorf("version %s of the sibling can still be read", v.ID)
		}
	}
}
