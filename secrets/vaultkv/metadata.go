package vaultkv

import (
	"context"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/secrets/sibling"
)

// notePrefix begins the custom metadata key that tells of one version. A key
// a version: two processes that note different versions do not undo one
// another, although metadata has no check-and-set.
const notePrefix = "keyturn-"

// heldSuffix ends the key that says that a version was enabled again.
const heldSuffix = "-held"

// A versionInfo is what Vault tells of a version besides its data.
type versionInfo struct {
	Version   int   `json:"version"`
	Created   stamp `json:"created_time"`
	Deletion  stamp `json:"deletion_time"`
	Destroyed bool  `json:"destroyed"`
}

// A stamp is a time that Vault leaves empty where there is none.
type stamp struct{ time.Time }

// UnmarshalJSON reads RFC 3339 or "".
func (s *stamp) UnmarshalJSON(b []byte) error {
	if string(b) == `""` || string(b) == "null" {
		return nil
	}
	return s.Time.UnmarshalJSON(b)
}

// metadata is what Vault tells of a secret.
type metadata struct {
	CurrentVersion int                    `json:"current_version"`
	OldestVersion  int                    `json:"oldest_version"`
	MaxVersions    int                    `json:"max_versions"`
	Custom         map[string]string      `json:"custom_metadata"`
	Versions       map[string]versionInfo `json:"versions"`

	asOf time.Time // by the server's clock; zero if it did not say
}

// metadata reads that of a secret, nil if there is none.
func (c *conn) metadata(ctx context.Context, op string, p place) (*metadata, error) {
	got, err := c.get(ctx, op, p.ns, p.api("metadata"), nil)
	if err != nil {
		return nil, err
	}
	if got.status == http.StatusNotFound {
		return nil, nil //nolint:nilnil // no secret
	}
	m := &metadata{asOf: got.dated}
	return m, got.data(op, m)
}

// clockSkew is what the clocks of a cluster's servers may differ by, which is
// more than the second that a date leaves open.
const clockSkew = time.Minute

// deleted reports whether a version was taken out of use. A deletion time that
// is to come is delete_version_after, and whether it is to come is for Vault to
// say, whose clock need not be ours. Near that time, and where an answer is not
// dated, the data endpoint says it.
func (d *driver) deleted(ctx context.Context, op string, p place, m *metadata, n int) (bool, error) {
	v, ok := m.Versions[strconv.Itoa(n)]
	if !ok || v.Destroyed || v.Deletion.IsZero() {
		return !ok || v.Destroyed, nil
	}
	if to := v.Deletion.Sub(m.asOf); !m.asOf.IsZero() && to.Abs() > clockSkew {
		return to < 0, nil
	}
	return d.unreadable(ctx, op, p, n)
}

// unreadable asks the data endpoint whether a version has no data.
func (d *driver) unreadable(ctx context.Context, op string, p place, n int) (bool, error) {
	v, err := d.version(ctx, op, p, n)
	if err != nil || v == nil {
		return true, err
	}
	defer clear(v.Data)
	return v.gone(), nil
}

// tell describes a version, nil if Vault does not know it.
func (d *driver) tell(ctx context.Context, op string, p place, m *metadata, n int) (*sibling.Version, error) {
	v, ok := m.Versions[strconv.Itoa(n)]
	if !ok {
		return nil, nil //nolint:nilnil // no version
	}
	deleted, err := d.deleted(ctx, op, p, m, n)
	if err != nil {
		return nil, err
	}
	token, _ := m.note(n)
	return &sibling.Version{
		ID: strconv.Itoa(n), Token: token, Created: v.Created.Time,
		Disabled: deleted, Held: !deleted && m.held(n),
	}, nil
}

// previous is the version that was noted as superseded by the newest one, or,
// where nothing is noted, the newest before it that was not destroyed; 0 if
// there is none.
func (m *metadata) previous() int {
	kept := func(n int) bool {
		v, ok := m.Versions[strconv.Itoa(n)]
		return ok && !v.Destroyed
	}
	if token, before := m.note(m.CurrentVersion); token != "" {
		if !kept(before) {
			return 0
		}
		return before
	}
	for n := m.CurrentVersion - 1; n >= max(m.OldestVersion, 1); n-- {
		if kept(n) {
			return n
		}
	}
	return 0
}

// note returns what was noted of a version.
func (m *metadata) note(n int) (token string, previous int) {
	token, before, _ := strings.Cut(m.Custom[notePrefix+strconv.Itoa(n)], " ")
	previous, _ = strconv.Atoi(before)
	return token, previous
}

// knows reports whether token was noted of any version.
func (m *metadata) knows(token string) bool {
	for key := range m.Custom {
		if n, ok := noted(key); ok {
			if t, _ := m.note(n); t != "" && t == token {
				return true
			}
		}
	}
	return false
}

// held reports whether it was noted that a version was enabled again.
func (m *metadata) held(n int) bool { return m.Custom[heldKey(n)] != "" }

func heldKey(n int) string { return notePrefix + strconv.Itoa(n) + heldSuffix }

// noted returns the version that a key of custom metadata is a note of.
func noted(key string) (n int, ok bool) {
	digits, ok := strings.CutPrefix(key, notePrefix)
	if !ok {
		return 0, false
	}
	n, err := strconv.Atoi(strings.TrimSuffix(digits, heldSuffix))
	return n, err == nil && n > 0
}

// Record implements [sibling.Driver]. Notes of versions older than the
// superseded one are taken away; newer ones are another process's.
func (d *driver) Record(ctx context.Context, r ref.Ref, id, token, previous string) error {
	const op = "vaultkv: record"
	if err := checkToken(op, token); err != nil {
		return err
	}
	p, n, m, err := d.old(ctx, op, r, id)
	if err != nil {
		return err
	}
	before, _ := strconv.Atoi(previous)
	note := strings.TrimSuffix(token+" "+previous, " ")
	changes := map[string]any{}
	for key := range m.Custom {
		if old, ok := noted(key); ok && old < n && old != before {
			changes[key] = nil
		}
	}
	if m.Custom[notePrefix+id] != note {
		changes[notePrefix+id] = note
	}
	if len(changes) == 0 {
		return nil
	}
	return d.patch(ctx, op, p.ns, p.api("metadata"), map[string]any{"custom_metadata": changes})
}

// checkToken refuses what cannot be noted in custom metadata.
func checkToken(op, token string) error {
	if token == "" || len(token) > maxToken {
		return fault.Newf(fault.Invalid, op, "the rotation token has %d bytes; expected 1 to %d", len(token), maxToken)
	}
	if strings.IndexFunc(token, func(c rune) bool { return c == ' ' || c == unicode.ReplacementChar || !unicode.IsPrint(c) }) >= 0 {
		return fault.Newf(fault.Invalid, op, "the rotation token has a space or a character that cannot be printed; expected neither")
	}
	return nil
}

// engineConfig is how a mount is set up.
type engineConfig struct {
	MaxVersions int   `json:"max_versions"`
	CASRequired *bool `json:"cas_required"`
}

// config reads how a mount is set up; Invalid for one that is no engine of
// version 2, which has nothing there, or some secret of that name.
func (d *driver) config(ctx context.Context, op string, p place) (*engineConfig, error) {
	got, err := d.get(ctx, op, p.ns, p.mount+"/config", nil)
	if err != nil {
		return nil, err
	}
	c := &engineConfig{}
	if got.status == http.StatusOK {
		err = got.data(op, c)
	}
	if err != nil || c.CASRequired == nil {
		return nil, fault.Newf(fault.Invalid, op, "%s is no key-value engine of version 2; run vault kv enable-versioning %s, or correct the ref's mount", p.mount, p.mount)
	}
	return c, nil
}

// keepsPrevious refuses a secret of which Vault keeps one version only: a
// promotion would destroy the credential that may still be in use. Mount and
// secret both set a number, and the larger counts; where neither does it is
// 10. Without permission to read the mount's, the secret's is all there is.
func (d *driver) keepsPrevious(ctx context.Context, op string, r ref.Ref, p place) error {
	m, err := d.metadata(ctx, op, p)
	if err != nil {
		return err
	}
	if m == nil {
		return fault.Newf(fault.NotFound, op, "there is no secret %s; create it, or correct the ref", r)
	}
	if m.MaxVersions > 1 {
		return nil
	}
	keeps := m.MaxVersions
	c, err := d.config(ctx, op, p)
	switch {
	case err == nil:
		keeps = max(keeps, c.MaxVersions)
	case !fault.Is(err, fault.Denied):
		return err
	}
	if keeps != 1 {
		return nil
	}
	return fault.Newf(fault.Invalid, op, "Vault keeps one version of %s, so that the previous one would be gone at once; run vault kv metadata patch -mount=%s -max-versions=2 %s, or more", r, p.mount, p.path)
}
