package tenants

import (
	"regexp"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/ref"
)

// oracle is a pattern written as a regular expression.
func oracle(p string) *regexp.Regexp {
	var segs []string
	for s := range strings.SplitSeq(p, "/") {
		switch s {
		case "**":
			segs = append(segs, `[^/]*(?:/[^/]*)*`)
		case "*":
			segs = append(segs, `[^/]+`)
		default:
			s = regexp.QuoteMeta(s)
			s = strings.ReplaceAll(s, `\*`, `[^/]*`)
			segs = append(segs, strings.ReplaceAll(s, regexp.QuoteMeta(capture), `([^/]+)`))
		}
	}
	return regexp.MustCompile(`(?s)^` + strings.Join(segs, "/") + `$`)
}

// TestPatternsAreTheirRegexp: the matcher and the regular expression agree, on
// what matches and on what is captured.
func TestPatternsAreTheirRegexp(t *testing.T) {
	seg := rapid.SampledFrom([]string{"a", "b", "ab", "*", "a*", "*b", "a*b", "**", capture, "a" + capture, capture + "b", ""})
	text := rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b", "ab", "aab", "abb", "", "ba"}), 1, 6)
	hit := 0
	rapid.Check(t, func(t *rapid.T) {
		pat := strings.Join(rapid.SliceOfN(seg, 1, 5).Draw(t, "pattern"), "/")
		p, err := compile(pat, false)
		if err != nil || pat == "" {
			return
		}
		s := strings.Join(text.Draw(t, "text"), "/")
		m := oracle(pat).FindStringSubmatch(s)
		got, ok := p.match(s)
		if ok != (m != nil) {
			t.Fatalf("%q on %q: %t; expected %t", pat, s, ok, m != nil)
		}
		if ok {
			hit++
		}
		if ok && p.captures() && got != m[1] {
			t.Fatalf("%q on %q captured %q; expected %q", pat, s, got, m[1])
		}
	})
	if hit == 0 {
		t.Error("nothing matched; the test proves nothing")
	}
}

// TestNobodyReachesAnotherPrefix: whatever somebody calls a secret, it is the
// tenant's of the prefix that its name really has, byte for byte, or nobody's.
func TestNobodyReachesAnotherPrefix(t *testing.T) {
	r := rules(t,
		Rule{Tenant: "acme", Provider: "vault", Name: "acme/**"},
		Rule{Tenant: "acme", Provider: "aws", Name: "acme/**"},
		Rule{Tenant: "acme", Provider: "nats", Name: "acme/**"},
		Rule{Tenant: "victim", Name: "victim/**"},
		Rule{Tenant: capture, Name: "t/{tenant}/*"},
	)
	odd := rapid.SampledFrom([]string{
		"victim", "acme", "Victim", "VICTIM", "t", "/", "/", "..", ".", "/../", "/./", "//", "%2F", "%2f", "%252F", "%2e%2e", "*", "**", "?", "[a]", "{tenant}", ">",
		"\x00", "\n", " ", "\\", "victim/", "/victim", "victim%2F", "ⅴictim", "victim\u200b", "vi\u0301ctim", "x", "~", "$",
	})
	providers := rapid.SampledFrom([]ref.Provider{ref.AWS, ref.Vault, ref.NATS})
	rapid.Check(t, func(t *rapid.T) {
		name := strings.Join(rapid.SliceOfN(odd, 1, 6).Draw(t, "name"), "")
		p := providers.Draw(t, "provider")
		x := ref.Ref{Provider: p, Scope: map[ref.Provider]string{ref.AWS: "1/r", ref.Vault: "c//kv", ref.NATS: "b"}[p], Name: name}
		got, err := r.Tenant(t.Context(), events.Event{Data: events.Data{Ref: x}})
		if err != nil {
			t.Fatal(err)
		}
		dots := false
		for s := range strings.SplitSeq(name, "/") {
			dots = dots || s == "." || s == ".."
		}
		want := DefaultQuarantine
		head, rest, _ := strings.Cut(name, "/")
		switch mid, tail, ok := strings.Cut(rest, "/"); {
		case dots || !strings.Contains(name, "/"):
		case head == "acme", head == "victim":
			want = head
		case head == "t" && ok && CheckName(mid) == nil && tail != "" && !strings.Contains(tail, "/"):
			want = mid
		}
		if got != want {
			t.Fatalf("%q is of %q; expected %q", name, got, want)
		}
		// The text form is the same secret.
		back, err := ref.Parse(x.String())
		if err != nil {
			t.Fatal(err)
		}
		if again, err := r.Tenant(t.Context(), events.Event{Data: events.Data{Ref: back}}); err != nil || again != got {
			t.Fatalf("%q is of %q, read back of %q (%v)", name, got, again, err)
		}
	})
}

// TestAzureHasNoCase: each spelling of a name in Azure is of one tenant.
func TestAzureHasNoCase(t *testing.T) {
	r := rules(t, Rule{Tenant: "acme", Vault: "KV", Name: "Acme-*"}, Rule{Tenant: capture, Vault: "kv-{tenant}"}, Rule{Tenant: "rest", Provider: "azure"})
	rapid.Check(t, func(t *rapid.T) {
		flip := func(s string) string {
			b := []byte(s)
			for i := range b {
				if b[i] >= 'a' && b[i] <= 'z' && rapid.Bool().Draw(t, "upper") {
					b[i] -= 'a' - 'A'
				}
			}
			return string(b)
		}
		for in, want := range map[[2]string]string{{"kv", "acme-db"}: "acme", {"kv", "other"}: "rest", {"kv-globex", "acme-db"}: "globex"} {
			e := events.Event{Data: events.Data{Ref: ref.Ref{Provider: ref.Azure, Scope: flip(in[0]), Name: flip(in[1])}}}
			if got, err := r.Tenant(t.Context(), e); err != nil || got != want {
				t.Fatalf("%s is of %q, %v; expected %q", e.Data.Ref, got, err, want)
			}
		}
	})
}
