package vaultfake

import (
	"net/http"
	"slices"
	"time"
)

// A token is one that was issued. Times are zero for one that lives for ever.
type token struct {
	id, accessor   string
	ns, path, name string
	policies       []string
	meta           map[string]string
	issued         time.Time
	ttl            time.Duration // at creation and of a renewal
	expires, limit time.Time     // limit is what no renewal passes
	renewable      bool
	uses           int // 0 is any number, and -1 none
	orphan         bool
	entity, client string
}

// live returns a token that has not expired.
func (s *Server) live(secret string) *token {
	t := s.tokens[secret]
	if t == nil || !t.expires.IsZero() && !s.now().Before(t.expires) {
		return nil
	}
	return t
}

// issue makes a token. maxTTL is 0 for no limit.
func (s *Server) issue(t *token, maxTTL time.Duration) *token {
	t.id, t.accessor, t.issued = "hvs."+id(24), id(12), s.now()
	if t.client == "" {
		t.client = id(16)
	}
	if maxTTL > 0 {
		t.limit = t.issued.Add(maxTTL)
		if t.ttl == 0 || t.ttl > maxTTL {
			t.ttl = maxTTL
		}
	}
	if t.ttl > 0 {
		t.expires = t.issued.Add(t.ttl)
	}
	s.tokens[t.id] = t
	return t
}

// seconds is what a token has left.
func (s *Server) seconds(t *token) int64 {
	if t.expires.IsZero() {
		return 0
	}
	return int64(t.expires.Sub(s.now()).Round(time.Second) / time.Second)
}

// auth is how a token is told to who signs in or renews.
func (s *Server) auth(t *token) map[string]any {
	var meta any
	if t.meta != nil {
		meta = t.meta
	}
	return map[string]any{
		"client_token": t.id, "accessor": t.accessor, "policies": t.policies, "token_policies": t.policies,
		"metadata": meta, "lease_duration": s.seconds(t), "renewable": t.renewable, "entity_id": t.entity,
		"token_type": "service", "orphan": t.orphan, "mfa_requirement": nil, "num_uses": t.uses,
	}
}

func (s *Server) tokenAPI(req *request, path string) answer {
	t := req.token
	switch req.method + " " + path {
	case "POST create":
		policies := strs(req.body["policies"])
		if len(policies) == 0 {
			policies = slices.Clone(t.policies)
		}
		if off, _ := req.body["no_default_policy"].(bool); !off && !slices.Contains(policies, "root") && !slices.Contains(policies, "default") {
			policies = append(policies, "default")
		}
		slices.Sort(policies)
		renewable := true
		if v, found := req.body["renewable"].(bool); found {
			renewable = v
		}
		ttl := duration(req.body["ttl"])
		if ttl == 0 && !slices.Contains(policies, "root") {
			ttl = 768 * time.Hour // the server's default
		}
		made := s.issue(&token{
			ns: req.ns, path: "auth/token/create", name: "token", policies: policies, ttl: ttl,
			renewable: renewable && ttl > 0, uses: number(req.body["num_uses"]),
		}, duration(req.body["explicit_max_ttl"]))
		return answer{status: http.StatusOK, auth: s.auth(made), kind: "token"}
	case "POST renew-self":
		if !t.renewable {
			return fail(http.StatusBadRequest, "lease is not renewable")
		}
		t.expires = s.now().Add(t.ttl)
		if !t.limit.IsZero() && t.expires.After(t.limit) {
			t.expires = t.limit
		}
		return answer{status: http.StatusOK, auth: s.auth(t), kind: "token"}
	case "GET lookup-self":
		var expires, meta any
		if !t.expires.IsZero() {
			expires = stamp(t.expires)
		}
		if t.meta != nil {
			meta = t.meta
		}
		data := map[string]any{
			"id": t.id, "accessor": t.accessor, "policies": t.policies, "path": t.path, "meta": meta,
			"display_name": t.name, "num_uses": t.uses, "orphan": t.orphan, "creation_time": t.issued.Unix(),
			"creation_ttl": int64(t.ttl / time.Second), "expire_time": expires, "ttl": s.seconds(t),
			"explicit_max_ttl": 0, "entity_id": t.entity, "type": "service",
			"issue_time": stamp(t.issued), "renewable": t.renewable,
		}
		return answer{status: http.StatusOK, data: data, kind: "token"}
	case "POST revoke-self":
		delete(s.tokens, t.id)
		return done
	}
	return fail(http.StatusNotFound, "1 error occurred:\n\t* unsupported path\n\n")
}

// strs reads a list of strings.
func strs(raw any) []string {
	var out []string
	list, isList := raw.([]any)
	if !isList && text(raw) != "" {
		list = []any{raw}
	}
	for _, x := range list {
		out = append(out, text(x))
	}
	return out
}
