package events

import (
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/nats-io/nats-server/v2/server"
	"pgregory.net/rapid"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/ref"
)

// nasty draws text that NATS, the escape itself, or a careless parser trips
// over.
var nasty = rapid.OneOf(
	rapid.SampledFrom([]string{"", ".", "*", ">", "%", "~", "$", "a.b", "%2E", "~x", "$SYS", "a b", "\x00", "\n", "ü", "\xff", "..", "a.*.>", "%%", "acme", "acme.x", "acme.", "ACME"}),
	rapid.StringMatching(`[a-c.*>%~$ /%2E-]{0,12}`),
	rapid.String(),
	rapid.Map(rapid.IntRange(60, 400), func(n int) string { return strings.Repeat("x", n) }),
	rapid.Map(rapid.SliceOfN(rapid.Byte(), 0, 200), func(b []byte) string { return string(b) }),
)

func drawRef(rt *rapid.T, label string) ref.Ref {
	return ref.Ref{
		Provider: rapid.SampledFrom([]ref.Provider{ref.AWS, ref.GCP, ref.Azure, ref.Vault, ref.NATS}).Draw(rt, label+" provider"),
		Scope:    nasty.Draw(rt, label+" scope"), Name: nasty.Draw(rt, label+" name"),
	}
}

// short reports whether s goes into a token as itself.
func short(s string) bool { return !strings.HasPrefix(Token(s), "~") }

// TestSubjectRoundTrip, trap 46: no name splits a token, matches as a wildcard
// or is refused, by the server's own judgement.
func TestSubjectRoundTrip(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		tenant, r := nasty.Draw(rt, "tenant"), drawRef(rt, "ref")
		typ := rapid.SampledFrom(Types()).Draw(rt, "type")
		s := Subject(tenant, r, typ)

		if toks := strings.Split(s, "."); len(toks) != 8 {
			rt.Fatalf("%q has %d tokens; expected 8", s, len(toks))
		}
		// The server's own judgement: literal, valid, and plain ASCII.
		if !server.IsValidLiteralSubject(s) || strings.ContainsAny(s, " \t\r\n\x00") || !utf8.ValidString(s) {
			rt.Fatalf("NATS would split, match or refuse %q", s)
		}
		for _, c := range []byte(s) {
			if c <= ' ' || c >= 0x7f {
				rt.Fatalf("%q holds byte %#x", s, c)
			}
		}
		if len(s) > 512 {
			rt.Fatalf("a subject of %d bytes", len(s))
		}
		p, err := ParseSubject(s)
		if err != nil {
			rt.Fatal(err)
		}
		noun, verb := typ.Parts()
		if p.Noun != noun || p.Verb != verb || p.Provider != string(r.Provider) {
			rt.Fatalf("%q reads as %+v", s, p)
		}
		if want := !short(r.Scope) || !short(r.Name); p.Digested != want {
			rt.Fatalf("%q: digested %t; expected %t", s, p.Digested, want)
		}
		for what, pair := range map[string][2]string{"tenant": {tenant, p.Tenant}, "scope": {r.Scope, p.Scope}, "name": {r.Name, p.Name}} {
			if short(pair[0]) && pair[0] != pair[1] {
				rt.Fatalf("%s %q reads back as %q from %q", what, pair[0], pair[1], s)
			}
			if !short(pair[0]) && len(pair[1]) != 33 {
				rt.Fatalf("%s of %d bytes became %q; expected ~ and 32 characters", what, len(pair[0]), pair[1])
			}
		}
	})
}

// TestTenantsCannotCollide: two tenants have two tokens, so that a permission
// for keyturn.v1.acme.> opens nobody else's subjects.
func TestTenantsCannotCollide(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		a, b := nasty.Draw(rt, "a"), nasty.Draw(rt, "b")
		r := drawRef(rt, "ref")
		sa, sb := Subject(a, r, VersionActivated), Subject(b, r, VersionActivated)
		if (sa == sb) != (a == b) {
			rt.Fatalf("tenants %q and %q have subjects %q and %q", a, b, sa, sb)
		}
		mine := SubjectPrefix + Token(a) + ".>"
		if !server.SubjectMatchesFilter(sa, mine) {
			rt.Fatalf("%q does not match the tenant's own %q", sa, mine)
		}
		if a != b && server.SubjectMatchesFilter(sb, mine) {
			rt.Fatalf("tenant %q hears %q of tenant %q", a, sb, b)
		}
	})
	if Subject("acme", payments, VersionActivated) == Subject("acme.x", payments, VersionActivated) {
		t.Error("acme and acme.x share a subject")
	}
	if got := Token("acme.x"); got != "acme%2Ex" {
		t.Errorf("acme.x is %q", got)
	}
}

func TestSubjectsOfTwoSecretsDiffer(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		a, b := drawRef(rt, "a"), drawRef(rt, "b")
		if (Subject("t", a, VersionActivated) == Subject("t", b, VersionActivated)) != (a == b) {
			rt.Fatalf("%+v and %+v share a subject, or one has two", a, b)
		}
	})
}

func TestFilterSubjects(t *testing.T) {
	other := ref.Ref{Provider: ref.GCP, Scope: "p", Name: "db.main"}
	for _, c := range []struct {
		f    Filter
		want []string
	}{
		{Filter{}, []string{"keyturn.v1.*.*.*.*.*.*"}},
		{Filter{Tenant: "acme.x"}, []string{"keyturn.v1.acme%2Ex.*.*.*.*.*"}},
		{Filter{Types: []Type{RotationFailed}}, []string{"keyturn.v1.*.*.*.*.rotation.failed"}},
		{
			Filter{Tenant: "a", Refs: []ref.Ref{payments, other}, Types: []Type{VersionActivated, SecretDeleted}},
			[]string{
				"keyturn.v1.a.aws.111122223333/eu-west-1.prod/agents/payments.version.activated",
				"keyturn.v1.a.aws.111122223333/eu-west-1.prod/agents/payments.secret.deleted",
				"keyturn.v1.a.gcp.p.db%2Emain.version.activated",
				"keyturn.v1.a.gcp.p.db%2Emain.secret.deleted",
			},
		},
	} {
		if got := c.f.Subjects(); strings.Join(got, "\n") != strings.Join(c.want, "\n") {
			t.Errorf("%+v: %q; expected %q", c.f, got, c.want)
		}
	}
}

// TestFilterSelects: a filter's subjects match an event's exactly if the filter
// means the event.
func TestFilterSelects(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		tenants := []string{"acme", "acme.x", "*", ">"}
		refs := []ref.Ref{payments, {Provider: ref.AWS, Scope: payments.Scope, Name: "*"}, {Provider: ref.NATS, Scope: "b", Name: "a.b"}, {Provider: ref.NATS, Scope: "b", Name: strings.Repeat("n", 200)}}
		e := Event{Type: rapid.SampledFrom(Types()).Draw(rt, "type")}
		e.Data.Tenant, e.Data.Ref = rapid.SampledFrom(tenants).Draw(rt, "tenant"), rapid.SampledFrom(refs).Draw(rt, "ref")
		f := Filter{
			Tenant: rapid.SampledFrom(append([]string{""}, tenants...)).Draw(rt, "for tenant"),
			Refs:   rapid.SliceOfN(rapid.SampledFrom(refs), 0, 2).Draw(rt, "for refs"),
			Types:  rapid.SliceOfN(rapid.SampledFrom(Types()), 0, 2).Draw(rt, "for types"),
		}
		want := (f.Tenant == "" || f.Tenant == e.Data.Tenant) && (len(f.Refs) == 0 || in(f.Refs, e.Data.Ref)) && (len(f.Types) == 0 || in(f.Types, e.Type))
		got := false
		for _, s := range f.Subjects() {
			if !server.IsValidSubject(s) || strings.Count(s, ".") != 7 {
				rt.Fatalf("pattern %q", s)
			}
			got = got || server.SubjectMatchesFilter(e.Subject(), s)
		}
		if got != want {
			rt.Fatalf("filter %+v and event %s: selected %t, expected %t", f, e.Subject(), got, want)
		}
	})
}

func in[T comparable](list []T, v T) bool {
	for _, x := range list {
		if x == v {
			return true
		}
	}
	return false
}

func TestParseSubjectRefuses(t *testing.T) {
	for _, s := range []string{
		"", "keyturn.v1", "keyturn.v2.a.aws.s.n.version.activated", "keyturn.v1.a.aws.s.n.version", "keyturn.v1.a.aws.s.n.x.version.activated",
		"other.v1.a.aws.s.n.version.activated", "keyturn.v1.a.aws.s.n%.version.activated", "keyturn.v1.a.aws.s.n%2.version.activated", "keyturn.v1.a.aws.s.n%zz.version.activated", "keyturn.v1.a.aws.s.n%2e.version.activated",
	} {
		if p, err := ParseSubject(s); !fault.Is(err, fault.Invalid) {
			t.Errorf("%q reads as %+v, %v; expected an error of kind invalid", s, p, err)
		}
	}
	rapid.Check(t, func(rt *rapid.T) { // never a panic
		_, _ = ParseSubject(nasty.Draw(rt, "any"))
		_, _ = ParseSubject(SubjectPrefix + nasty.Draw(rt, "a") + "." + nasty.Draw(rt, "b") + ".s.n.version.activated")
	})
}
