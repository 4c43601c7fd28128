package vaultfake

import (
	"net/http"
	"regexp"
	"slices"
	"strings"
)

// A rule is what a policy says of a path, which may end in * and have parts
// that are +.
type rule struct {
	path string
	caps []string
}

// defaultPolicy is what is used here of Vault's own.
var defaultPolicy = []rule{
	{"auth/token/lookup-self", []string{"read"}},
	{"auth/token/renew-self", []string{"update"}},
	{"auth/token/revoke-self", []string{"update"}},
	{"sys/capabilities-self", []string{"update"}},
}

var (
	rules = regexp.MustCompile(`path\s+"([^"]*)"\s*\{\s*capabilities\s*=\s*\[([^\]]*)\]\s*\}`)
	words = regexp.MustCompile(`"([a-z]+)"`)
)

// parse reads the rules of a policy in HCL: paths with capabilities, and no
// more than that.
func parse(text string) []rule {
	var out []rule
	for _, m := range rules.FindAllStringSubmatch(text, -1) {
		r := rule{path: m[1]}
		for _, w := range words.FindAllStringSubmatch(m[2], -1) {
			r.caps = append(r.caps, w[1])
		}
		out = append(out, r)
	}
	return out
}

// matches reports whether path falls under a rule's path.
func matches(pattern, path string) bool {
	prefix, glob := strings.CutSuffix(pattern, "*")
	want, got := strings.Split(prefix, "/"), strings.Split(path, "/")
	if len(got) < len(want) || len(got) > len(want) && !glob {
		return false
	}
	for i, w := range want {
		last := i == len(want)-1
		switch {
		case w == "+":
		case last && glob:
			if !strings.HasPrefix(strings.Join(got[i:], "/"), w) {
				return false
			}
		case w != got[i]:
			return false
		}
	}
	return true
}

// capabilities returns what a token may do with a path. The most specific of
// the rules that match decides: an exact one, then the longest. Which of two
// patterns is more specific is decided more finely by Vault.
func (sp *space) capabilities(t *token, path string) []string {
	if slices.Contains(t.policies, "root") {
		return []string{"root"}
	}
	byPath := map[string][]string{}
	for _, p := range t.policies {
		for _, r := range sp.policies[p] {
			byPath[r.path] = append(byPath[r.path], r.caps...)
		}
	}
	best, found := "", false
	for p := range byPath {
		if matches(p, path) && (!found || best != path && (p == path || len(p) > len(best))) {
			best, found = p, true
		}
	}
	caps := byPath[best]
	if !found || len(caps) == 0 || slices.Contains(caps, "deny") {
		return []string{"deny"}
	}
	slices.Sort(caps)
	return slices.Compact(caps)
}

// authorize finds the request's token and asks its policies.
func (s *Server) authorize(req *request, secret string) *answer {
	t := s.live(secret)
	if t == nil {
		a := fail(http.StatusForbidden, "2 errors occurred:\n\t* permission denied\n\t* invalid token\n\n")
		if secret == "" {
			a = fail(http.StatusForbidden, "permission denied")
		}
		return &a
	}
	req.token = t
	caps := req.space.capabilities(t, req.aclPath())
	want := map[string]string{
		http.MethodGet: "read", "LIST": "list", http.MethodDelete: "delete", http.MethodPatch: "patch",
	}[req.method]
	if req.method == http.MethodPost {
		want = "update"
		if path, e := req.space.mount(req.path); e != nil && !e.exists(path) {
			want = "create"
		}
	}
	// A token of another namespace has no policy here. Root is above all.
	if caps[0] != "root" && (t.ns != req.ns || !slices.Contains(caps, want)) {
		return &denied
	}
	if t.uses > 0 {
		if t.uses--; t.uses == 0 {
			t.uses = -1
			delete(s.tokens, t.id)
		}
	}
	return nil
}

// aclPath is the path that policies are asked about: that of a list ends in a
// slash.
func (req *request) aclPath() string {
	if req.method == "LIST" && !strings.HasSuffix(req.path, "/") {
		return req.path + "/"
	}
	return req.path
}
