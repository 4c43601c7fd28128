package vaultfake

import (
	"net/http"
	"slices"
	"strings"
	"time"
)

// An approle is one mount of the AppRole method.
type approle struct {
	roles map[string]*role
}

type role struct {
	name, id    string
	policies    []string
	noDefault   bool
	ttl, maxTTL time.Duration
	uses        int // of a token
	secretTTL   time.Duration
	secretUses  int
	secrets     map[string]*secretID
	entity      string
}

type secretID struct {
	accessor string
	left     int // uses; 0 is any number
	expires  time.Time
}

// login signs in with a role id and a secret id, which it uses up.
func (s *Server) login(a *approle, req *request) answer {
	refused := fail(http.StatusBadRequest, "invalid role or secret ID")
	roleID, given := strings.TrimSpace(text(req.body["role_id"])), strings.TrimSpace(text(req.body["secret_id"]))
	if roleID == "" {
		return fail(http.StatusBadRequest, "missing role_id")
	}
	for _, r := range a.roles {
		if r.id != roleID {
			continue
		}
		if given == "" {
			return fail(http.StatusBadRequest, "missing secret_id")
		}
		sid := r.secrets[given]
		if sid == nil || !sid.expires.IsZero() && !s.now().Before(sid.expires) {
			return refused
		}
		if sid.left > 0 {
			if sid.left--; sid.left == 0 {
				delete(r.secrets, given)
			}
		}
		policies := slices.Clone(r.policies)
		if !r.noDefault && !slices.Contains(policies, "default") {
			policies = append(policies, "default")
		}
		slices.Sort(policies)
		ttl := r.ttl
		if ttl == 0 {
			ttl = 768 * time.Hour // the server's default
		}
		t := s.issue(&token{
			ns: req.ns, path: req.path, name: "approle", policies: policies, ttl: ttl, renewable: true,
			uses: r.uses, meta: map[string]string{"role_name": r.name}, orphan: true, entity: r.entity, client: r.entity,
		}, r.maxTTL)
		return answer{status: http.StatusOK, auth: s.auth(t), kind: ""}
	}
	return refused
}

func (s *Server) approleAPI(req *request, path string) answer {
	mount, rest, _ := strings.Cut(path, "/")
	a := req.space.auths[mount]
	if a == nil {
		return noRoute(req.path)
	}
	parts := strings.Split(rest, "/")
	if parts[0] != "role" || len(parts) < 2 {
		return fail(http.StatusNotFound, "1 error occurred:\n\t* unsupported path\n\n")
	}
	r := a.roles[parts[1]]
	switch what := req.method + " " + strings.Join(parts[2:], "/"); {
	case what == "POST ":
		if r == nil {
			r = &role{name: parts[1], id: id(16), secrets: map[string]*secretID{}, entity: id(16)}
			a.roles[r.name] = r
		}
		r.configure(req.body)
		return done
	case r == nil:
		return notFound
	case what == "GET role-id":
		return answer{status: http.StatusOK, data: map[string]any{"role_id": r.id}, kind: "approle"}
	case what == "POST secret-id":
		sid := &secretID{accessor: id(16), left: r.secretUses}
		if r.secretTTL > 0 {
			sid.expires = s.now().Add(r.secretTTL)
		}
		secret := id(16)
		r.secrets[secret] = sid
		return answer{status: http.StatusOK, kind: "approle", data: map[string]any{
			"secret_id": secret, "secret_id_accessor": sid.accessor,
			"secret_id_num_uses": r.secretUses, "secret_id_ttl": int64(r.secretTTL / time.Second),
		}}
	}
	return fail(http.StatusNotFound, "1 error occurred:\n\t* unsupported path\n\n")
}

func (r *role) configure(body map[string]any) {
	for field, v := range body {
		switch field {
		case "token_policies":
			r.policies = strs(v)
		case "token_no_default_policy":
			r.noDefault, _ = v.(bool)
		case "token_ttl":
			r.ttl = duration(v)
		case "token_max_ttl":
			r.maxTTL = duration(v)
		case "token_num_uses":
			r.uses = number(v)
		case "secret_id_ttl":
			r.secretTTL = duration(v)
		case "secret_id_num_uses":
			r.secretUses = number(v)
		}
	}
}
