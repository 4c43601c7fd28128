package apikey_test

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/leaktest"
	"github.com/keyturn/keyturn/rotators"
	"github.com/keyturn/keyturn/rotators/apikey"
	"github.com/keyturn/keyturn/secrets"
)

// world is an issuer that answers as a test says, with canaries for every
// secret that could leak.
type world struct {
	admin, key, newKey string
	rec                leaktest.Recorder
	current, pending   secrets.Value
}

func newWorld() *world {
	w := &world{admin: leaktest.Canary(), key: leaktest.Canary(), newKey: leaktest.Canary()}
	w.current, w.pending = value("key_1", w.key, adminRef), value("key_2", w.newKey, adminRef)
	return w
}

func (w *world) rotator(t *testing.T, url string, o apikey.Options) rotators.Rotator {
	t.Helper()
	o.Admin = func(context.Context, string) (secrets.Value, error) {
		return secrets.NewString(`{"key":"` + w.admin + `"}`), nil
	}
	o.Logger = w.rec.Logger()
	if o.Transport == nil {
		tr := &http.Transport{DisableKeepAlives: true}
		t.Cleanup(tr.CloseIdleConnections)
		o.Transport = tr
	}
	c := config(url)
	c.List = nil
	r, err := apikey.New(c, &o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// all calls every method and returns the errors of create, test and retire.
func (w *world) all(ctx context.Context, t *testing.T, r rotators.Rotator) map[string]error {
	t.Helper()
	c := change(t, w.current, secrets.Value{})
	_, createErr := r.Create(ctx, c)
	c.Pending = w.pending
	errs := map[string]error{
		"create": createErr, "test": r.Test(ctx, c),
		"retire": r.(rotators.Retirer).Retire(ctx, c, value("key_0", w.key+"0", "")),
	}
	for _, err := range errs {
		w.rec.Record(err)
	}
	return errs
}

func (w *world) check(t *testing.T) {
	t.Helper()
	w.rec.Check(t, w.admin, w.key, w.newKey)
}

func TestStatuses(t *testing.T) {
	for _, c := range []struct {
		status int
		kind   fault.Kind
		class  fault.Class
	}{
		{400, fault.Invalid, ""}, {401, fault.Denied, fault.ClassAuth}, {402, fault.Denied, fault.ClassQuota},
		{403, fault.Denied, fault.ClassPermission}, {404, fault.NotFound, ""}, {409, fault.Conflict, ""}, {422, fault.Invalid, ""},
		{429, fault.Unavailable, fault.ClassQuota}, {301, fault.Invalid, ""}, {307, fault.Invalid, ""},
		{500, fault.Unavailable, ""}, {502, fault.Unavailable, ""}, {503, fault.Unavailable, ""}, {504, fault.Unavailable, fault.ClassTimeout},
	} {
		t.Run(fmt.Sprint(c.status), func(t *testing.T) {
			w := newWorld()
			elsewhere := 0
			other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { elsewhere++ }))
			defer other.Close()
			srv := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
				rw.Header().Set("Location", other.URL)
				rw.Header().Set("X-Request-Id", "req_7")
				rw.WriteHeader(c.status)
				// The worst of servers echoes what it was sent.
				_, _ = fmt.Fprint(rw, r.Header.Get("Authorization"))
			}))
			defer srv.Close()
			for method, err := range w.all(t.Context(), t, w.rotator(t, srv.URL, apikey.Options{})) {
				if method == "retire" && c.status == 404 {
					if err != nil {
						t.Errorf("retire of a key that is gone: %v; want success", err)
					}
					continue
				}
				if fault.KindOf(err) != c.kind || fault.ClassOf(err) != c.class {
					t.Errorf("%s: %v (kind %s, class %q); want %s, %q", method, err, fault.KindOf(err), fault.ClassOf(err), c.kind, c.class)
				}
				if !strings.Contains(err.Error(), fmt.Sprint(c.status)) || !strings.Contains(err.Error(), "req_7") {
					t.Errorf("%s: %v; want the status and the request's id in it", method, err)
				}
			}
			if elsewhere > 0 {
				t.Error("a redirect was followed")
			}
			w.check(t)
		})
	}
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 6, 1, 10, 0, 0, 0, time.UTC)
	for header, want := range map[string]time.Duration{
		"7": 7 * time.Second, now.Add(90 * time.Second).Format(http.TimeFormat): 90 * time.Second,
		now.Add(-time.Hour).Format(http.TimeFormat): 0, "4000000000": 24 * time.Hour, "soon": -1, "-5": -1, "": -1,
	} {
		w := newWorld()
		srv := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
			rw.Header().Set("Retry-After", header)
			rw.WriteHeader(http.StatusTooManyRequests)
		}))
		r := w.rotator(t, srv.URL, apikey.Options{Now: func() time.Time { return now }})
		err := r.Test(t.Context(), change(t, w.current, w.pending))
		if got, ok := apikey.RetryAfter(fmt.Errorf("wrapped: %w", err)); ok != (want >= 0) || ok && got != want {
			t.Errorf("Retry-After %q gave %s, %t; want %s", header, got, ok, want)
		}
		srv.Close()
	}
	if _, ok := apikey.RetryAfter(nil); ok {
		t.Error("no error says to wait")
	}
}

// raw answers each connection with text and closes it.
func raw(t *testing.T, answer func(request string) string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			b := make([]byte, 4096)
			n, _ := c.Read(b)
			_, _ = fmt.Fprint(c, answer(string(b[:n])))
			_ = c.Close()
		}
	}()
	t.Cleanup(func() { _ = l.Close(); <-done })
	return "http://" + l.Addr().String()
}

func TestBrokenServers(t *testing.T) {
	for name, answer := range map[string]func(string) string{
		"no HTTP, echoing the request": func(r string) string { return strings.ReplaceAll(r, "\r\n", " ") + "\r\n\r\n" },
		"a broken header, echoing":     func(r string) string { return "HTTP/1.1 200 OK\r\n" + strings.ReplaceAll(r, "\r\n", " ") + "\r\n\r\n" },
		"nothing":                      func(string) string { return "" },
		"half an answer":               func(string) string { return "HTTP/1.1 201 Created\r\nContent-Length: 500\r\n\r\n{" },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld()
			r := w.rotator(t, raw(t, answer), apikey.Options{})
			_, err := r.Create(t.Context(), change(t, w.current, secrets.Value{}))
			w.rec.Record(err)
			if !fault.Is(err, fault.Unavailable) || fault.ClassOf(err) != fault.ClassNetwork {
				t.Errorf("create: %v (kind %s, class %q); want unavailable, network", err, fault.KindOf(err), fault.ClassOf(err))
			}
			w.check(t)
		})
	}
}

func TestNobodyListens(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	url := "http://" + l.Addr().String()
	_ = l.Close()
	w := newWorld()
	for method, err := range w.all(t.Context(), t, w.rotator(t, url, apikey.Options{})) {
		if !fault.Is(err, fault.Unavailable) || fault.ClassOf(err) != fault.ClassNetwork {
			t.Errorf("%s: %v; want unavailable, network", method, err)
		}
	}
	w.check(t)
}

func TestSilentServer(t *testing.T) {
	release := make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-release:
		case <-r.Context().Done():
		}
	}))
	defer srv.Close()
	defer close(release)
	w := newWorld()
	// Its own limit, and the caller's.
	for method, err := range w.all(t.Context(), t, w.rotator(t, srv.URL, apikey.Options{Timeout: 20 * time.Millisecond})) {
		if !fault.Is(err, fault.Unavailable) || fault.ClassOf(err) != fault.ClassTimeout {
			t.Errorf("%s: %v; want unavailable, timeout", method, err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	for method, err := range w.all(ctx, t, w.rotator(t, srv.URL, apikey.Options{})) {
		if !fault.Is(err, fault.Unavailable) || fault.ClassOf(err) != fault.ClassTimeout {
			t.Errorf("%s before the caller's deadline: %v; want unavailable, timeout", method, err)
		}
	}
	w.check(t)
}

func TestTLS(t *testing.T) {
	w := newWorld()
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		rw.WriteHeader(http.StatusCreated)
		_ = json.NewEncoder(rw).Encode(map[string]string{"key": w.newKey, "id": "key_2"})
	}))
	srv.Config.ErrorLog = log.New(io.Discard, "", 0) // it complains of the client that trusts nobody
	srv.StartTLS()
	defer srv.Close()

	for method, err := range w.all(t.Context(), t, w.rotator(t, srv.URL, apikey.Options{})) {
		if !fault.Is(err, fault.Denied) || fault.ClassOf(err) != fault.ClassTLS {
			t.Errorf("%s with a certificate that nobody trusts: %v (kind %s, class %q); want denied, tls", method, err, fault.KindOf(err), fault.ClassOf(err))
		}
	}
	trusting := srv.Client().Transport.(*http.Transport).Clone()
	trusting.DisableKeepAlives = true
	if trusting.TLSClientConfig.RootCAs.Equal(x509.NewCertPool()) {
		t.Fatal("the test's server has no certificate")
	}
	v, err := w.rotator(t, srv.URL, apikey.Options{Transport: trusting}).Create(t.Context(), change(t, w.current, secrets.Value{}))
	if err != nil {
		t.Fatalf("create with a trusted certificate: %v", err)
	}
	if d := read(t, v); d.Key != w.newKey || d.ID != "key_2" || d.AdminARN != adminRef {
		t.Error("the new value is not what the issuer answered")
	}
	plain := httptest.NewServer(http.NotFoundHandler())
	defer plain.Close()
	for method, err := range w.all(t.Context(), t, w.rotator(t, strings.Replace(plain.URL, "http:", "https:", 1), apikey.Options{})) {
		if !fault.Is(err, fault.Denied) || fault.ClassOf(err) != fault.ClassTLS {
			t.Errorf("%s of a server without TLS: %v; want denied, tls", method, err)
		}
	}
	w.check(t)
}

func TestAnswersOfCreate(t *testing.T) {
	w := newWorld()
	for name, body := range map[string]string{
		"no JSON": w.newKey, "no key": `{"id":"key_2","secret":"` + w.newKey + `"}`, "no id": `{"key":"` + w.newKey + `"}`,
		"a key that is no string": `{"key":["` + w.newKey + `"],"id":"key_2"}`, "empty": ``, "null": `null`,
		"endless": `{"key":"` + w.newKey + `","id":"key_2","x":"` + strings.Repeat("x", 70<<10) + `"}`,
	} {
		srv := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprint(rw, body) }))
		_, err := w.rotator(t, srv.URL, apikey.Options{}).Create(t.Context(), change(t, w.current, secrets.Value{}))
		w.rec.Record(err)
		if !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v; want an error of kind invalid", name, err)
		}
		srv.Close()
	}
	w.check(t)
}

// What a value holds does not get out of its place in a request.
func TestEscaping(t *testing.T) {
	const nasty = `a"b\c/../d?e=f&g#h%41 ü{{.Admin}}</x>`
	var got struct {
		uri, name string
		header    http.Header
	}
	srv := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		got.uri, got.header = r.RequestURI, r.Header
		var in map[string]any
		_ = json.NewDecoder(r.Body).Decode(&in)
		got.name, _ = in["note"].(string)
		rw.WriteHeader(http.StatusCreated)
		_, _ = fmt.Fprint(rw, `{"a/b":[{"~k":"new"}],"id":"key_2"}`)
	}))
	defer srv.Close()
	c := config(srv.URL)
	c.List = nil
	c.Vars["project"], c.Vars["note"] = nasty, nasty
	c.Create.Body = `{"name": {{.Name}}, "note": {{.Vars.note}}}`
	c.Create.Key = "/a~1b/0/~0k"
	tr := &http.Transport{DisableKeepAlives: true}
	r, err := apikey.New(c, &apikey.Options{Transport: tr, Admin: func(context.Context, string) (secrets.Value, error) { return secrets.NewString(`{"key":"adm"}`), nil }})
	if err != nil {
		t.Fatal(err)
	}
	v, err := r.Create(t.Context(), change(t, value("key_1", "old", adminRef), secrets.Value{}))
	if err != nil {
		t.Fatal(err)
	}
	const path = "/v1/projects/a%22b%5Cc%2F..%2Fd%3Fe%3Df%26g%23h%2541%20%C3%BC%7B%7B.Admin%7D%7D%3C%2Fx%3E/keys"
	if got.uri != path {
		t.Errorf("the request went to %s\nwant %s", got.uri, path)
	}
	if got.name != nasty {
		t.Errorf("the body had %q; want %q", got.name, nasty)
	}
	if got.header.Get("Authorization") != "Bearer adm" {
		t.Error("the administrator's credential is not in its header")
	}
	if read(t, v).Key != "new" {
		t.Error("the key was not found by its pointer")
	}

	// A credential that would break out of its header is not sent.
	bad, err := apikey.New(c, &apikey.Options{Transport: tr, Admin: func(context.Context, string) (secrets.Value, error) {
		return secrets.NewString(`{"key":"adm\r\nX-Evil: 1"}`), nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	got.uri = ""
	_, err = bad.Create(t.Context(), change(t, value("key_1", "old", adminRef), secrets.Value{}))
	if !fault.Is(err, fault.Invalid) || got.uri != "" || strings.Contains(err.Error(), "Evil") {
		t.Errorf("a credential with a line break gave %v; want an error of kind invalid and no call", err)
	}
}
