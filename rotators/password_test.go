package rotators_test

import (
	"math"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/rotators"
)

const (
	lower       = "abcdefghijklmnopqrstuvwxyz"
	upper       = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
	digits      = "0123456789"
	punctuation = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"
)

// TestPasswordMeetsPolicy draws policies and checks every password against
// what the policy says, reckoned another way than Generate does.
func TestPasswordMeetsPolicy(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := rotators.PasswordPolicy{
			Length:  rapid.IntRange(0, 200).Draw(t, "length"),
			Exclude: rapid.StringOf(rapid.RuneFrom([]rune(lower+upper+digits+punctuation+"é"))).Draw(t, "exclude"),

			ExcludeNumbers: rapid.Bool().Draw(t, "no numbers"), ExcludePunctuation: rapid.Bool().Draw(t, "no punctuation"),
			ExcludeUpper: rapid.Bool().Draw(t, "no upper"), ExcludeLower: rapid.Bool().Draw(t, "no lower"),
			AllowMissingType: rapid.Bool().Draw(t, "missing"),
		}
		length := p.Length
		if length == 0 {
			length = 32
		}
		var allowed string
		var wanted []string
		for chars, out := range map[string]bool{lower: p.ExcludeLower, upper: p.ExcludeUpper, digits: p.ExcludeNumbers, punctuation: p.ExcludePunctuation} {
			var kept strings.Builder
			for _, c := range chars {
				if !out && !strings.ContainsRune(p.Exclude, c) {
					kept.WriteRune(c)
				}
			}
			if kept.Len() > 0 {
				allowed += kept.String()
				wanted = append(wanted, kept.String())
			}
		}
		got, err := p.Generate()
		if err != nil {
			// A policy that can be met may still be too unlikely to hit.
			rare := !p.AllowMissingType && length < 4*len(wanted)*8
			if !fault.Is(err, fault.Invalid) || allowed != "" && !rare && length >= len(wanted) {
				t.Fatalf("%+v: %v", p, err)
			}
			return
		}
		if len(got) != length {
			t.Fatalf("%+v: %d characters; expected %d", p, len(got), length)
		}
		for _, c := range got {
			if !strings.ContainsRune(allowed, c) {
				t.Fatalf("%+v: the password has a character that is not allowed", p)
			}
		}
		for _, w := range wanted {
			if !p.AllowMissingType && !strings.ContainsAny(got, w) {
				t.Fatalf("%+v: the password has none of %q", p, w)
			}
		}
	})
}

func TestPasswordPolicyErrors(t *testing.T) {
	for name, p := range map[string]rotators.PasswordPolicy{
		"nothing left":   {ExcludeLower: true, ExcludeUpper: true, ExcludeNumbers: true, ExcludePunctuation: true},
		"all excluded":   {Exclude: lower + upper + digits + punctuation},
		"too short":      {Length: 3},
		"negative":       {Length: -1, AllowMissingType: true},
		"too long":       {Length: 4097},
		"hardly any hit": {Length: 4, Exclude: lower[1:] + upper[1:] + digits[1:]},
	} {
		if got, err := p.Generate(); name != "hardly any hit" && !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: got %d characters, %v; expected an error of kind Invalid", name, len(got), err)
		} else if err == nil && len(got) != 4 {
			t.Errorf("%s: got %d characters", name, len(got))
		}
	}
}

// TestPasswordUniform counts characters: each is drawn as often as the others
// within six standard deviations, which chance exceeds once in millions of
// runs, and no two passwords are alike.
func TestPasswordUniform(t *testing.T) {
	p := rotators.PasswordPolicy{AllowMissingType: true}
	const rounds, length = 3000, 32
	count, seen := map[rune]int{}, map[string]bool{}
	for range rounds {
		s, err := p.Generate()
		if err != nil {
			t.Fatal(err)
		}
		if seen[s] {
			t.Fatal("a password came twice")
		}
		seen[s] = true
		for _, c := range s {
			count[c]++
		}
	}
	kinds := float64(len(lower + upper + digits + punctuation))
	if len(count) != int(kinds) {
		t.Fatalf("%d characters appear; expected %d", len(count), int(kinds))
	}
	mean := rounds * length / kinds
	for c, n := range count {
		if dev := math.Sqrt(mean * (1 - 1/kinds)); math.Abs(float64(n)-mean) > 6*dev {
			t.Errorf("%q appears %d times; expected %.0f within %.0f", c, n, mean, 6*dev)
		}
	}
}
