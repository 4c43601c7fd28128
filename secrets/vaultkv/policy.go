package vaultkv

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/ref"
)

// A need is what a rotation does on one path of the API.
type need struct {
	path         string
	capabilities []string
}

// needs are those of rotating one secret.
func needs(mount, path string) []need {
	p := place{mount: mount, path: path}
	s := p.sibling()
	return []need{
		{p.api("data"), []string{"read", "update"}},
		{p.api("metadata"), []string{"read", "patch"}},
		{p.api("delete"), []string{"update"}},
		{p.api("undelete"), []string{"update"}},
		{p.api("destroy"), []string{"update"}},
		{s.api("data"), []string{"read", "update"}},
		// update is for one that another process made, or left half made.
		{s.api("metadata"), []string{"create", "update"}},
		{s.api("destroy"), []string{"update"}},
		{mount + "/config", []string{"read"}},
	}
}

// sessionNeeds are those of a [Session] and of [Store.Check]. Vault's policy
// "default" has them too, and a role may be without it.
var sessionNeeds = []need{
	{"auth/token/lookup-self", []string{"read"}},
	{"auth/token/renew-self", []string{"update"}},
	{"auth/token/revoke-self", []string{"update"}},
	{"sys/capabilities-self", []string{"update"}},
}

// Policy renders in HCL the least that a rotation of the secret at path needs,
// for vault policy write in the secret's namespace. [Store.CreateSecret] also
// needs create on <mount>/data/<path>, and [Store.Orphans] list and read on
// <mount>/metadata/* with delete on what it is to remove. The error is of kind
// Invalid: what a policy would take for a pattern.
func Policy(mount, path string) (string, error) {
	const op = "vaultkv: policy"
	for what, p := range map[string]string{"mount": mount, "path": path} {
		if err := checkPath(op, what, p); err != nil {
			return "", err
		}
		// https://developer.hashicorp.com/vault/docs/concepts/policies#policy-syntax
		if strings.HasSuffix(p, "*") || slices.Contains(strings.Split(p, "/"), "+") || strings.ContainsAny(p, `"\{}`) {
			return "", fault.Newf(fault.Invalid, op, "the %s %q would be a pattern in a policy; rename the secret", what, p)
		}
	}
	var b strings.Builder
	fmt.Fprintf(&b, "# What Keyturn needs to rotate %s in %s.\n", path, mount)
	for _, n := range append(needs(mount, path), sessionNeeds...) {
		fmt.Fprintf(&b, "path %q {\n  capabilities = [\"%s\"]\n}\n", n.path, strings.Join(n.capabilities, `", "`))
	}
	return b.String(), nil
}

// Check implements [secrets.Checker]. It asks Vault what the client's token
// may do on every path that a rotation uses.
func (s *Store) Check(ctx context.Context, r ref.Ref) error {
	const op = "vaultkv: check"
	p, err := s.d.place(op, r)
	if err != nil {
		return err
	}
	all := needs(p.mount, p.path)
	paths := make([]string, len(all))
	for i, n := range all {
		paths[i] = n.path
	}
	got, err := s.d.put(ctx, op, p.ns, "sys/capabilities-self", map[string]any{"paths": paths})
	if err != nil {
		return err
	}
	has := map[string][]string{}
	if err := got.data(op, &has); err != nil {
		return err
	}
	var missing []string
	for _, n := range all {
		var lacks []string
		for _, c := range n.capabilities {
			if !slices.Contains(has[n.path], c) && !slices.Contains(has[n.path], "root") {
				lacks = append(lacks, c)
			}
		}
		if len(lacks) > 0 {
			missing = append(missing, strings.Join(lacks, ", ")+" on "+n.path)
		}
	}
	if len(missing) > 0 {
		return &fault.Error{
			Kind: fault.Denied, Class: fault.ClassPermission, Op: op,
			Msg: "the token may not: " + strings.Join(missing, "; ") + "; add it to its policy",
		}
	}
	if err := s.d.keepsPrevious(ctx, op, r, p); err != nil {
		return err
	}
	// A secret of a user's in the sibling's place is found here, not in the
	// first rotation.
	pending, _, err := s.d.Pending(ctx, r)
	if pending != nil {
		pending.Value.Wipe()
	}
	return err
}
