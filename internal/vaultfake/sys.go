package vaultfake

import (
	"net/http"
	"strings"
	"time"

	"github.com/hashicorp/vault/api"
)

// A wrapped answer is kept for who has its token.
type wrapped struct {
	path    string
	created time.Time
	ttl     time.Duration
	body    []byte
}

// open answers what needs no token of its own.
func (s *Server) open(req *request, r *http.Request) (a answer, open bool) {
	switch {
	case req.method == http.MethodPost && req.path == "sys/wrapping/lookup":
		w := s.wrapOf(req, r)
		if w == nil {
			return badWrap, true
		}
		return ok(map[string]any{"creation_path": w.path, "creation_time": w.created.Format(time.RFC3339Nano), "creation_ttl": int64(w.ttl / time.Second)}), true
	case req.method == http.MethodPost && req.path == "sys/wrapping/unwrap":
		w := s.wrapOf(req, r)
		if w == nil {
			return badWrap, true
		}
		s.dropWrap(req, r)
		return answer{status: http.StatusOK, rewrap: w.body}, true
	case strings.HasPrefix(req.path, "auth/") && strings.HasSuffix(req.path, "/login"):
		mount := strings.TrimSuffix(strings.TrimPrefix(req.path, "auth/"), "/login")
		if a := req.space.auths[mount]; a != nil && req.method == http.MethodPost {
			return s.login(a, req), true
		}
	case req.path == "sys/health":
		return answer{status: http.StatusOK, rewrap: encode(map[string]any{"initialized": true, "sealed": false, "standby": false})}, true
	}
	return answer{}, false
}

var badWrap = fail(http.StatusBadRequest, "wrapping token is not valid or does not exist")

// wrapToken is the wrapping token of a request: the given one, or its own.
func wrapToken(req *request, r *http.Request) string {
	if t := text(req.body["token"]); t != "" {
		return t
	}
	return r.Header.Get(api.AuthHeaderName)
}

func (s *Server) wrapOf(req *request, r *http.Request) *wrapped {
	w := s.wraps[wrapToken(req, r)]
	if w == nil || !s.now().Before(w.created.Add(w.ttl)) {
		return nil
	}
	return w
}

func (s *Server) dropWrap(req *request, r *http.Request) { delete(s.wraps, wrapToken(req, r)) }

// wrap keeps an answer and tells the token that it is had for.
func (s *Server) wrap(req *request, a answer, ttl string) []byte {
	w := &wrapped{path: req.path, created: s.now(), ttl: duration(ttl), body: a.encode()}
	if req.ns != "" {
		w.path = req.ns + "/" + w.path
	}
	secret := "hvs." + id(24)
	s.wraps[secret] = w
	e := answer{}.envelope()
	e["request_id"] = ""
	info := map[string]any{
		"token": secret, "accessor": id(12), "ttl": int64(w.ttl / time.Second),
		"creation_time": w.created.Format(time.RFC3339Nano), "creation_path": w.path,
	}
	// What is wrapped can be revoked by who cannot read it.
	if data, _ := a.data.(map[string]any); a.kind == "approle" && data["secret_id_accessor"] != nil {
		info["wrapped_accessor"] = data["secret_id_accessor"]
	}
	e["wrap_info"] = info
	return encode(e)
}

func (s *Server) sys(req *request, path string) answer {
	kind, name, _ := strings.Cut(path, "/")
	switch req.method + " " + kind {
	case "POST mounts":
		if text(req.body["type"]) != "kv" {
			return fail(http.StatusBadRequest, "this fake mounts kv only")
		}
		at := strings.Trim(name, "/") + "/"
		if req.space.mounts[at] != nil {
			return fail(http.StatusBadRequest, "path is already in use at "+at)
		}
		req.space.mounts[at] = newEngine()
		return done
	case "POST auth":
		req.space.auths[strings.Trim(name, "/")] = &approle{roles: map[string]*role{}}
		return done
	case "POST policies":
		req.space.policies[strings.TrimPrefix(name, "acl/")] = parse(text(req.body["policy"]))
		return done
	case "POST capabilities-self":
		paths := strs(req.body["paths"])
		if len(paths) == 0 {
			return fail(http.StatusBadRequest, "paths must be supplied")
		}
		data := map[string]any{}
		for _, p := range paths {
			caps := req.space.capabilities(req.token, p)
			if req.token.ns != req.ns && caps[0] != "root" {
				caps = []string{"deny"}
			}
			data[p] = caps
		}
		if len(paths) == 1 {
			data["capabilities"] = data[paths[0]]
		}
		return answer{status: http.StatusOK, data: data, beside: data, kind: "system"}
	case "POST wrapping":
		if name == "wrap" {
			return answer{status: http.StatusOK, data: req.body, kind: "system"}
		}
	case "GET events":
		if pattern, ok := strings.CutPrefix(name, "subscribe/"); ok && s.enterprise && pattern != "" {
			return s.subscribe(req, pattern)
		}
	case "POST seal":
		s.sealed = true
		return done
	}
	return fail(http.StatusNotFound, "1 error occurred:\n\t* unsupported path\n\n")
}
