// Package ref is the canonical name of a secret. It stands apart from package
// secrets so that events and the notifier can name a secret without being
// able to hold a value.
package ref

import (
	"net/url"
	"regexp"
	"strings"

	"github.com/keyturn/keyturn/fault"
)

// A Provider is the kind of store that a [Ref] points into.
type Provider string

// The providers.
const (
	AWS   Provider = "aws"
	GCP   Provider = "gcp"
	Azure Provider = "azure"
	Vault Provider = "vault"
	NATS  Provider = "nats"
)

// A Ref is the canonical name of one secret: what identifies it in every
// event, log line, policy and subject, whichever of the provider's own
// spellings a message used. Refs are comparable with ==.
//
//	aws://<account>/<region>/<name>
//	gcp://<project>/<name>            global
//	gcp://<project>/<location>/<name> regional: a name has no slash there
//	azure://<vault>/<name>
//	vault://<cluster>/<namespace>/<mount>/<path>   namespace, mount escaped, namespace may be empty
//	nats://<bucket>/<name>
//
// On AWS the name is the friendly name, not the ARN: agents ask by name, and
// the ARN's random suffix changes when a secret is made anew.
type Ref struct {
	Provider Provider
	// Scope is where the name is unique: "<account>/<region>", "<project>",
	// "<project>/<location>", "<vault>", "<cluster>/<namespace>/<mount>" or
	// "<bucket>", its parts already escaped as in the text form.
	Scope string
	// Name is the secret's own name, unescaped. It may hold slashes on AWS,
	// Vault and NATS.
	Name string
}

// scopeParts says how many slash-separated parts a provider's scope has.
func scopeParts(p Provider, parts int) (n int, ok bool) {
	switch p {
	case AWS:
		return 2, true
	case GCP:
		// The name has no slash, so the count of parts tells a regional
		// secret from a global one.
		if parts == 3 {
			return 2, true
		}
		return 1, true
	case Azure, NATS:
		return 1, true
	case Vault:
		return 3, true
	}
	return 0, false
}

const refForms = "aws://ACCOUNT/REGION/NAME, gcp://PROJECT/[LOCATION/]NAME, azure://VAULT/NAME, vault://CLUSTER/NAMESPACE/MOUNT/PATH or nats://BUCKET/NAME"

// Parse reads the text form. It is the inverse of [Ref.String]. The error
// is of kind Invalid.
func Parse(s string) (Ref, error) {
	bad := func(why string) (Ref, error) {
		return Ref{}, fault.Newf(fault.Invalid, "parse ref", "%q %s; expected %s", s, why, refForms)
	}
	scheme, rest, ok := strings.Cut(s, "://")
	if !ok {
		return bad("has no scheme")
	}
	p := Provider(scheme)
	parts := strings.Split(rest, "/")
	n, ok := scopeParts(p, len(parts))
	if !ok {
		return bad("has an unknown scheme")
	}
	if len(parts) <= n {
		return bad("is too short")
	}
	name, err := url.PathUnescape(strings.Join(parts[n:], "/"))
	if err != nil {
		return bad("has a broken percent-escape")
	}
	for i, part := range parts[:n] {
		plain, err := url.PathUnescape(part)
		if err != nil {
			return bad("has a broken percent-escape")
		}
		parts[i] = escapePart(plain)
	}
	r := Ref{Provider: p, Scope: strings.Join(parts[:n], "/"), Name: name}
	if err := r.Validate(); err != nil {
		return Ref{}, err
	}
	return r, nil
}

// New builds a Ref from unescaped scope parts. The error is of kind
// Invalid.
func New(p Provider, name string, scope ...string) (Ref, error) {
	esc := make([]string, len(scope))
	for i, s := range scope {
		esc[i] = escapePart(s)
	}
	r := Ref{Provider: p, Scope: strings.Join(esc, "/"), Name: name}
	return r, r.Validate()
}

// Validate reports what is wrong with r, or nil. The error is of kind
// Invalid.
func (r Ref) Validate() error {
	bad := func(why string) error {
		return fault.Newf(fault.Invalid, "ref", "%q %s; expected %s", r.String(), why, refForms)
	}
	parts := strings.Split(r.Scope, "/")
	var want int
	switch r.Provider {
	case AWS:
		want = 2
	case GCP:
		want = min(len(parts), 2)
	case Azure, NATS:
		want = 1
	case Vault:
		want = 3
	default:
		return bad("has an unknown provider")
	}
	if len(parts) != want {
		return bad("has the wrong number of parts")
	}
	for i, part := range parts {
		// Only Vault's namespace, its second part, may be empty: the root.
		if part == "" && (r.Provider != Vault || i != 1) {
			return bad("has an empty part")
		}
	}
	if r.Name == "" {
		return bad("has no name")
	}
	if (r.Provider == GCP || r.Provider == Azure) && strings.Contains(r.Name, "/") {
		return bad("has a slash in its name, which this provider does not allow")
	}
	return nil
}

// String returns the text form, which [Parse] reads back.
func (r Ref) String() string {
	if r == (Ref{}) {
		return ""
	}
	segs := strings.Split(r.Name, "/")
	for i, s := range segs {
		segs[i] = escapePart(s)
	}
	return string(r.Provider) + "://" + r.Scope + "/" + strings.Join(segs, "/")
}

// IsZero reports whether r is the zero Ref.
func (r Ref) IsZero() bool { return r == Ref{} }

// MarshalText encodes r as its text form.
func (r Ref) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText reads the text form; empty text gives the zero Ref.
func (r *Ref) UnmarshalText(b []byte) error {
	if len(b) == 0 {
		*r = Ref{}
		return nil
	}
	v, err := Parse(string(b))
	if err == nil {
		*r = v
	}
	return err
}

// ScopePart returns the unescaped i-th part of the scope, or "".
func (r Ref) ScopePart(i int) string {
	parts := strings.Split(r.Scope, "/")
	if i < 0 || i >= len(parts) {
		return ""
	}
	s, err := url.PathUnescape(parts[i])
	if err != nil {
		return parts[i]
	}
	return s
}

// escapePart escapes what would end a part or not survive a URL.
func escapePart(s string) string { return url.PathEscape(s) }

// arnForm is a full or partial Secrets Manager ARN in any AWS partition. The
// suffix of a full one is a hyphen and six random characters.
// https://docs.aws.amazon.com/secretsmanager/latest/userguide/whats-in-a-secret.html
var (
	arnForm   = regexp.MustCompile(`^arn:aws[a-z-]*:secretsmanager:([a-z0-9-]+):([0-9A-Za-z]+):secret:(.+)$`)
	arnSuffix = regexp.MustCompile(`-[A-Za-z0-9]{6}$`)
)

// FromARN returns the ref of the Secrets Manager secret with the given
// ARN, its random suffix dropped. AWS advises against names that end in a
// hyphen and six characters, since a partial ARN of one looks like a full
// ARN; such a partial ARN is read as a full one here too. The error is of
// kind Invalid.
func FromARN(arn string) (Ref, error) {
	m := arnForm.FindStringSubmatch(arn)
	if m == nil {
		return Ref{}, fault.Newf(fault.Invalid, "parse ARN", "%q is not the ARN of a Secrets Manager secret; expected arn:aws:secretsmanager:REGION:ACCOUNT:secret:NAME-SUFFIX", arn)
	}
	name := m[3]
	if i := arnSuffix.FindStringIndex(name); i != nil && i[0] > 0 {
		name = name[:i[0]]
	}
	return New(AWS, name, m[2], m[1])
}
