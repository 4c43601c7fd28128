package vaultkv_test

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/secrets"
	"github.com/keyturn/keyturn/secrets/vaultkv"
)

// A roundTrip is a transport between a client and a Vault.
type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// answer is what a proxy says in place of Vault.
func answer(r *http.Request, status int, body string) *http.Response {
	return &http.Response{
		StatusCode: status, Status: http.StatusText(status), Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: http.Header{}, Body: io.NopCloser(strings.NewReader(body)), Request: r,
	}
}

// A 404 of a proxy's says nothing about what is there: nothing is given up,
// written or removed because of one.
func TestForeign404(t *testing.T) {
	for what, body := range map[string]string{
		"html": "<html>default backend - 404</html>", "nothing": "", "json": `{"message":"no route"}`, "null": `{"errors":null,"data":null}`,
		"errors": `{"errors":["no such backend"]}`, "objects": `{"errors":[{"code":404}]}`, "no envelope": `{"data":"x"}`,
		"empty": `{"data":{}}`, "route": "no handler for route",
	} {
		t.Run(what, func(t *testing.T) {
			tg := fake(t)
			mount, at := tg.mount(t)
			s := tg.store(t, nil)
			r, tok := at("db"), word()
			create(t, s, r, "0")
			put(t, s, r, "1")
			if _, err := s.PutPending(t.Context(), r, tok, secrets.NewString("live")); err != nil {
				t.Fatal(err)
			}
			// open returns a store to which the proxy has lost some paths.
			open := func(lost string) *vaultkv.Store {
				c := tg.client(t, "root", roundTrip(func(q *http.Request) (*http.Response, error) {
					if strings.Contains(q.URL.Path, lost) {
						return answer(q, http.StatusNotFound, body), nil
					}
					return tg.transport.RoundTrip(q)
				}))
				s, err := vaultkv.New(c, nil)
				if err != nil {
					t.Fatal(err)
				}
				return s
			}
			orphan := secrets.Orphan{Ref: r, ID: mount + "/db--pending"}
			for _, c := range []struct {
				what, lost string
				do         func(s *vaultkv.Store) error
			}{
				{"get current", "/", func(s *vaultkv.Store) error { _, err := s.Get(t.Context(), r, secrets.Current); return err }},
				{"read current", "/data/db", func(s *vaultkv.Store) error { _, err := s.Get(t.Context(), r, secrets.Current); return err }},
				{"get pending", "/data/db--pending", func(s *vaultkv.Store) error { _, err := s.Get(t.Context(), r, secrets.Pending); return err }},
				{"put pending", "/data/db--pending", func(s *vaultkv.Store) error {
					_, err := s.PutPending(t.Context(), r, word(), secrets.NewString("2"))
					return err
				}},
				{"discard", "/data/db--pending", func(s *vaultkv.Store) error { return s.Discard(t.Context(), r, tok) }},
				{"discard halfway", "/destroy/", func(s *vaultkv.Store) error { return s.Discard(t.Context(), r, tok) }},
				{"disable", "/delete/", func(s *vaultkv.Store) error { return s.Disable(t.Context(), r, "1") }},
				{"record", "/metadata/db", func(s *vaultkv.Store) error { _, err := s.Promote(t.Context(), r, tok); return err }},
				{"create", "/config", func(s *vaultkv.Store) error {
					_, err := s.CreateSecret(t.Context(), at("new"), secrets.NewString("0"))
					return err
				}},
				{"find orphans", "/metadata", func(s *vaultkv.Store) error { _, err := s.Orphans(t.Context(), r); return err }},
				{"remove an orphan that is none", "/metadata/db", func(s *vaultkv.Store) error { return s.RemoveOrphan(t.Context(), orphan) }},
			} {
				wantErr(t, c.what, c.do(open(c.lost)), fault.Unavailable, "proxy")
			}
			if got := get(t, s, r, secrets.Pending); got != "live" {
				t.Errorf("pending is %q", got)
			}
			// Half of a removal is no success either.
			tg.must(t, "DELETE", mount+"/metadata/db", nil)
			wantErr(t, "look for the sibling", open("/metadata/db--pending").RemoveOrphan(t.Context(), orphan), fault.Unavailable, "proxy")
			if err := s.RemoveOrphan(t.Context(), orphan); err != nil {
				t.Error(err)
			}
		})
	}
}
