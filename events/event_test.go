package events

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/keyturn/keyturn/ref"
)

var payments = ref.Ref{Provider: ref.AWS, Scope: "111122223333/eu-west-1", Name: "prod/agents/payments"}

// TestSemanticIDIsStable: ids live in streams, duplicate windows and other
// people's logs. A change of the digest makes every event of a rolling upgrade
// two events. The ids were computed apart from this package: base32hex of the
// first 20 bytes of SHA-256 over type, ref and keys, each followed by a NUL.
func TestSemanticIDIsStable(t *testing.T) {
	for want, got := range map[string]string{
		"7FJJ14RTL2U78RPFOU5SBSVJA9B1POLR": SemanticID(VersionActivated, payments, "5f0c2d1e-7a3b-4c9e-9d1f-2b6a8c4e0f11"),
		"S8SVC865AK7BTDQT27FCEOFO2FMA34SO": SemanticID(RotationSucceeded, payments, "5f0c2d1e-7a3b-4c9e-9d1f-2b6a8c4e0f11"),
		"VAU5GV09DLI7U715I1JGGGILFKVHIUVF": SemanticID(SecretDeleted, payments),
		"IN8JU4NKLHHO4VTVP2BIR2PSQAJU1CI0": SemanticID(VersionActivated, ref.Ref{Provider: ref.Vault, Scope: "c//kv", Name: "a b/c"}, "7"),
	} {
		if got != want {
			t.Errorf("id %s; expected %s", got, want)
		}
	}
}

// TestSemanticIDTellsApart: what differs in any part has another id, and the
// parts do not run into one another.
func TestSemanticIDTellsApart(t *testing.T) {
	part := rapid.StringMatching(`[ab|/]{0,3}`)
	rapid.Check(t, func(rt *rapid.T) {
		draw := func(label string) (Type, ref.Ref, []string) {
			return rapid.SampledFrom(Types()).Draw(rt, label),
				ref.Ref{Provider: ref.NATS, Scope: "b", Name: "n" + part.Draw(rt, label)},
				rapid.SliceOfN(part, 0, 3).Draw(rt, label)
		}
		t1, r1, k1 := draw("one")
		t2, r2, k2 := draw("two")
		same := t1 == t2 && r1 == r2 && len(k1) == len(k2)
		for i := range k1 {
			same = same && k1[i] == k2[i]
		}
		if got := SemanticID(t1, r1, k1...) == SemanticID(t2, r2, k2...); got != same {
			rt.Fatalf("%s %s %q and %s %s %q: same id %t, expected %t", t1, r1, k1, t2, r2, k2, got, same)
		}
	})
}

func TestTypes(t *testing.T) {
	seen := map[string]bool{}
	for _, typ := range Types() {
		noun, verb := typ.Parts()
		if !typ.Valid() || Type("dev.keyturn."+noun+"."+verb+".v1") != typ {
			t.Errorf("%s: valid %t, parts %s and %s", typ, typ.Valid(), noun, verb)
		}
		if noun != "version" && noun != "rotation" && noun != "secret" || Token(verb) != verb || verb == "" {
			t.Errorf("%s: noun %q and verb %q; expected a known noun and one subject token", typ, noun, verb)
		}
		if seen[string(typ)] {
			t.Errorf("%s is twice in the list", typ)
		}
		seen[string(typ)] = true
	}
	if len(seen) != 17 {
		t.Errorf("%d types; expected 17", len(seen))
	}
	for _, typ := range []Type{"", "dev.keyturn.version.activated", "dev.keyturn.version.activated.v2", "version.activated", "dev.keyturn.version.Activated.v1"} {
		if typ.Valid() {
			t.Errorf("%q is valid; expected not", typ)
		}
	}
}

func TestNewEventIsUTC(t *testing.T) {
	at := time.Date(2026, 6, 1, 3, 0, 5, 0, time.FixedZone("PDT", -7*3600))
	e := New(VersionActivated, payments, at, "v")
	if e.Time.Location() != time.UTC || !e.Time.Equal(at) {
		t.Errorf("time %s; expected %s in UTC", e.Time, at)
	}
	if e.Source() != "aws://111122223333/eu-west-1" {
		t.Errorf("source %s", e.Source())
	}
	if e.ID != SemanticID(VersionActivated, payments, "v") {
		t.Errorf("id %s is not the semantic id", e.ID)
	}
}

// TestDataJSON pins the payload that agents in other languages read.
func TestDataJSON(t *testing.T) {
	e := New(VersionActivated, payments, time.Unix(0, 0), "v2")
	e.Data.Version, e.Data.PreviousVersion = "v2", "v1"
	b, err := json.Marshal(e.Data)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"ref":"aws://111122223333/eu-west-1/prod/agents/payments","version":"v2","previous_version":"v1","provider":{}}`
	if string(b) != want {
		t.Errorf("data is %s\nexpected %s", b, want)
	}
	var back Data
	if err := json.Unmarshal(b, &back); err != nil || back != e.Data {
		t.Errorf("data does not survive JSON: %+v, %v", back, err)
	}
	// An allow-list: nothing in it may be able to hold a value.
	for _, word := range []string{"value", "secret_string", "password", "key"} {
		if strings.Contains(string(b), `"`+word+`"`) {
			t.Errorf("the payload has a member %q", word)
		}
	}
}
