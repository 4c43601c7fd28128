//go:build realvault

package vaultfake_test

import (
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
