package postgres

import (
	"strings"
	"testing"

	"github.com/keyturn/keyturn/secrets"
)

// TestVerifier compares with the example of RFC 7677 section 3, whose salt
// and iterations lead to the server signature's key.
func TestVerifier(t *testing.T) {
	const salt = "\x5b\x6d\x99\x68\x9d\x12\x35\x8e\xec\xa0\x4b\x14\x12\x36\xfa\x81" // W22ZaJ0SNY7soEsUEjb6gQ==
	got, err := verifier(secrets.NewString("pencil"), []byte(salt), 4096)
	const want = "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU="
	if err != nil || got != want {
		t.Errorf("got %s, %v; expected %s", got, err, want)
	}
	a, err1 := newVerifier(secrets.NewString("x"))
	b, err2 := newVerifier(secrets.NewString("x"))
	if err1 != nil || err2 != nil || a == b || !strings.HasPrefix(a, "SCRAM-SHA-256$4096:") {
		t.Errorf("two verifiers of one password: %s, %s; expected fresh salts", a, b)
	}
}

func TestSASLprep(t *testing.T) {
	for in, want := range map[string]string{
		"plain ~\x01":  "plain ~\x01", // ASCII is left alone, even control characters
		"I\u00adX":     "IX",          // mapped to nothing
		"a\u00a0b":     "a b",         // another space
		"a\u200bb":     "a b",         // space and nothing in RFC 4013: a space
		"\u00aa":       "a",           // normalized
		"\u2168":       "IX",
		"\u00ad":       "\u00ad",       // nothing would be left
		"ü\u0007":      "ü\u0007",      // prohibited: as it is
		"\u0627\u0031": "\u0627\u0031", // bad direction: as it is
		"pass\u0221":   "pass\u0221",   // unassigned in Unicode 3.2: as it is
	} {
		if got := saslprep(in); got != want {
			t.Errorf("%q: got %q, expected %q", in, got, want)
		}
	}
}

func TestSplitNames(t *testing.T) {
	for in, want := range map[string][]string{
		`"$user", public`: {"$user", "public"}, `a,b , "c d"`: {"a", "b", "c d"}, `"x""y, z"`: {`x"y, z`}, ``: nil, `""`: {""}, `"open`: {"open"},
	} {
		if got := splitNames(in); strings.Join(got, "|") != strings.Join(want, "|") || len(got) != len(want) {
			t.Errorf("%s: got %q, expected %q", in, got, want)
		}
	}
}
