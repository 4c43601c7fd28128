package vault

import (
	"regexp"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/notice"
	"github.com/keyturn/keyturn/ref"
)

// maxPath bounds namespace, mount and path together, in bytes. Written as a
// ref in an event, with everything escaped, it stays below 8 KiB.
const maxPath = 1024

// A change is what one notice says happened.
type change struct {
	ns, mount, name string
	// typ and versions: one event for each, or one without a version if there
	// are none.
	typ      events.Type
	versions []string
	// unique says that it happens once to a version, so that its id needs no
	// more than that.
	unique bool
	// rotated says that it was a rotation by Vault itself.
	rotated bool

	cause      string
	occurrence string // names the notice among all others of this secret
	at         time.Time
	provider   events.Provider
}

// events makes the events of a change.
func (d Decoder) events(c change) ([]events.Event, error) {
	if events.IsSibling(c.name) {
		return nil, nil
	}
	r, err := d.ref(c)
	if err != nil {
		return nil, err
	}
	versions := c.versions
	if len(versions) == 0 {
		versions = []string{""}
	}
	var out []events.Event
	add := func(t events.Type, version string) {
		key := []string{version}
		if !c.unique || version == "" {
			key = []string{"notice", version, c.occurrence}
		}
		e := events.New(t, r, c.at, key...)
		e.Data.Version, e.Data.Cause, e.Data.Provider = version, c.cause, c.provider
		out = append(out, e)
	}
	for _, v := range versions {
		if c.rotated {
			add(events.RotationSucceeded, v)
		}
		add(c.typ, v)
	}
	return out, nil
}

// nsForm is stricter than what Vault allows: a namespace names no file and no
// sentence.
// https://developer.hashicorp.com/vault/docs/enterprise/namespaces#namespace-naming-restrictions
var nsForm = regexp.MustCompile(`^[\pL\pN_.@~:+-]+(/[\pL\pN_.@~:+-]+)*$`)

// ref names the secret as package secrets/vaultkv does.
func (d Decoder) ref(c change) (ref.Ref, error) {
	bad := func(format string, args ...any) (ref.Ref, error) {
		return ref.Ref{}, fault.Newf(fault.Invalid, opDecode, format, args...)
	}
	if n := len(c.ns) + len(c.mount) + len(c.name); n > maxPath {
		return bad("namespace, mount and path have %d bytes together; expected at most %d", n, maxPath)
	}
	if c.ns != "" && !nsForm.MatchString(c.ns) {
		return bad("the namespace has characters that no name of one has; expected letters, digits and _ . @ ~ : + - with a slash between the parts")
	}
	if !plain(c.mount) || !plain(c.name) {
		return bad("the mount or the path has a part that is empty, of dots, or cannot be printed; expected printable parts with a slash between them")
	}
	r, err := ref.New(ref.Vault, c.name, d.Cluster, c.ns, c.mount)
	if err != nil {
		return bad("the notice names no secret that a ref can name; expected vault://CLUSTER/NAMESPACE/MOUNT/PATH, and a cluster in the configuration of the decoder")
	}
	return r, nil
}

// plain reports whether a mount or path can be part of a ref that a store
// takes.
func plain(p string) bool {
	if !utf8.ValidString(p) || strings.IndexFunc(p, func(c rune) bool { return !unicode.IsPrint(c) }) >= 0 {
		return false
	}
	for part := range strings.SplitSeq(p, "/") {
		if part == "" || part == "." || part == ".." {
			return false
		}
	}
	return true
}

// below returns what path has below a mount.
func below(path, mount string) (rest string, ok bool) {
	mount = strings.Trim(mount, "/")
	rest, ok = strings.CutPrefix(path, mount+"/")
	return rest, ok && mount != "" && rest != ""
}

// namespace is the path of a namespace as refs have it: "" for the root.
func namespace(path string) string {
	if path = strings.Trim(path, "/"); path == "root" { // no other may be called so
		return ""
	}
	return path
}

// occurrence names one notice: by its own id, or else by its time, or at last
// by what it holds.
func occurrence(kind, id string, at time.Time, timed bool, o notice.Object) string {
	switch {
	case notice.Token(id) != "":
		return kind + " " + id
	case timed:
		return at.Format(time.RFC3339Nano)
	}
	return o.Digest()
}

var versionForm = regexp.MustCompile(`^[1-9][0-9]{0,18}$`)

// number returns s if it is the number of a version, in a list.
func number(s string) []string {
	if versionForm.MatchString(s) {
		return []string{s}
	}
	return nil
}

// staticCreds is the path below a database mount at which agents read the
// password of a static role.
const staticCreds = "static-creds/"

// roleForm is what the database engine allows as the name of a role.
var roleForm = regexp.MustCompile(`^\w([\w.-]{0,253}\w)?$`)
