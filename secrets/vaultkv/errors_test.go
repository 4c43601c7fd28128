package vaultkv_test

import (
	"context"
	"encoding/json"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/leaktest"
	"github.com/keyturn/keyturn/secrets"
	"github.com/keyturn/keyturn/secrets/vaultkv"
)

// Each status of Vault's is one kind, and no error repeats what it said.
func TestErrors(t *testing.T) {
	tg := fake(t)
	s := tg.store(t, nil)
	r := mkref(t, "", "secret", "e")
	create(t, s, r, "0")
	canary := leaktest.Canary()
	rec := &leaktest.Recorder{}
	for _, c := range []struct {
		status int
		text   string
		kind   fault.Kind
		class  fault.Class
		says   string
	}{
		{400, "", fault.Invalid, "", "refused"},
		{400, "custom_metadata validation failed: x", fault.Invalid, "", "64 keys"},
		{403, "1 error occurred:\n\t* permission denied\n\n", fault.Denied, fault.ClassPermission, "Policy"},
		{403, "2 errors occurred:\n\t* permission denied\n\t* invalid token\n\n", fault.Denied, fault.ClassAuth, "sign in"},
		{404, `no handler for route "x"`, fault.Invalid, "", "mount"},
		{404, "unsupported path", fault.Invalid, "", "enable-versioning"},
		{405, "", fault.Invalid, "", "enable-versioning"},
		{412, "required index state not present", fault.Unavailable, fault.ClassConcurrency, "lags"},
		{413, "", fault.Invalid, fault.ClassQuota, "max_request_size"},
		{418, "", fault.Unknown, "", "proxy"},
		{429, "", fault.Unavailable, fault.ClassQuota, "quota"},
		{472, "", fault.Unavailable, "", "secondary"},
		{473, "", fault.Unavailable, "", "standby"},
		{500, "JSON input exceeds allowed nesting depth", fault.Invalid, fault.ClassQuota, "max_json_depth"},
		{500, "", fault.Unavailable, "", "log"},
		{501, "", fault.Unavailable, "", "init"},
		{502, "", fault.Unavailable, "", "log"},
		{503, "Vault is sealed", fault.Unavailable, "", "unseal"},
		{503, "", fault.Unavailable, "", "maintenance"},
	} {
		tg.fake.Fail("GET", "secret/metadata/e", c.status, c.text+" "+canary)
		_, err := s.Get(t.Context(), r, secrets.Current)
		rec.Record(err)
		wantErr(t, http.StatusText(c.status)+" "+c.text, err, c.kind, c.says)
		if got := fault.ClassOf(err); got != c.class {
			t.Errorf("status %d %q is of class %q, expected %q", c.status, c.text, got, c.class)
		}
	}
	rec.Check(t, canary)

	tg.fake.Seal(true)
	_, err := s.Get(t.Context(), r, secrets.Current)
	wantErr(t, "sealed", err, fault.Unavailable, "unseal")
	tg.fake.Seal(false)
	if got := get(t, s, r, secrets.Current); got != "0" {
		t.Errorf("after unsealing it is %q", got)
	}
}

// serve answers every request alike.
func serve(t *testing.T, h http.HandlerFunc) *vaultkv.Store {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	c, err := api.NewClient(&api.Config{Address: srv.URL, HttpClient: srv.Client()})
	if err != nil {
		t.Fatal(err)
	}
	s, err := vaultkv.New(c, &vaultkv.Options{Timeout: 10 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// What is no answer of Vault's is an error that does not repeat it.
func TestGarbage(t *testing.T) {
	canary := leaktest.Canary()
	rec := &leaktest.Recorder{}
	r := mkref(t, "", "secret", "g")
	for what, body := range map[string]string{
		"nothing": "", "no JSON": canary, "half": `{"data":{"` + canary, "null": "null", "no data": "{}", "null data": `{"data":null}`,
		"list": `[]`, "wrong types": `{"data":{"data":"` + canary + `","current_version":"` + canary + `","versions":[],"version":{}}}`,
		"bad time": `{"data":{"versions":{"1":{"created_time":"` + canary + `"}},"metadata":{"version":1,"created_time":"` + canary + `"}}}`,
		"html":     "<html>" + canary, "version only": `{"data":{"metadata":{"version":0}}}`,
	} {
		for _, status := range []int{200, 400, 404, 500} {
			s := serve(t, func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(status)
				_, _ = w.Write([]byte(body))
			})
			_, err := s.Get(t.Context(), r, secrets.Current)
			rec.Record(err)
			_, perr := s.PutPending(t.Context(), r, "token", secrets.NewString("v"))
			rec.Record(perr, s.Disable(t.Context(), r, "1"), s.Check(t.Context(), r))
			_, cerr := s.CreateSecret(t.Context(), r, secrets.NewString("v"))
			_, oerr := s.Orphans(t.Context(), r)
			rec.Record(cerr, oerr)
			if err == nil || perr == nil || cerr == nil {
				t.Errorf("%s with status %d: get %v, put %v, create %v; expected errors", what, status, err, perr, cerr)
			}
		}
	}
	rec.Check(t, canary)
}

// An answer without an end is cut off, of an error too.
func TestEndlessAnswers(t *testing.T) {
	r := mkref(t, "", "secret", "endless")
	for _, status := range []int{200, 404, 500} {
		s := serve(t, func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(status)
			chunk := []byte(strings.Repeat(" ", 1<<16))
			for {
				if _, err := w.Write(chunk); err != nil {
					return
				}
			}
		})
		_, err := s.Get(t.Context(), r, secrets.Current)
		wantErr(t, http.StatusText(status), err, fault.Invalid, "longer than")
	}
	// One of just the longest length is read.
	s := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		body := []byte(`{"data":{"current_version":0}}`)
		_, _ = w.Write(append(body, strings.Repeat(" ", vaultkv.MaxBody-len(body))...))
	})
	_, err := s.Get(t.Context(), r, secrets.Current)
	if err == nil || strings.Contains(err.Error(), "longer than") {
		t.Errorf("an answer of the longest length: %v", err)
	}
}

func TestNetwork(t *testing.T) {
	r := mkref(t, "", "secret", "n")
	// A certificate that nobody vouches for.
	srv := httptest.NewUnstartedServer(http.NotFoundHandler())
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.StartTLS()
	defer srv.Close()
	rt := &http.Transport{}
	defer rt.CloseIdleConnections()
	c, err := api.NewClient(&api.Config{Address: srv.URL, HttpClient: &http.Client{Transport: rt}})
	if err != nil {
		t.Fatal(err)
	}
	s, err := vaultkv.New(c, nil)
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.Get(t.Context(), r, secrets.Current)
	wantErr(t, "untrusted", err, fault.Denied, "VAULT_CACERT")
	if fault.ClassOf(err) != fault.ClassTLS {
		t.Errorf("untrusted is of class %q", fault.ClassOf(err))
	}
	// A server that never answers.
	hang := make(chan struct{})
	slow := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-hang }))
	defer slow.Close()
	defer close(hang) // first, or Close waits for ever
	if c, err = api.NewClient(&api.Config{Address: slow.URL, HttpClient: &http.Client{Transport: rt}}); err != nil {
		t.Fatal(err)
	}
	if s, err = vaultkv.New(c, &vaultkv.Options{Timeout: 50 * time.Millisecond}); err != nil {
		t.Fatal(err)
	}
	_, err = s.Get(t.Context(), r, secrets.Current)
	wantErr(t, "no answer", err, fault.Unavailable)
	if fault.ClassOf(err) != fault.ClassTimeout {
		t.Errorf("no answer is of class %q", fault.ClassOf(err))
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	wantErr(t, "ended", s.Check(ctx, r), fault.Unavailable)
	_, err = s.Orphans(ctx, r)
	wantErr(t, "ended", err, fault.Unavailable)
}

func TestNew(t *testing.T) {
	_, err := vaultkv.New(nil, nil)
	wantErr(t, "no client", err, fault.Invalid)
	_, err = vaultkv.New(fake(t).client(t, "", nil), &vaultkv.Options{Field: vaultkv.TextField})
	wantErr(t, "our own field", err, fault.Invalid)
}

// A pending version that delete_version_after takes is not silently gone, and
// a deletion that is to come disables nothing.
func TestDeleteVersionAfter(t *testing.T) {
	tg := fake(t)
	s := tg.store(t, nil)
	r := mkref(t, "", "secret", "later")
	tg.must(t, "POST", "secret/config", kv{"delete_version_after": "1h"})
	create(t, s, r, "0")
	put(t, s, r, "1")
	tok := word()
	if _, err := s.PutPending(t.Context(), r, tok, secrets.NewString("2")); err != nil {
		t.Fatal(err)
	}
	d, err := s.Describe(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range d.Versions {
		if v.Disabled {
			t.Errorf("version %s is disabled though its time has not come", v.ID)
		}
	}
	tg.fake.Advance(2 * time.Hour)
	_, err = s.Get(t.Context(), r, secrets.Pending)
	wantErr(t, "a pending version that was taken", err, fault.Conflict, "undelete")
}

// The requests of a rotation, so that their number does not grow unnoticed.
func TestCalls(t *testing.T) {
	tg := fake(t)
	s := tg.store(t, nil)
	r := mkref(t, "", "secret", "calls")
	create(t, s, r, "0")
	put(t, s, r, "1") // makes the sibling
	before := len(tg.fake.Calls())
	put(t, s, r, "2")
	var got []string
	for _, c := range tg.fake.Calls()[before:] {
		got = append(got, c.Method+" "+strings.Replace(c.Path, "secret/", "", 1))
	}
	if len(got) > 15 {
		b, _ := json.MarshalIndent(got, "", " ")
		t.Errorf("a rotation makes %d requests, expected at most 15: %s", len(got), b)
	}
	t.Logf("requests of a rotation: %d", len(got))
	before = len(tg.fake.Calls())
	get(t, s, r, secrets.Current)
	if n := len(tg.fake.Calls()) - before; n != 2 {
		t.Errorf("a read makes %d requests, expected 2", n)
	}
}
