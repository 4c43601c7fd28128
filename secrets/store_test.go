package secrets_test

import (
	"testing"

	"github.com/keyturn/keyturn/secrets"
)

func TestDescription(t *testing.T) {
	d := &secrets.Description{Versions: []secrets.VersionInfo{
		{ID: "1", Stages: []secrets.Stage{secrets.Previous}},
		{ID: "2", Token: "t2", Stages: []secrets.Stage{"other", secrets.Current}},
		{ID: "3", Token: "t3", Stages: []secrets.Stage{secrets.Pending}},
	}}
	for stage, want := range map[secrets.Stage]string{secrets.Previous: "1", secrets.Current: "2", secrets.Pending: "3"} {
		if h := d.Holder(stage); h == nil || h.ID != want {
			t.Errorf("%s is held by %+v, expected version %s", stage, h, want)
		}
	}
	if h := d.Holder("nobody"); h != nil {
		t.Errorf("a stage that nobody holds is held by %+v", h)
	}
	// The holder is the description's own, not a copy.
	if d.Holder(secrets.Current) != &d.Versions[1] {
		t.Error("the holder is a copy")
	}
	for _, c := range []struct {
		token string
		stage secrets.Stage
		has   bool
		known bool
	}{
		{"t2", secrets.Current, true, true}, {"t2", secrets.Pending, false, true}, {"t3", secrets.Pending, true, true},
		{"t9", secrets.Current, false, false},
		// A version that no rotation wrote belongs to none, the nameless included.
		{"", secrets.Previous, false, false},
	} {
		if got := d.Has(c.token, c.stage); got != c.has {
			t.Errorf("%q has %s: %t, expected %t", c.token, c.stage, got, c.has)
		}
		if got := d.Known(c.token); got != c.known {
			t.Errorf("%q is known: %t, expected %t", c.token, got, c.known)
		}
	}
	if (&secrets.Description{}).Holder(secrets.Current) != nil {
		t.Error("an empty description has a current version")
	}
}
