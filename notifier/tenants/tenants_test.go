package tenants

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/ref"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func of(t testing.TB, p ref.Provider, name string, scope ...string) events.Event {
	t.Helper()
	r, err := ref.New(p, name, scope...)
	if err != nil {
		t.Fatal(err)
	}
	return events.New(events.VersionActivated, r, time.Unix(0, 0), "v")
}

func parse(t testing.TB, text string) events.Event {
	t.Helper()
	r, err := ref.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return events.New(events.VersionActivated, r, time.Unix(0, 0), "v")
}

func rules(t testing.TB, rs ...Rule) *Rules {
	t.Helper()
	r, err := New(Options{Rules: rs})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func tell(t testing.TB, r *Rules, e events.Event) string {
	t.Helper()
	got, err := r.Tenant(t.Context(), e)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := r.Tenant(t.Context(), e); err != nil || again != got {
		t.Errorf("%s: first %q, then %q, %v", e.Data.Ref, got, again, err)
	}
	if x := r.Explain(t.Context(), e); x.Tenant != got || x.Err != nil || x.String() == "" {
		t.Errorf("%s is of %q, and explained as %+v", e.Data.Ref, got, x)
	}
	return got
}

// Each field, each form of pattern, and the order.
func TestRules(t *testing.T) {
	r := rules(t,
		Rule{Tenant: "prod", Account: "1", Region: "eu-*", Name: "prod/**"},
		Rule{Tenant: capture, Account: "1", Name: "teams/{tenant}/**"},
		Rule{Tenant: capture, Account: "2", Name: "**/{tenant}/db"},
		Rule{Tenant: capture, Project: "{tenant}-prod"},
		Rule{Tenant: "regional", Project: "shared", Location: "*-east?"}, // ? is literal
		Rule{Tenant: "world", Project: "shared", Location: "global"},
		Rule{Tenant: "elsewhere", Project: "shared", Location: "*"},
		Rule{Tenant: capture, Vault: "KV-{tenant}", Name: "*"},
		Rule{Tenant: "rooted", Cluster: "c", Namespace: "root"},
		Rule{Tenant: capture, Namespace: "org/{tenant}", Mount: "kv"},
		Rule{Tenant: capture, Bucket: "{tenant}", Name: "{tenant}/**"},
		Rule{Tenant: "buckets", Provider: "nats", Name: "a*c*e"},
		Rule{Tenant: "rest", Provider: "nats", Bucket: "b"},
	)
	for text, want := range map[string]string{
		"aws://1/eu-west-1/prod/db":       "prod",
		"aws://1/eu-west-1/prod/a/b":      "prod",
		"aws://1/eu-west-1/prod":          "quarantine", // ** is one segment or more
		"aws://1/us-east-1/prod/db":       "quarantine",
		"aws://1/us-east-1/teams/acme/db": "acme",
		"aws://1/us-east-1/teams/acme":    "quarantine",
		"aws://2/r/x/y/acme/db":           "acme",
		"aws://2/r/x/acme/db/db":          "db",
		"aws://2/r/acme/db":               "quarantine",
		"gcp://acme-eu-prod/db":           "acme-eu",
		"gcp://-prod/db":                  "quarantine",
		"gcp://shared/us-east%3F/db":      "regional",
		"gcp://shared/us-east1/db":        "elsewhere",
		"gcp://shared/db":                 "world",
		"azure://kv-acme/db":              "acme",
		"azure://KV-ACME/db":              "acme", // Azure has no case
		"vault://c//kv/db":                "rooted",
		"vault://d/org%2Facme/kv/db":      "acme",
		"vault://d/org%2Facme/kv2/db":     "quarantine",
		"vault://d/org%252Facme/kv/db":    "quarantine",
		"nats://acme/acme/db":             "acme",
		"nats://acme/globex/db":           "quarantine", // two fields, two tenants
		"nats://x/abcde":                  "buckets",
		"nats://x/ace":                    "buckets",
		"nats://x/ac/e":                   "quarantine",
		"nats://b/x":                      "rest",
	} {
		if got := tell(t, r, parse(t, text)); got != want {
			t.Errorf("%s is of %q; expected %q\n%s", text, got, want, r.Explain(t.Context(), parse(t, text)))
		}
	}
}

// What is captured and is no tenant's name is nobody's: not the next rule's,
// not the name made fit.
func TestBadCaptures(t *testing.T) {
	r, err := New(Options{Quarantine: "nobody", Rules: []Rule{{Tenant: capture, Bucket: "b", Name: "{tenant}/*"}, {Tenant: "all"}}})
	if err != nil {
		t.Fatal(err)
	}
	for i, name := range []string{"ACME", "a.b", "a*", ">", "-a", "_a", "a b", "nobody", "keyturn", "sys", "system", "ä", "a%2Fb", strings.Repeat("a", 64), "a\nb"} {
		e := of(t, ref.NATS, name+"/x", "b")
		if got := tell(t, r, e); got != "nobody" {
			t.Errorf("%q: %q; expected the quarantine", name, got)
		}
		if n := r.Quarantined(); n != uint64(2*(i+1)) { // tell asks twice
			t.Errorf("%d events counted; expected %d", n, 2*(i+1))
		}
		if x := r.Explain(t.Context(), e); !x.Quarantined || x.Rule != 1 || strings.Contains(strings.ReplaceAll(x.String(), "\n  rule", ""), "\n") {
			t.Errorf("explained as %q", x.String())
		}
	}
	if got := tell(t, r, of(t, ref.NATS, "a-b_9/x", "b")); got != "a-b_9" {
		t.Errorf("%q; expected the captured name", got)
	}
	if got := tell(t, r, of(t, ref.NATS, "x", "c")); got != "all" {
		t.Errorf("%q; expected the last rule's", got)
	}
}

// TestConfiguredSecretOnAzure: the spelling in the configuration is a person's,
// that in an event the decoder's.
func TestConfiguredSecretOnAzure(t *testing.T) {
	upper, lower := parse(t, "azure://KV-Acme/Db-Main"), parse(t, "azure://kv-acme/db-main")
	for _, configured := range []events.Event{upper, lower} {
		r, err := New(Options{Rules: []Rule{{Tenant: "other"}}, Secrets: map[ref.Ref]string{configured.Data.Ref: "mine"}})
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range []events.Event{upper, lower} {
			if got := tell(t, r, e); got != "mine" {
				t.Errorf("%s, configured as %s, is of %q; expected mine", e.Data.Ref, configured.Data.Ref, got)
			}
		}
	}
	if _, err := New(Options{Secrets: map[ref.Ref]string{upper.Data.Ref: "a", lower.Data.Ref: "b"}}); !fault.Is(err, fault.Invalid) {
		t.Errorf("%v; expected one secret of two tenants to be invalid", err)
	}
}

func TestConfiguredSecretsWin(t *testing.T) {
	e := of(t, ref.NATS, "x", "b")
	r, err := New(Options{Rules: []Rule{{Tenant: "all"}}, Secrets: map[ref.Ref]string{e.Data.Ref: "mine"}})
	if err != nil {
		t.Fatal(err)
	}
	if got := tell(t, r, e); got != "mine" {
		t.Errorf("%q; expected the configured tenant", got)
	}
	if x := r.Explain(t.Context(), e); !x.Configured || !strings.Contains(x.String(), "own configuration") {
		t.Errorf("explained as %s", x)
	}
}

func TestInvalidRules(t *testing.T) {
	tags := func(context.Context, ref.Ref) (map[string]string, error) { return nil, nil }
	for name, c := range map[string]struct {
		o    Options
		want string
	}{
		"unknown provider":      {Options{Rules: []Rule{{Tenant: "a", Provider: "AWS"}}}, `rule 1: provider "AWS" is unknown`},
		"two providers":         {Options{Rules: []Rule{{Tenant: "a", Account: "1", Project: "p"}}}, "rule 1: project is a field of gcp"},
		"provider and field":    {Options{Rules: []Rule{{Tenant: "a", Provider: "vault", Bucket: "b"}}}, "bucket is a field of nats"},
		"no tenant":             {Options{Rules: []Rule{{Bucket: "b"}}}, "rule 1: tenant:"},
		"bad tenant":            {Options{Rules: []Rule{{Tenant: "A", Bucket: "b"}}}, "lower-case"},
		"platform's tenant":     {Options{Rules: []Rule{{Tenant: "keyturn", Bucket: "b"}}}, "platform's own"},
		"template":              {Options{Rules: []Rule{{Tenant: "x-{tenant}", Bucket: "{tenant}"}}}, "expected tenant: \"{tenant}\""},
		"nothing captured":      {Options{Rules: []Rule{{Tenant: capture, Bucket: "b"}}}, "no field captures"},
		"captured for nothing":  {Options{Rules: []Rule{{Tenant: "a", Bucket: "{tenant}"}}}, "a field has {tenant}"},
		"ambiguous star":        {Options{Rules: []Rule{{Tenant: capture, Name: "{tenant}-*"}}}, "could end in several places"},
		"ambiguous across":      {Options{Rules: []Rule{{Tenant: capture, Name: "**/{tenant}/**"}}}, "between two **"},
		"captured twice":        {Options{Rules: []Rule{{Tenant: capture, Name: "{tenant}/{tenant}"}}}, "twice"},
		"twice in a segment":    {Options{Rules: []Rule{{Tenant: capture, Name: "{tenant}-{tenant}"}}}, "beside a star or a brace"},
		"** beside text":        {Options{Rules: []Rule{{Tenant: "a", Name: "a**"}}}, "alone between slashes"},
		"other variable":        {Options{Rules: []Rule{{Tenant: "a", Name: "{name}"}}}, "brace"},
		"catch-all first":       {Options{Rules: []Rule{{Tenant: "a"}, {Tenant: "b", Bucket: "b"}}}, "rule 1: it has no condition"},
		"identical":             {Options{Rules: []Rule{{Tenant: "x", Bucket: "c"}, {Tenant: "a", Bucket: "b"}, {Tenant: "b", Bucket: "b"}}}, "rule 3: rule 2 matches all"},
		"wider first":           {Options{Rules: []Rule{{Tenant: "a", Account: "1"}, {Tenant: "b", Account: "1", Name: "x"}}}, "rule 2: rule 1 matches all"},
		"provider first":        {Options{Rules: []Rule{{Tenant: "a", Provider: "aws"}, {Tenant: "b", Account: "1"}}}, "rule 2: rule 1 matches all"},
		"same on Azure":         {Options{Rules: []Rule{{Tenant: "a", Vault: "KV"}, {Tenant: "b", Vault: "kv"}}}, "rule 2: rule 1 matches all"},
		"tags, nobody to ask":   {Options{Rules: []Rule{{Tenant: "a", Tags: map[string]string{"k": "v"}}}}, "no way to ask"},
		"tag without value":     {Options{Tags: tags, Rules: []Rule{{Tenant: "a", Tags: map[string]string{"k": ""}}}}, "no key or no value"},
		"quarantine is no name": {Options{Quarantine: "Q"}, "quarantine"},
		"secret's bad tenant":   {Options{Secrets: map[ref.Ref]string{{Provider: ref.NATS, Scope: "b", Name: "n"}: "B"}}, "nats://b/n"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := New(c.o)
			if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v; expected invalid and %q", err, c.want)
			}
		})
	}
}

// asked answers for tags, and counts.
type asked struct {
	mu    sync.Mutex
	tags  map[string]string
	err   error
	n     atomic.Int64
	begun chan struct{}
	wait  chan struct{}
}

func (a *asked) get(ctx context.Context, _ ref.Ref) (map[string]string, error) {
	a.n.Add(1)
	if a.wait != nil {
		a.begun <- struct{}{}
		select {
		case <-a.wait:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.tags, a.err
}

func (a *asked) set(tags map[string]string, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.tags, a.err = tags, err
}

func TestTags(t *testing.T) {
	now := time.Unix(1000, 0)
	a := &asked{tags: map[string]string{"team": "acme"}}
	r, err := New(Options{
		Tags: a.get, TagTTL: time.Minute, Now: func() time.Time { return now },
		Rules: []Rule{
			{Tenant: "one", Account: "1"},
			{Tenant: "blue", Provider: "aws", Tags: map[string]string{"colour": "blue"}},
			{Tenant: capture, Provider: "aws", Name: "app/**", Tags: map[string]string{"team": "{tenant}"}},
			{Tenant: "two", Account: "2"},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := tell(t, r, parse(t, "aws://1/r/app/x")); got != "one" || a.n.Load() != 0 {
		t.Errorf("%q after %d lookups; expected one without any", got, a.n.Load())
	}
	e := parse(t, "aws://2/r/app/x")
	if got := tell(t, r, e); got != "acme" || a.n.Load() != 1 {
		t.Errorf("%q after %d lookups; expected acme after one", got, a.n.Load())
	}
	a.set(map[string]string{"colour": "blue"}, nil)
	if got := tell(t, r, e); got != "acme" {
		t.Errorf("%q; expected acme as long as it is remembered", got)
	}
	now = now.Add(time.Minute)
	if got := tell(t, r, e); got != "blue" {
		t.Errorf("%q; expected blue", got)
	}
	// An error is no answer, and is not remembered.
	now = now.Add(time.Minute)
	a.set(nil, fault.Newf(fault.Denied, "tags", "not allowed"))
	if got, err := r.Tenant(t.Context(), e); got != "" || !fault.Is(err, fault.Unavailable) {
		t.Errorf("%q, %v; expected an error of kind unavailable", got, err)
	}
	if x := r.Explain(t.Context(), e); x.Err == nil || !strings.Contains(x.String(), "cannot be told") {
		t.Errorf("explained as %s", x)
	}
	// That there are none is remembered.
	a.set(nil, fault.Newf(fault.NotFound, "tags", "no such secret"))
	before := a.n.Load()
	if got := tell(t, r, e); got != "two" || a.n.Load() != before+1 {
		t.Errorf("%q after %d lookups; expected two after one", got, a.n.Load()-before)
	}
}

// Many events of one secret are one lookup, and who gives up does not end it
// for the others.
func TestOneLookupAtATime(t *testing.T) {
	a := &asked{tags: map[string]string{"t": "acme"}, begun: make(chan struct{}, 10), wait: make(chan struct{})}
	r, err := New(Options{Tags: a.get, Rules: []Rule{{Tenant: capture, Tags: map[string]string{"t": "{tenant}"}}}})
	if err != nil {
		t.Fatal(err)
	}
	e := parse(t, "aws://2/r/x")
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := r.Tenant(ctx, e); !fault.Is(err, fault.Unavailable) {
			t.Errorf("given up: %v", err)
		}
	})
	<-a.begun
	for range 50 {
		wg.Go(func() {
			if got, err := r.Tenant(t.Context(), e); got != "acme" || err != nil {
				t.Errorf("%q, %v", got, err)
			}
		})
	}
	cancel()
	close(a.wait)
	wg.Wait()
	if n := a.n.Load(); n != 1 {
		t.Errorf("%d lookups; expected one", n)
	}
}

// The caches stay small whatever comes.
func TestCachesAreBounded(t *testing.T) {
	a := &asked{}
	r, err := New(Options{Tags: a.get, Rules: []Rule{{Tenant: "a", Tags: map[string]string{"t": "x"}}}})
	if err != nil {
		t.Fatal(err)
	}
	for i := range maxCached + maxCached/2 {
		if _, err := r.Tenant(t.Context(), events.Event{Data: events.Data{Ref: ref.Ref{Provider: ref.NATS, Scope: "b", Name: fmt.Sprint(i)}}}); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(r.cache.young) + len(r.cache.old); n > maxCached || n < maxCached/2 {
		t.Errorf("%d verdicts are remembered; expected %d to %d", n, maxCached/2, maxCached)
	}
	if n := len(r.tags.tags); n > maxCached {
		t.Errorf("the tags of %d secrets are remembered; expected %d at most", n, maxCached)
	}
}

func BenchmarkTenant(b *testing.B) {
	var rs []Rule
	for i := range 200 {
		rs = append(rs, Rule{Tenant: fmt.Sprint("t", i), Account: fmt.Sprint(i), Name: "prod/**"})
	}
	rs = append(rs, Rule{Tenant: capture, Account: "*", Name: "teams/{tenant}/**"})
	es := make([]events.Event, 1000)
	for i := range es {
		es[i] = parse(b, fmt.Sprintf("aws://%d/eu-west-1/teams/acme/service-%d/db", i%300, i))
	}
	b.Run("cached", func(b *testing.B) {
		r := rules(b, rs...)
		for i := 0; b.Loop(); i++ {
			_, _ = r.Tenant(b.Context(), es[i%len(es)])
		}
	})
	b.Run("matched", func(b *testing.B) {
		r := rules(b, rs...)
		for i := 0; b.Loop(); i++ {
			_ = r.first(es[i%len(es)].Data.Ref, 0)
		}
	})
}

// TestTagsOfASecretThatIsGone: the news that a secret was deleted goes to the
// tenant that had it, and not to whoever a rule for the rest names.
func TestTagsOfASecretThatIsGone(t *testing.T) {
	now, gone := time.Unix(0, 0), false
	r, err := New(Options{
		Rules: []Rule{{Tenant: "acme", Tags: map[string]string{"team": "acme"}}, {Tenant: "others"}},
		Tags: func(context.Context, ref.Ref) (map[string]string, error) {
			if gone {
				return nil, fault.Newf(fault.NotFound, "tags", "no such secret")
			}
			return map[string]string{"team": "acme"}, nil
		},
		Now: func() time.Time { return now },
	})
	if err != nil {
		t.Fatal(err)
	}
	e := parse(t, "gcp://p/db")
	for range 3 {
		if got := tell(t, r, e); got != "acme" {
			t.Fatalf("it is of %q, gone %t; expected acme", got, gone)
		}
		gone, now = true, now.Add(2*DefaultTagTTL)
	}
	if got := tell(t, r, parse(t, "gcp://p/unknown")); got != "others" {
		t.Errorf("one that was never seen is of %q; expected others", got)
	}
}
