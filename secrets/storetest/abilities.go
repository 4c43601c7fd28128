package storetest

import (
	"strings"
	"testing"

	"github.com/keyturn/keyturn/internal/crashtest"
	"github.com/keyturn/keyturn/secrets"
)

// abilities is what a store can do besides staging versions.
type abilities struct {
	create, succeed, disable, tag bool
	check, findOrphans            bool // the stores' own tests try these
}

// probe tells what b's stores are able to do before any test is registered: a
// part that does not apply is not there, and is named in the log, so that it is
// neither skipped nor taken for passed.
func probe(t *testing.T, b Backend) abilities {
	t.Helper()
	can := abilitiesOf(b.Open(t, nil))
	t.Logf("capabilities: %s", can)
	t.Logf("hooks of the backend: %s", hooks(b))
	// What cannot be reached through the injector would not be crash-tested.
	through := abilitiesOf(b.Open(t, &crashtest.Injector{}))
	through.check, through.findOrphans = can.check, can.findOrphans
	if through != can {
		t.Errorf("through the injector the capabilities are %s; expected the same", through)
	}
	return can
}

func abilitiesOf(s secrets.Store) abilities {
	var can abilities
	_, can.create = s.(secrets.Creator)
	_, can.succeed = s.(secrets.Succeeder)
	_, can.disable = s.(secrets.Disabler)
	_, can.tag = s.(secrets.Tagger)
	_, can.check = s.(secrets.Checker)
	_, can.findOrphans = s.(secrets.OrphanFinder)
	return can
}

// String names each ability, those that lack too.
func (a abilities) String() string {
	var has, lacks []string
	for _, c := range []struct {
		name string
		can  bool
	}{
		{"Creator", a.create}, {"Succeeder", a.succeed}, {"Disabler", a.disable}, {"Tagger", a.tag}, {"Checker", a.check}, {"OrphanFinder", a.findOrphans},
	} {
		if c.can {
			has = append(has, c.name)
		} else {
			lacks = append(lacks, c.name)
		}
	}
	return "has [" + strings.Join(has, " ") + "], lacks [" + strings.Join(lacks, " ") + "]"
}
