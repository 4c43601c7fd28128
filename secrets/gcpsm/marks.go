package gcpsm

import (
	"encoding/json"
	"maps"
	"slices"
	"time"

	"cloud.google.com/go/secretmanager/apiv1/secretmanagerpb"

	"github.com/keyturn/keyturn/fault"
)

// The annotations that we keep. Keys must begin and end with a letter or digit.
const (
	annVersions = "keyturn-versions" // main: marks
	annClaim    = "keyturn-claim"    // main: claim
	annPending  = "keyturn-pending"  // sibling: pointer
	annSecret   = "keyturn-secret"   // sibling: id of the main secret
)

// The aliases that we move.
const (
	aliasCurrent  = "current"
	aliasPrevious = "previous"
)

// Limits of the service, of all that is kept on a secret.
// https://github.com/googleapis/googleapis/blob/master/google/cloud/secretmanager/v1/resources.proto
const (
	maxAnnotations = 16 << 10 // bytes of keys and values, less one
	maxAliases     = 50
)

// marks is what is noted of a secret's versions.
type marks struct {
	Current  mark     `json:"current"`
	Previous mark     `json:"previous"`
	Held     []string `json:"held,omitempty"` // versions that were enabled again
}

// A mark is the token of a version.
type mark struct {
	Version string `json:"version,omitempty"`
	Token   string `json:"token,omitempty"`
}

// A claim is somebody's who is about to add a version. It is spent when a
// version newer than After is there.
type claim struct {
	ID    string `json:"id"`
	After string `json:"after,omitempty"`
	// Locked: it was made under Options.Locker, so that whoever else holds the
	// lock knows that it has ended.
	Locked bool `json:"locked,omitempty"`
}

// A pointer says which version of the sibling is pending. Its text is unique,
// since no two name one version: it is what writers compare.
type pointer struct {
	Version string    `json:"version"`
	Token   string    `json:"token"`
	After   string    `json:"after,omitempty"`
	Created time.Time `json:"created"`
	Cleared bool      `json:"cleared,omitempty"`
}

// annotation reads one of ours. What is not there, or is not as we write it,
// is the zero value: somebody edited it, and nothing is noted.
func annotation[T any](sec *secretmanagerpb.Secret, key string) T {
	var out, zero T
	if json.Unmarshal([]byte(sec.GetAnnotations()[key]), &out) != nil {
		return zero
	}
	return out
}

// annotate sets one of ours, or removes it if v is nil. The map is a copy: what
// the client returned stays as it is.
func annotate(sec *secretmanagerpb.Secret, key string, v any) {
	all := maps.Clone(sec.GetAnnotations())
	if all == nil {
		all = map[string]string{}
	}
	delete(all, key)
	if v != nil {
		b, err := json.Marshal(v)
		if err != nil {
			panic("gcpsm: " + err.Error()) // strings, times and booleans only
		}
		all[key] = string(b)
	}
	sec.Annotations = all
}

// token returns what is noted for just this version.
func (m *marks) token(version string) string {
	for _, k := range []mark{m.Current, m.Previous} {
		if version != "" && k.Version == version {
			return k.Token
		}
	}
	return ""
}

func (m *marks) held(version string) bool { return slices.Contains(m.Held, version) }

// hold notes that a version was enabled again. Only the last few are kept: what
// is asked for is the previous one.
func (m *marks) hold(version string) {
	const most = 8
	m.Held = append(m.Held, version)
	if n := len(m.Held); n > most {
		m.Held = m.Held[n-most:]
	}
}

// supersede notes that version id, written under token, took the place of
// previous, and moves the aliases. It never goes back behind what is noted.
func supersede(sec *secretmanagerpb.Secret, id, token, previous string, aliases bool) (changed bool) {
	m := annotation[marks](sec, annVersions)
	_, claimed := sec.GetAnnotations()[annClaim]
	noted := m.Current.Version == id && m.Current.Token == token
	if after(m.Current.Version, id) || noted && !claimed {
		return false
	}
	if !noted {
		m.Previous = mark{previous, m.token(previous)}
		m.Current = mark{id, token}
		m.Held = slices.DeleteFunc(m.Held, func(v string) bool { return v != previous })
		annotate(sec, annVersions, m)
	}
	annotate(sec, annClaim, nil)
	if aliases {
		all := maps.Clone(sec.GetVersionAliases())
		if all == nil {
			all = map[string]int64{}
		}
		all[aliasCurrent] = ordinal(id)
		delete(all, aliasPrevious)
		if n := ordinal(m.Previous.Version); n > 0 {
			all[aliasPrevious] = n
		}
		sec.VersionAliases = all
	}
	return true
}

// room reports whether what a promotion notes will fit. It is asked before
// anything is written, since a promotion that cannot be noted comes too late.
func room(op string, sec *secretmanagerpb.Secret, token string, aliases bool) error {
	id := "999999999999999999"
	next := &secretmanagerpb.Secret{Annotations: sec.GetAnnotations(), VersionAliases: sec.GetVersionAliases()}
	annotate(next, annVersions, marks{Current: mark{id, token}, Previous: mark{id, token}, Held: []string{id}})
	annotate(next, annClaim, claim{ID: "01234567890123456789012345", After: id, Locked: true})
	size := 0
	for k, v := range next.GetAnnotations() {
		size += len(k) + len(v)
	}
	if size >= maxAnnotations {
		return fault.Newf(fault.Invalid, op, "the annotations of %s would take %d bytes with what a rotation notes there; expected less than %d; remove some", sec.GetName(), size, maxAnnotations)
	}
	if !aliases {
		return nil
	}
	n := len(sec.GetVersionAliases())
	for _, a := range []string{aliasCurrent, aliasPrevious} {
		if _, ok := sec.GetVersionAliases()[a]; !ok {
			n++
		}
	}
	if n > maxAliases {
		return fault.Newf(fault.Invalid, op, "%s has %d version aliases, and no room for %q and %q; remove some, or leave aliases alone with NoAliases", sec.GetName(), len(sec.GetVersionAliases()), aliasCurrent, aliasPrevious)
	}
	return nil
}
