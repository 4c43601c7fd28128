//go:build realvault

package vaultfake_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/keyturn/keyturn/internal/vaultfake"
	"github.com/keyturn/keyturn/internal/vaultfake/realvault"
)

// The fake answers as a real Vault does: the same status, the same members
// with the same values where a server does not choose them, the same errors.
func TestFakeAnswersAsVault(t *testing.T) {
	f := vaultfake.New(t)
	v := realvault.Start(t)
	fake, real := play(t, f.URL(), f.Transport()), play(t, v.URL, v.Transport)
	for i, st := range script {
		if fake[i].status != real[i].status {
			t.Errorf("step %d, %s %s: the fake answers %d %s, Vault %d %s", i, st.method, st.path, fake[i].status, fake[i].errors, real[i].status, real[i].errors)
			continue
		}
		if !strings.Contains(real[i].errors, st.says) {
			t.Errorf("step %d, %s %s: Vault says %q, expected %q", i, st.method, st.path, real[i].errors, st.says)
		}
		if a, b := shape(fake[i].body, ""), shape(real[i].body, ""); a != b {
			t.Errorf("step %d, %s %s:\nfake  %s\nVault %s", i, st.method, st.path, a, b)
		}
	}
	t.Logf("%d requests were answered alike", len(script))
}

// shape is a body without its particulars: names of members, kinds of values,
// and what numbers, booleans and chosen words are.
func shape(v any, at string) string {
	switch x := v.(type) {
	case kv:
		keys := make([]string, 0, len(x))
		for k := range x {
			keys = append(keys, k)
		}
		slices.Sort(keys)
		var b strings.Builder
		for _, k := range keys {
			b.WriteString(k + ":" + shape(x[k], at+"."+k) + " ")
		}
		return "{" + b.String() + "}"
	case []any:
		parts := make([]string, len(x))
		for i, e := range x {
			parts[i] = shape(e, at+"[]")
		}
		return "[" + strings.Join(parts, " ") + "]"
	case string:
		// Ids, times and secrets differ from server to server, and whether
		// there is one does not.
		if x == "" {
			return `""`
		}
		for _, free := range []string{"id", "token", "accessor", "time", "actor", "display_name", "secret"} {
			if strings.HasSuffix(at[strings.LastIndex(at, ".")+1:], free) || strings.Contains(at, "_"+free) || strings.Contains(at, free+"_") {
				return "text"
			}
		}
		return x
	case float64:
		// A token's ttl counts down.
		if strings.HasSuffix(at, "_time") || at == ".data.ttl" && x > 0 {
			return "number"
		}
		return fmt.Sprint(x)
	default:
		return fmt.Sprint(x)
	}
}
