package eventgrid

import (
	"regexp"
	"strings"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/notice"
	"github.com/keyturn/keyturn/ref"
)

// Every place is checked against these before it is used, so that neither an
// event nor an error holds what a stranger wrote. Names of vaults and secrets
// are case-insensitive; in a ref they are in lower case, so that one secret is
// one ref.
// https://learn.microsoft.com/azure/key-vault/general/about-keys-secrets-certificates
var (
	topicForm = regexp.MustCompile(`(?i)^/subscriptions/[0-9a-z-]{1,64}/resourceGroups/[^/]{1,128}/providers/Microsoft\.KeyVault/vaults/([0-9a-z-]{1,127})$`)
	// The suffix of the host is another one in each cloud.
	urlForm     = regexp.MustCompile(`(?i)^(https://([a-z][0-9a-z-]{0,62})(?:\.[0-9a-z-]{1,63}){2,6}(?::[0-9]{1,5})?/secrets/([0-9a-z-]{1,127}))(?:/([0-9a-z]{1,64}))?/?$`)
	nameForm    = regexp.MustCompile(`(?i)^[0-9a-z-]{1,127}$`)
	versionForm = regexp.MustCompile(`(?i)^[0-9a-z]{1,64}$`)
)

// An identity is which secret and version an event is about.
type identity struct {
	ref     ref.Ref
	url     string // the secret's identifier without a version, or ""
	version string // or "": test events of the portal have none
}

// identify takes the vault from the resource that Event Grid itself names as
// the origin, before the text in the data, and name and version from the
// identifier's URL, before the members beside it. Two places that name two
// secrets are refused.
func identify(env, data notice.Object) (identity, error) {
	var id identity
	bad := func(what string) (identity, error) {
		return identity{}, fault.Newf(fault.Invalid, opDecode, "%s; expected the event of a secret: topic or source with the vault's resource id, and data.Id https://VAULT.HOST/secrets/NAME/VERSION", what)
	}
	var vault, name string
	origin := env.Text("topic")
	if origin == "" {
		origin = env.Text("source")
	}
	if m := topicForm.FindStringSubmatch(origin); m != nil {
		vault = strings.ToLower(m[1])
	}
	if m := urlForm.FindStringSubmatch(data.Text("Id")); m != nil {
		id.url, id.version, name = strings.ToLower(m[1]), strings.ToLower(m[4]), strings.ToLower(m[3])
		if in := strings.ToLower(m[2]); vault == "" {
			vault = in
		} else if vault != in {
			return bad("the origin and data.Id name two vaults")
		}
	}
	if v := data.Text("VaultName"); vault == "" && nameForm.MatchString(v) {
		vault = strings.ToLower(v)
	}
	for _, s := range []string{data.Text("ObjectName"), env.Text("subject")} {
		if name == "" && nameForm.MatchString(s) {
			name = strings.ToLower(s)
		}
	}
	if v := data.Text("Version"); id.version == "" && versionForm.MatchString(v) {
		id.version = strings.ToLower(v)
	}
	if vault == "" || name == "" {
		return bad("no vault or no secret is named")
	}
	r, err := ref.New(ref.Azure, name, vault)
	if err != nil {
		return bad("the secret named is none that a ref can name")
	}
	id.ref = r
	return id, nil
}
