package noticetest

import (
	"encoding/json"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Golden fails t if got, by the name of the notice, is not what file holds.
// With update the file is written first.
func Golden[T any](t *testing.T, file string, update bool, got map[string]T) {
	t.Helper()
	if update {
		b, err := json.MarshalIndent(got, "", " ")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, append(b, '\n'), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var want map[string]T
	if err := json.Unmarshal(b, &want); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("decoded events differ from %s (-want +got); if the new ones are right, run go test -update:\n%s", file, d)
	}
}
