package azurekv_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/azurefake"
	"github.com/keyturn/keyturn/internal/leaktest"
	"github.com/keyturn/keyturn/secrets"
	"github.com/keyturn/keyturn/secrets/azurekv"
)

func TestErrors(t *testing.T) {
	fail := func(status int, code, inner string) azurefake.Failure {
		return azurefake.Failure{Status: status, Code: code, Inner: inner}
	}
	for name, c := range map[string]struct {
		failure azurefake.Failure
		kind    fault.Kind
		class   fault.Class
		says    string
	}{
		"no such secret":      {fail(404, "SecretNotFound", ""), fault.NotFound, "", "check the name"},
		"disabled":            {fail(403, "Forbidden", "SecretDisabled"), fault.Denied, fault.ClassPermission, "is disabled"},
		"role":                {fail(403, "Forbidden", "ForbiddenByRbac"), fault.Denied, fault.ClassPermission, "Key Vault Secrets Officer"},
		"access policy":       {fail(403, "Forbidden", "ForbiddenByPolicy"), fault.Denied, fault.ClassPermission, "access policy"},
		"refused, no reason":  {fail(403, "Forbidden", ""), fault.Denied, fault.ClassPermission, "azurefake was told to fail"},
		"network rules":       {fail(403, "Forbidden", "ForbiddenByFirewall"), fault.Denied, fault.ClassPermission, "network rules"},
		"private link":        {fail(403, "Forbidden", "ForbiddenByConnection"), fault.Denied, fault.ClassPermission, "private endpoint"},
		"token refused":       {fail(401, "Unauthorized", ""), fault.Denied, fault.ClassAuth, "check the tenant"},
		"throttled":           {azurefake.Throttled(1), fault.Unavailable, fault.ClassQuota, "too many requests"},
		"bad parameter":       {fail(400, "BadParameter", ""), fault.Invalid, "", "BadParameter"},
		"conflict":            {fail(409, "Conflict", ""), fault.Conflict, fault.ClassConcurrency, "Conflict"},
		"deleted":             {fail(409, "Conflict", "ObjectIsDeletedButRecoverable"), fault.Conflict, "", "purge it"},
		"being recovered":     {fail(409, "Conflict", "ObjectIsBeingRecovered"), fault.Conflict, "", "wait a moment"},
		"internal":            {fail(500, "InternalServerError", ""), fault.Unavailable, "", "InternalServerError"},
		"busy":                {fail(503, "ServiceUnavailable", ""), fault.Unavailable, "", ""},
		"gateway":             {fail(504, "", ""), fault.Unavailable, fault.ClassTimeout, "HTTP status 504"},
		"not a vault":         {fail(404, "ResourceNotFound", ""), fault.Unavailable, "", "is the endpoint Key Vault?"},
		"a code with a value": {fail(400, "canary value\n{}", ""), fault.Invalid, "", "HTTP status 400"},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBackend(t).(*backend)
			r := b.Create(t, text("v0"))
			b.fake.FailNext("get", c.failure, c.failure)
			_, err := b.open(nil).Get(t.Context(), r, secrets.Current)
			want(t, "get", err, c.kind, c.says, r.Name, vault)
			if fault.ClassOf(err) != c.class {
				t.Errorf("the class is %q, expected %q", fault.ClassOf(err), c.class)
			}
			if err != nil && strings.ContainsAny(err.Error(), "\r\n") || strings.Contains(err.Error(), "canary") {
				t.Errorf("the error is %q", err)
			}
		})
	}
}

// What the service refuses is named by action.
func TestDenied(t *testing.T) {
	for action, call := range map[azurefake.Action]func(s *azurekv.Store, r secrets.Ref) error{
		azurefake.Get:  func(s *azurekv.Store, r secrets.Ref) error { return err2(s.Get(t.Context(), r, secrets.Current)) },
		azurefake.List: func(s *azurekv.Store, r secrets.Ref) error { return err2(s.Describe(t.Context(), r)) },
		azurefake.Set: func(s *azurekv.Store, r secrets.Ref) error {
			return err2(s.PutPending(t.Context(), r, token(), text("v")))
		},
	} {
		b := newBackend(t).(*backend)
		r := b.Create(t, text("v0"))
		b.fake.Deny(action)
		want(t, string(action), call(b.open(nil), r), fault.Denied, string(action))
	}
}

// A throttled call waits as long as it is told to, and is made again; one that
// is told to wait too long fails at once.
func TestThrottling(t *testing.T) {
	b := newBackend(t).(*backend)
	r := b.Create(t, text("v0"))
	retries := func(o *azurekv.Options) {
		o.Client.Retry = policy.RetryOptions{MaxRetries: 2, RetryDelay: time.Millisecond, MaxRetryDelay: 5 * time.Second}
	}
	s := b.open(nil, retries)
	b.fake.FailNext("get", azurefake.Throttled(1))
	b.fake.FailNext("set", azurefake.Throttled(1))
	rotate(t, s, r, "v1")
	if n := len(b.fake.Calls("set")); n != 3 {
		t.Errorf("%d sets, expected three: one was throttled", n)
	}
	b.fake.ForgetCalls()
	b.fake.FailNext("get", azurefake.Throttled(3600))
	_, err := s.Get(t.Context(), r, secrets.Current)
	want(t, "get that may be repeated in an hour", err, fault.Unavailable)
	if n := len(b.fake.Calls("get")); n != 1 {
		t.Errorf("%d gets, expected one", n)
	}
	// It gives up in the end.
	b.fake.FailNext("get", azurefake.Throttled(0), azurefake.Throttled(0), azurefake.Throttled(0), azurefake.Throttled(0))
	b.fake.ForgetCalls()
	_, err = s.Get(t.Context(), r, secrets.Current)
	want(t, "get", err, fault.Unavailable)
	if n := len(b.fake.Calls("get")); n != 3 {
		t.Errorf("%d gets, expected three", n)
	}
}

// A write whose answer was lost is not repeated by the client: there would be
// two versions. The store looks, and finds it done.
func TestSetIsNotRepeated(t *testing.T) {
	b := newBackend(t).(*backend)
	r := b.Create(t, text("v0"))
	s := b.open(nil, func(o *azurekv.Options) {
		o.Client.Retry = policy.RetryOptions{MaxRetries: 3, RetryDelay: time.Millisecond}
	})
	lost := azurefake.Failure{Status: 503, Code: "ServiceUnavailable", AfterEffect: true}
	b.fake.FailNext("set", lost, lost)
	rotate(t, s, r, "v1")
	if n := len(b.fake.Versions(vault, r.Name)); n != 2 {
		t.Errorf("the secret has %d versions, expected two", n)
	}
	if n := len(b.fake.Versions(vault, pendingName(r))); n != 1 {
		t.Errorf("the sibling has %d versions, expected one", n)
	}
}

// The client asks for a challenge without a token and without the value, and
// again when its token is not taken any more.
func TestChallenge(t *testing.T) {
	b := newBackend(t).(*backend)
	var bare atomic.Int32
	rt := roundTripper(func(q *http.Request) (*http.Response, error) {
		if q.Header.Get("Authorization") == "" && q.ContentLength > 0 {
			bare.Add(1)
		}
		return b.fake.Transport().RoundTrip(q)
	})
	s := b.open(nil, func(o *azurekv.Options) { o.Client.Transport = &http.Client{Transport: rt} })
	r := b.fake.Ref(vault, name())
	if _, err := s.CreateSecret(t.Context(), r, text("v0")); err != nil {
		t.Fatal(err)
	}
	if n := len(b.fake.Calls("challenge")); n != 1 {
		t.Errorf("%d challenges, expected one for all calls", n)
	}
	b.fake.RevokeTokens()
	rotate(t, s, r, "v1")
	if n := len(b.fake.Calls("challenge")); n != 2 {
		t.Errorf("%d challenges, expected a second one for the revoked token", n)
	}
	if bare.Load() > 0 {
		t.Error("a value was sent without a token")
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// noToken is a credential that fails.
type noToken struct{ err error }

func (c noToken) GetToken(context.Context, policy.TokenRequestOptions) (azcore.AccessToken, error) {
	return azcore.AccessToken{}, c.err
}

func TestNoToken(t *testing.T) {
	b := newBackend(t).(*backend)
	r := b.Create(t, text("v0"))
	o := &azurekv.Options{Logger: b.logs.Logger()}
	o.Client.Transport = b.fake.Client()
	canary := leaktest.Canary()
	_, err := azurekv.New(noToken{errors.New("client_secret=" + canary)}, o).Get(t.Context(), r, secrets.Current)
	want(t, "get without a token", err, fault.Denied, "sign in", "AZURE_CLIENT_ID")
	if strings.Contains(err.Error(), canary) {
		t.Error("the credential's own text is in the error")
	}
	_, err = azurekv.New(noToken{&net.OpError{Op: "dial", Err: errors.New("refused")}}, o).Get(t.Context(), r, secrets.Current)
	want(t, "get while tokens cannot be had", err, fault.Unavailable)
}

// Whatever answers in a vault's place, there is an error, no panic, and
// nothing of the answer in it.
func TestGarbage(t *testing.T) {
	canary := leaktest.Canary()
	id := `"id":"https://kv-agents.vault.azure.net/secrets/db/0123456789abcdef0123456789abcdef"`
	for name, c := range map[string]struct {
		status int
		header [2]string
		body   string
		kind   fault.Kind
	}{
		"empty":                        {status: 200, kind: fault.Unavailable},
		"html":                         {status: 200, body: "<html>" + canary, kind: fault.Unavailable},
		"html error":                   {status: 403, body: "<html><code>" + canary + "</code>", kind: fault.Denied},
		"null":                         {status: 200, body: "null", kind: fault.Unavailable},
		"wrong types":                  {status: 200, body: `{"value":{"x":"` + canary + `"},"id":7}`, kind: fault.Unavailable},
		"no id":                        {status: 200, body: `{"value":"` + canary + `","attributes":{}}`, kind: fault.Unavailable},
		"no attributes":                {status: 200, body: `{"value":"` + canary + `",` + id + `}`, kind: fault.Unavailable},
		"no value":                     {status: 200, body: `{` + id + `,"attributes":{"enabled":true}}`, kind: fault.Unavailable},
		"no version":                   {status: 200, body: `{"value":"` + canary + `","id":"https://x/secrets/db","attributes":{}}`, kind: fault.Unavailable},
		"another secret":               {status: 200, body: `{"value":"` + canary + `","id":"https://x/secrets/other/0","attributes":{}}`, kind: fault.Unavailable},
		"broken id":                    {status: 200, body: `{"value":"` + canary + `","id":"://\u0000","attributes":{}}`, kind: fault.Unavailable},
		"id of a key":                  {status: 200, body: `{"value":"` + canary + `","id":"https://x/keys/db/0","attributes":{}}`, kind: fault.Unavailable},
		"too long":                     {status: 200, body: strings.Repeat(" ", 2<<20), kind: fault.Unavailable},
		"redirect":                     {status: 307, header: [2]string{"Location", "https://kv-other.vault.azure.net/"}, kind: fault.Unavailable},
		"challenge of a proxy":         {status: 401, header: [2]string{"WWW-Authenticate", "Negotiate"}, kind: fault.Unavailable},
		"challenge without a URL":      {status: 401, header: [2]string{"WWW-Authenticate", `Bearer authorization="x", resource="https://vault.azure.net"`}, kind: fault.Unavailable},
		"challenge without a tenant":   {status: 401, header: [2]string{"WWW-Authenticate", `Bearer authorization="https://x", resource="https://vault.azure.net"`}, kind: fault.Unavailable},
		"challenge without a resource": {status: 401, header: [2]string{"WWW-Authenticate", `Bearer authorization="https://x/y"`}, kind: fault.Unavailable},
		"challenge of another service": {status: 401, header: [2]string{"WWW-Authenticate", `Bearer authorization="https://x/y", resource="https://storage.azure.com"`}, kind: fault.Denied},
		"no challenge":                 {status: 401, kind: fault.Unavailable},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBackend(t).(*backend)
			r := b.fake.Ref(vault, "db")
			rt := roundTripper(func(q *http.Request) (*http.Response, error) {
				h := http.Header{}
				if c.header[0] != "" {
					h.Set(c.header[0], c.header[1])
				}
				return &http.Response{StatusCode: c.status, Header: h, Body: io.NopCloser(strings.NewReader(c.body)), Request: q}, nil
			})
			s := b.open(nil, func(o *azurekv.Options) {
				o.Client.Transport = &http.Client{Transport: rt, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
			})
			rec := &leaktest.Recorder{}
			for what, err := range map[string]error{
				"get":         err2(s.Get(t.Context(), r, secrets.Current)),
				"describe":    err2(s.Describe(t.Context(), r)),
				"put pending": err2(s.PutPending(t.Context(), r, token(), text("v"))),
				"create":      err2(s.CreateSecret(t.Context(), r, text("v"))),
				"disable":     s.Disable(t.Context(), r, strings.Repeat("0", 32)),
				"check":       s.Check(t.Context(), r),
				"orphans":     err2(s.Orphans(t.Context(), r)),
			} {
				if what == "orphans" && c.status == 200 && err == nil {
					continue // it reads as a list of nothing
				}
				want(t, what, err, c.kind)
				rec.Record(err)
			}
			rec.Check(t, canary)
		})
	}
}

// The link to a list's next page gets the token too: it must not lead away.
func TestNextLinkLeadsAway(t *testing.T) {
	b := newBackend(t).(*backend)
	r := b.Create(t, text("v0"))
	var away atomic.Int32
	rt := roundTripper(func(q *http.Request) (*http.Response, error) {
		if q.URL.Hostname() != vault+"."+azurefake.Domain {
			away.Add(1)
		}
		if strings.HasSuffix(q.URL.Path, "/versions") && q.Header.Get("Authorization") != "" {
			body := `{"value":[],"nextLink":"https://evil.example/secrets"}`
			return &http.Response{StatusCode: http.StatusOK, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(body)), Request: q}, nil
		}
		return b.fake.Transport().RoundTrip(q)
	})
	s := b.open(nil, func(o *azurekv.Options) { o.Client.Transport = &http.Client{Transport: rt} })
	_, err := s.Describe(t.Context(), r)
	want(t, "describe", err, fault.Unavailable, "another host")
	if away.Load() > 0 {
		t.Error("a request followed the link")
	}
}

// A vault that is not in the DNS is no secret that is not there: there may be
// a pending version behind a name server that is wrong for a moment.
func TestNoSuchVault(t *testing.T) {
	b := newBackend(t).(*backend)
	s := b.open(nil)
	r := b.fake.Ref("kv-nowhere", "db")
	for what, err := range map[string]error{
		"get":     err2(s.Get(t.Context(), r, secrets.Current)),
		"pending": err2(s.Get(t.Context(), r, secrets.Pending)),
		"put":     err2(s.PutPending(t.Context(), r, token(), text("v"))),
		"orphans": err2(s.Orphans(t.Context(), r)),
	} {
		want(t, what, err, fault.Unavailable, "kv-nowhere.vault.azure.net", "check the vault's name")
		if fault.ClassOf(err) != fault.ClassNetwork {
			t.Errorf("%s: the class is %q", what, fault.ClassOf(err))
		}
	}
}

// The certificate is verified, and there is no way around TLS.
func TestTLS(t *testing.T) {
	b := newBackend(t).(*backend)
	r := b.Create(t, text("v0"))
	other := azurefake.New(t, vault) // with a certificate of its own
	host := strings.TrimPrefix(other.URL(vault), "https://")
	o := func(o *azurekv.Options) {
		o.VaultURL = func(string) string { return "https://" + host }
		o.Client.DisableChallengeResourceVerification = true
	}
	_, err := b.open(nil, o).Get(t.Context(), r, secrets.Current)
	want(t, "get from who has no certificate that is trusted", err, fault.Denied, "certificate")
	if fault.ClassOf(err) != fault.ClassTLS {
		t.Errorf("the class is %q", fault.ClassOf(err))
	}
	plain := httptest.NewServer(http.NotFoundHandler())
	defer plain.Close()
	for _, url := range []string{plain.URL, "ftp://x", "kv-agents.vault.azure.net", "", "https://", "\x00"} {
		_, err := b.open(nil, func(o *azurekv.Options) { o.VaultURL = func(string) string { return url } }).Get(t.Context(), r, secrets.Current)
		want(t, "get from "+url, err, fault.Invalid, "expected one such as https://")
	}
}

// On loopback a vault is a path, as for a process without the fake's DNS.
func TestVaultURL(t *testing.T) {
	b := newBackend(t).(*backend)
	r := b.Create(t, text("v0"))
	s := b.open(nil, func(o *azurekv.Options) {
		o.VaultURL = b.fake.URL
		o.Client.DisableChallengeResourceVerification = true
	})
	for _, v := range []string{"v1", "v2", "v3", "v4"} { // more than one page
		rotate(t, s, r, v)
	}
	if c, p := stage(t, s, r, secrets.Current), stage(t, s, r, secrets.Previous); c != "v4" || p != "v3" {
		t.Errorf("current is %q and previous %q", c, p)
	}
	// Without the option the client holds that another host than the vault's
	// asks for a token of the vault.
	_, err := b.open(nil, func(o *azurekv.Options) { o.VaultURL = b.fake.URL }).Get(t.Context(), r, secrets.Current)
	want(t, "get from a host that is not the vault's", err, fault.Denied, "is the vault's URL right?")
}

// A call that hangs ends with the store's own timeout.
func TestTimeout(t *testing.T) {
	b := newBackend(t).(*backend)
	r := b.Create(t, text("v0"))
	rt := roundTripper(func(q *http.Request) (*http.Response, error) {
		<-q.Context().Done()
		return nil, q.Context().Err()
	})
	s := b.open(nil, func(o *azurekv.Options) {
		o.Timeout = 20 * time.Millisecond
		o.Client.Transport = &http.Client{Transport: rt}
	})
	_, err := s.Get(t.Context(), r, secrets.Current)
	want(t, "get", err, fault.Unavailable)
	if fault.ClassOf(err) != fault.ClassTimeout {
		t.Errorf("the class is %q", fault.ClassOf(err))
	}
}

func TestWarnsOfAMissingLocker(t *testing.T) {
	b := newBackend(t).(*backend)
	const says = "only one process may write secrets"
	b.open(nil, func(o *azurekv.Options) { o.Locker = b.locker })
	if strings.Contains(b.Logs(), says) {
		t.Error("warned although there is a Locker")
	}
	r := b.Create(t, text("v0"))
	rotate(t, b.open(nil), r, "v1")
	if n := strings.Count(b.Logs(), says); n != 2 { // as text and as JSON
		t.Errorf("warned %d times, expected once in each of two formats", n)
	}
}
