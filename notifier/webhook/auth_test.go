package webhook

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/keyturn/keyturn/fault"
)

func nowish() time.Time { return time.Now() }

func TestAuthenticatorsRefuseOptions(t *testing.T) {
	short := base64.StdEncoding.EncodeToString(make([]byte, 23))
	long := base64.StdEncoding.EncodeToString(make([]byte, 65))
	for name, f := range map[string]func() (any, error){
		"no key":           func() (any, error) { return APIKey("") },
		"empty key":        func() (any, error) { return APIKey("", "") },
		"short key":        func() (any, error) { return APIKey("", key, "short") },
		"newline":          func() (any, error) { return APIKey("", key+"\n") },
		"header":           func() (any, error) { return APIKey("X Api", key) },
		"no login":         func() (any, error) { return Basic() },
		"no user":          func() (any, error) { return Basic(Login{"", key}) },
		"colon":            func() (any, error) { return Basic(Login{"a:b", key}) },
		"control":          func() (any, error) { return Basic(Login{"a\nb", key}) },
		"short password":   func() (any, error) { return Basic(Login{"a", "short"}) },
		"no secret":        func() (any, error) { return StandardWebhooks() },
		"not base64":       func() (any, error) { return StandardWebhooks("whsec_!") },
		"newline in it":    func() (any, error) { return StandardWebhooks("whsec_" + hmacKey + " ") },
		"too short secret": func() (any, error) { return StandardWebhooks("whsec_" + short) },
		"too long secret":  func() (any, error) { return StandardWebhooks("whsec_" + long) },
	} {
		if _, err := f(); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v; expected an error of kind invalid", name, err)
		}
	}
}

func TestBasic(t *testing.T) {
	b, err := Basic(Login{"alice", key}, Login{"bob", newKey})
	must(t, err)
	with := func(vs ...string) http.Header { return http.Header{"Authorization": vs} }
	login := func(user, password string) string {
		return "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
	}
	for name, c := range map[string]struct {
		h  http.Header
		ok bool
	}{
		"first":           {with(login("alice", key)), true},
		"second":          {with(login("bob", newKey)), true},
		"scheme folded":   {with(strings.Replace(login("bob", newKey), "Basic", "bASIC", 1)), true},
		"crossed":         {with(login("alice", newKey)), false},
		"no header":       {http.Header{}, false},
		"two headers":     {with(login("alice", key), login("alice", key)), false},
		"no password":     {with(login("alice", "")), false},
		"no user":         {with(login("", key)), false},
		"prefix":          {with(login("alice", key[:20])), false},
		"another scheme":  {with(strings.Replace(login("bob", newKey), "Basic", "Bearer", 1)), false},
		"no base64":       {with("Basic alice:" + key), false},
		"colon elsewhere": {with("Basic " + base64.StdEncoding.EncodeToString([]byte("alice"+key))), false},
	} {
		if err := b.Authenticate(t.Context(), c.h); (err == nil) != c.ok || !c.ok && !fault.Is(err, fault.Denied) {
			t.Errorf("%s: %v; expected accepted=%t", name, err, c.ok)
		}
	}
	// It stands on a route, and its challenge tells a client to send it.
	r := serve(t, Options{Routes: bridge(func(r *Route) { r.Auth = []Authenticator{b} })}, nil)
	if code, header, _ := r.post("", nil); code != 401 || !strings.HasPrefix(header.Get("WWW-Authenticate"), "Basic ") {
		t.Errorf("status %d with %q; expected 401 that asks for Basic", code, header.Get("WWW-Authenticate"))
	}
}

// TestStandardWebhooksVector is the reference vector of the specification's own
// libraries.
func TestStandardWebhooksVector(t *testing.T) {
	const body = `{"test": 2432232314}`
	at := time.Unix(1614265330, 0)
	h := http.Header{}
	h.Set("webhook-id", "msg_p5jXN8AQM9LWM0D4loKWxJek")
	h.Set("webhook-timestamp", "1614265330")
	h.Set("webhook-signature", "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=")
	for _, secret := range []string{hmacKey, "whsec_" + hmacKey} {
		a, err := StandardWebhooks("whsec_"+base64.StdEncoding.EncodeToString(make([]byte, 24)), secret)
		must(t, err)
		for off, ok := range map[time.Duration]bool{0: true, tolerance: true, -tolerance: true, tolerance + time.Second: false, -tolerance - time.Second: false} {
			a.(*standardWebhooks).now = func() time.Time { return at.Add(off) }
			err := a.Authenticate(t.Context(), h)
			if err == nil {
				err = a.AuthenticateBody(t.Context(), h, []byte(body))
			}
			if (err == nil) != ok {
				t.Errorf("%s away: %v; expected accepted=%t", off, err, ok)
			}
		}
	}
}

func TestStandardWebhooks(t *testing.T) {
	oldKey := base64.StdEncoding.EncodeToString([]byte(strings.Repeat("o", 32)))
	a, err := StandardWebhooks("whsec_"+hmacKey, "whsec_"+oldKey)
	must(t, err)
	const body = `{"a":1}`
	signed := func(edit func(h http.Header)) http.Header {
		h := http.Header{}
		sign(h, hmacKey, "msg_1", time.Now(), body)
		if edit != nil {
			edit(h)
		}
		return h
	}
	set := func(k string, f func(v string) string) http.Header {
		return signed(func(h http.Header) { h.Set(k, f(h.Get(k))) })
	}
	is := func(v string) func(string) string { return func(string) string { return v } }
	for name, c := range map[string]struct {
		h      http.Header
		header bool // accepted by the header alone
		ok     bool
	}{
		"good":                   {signed(nil), true, true},
		"old key":                {signed(func(h http.Header) { sign(h, oldKey, "msg_1", time.Now(), body) }), true, true},
		"among others":           {set("webhook-signature", func(v string) string { return "v1a,x v1,AAAA v2,y " + v }), true, true},
		"only another version":   {set("webhook-signature", is("v1a,AAAA")), false, false},
		"no base64":              {set("webhook-signature", is("v1,!")), true, false},
		"no version":             {set("webhook-signature", func(v string) string { return v[3:] }), false, false},
		"empty signature":        {set("webhook-signature", is("v1,")), true, false},
		"behind too many":        {set("webhook-signature", func(v string) string { return strings.Repeat("v1,AAAA ", maxSignatures) + v }), true, false},
		"another id":             {set("webhook-id", is("msg_2")), true, false},
		"no id":                  {signed(func(h http.Header) { h.Del("webhook-id") }), false, false},
		"two ids":                {signed(func(h http.Header) { h.Add("webhook-id", "msg_1") }), false, false},
		"full stop in the id":    {signed(func(h http.Header) { sign(h, hmacKey, "msg.1", time.Now(), body) }), false, false},
		"no time":                {signed(func(h http.Header) { h.Del("webhook-timestamp") }), false, false},
		"another time":           {set("webhook-timestamp", is(fmt.Sprint(time.Now().Unix()+1))), true, false},
		"time with a plus":       {set("webhook-timestamp", func(v string) string { return "+" + v }), false, false},
		"time with a zero":       {set("webhook-timestamp", func(v string) string { return "0" + v }), false, false},
		"time of the far future": {set("webhook-timestamp", is("9223372036854775807")), false, false},
		"time of the far past":   {set("webhook-timestamp", is("-9223372036854775808")), false, false},
		"time beyond":            {set("webhook-timestamp", is("9223372036854775808")), false, false},
	} {
		if err := a.Authenticate(t.Context(), c.h); (err == nil) != c.header || err != nil && !fault.Is(err, fault.Denied) {
			t.Errorf("%s, header: %v; expected accepted=%t", name, err, c.header)
		}
		if err := a.AuthenticateBody(t.Context(), c.h, []byte(body)); (err == nil) != c.ok || err != nil && !fault.Is(err, fault.Denied) {
			t.Errorf("%s: %v; expected accepted=%t", name, err, c.ok)
		}
	}
}

// TestSignatureHoldsAll: what is signed is accepted, and no change of it is.
func TestSignatureHoldsAll(t *testing.T) {
	a, err := StandardWebhooks("whsec_" + hmacKey)
	must(t, err)
	rapid.Check(t, func(t *rapid.T) {
		body := rapid.SliceOf(rapid.Byte()).Draw(t, "body")
		h := http.Header{}
		sign(h, hmacKey, rapid.StringMatching(`[a-zA-Z0-9_-]{1,40}`).Draw(t, "id"), time.Now(), string(body))
		if err := a.AuthenticateBody(t.Context(), h, body); err != nil {
			t.Fatal(err)
		}
		at := rapid.IntRange(0, len(body)).Draw(t, "at")
		changed := append(append(append([]byte{}, body[:at]...), rapid.Byte().Draw(t, "more")), body[at:]...)
		if err := a.AuthenticateBody(t.Context(), h, changed); err == nil {
			t.Fatal("accepted another body")
		}
	})
}

// TestAlternatives: one that accepts is enough, and one that cannot tell might
// have.
func TestAlternatives(t *testing.T) {
	hm, err := StandardWebhooks("whsec_" + hmacKey)
	must(t, err)
	r := serve(t, Options{Routes: bridge(func(r *Route) { r.Auth = []Authenticator{hm, token{}, auth(key)[0]} })}, deliverNothing)
	body := moved(1)
	for name, c := range map[string]struct {
		edit func(h http.Header)
		want int
	}{
		"key":                              {func(h http.Header) { h.Set("X-Api-Key", key) }, 200},
		"token":                            {func(h http.Header) { h.Set("Authorization", "Bearer good") }, 200},
		"signature":                        {func(h http.Header) { sign(h, hmacKey, "m", time.Now(), body) }, 200},
		"none":                             {func(http.Header) {}, 401},
		"wrong signature":                  {func(h http.Header) { sign(h, hmacKey, "m", time.Now(), body+" ") }, 401},
		"wrong signature and a good key":   {func(h http.Header) { sign(h, hmacKey, "m", time.Now(), ""); h.Set("X-Api-Key", key) }, 200},
		"key while token cannot be told":   {func(h http.Header) { h.Set("Authorization", "Bearer keys-away"); h.Set("X-Api-Key", key) }, 200},
		"none while token cannot be told":  {func(h http.Header) { h.Set("Authorization", "Bearer keys-away") }, 503},
		"wrong signature, token away":      {func(h http.Header) { sign(h, hmacKey, "m", time.Now(), ""); h.Set("Authorization", "Bearer keys-away") }, 503},
		"two tokens, and a good key":       {func(h http.Header) { h["Authorization"] = []string{"a", "b"}; h.Set("X-Api-Key", key) }, 401},
		"a defect is not the sender's":     {func(h http.Header) { h.Set("Authorization", "Bearer defect") }, 503},
		"a wrong signature is not a token": {func(h http.Header) { h.Set("Authorization", "Bearer v1") }, 401},
	} {
		code, header, _ := r.post(body, func(q *http.Request) {
			q.Header = http.Header{"Content-Type": {"application/json"}}
			c.edit(q.Header)
		})
		if code != c.want {
			t.Errorf("%s: status %d; expected %d", name, code, c.want)
		}
		if n := len(header.Values("WWW-Authenticate")); code == 401 && n != 3 {
			t.Errorf("%s: %d challenges; expected one for each alternative", name, n)
		}
	}
}
