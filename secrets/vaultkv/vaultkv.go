// Package vaultkv is a [secrets.Store] on the key-value engine, version 2, of
// HashiCorp Vault and OpenBao. The newest version is what a plain read
// returns, so a pending version lives in a sibling, as package sibling says.
//
// # Layout
//
// The current version of vault://<cluster>/<namespace>/<mount>/<path> is the
// newest version at <path>. The pending one is at <path>--pending in the same
// mount: token, the version it was made from, and value are one version of
// the sibling, and taken away by destroying that version. Both are written
// with check-and-set, so any number of processes may rotate one secret and no
// lock is needed for that.
//
// Under which token a version was written is noted in the secret's custom
// metadata, one key a version: keyturn-<version> = "<token> <version before>".
// keyturn-<version>-held says that one was enabled again. A patch sets them, so
// a user's own keys stay; only the notes of Current and Previous are kept. Who
// replaces all custom metadata (vault kv metadata put) takes the notes away,
// and with them the knowledge of which rotations are done; vault kv metadata
// patch does not.
//
// # Where a lock helps
//
// Vault compares nothing when a version is deleted, restored or destroyed. A
// Destroy beside an Enable of the same version each look first, and between
// look and request the other may come: a version that was just enabled is then
// destroyed, and its value is gone. [Options.Locker] keeps the two apart, and
// is worth having where several processes retire versions, or where people
// enable them while a process does. The same lock settles a Discard beside a
// Promote of one token. What people do with Vault's own tools no lock of ours
// knows of.
//
// # Values
//
// A value that is a JSON object is written as the fields of the secret, so
// that every reader sees username and password as usual. Any other text is
// the field "value" (see [Options.Field]), and bytes that are no text are
// base64 in "value_base64". A secret with the one field "value" reads as its
// text, and any other as a JSON object with sorted keys. Where that is not
// byte for byte what was given (another order of keys, spaces, 1.0) the exact
// text is kept beside the fields in keyturn_text. It is ignored once the
// fields are changed by somebody else. Vault hands out numbers as 64-bit
// floating point; one too large for that is refused, and so is what is deeper
// or longer than a listener of Vault's takes.
//
// # What Vault does by itself
//
// A secret that keeps one version only (max_versions=1) is refused, since the
// previous version would be gone at once. Versions that delete_version_after
// has deleted are disabled; a pending version that it has deleted stops the
// rotation with an error that says how to restore it. Destroy removes the
// value from Vault's storage; its backups keep it.
//
// # Permissions
//
// [Policy] renders the least that a rotation needs, and [Store.Check] tells
// what is missing. A reader needs read on <mount>/data/<path> alone.
//
// The rules here are those of the engine: https://developer.hashicorp.com/vault/api-docs/secret/kv/kv-v2
// and https://openbao.org/api-docs/secret/kv/kv-v2/
package vaultkv

import (
	"log/slog"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/hashicorp/vault/api"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/secrets"
	"github.com/keyturn/keyturn/secrets/sibling"
)

const (
	// MaxValue is the longest value in bytes, as in AWS Secrets Manager. It
	// fits, with its exact text beside it, into an entry of every storage of
	// Vault's.
	MaxValue = 64 << 10
	// maxToken is the longest rotation token in bytes: a note holds it and a
	// version in the 512 bytes of a custom metadata value.
	maxToken = 256
)

// Options of [New]. The zero value of each field means its default.
type Options struct {
	// Cluster is the first part of every ref. By default any is accepted, and
	// the client decides which cluster it is.
	Cluster string
	// Field is the field of a value that is no JSON object, "value" by
	// default.
	Field string
	// Timeout bounds each request, the client's retries included, 15 s by
	// default.
	Timeout time.Duration
	// Logger hears of promotions that were found half done; nil is the default
	// one.
	Logger *slog.Logger
	// Locker keeps one writer a secret, for what check-and-set does not
	// settle; see the package's documentation. Nil keeps apart the callers of
	// one Store.
	Locker secrets.Locker
}

// A Store is the secrets of one cluster, as its client's token may use them.
// It is safe for concurrent use, by several processes too, and keeps nothing.
// Retries are those of the client: a write that is repeated after a lost
// answer fails its check-and-set, and the next look finds it done.
type Store struct {
	*sibling.Store
	d *driver
}

var (
	_ secrets.Store        = (*Store)(nil)
	_ secrets.Succeeder    = (*Store)(nil)
	_ secrets.Disabler     = (*Store)(nil)
	_ secrets.Creator      = (*Store)(nil)
	_ secrets.Checker      = (*Store)(nil)
	_ secrets.OrphanFinder = (*Store)(nil)
	_ secrets.Tagger       = (*Store)(nil)
)

// New returns the store that client reaches. The namespace of a ref, counted
// from the root, goes before the client's own. Each call uses the token that
// client has at that time, so a [Session] may keep it fresh. opts may be nil.
// The error is of kind Invalid: a client that cannot be used.
func New(client *api.Client, opts *Options) (*Store, error) {
	var o Options
	if opts != nil {
		o = *opts
	}
	if o.Field == "" {
		o.Field = "value"
	}
	if o.Field == textField {
		return nil, fault.Newf(fault.Invalid, "vaultkv: new", "the field %s is Keyturn's own; name another", textField)
	}
	c, err := newConn(client, o.Timeout)
	if err != nil {
		return nil, err
	}
	d := &driver{conn: c, cluster: o.Cluster, field: o.Field}
	return &Store{Store: sibling.New(d, &sibling.Options{Locker: o.Locker, Logger: o.Logger}), d: d}, nil
}

// A place is where a secret is in its cluster.
type place struct {
	ns, mount, path string
}

// api is the path of one of the engine's endpoints for the secret.
func (p place) api(endpoint string) string { return p.mount + "/" + endpoint + "/" + p.path }

// sibling is where the pending version is.
func (p place) sibling() place {
	p.path += sibling.Suffix
	return p
}

// place checks r and finds it in the cluster.
func (d *driver) place(op string, r ref.Ref) (place, error) {
	p, err := d.scope(op, r)
	if err != nil {
		return place{}, err
	}
	p.path = r.Name
	return p, checkPath(op, "path", p.path)
}

// scope checks what r has besides its name.
func (d *driver) scope(op string, r ref.Ref) (place, error) {
	if err := r.Validate(); err != nil {
		return place{}, fault.New(fault.Invalid, op, err)
	}
	if r.Provider != ref.Vault {
		return place{}, fault.Newf(fault.Invalid, op, "%s is not a secret of Vault; expected vault://CLUSTER/NAMESPACE/MOUNT/PATH", r)
	}
	if got := r.ScopePart(0); d.cluster != "" && got != d.cluster {
		return place{}, fault.Newf(fault.Invalid, op, "%s is in cluster %s, and this client is for %s; use a client of %s", r, got, d.cluster, got)
	}
	p := place{ns: strings.Trim(r.ScopePart(1), "/"), mount: strings.Trim(r.ScopePart(2), "/")}
	if p.ns != "" {
		if err := checkPath(op, "namespace", p.ns); err != nil {
			return place{}, err
		}
	}
	return p, checkPath(op, "mount", p.mount)
}

// checkPath refuses what would not arrive as it is: the client cleans paths,
// so that a/../b would be another secret, and Vault takes printable ones only.
func checkPath(op, what, p string) error {
	bad := func(why string) error {
		return fault.Newf(fault.Invalid, op, "the %s %q %s; expected printable parts with a slash between them", what, p, why)
	}
	if !utf8.ValidString(p) || strings.IndexFunc(p, func(c rune) bool { return !unicode.IsPrint(c) }) >= 0 {
		return bad("has a character that cannot be printed")
	}
	for part := range strings.SplitSeq(p, "/") {
		switch part {
		case "":
			return bad("has an empty part")
		case ".", "..":
			return bad("has a part of dots")
		}
	}
	return nil
}
