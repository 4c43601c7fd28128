package vaultkv_test

import (
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/secrets"
	"github.com/keyturn/keyturn/secrets/vaultkv"
)

// neverCleared is a process that dies before each destruction of a version, so
// that a promotion leaves its value in the sibling.
type neverCleared struct{ next http.RoundTripper }

func (n neverCleared) RoundTrip(r *http.Request) (*http.Response, error) {
	if strings.Contains(r.URL.Path, "/destroy/") {
		return nil, errors.New("died")
	}
	return n.next.RoundTrip(r)
}

// TestFinishedRotationStaysFinished: a promotion that died before it cleared
// the sibling is known by its note, however much was written by hand since, and
// what it left is cleared by whoever writes next.
func TestFinishedRotationStaysFinished(t *testing.T) {
	for _, hand := range []int{0, 2} {
		tg := fake(t)
		mount, at := tg.mount(t)
		s, r := tg.store(t, nil), at("db")
		create(t, s, r, "old")
		if _, err := s.PutPending(t.Context(), r, "t1", secrets.NewString("first")); err != nil {
			t.Fatal(err)
		}
		c := tg.client(t, "root", neverCleared{tg.transport})
		c.SetMaxRetries(0)
		dying, err := vaultkv.New(c, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := dying.Promote(t.Context(), r, "t1"); !fault.Is(err, fault.Unavailable) {
			t.Errorf("promote that dies: %v, expected unavailable", err)
		}
		for range hand {
			tg.must(t, "POST", mount+"/data/db", kv{"data": kv{"value": "by hand"}})
		}
		if _, err := s.Get(t.Context(), r, secrets.Pending); !fault.Is(err, fault.NotFound) {
			t.Errorf("get pending: %v, expected not found", err)
		}
		if hand > 0 {
			if _, err := s.Promote(t.Context(), r, "t1"); !fault.Is(err, fault.Conflict) {
				t.Errorf("promote again: %v, expected a conflict", err)
			}
		}
		if _, err := s.PutPending(t.Context(), r, "t2", secrets.NewString("second")); err != nil {
			t.Fatal(err)
		}
		if status, out := tg.call(t, "GET", mount+"/data/db--pending?version=1", nil); status == http.StatusOK {
			t.Errorf("what was promoted can still be read in the sibling: %v", out["data"])
		}
		if _, err := s.Promote(t.Context(), r, "t2"); err != nil {
			t.Fatal(err)
		}
	}
}
