package vaultfake

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// defaultVersions is how many versions are kept where nobody says.
const defaultVersions = 10

// An engine is one mount of the key-value engine, version 2.
type engine struct {
	maxVersions int
	casRequired bool
	deleteAfter time.Duration
	keys        map[string]*key
}

func newEngine() *engine { return &engine{keys: map[string]*key{}} }

// A key is one secret.
type key struct {
	current, oldest, maxVersions int
	casRequired                  bool
	deleteAfter                  time.Duration
	custom                       map[string]string
	created, updated             time.Time
	versions                     map[int]*version
	by                           any // last_updated_by
}

type version struct {
	data              []byte
	created, deletion time.Time
	destroyed         bool
	by, deletedBy     any
}

// exists is Vault's existence check, by which a write is create or update.
func (e *engine) exists(path string) bool {
	endpoint, name, _ := strings.Cut(path, "/")
	if endpoint != "data" && endpoint != "metadata" {
		return true // others have no create
	}
	return e.keys[name] != nil
}

func (s *Server) kv(e *engine, req *request, path string) answer {
	endpoint, name, _ := strings.Cut(path, "/")
	k := e.keys[name]
	type route struct{ method, endpoint string }
	switch (route{req.method, endpoint}) {
	case route{http.MethodGet, "config"}:
		return ok(map[string]any{"max_versions": e.maxVersions, "cas_required": e.casRequired, "delete_version_after": e.deleteAfter.String()})
	case route{http.MethodPost, "config"}:
		return e.configure(req)
	case route{http.MethodGet, "data"}:
		return s.readData(k, req)
	case route{http.MethodPost, "data"}:
		if name == "" {
			break
		}
		return s.writeData(e, k, name, req, "update")
	case route{http.MethodPatch, "data"}:
		return s.patchData(e, k, name, req)
	case route{http.MethodDelete, "data"}:
		if k != nil {
			s.setDeleted(k, []int{k.current}, req)
		}
		return done
	case route{http.MethodGet, "metadata"}:
		if k == nil {
			return notFound
		}
		return ok(k.metadata())
	case route{http.MethodPost, "metadata"}:
		return s.writeMetadata(e, k, name, req)
	case route{http.MethodPatch, "metadata"}:
		return s.patchMetadata(e, k, req)
	case route{http.MethodDelete, "metadata"}:
		delete(e.keys, name)
		return done
	case route{"LIST", "metadata"}:
		return e.list(name, s.page(req))
	case route{http.MethodPost, "delete"}, route{http.MethodPost, "undelete"}, route{http.MethodPost, "destroy"}:
		return s.changeVersions(e, k, endpoint, req)
	}
	for _, known := range []string{"data", "metadata", "delete", "undelete", "destroy"} {
		if endpoint == known && name != "" && (endpoint != "data" || !strings.HasSuffix(name, "/")) {
			return fail(http.StatusMethodNotAllowed, "1 error occurred:\n\t* unsupported operation\n\n")
		}
	}
	return answer{status: http.StatusNotFound, full: true, warnings: []string{
		"Invalid path for a versioned K/V secrets engine. See the API docs for the appropriate API endpoints to use. If using the Vault CLI, use 'vault kv " + command[req.method] + "' for this operation.",
	}}
}

// command is what the engine advises instead of a path that it does not have.
var command = map[string]string{
	http.MethodGet: "get", http.MethodPost: "put", http.MethodPatch: "patch", http.MethodDelete: "delete", "LIST": "list",
}

func (s *Server) readData(k *key, req *request) answer {
	if k == nil {
		return notFound
	}
	n := k.current
	if q := req.query["version"]; len(q) > 0 {
		if asked, err := strconv.Atoi(q[0]); err == nil && asked > 0 {
			n = asked
		}
	}
	v := k.versions[n]
	if v == nil {
		return notFound
	}
	out := map[string]any{"data": nil, "metadata": v.info(n, k)}
	if v.deleted(s.now()) || v.destroyed {
		return answer{status: http.StatusNotFound, data: out, full: true}
	}
	// As the engine does: what is stored is read with 64-bit floating point.
	var data map[string]any
	if err := json.Unmarshal(v.data, &data); err != nil {
		return fail(http.StatusInternalServerError, "1 error occurred:\n\t* "+err.Error()+"\n\n")
	}
	out["data"] = data
	return ok(out)
}

// patchData merges into the newest version (RFC 7396) and writes another.
func (s *Server) patchData(e *engine, k *key, name string, req *request) answer {
	patch, isMap := req.body["data"].(map[string]any)
	if !isMap {
		return fail(http.StatusBadRequest, "no data provided")
	}
	if k == nil || k.versions[k.current] == nil {
		return answer{status: http.StatusNotFound, full: true}
	}
	if a := k.checkCAS(e, req); a != nil {
		return *a
	}
	v := k.versions[k.current]
	if v.deleted(s.now()) || v.destroyed {
		return answer{status: http.StatusNotFound, data: v.info(k.current, k), full: true}
	}
	var data map[string]any
	if err := json.Unmarshal(v.data, &data); err != nil {
		return fail(http.StatusInternalServerError, "1 error occurred:\n\t* "+err.Error()+"\n\n")
	}
	req.body["data"] = merge(data, patch)
	return s.writeData(e, k, name, req, "patch")
}

// merge applies a merge patch: a null takes a member away.
func merge(to, patch map[string]any) map[string]any {
	for field, v := range patch {
		inner, isMap := v.(map[string]any)
		switch old, _ := to[field].(map[string]any); {
		case v == nil:
			delete(to, field)
		case isMap && old != nil:
			merge(old, inner)
		default:
			to[field] = v
		}
	}
	return to
}

func (s *Server) writeData(e *engine, k *key, name string, req *request, operation string) answer {
	raw, found := req.body["data"]
	if !found {
		return fail(http.StatusBadRequest, "no data provided")
	}
	data, isMap := raw.(map[string]any)
	if !isMap && raw != nil {
		return fail(http.StatusBadRequest, fmt.Sprintf(`error converting input for field "data": '' expected type 'map[string]interface {}', got unconvertible type '%T'`, raw))
	}
	if data == nil {
		data = map[string]any{}
	}
	fresh := k == nil
	if fresh {
		k = &key{versions: map[int]*version{}}
	}
	if a := k.checkCAS(e, req); a != nil {
		return *a
	}
	now := s.now()
	v := &version{data: encode(data), created: now, by: actor(req, operation)}
	if fresh {
		v.by = actor(req, "create")
		k.created = now
		e.keys[name] = k
	}
	v.deletion = e.deletion(k, now)
	k.current++
	k.by = v.by
	k.versions[k.current] = v
	k.updated = now
	keep := max(k.maxVersions, e.maxVersions)
	if keep == 0 {
		keep = defaultVersions
	}
	if k.current-k.oldest >= keep {
		for n := range k.versions {
			if n <= k.current-keep {
				delete(k.versions, n)
			}
		}
		k.oldest = k.current - keep + 1
	}
	return ok(v.info(k.current, k))
}

// checkCAS refuses a write by check-and-set.
func (k *key) checkCAS(e *engine, req *request) *answer {
	options, _ := req.body["options"].(map[string]any)
	raw, found := options["cas"]
	var a answer
	switch {
	case found:
		cas, err := strconv.Atoi(fmt.Sprint(raw))
		switch {
		case err != nil:
			a = fail(http.StatusBadRequest, "error parsing check-and-set parameter")
		case cas != k.current:
			a = fail(http.StatusBadRequest, "check-and-set parameter did not match the current version")
		default:
			return nil
		}
	case e.casRequired || k.casRequired:
		a = fail(http.StatusBadRequest, "check-and-set parameter required for this call")
	default:
		return nil
	}
	return &a
}

// changeVersions is delete, undelete and destroy: success, whatever is there.
func (s *Server) changeVersions(e *engine, k *key, endpoint string, req *request) answer {
	versions := ints(req.body["versions"])
	if len(versions) == 0 {
		text := "No version number provided"
		if endpoint == "destroy" {
			text = "no version number provided"
		}
		return fail(http.StatusBadRequest, text)
	}
	if k == nil {
		return done
	}
	switch endpoint {
	case "delete":
		s.setDeleted(k, versions, req)
	case "undelete":
		for _, n := range versions {
			if v := k.versions[n]; v != nil && !v.destroyed {
				v.deletion, v.deletedBy = e.deletion(k, s.now()), nil
			}
		}
		k.by = actor(req, "undelete")
	default:
		for _, n := range versions {
			if v := k.versions[n]; v != nil {
				v.destroyed = true
				clear(v.data)
				v.data = nil
			}
		}
	}
	return done
}

func (s *Server) setDeleted(k *key, versions []int, req *request) {
	by := actor(req, map[bool]string{true: "delete", false: "update"}[req.method == http.MethodDelete])
	for _, n := range versions {
		if v := k.versions[n]; v != nil && !v.destroyed && !v.deleted(s.now()) {
			v.deletion, v.deletedBy = s.now(), by
		}
	}
	k.by = by
}

// deleted reports whether the deletion time has come.
func (v *version) deleted(now time.Time) bool {
	return !v.deletion.IsZero() && !v.deletion.After(now)
}

// deletion is when a version of k that is written now will be deleted.
func (e *engine) deletion(k *key, now time.Time) time.Time {
	after := k.deleteAfter
	if e.deleteAfter < 0 {
		return time.Time{}
	}
	if after == 0 || e.deleteAfter > 0 && e.deleteAfter < after {
		after = e.deleteAfter
	}
	if after == 0 {
		return time.Time{}
	}
	return now.Add(after)
}

func (v *version) info(n int, k *key) map[string]any {
	return map[string]any{
		"version": n, "created_time": stamp(v.created), "deletion_time": stamp(v.deletion),
		"destroyed": v.destroyed, "custom_metadata": custom(k),
	}
}

func custom(k *key) any {
	if k.custom == nil {
		return nil
	}
	return k.custom
}

func stamp(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.Format(time.RFC3339Nano)
}

// actor is whom the engine says a change was made by. A token need not belong
// to an entity.
func actor(req *request, operation string) any {
	by := map[string]any{"actor": req.token.name, "client_id": req.token.client, "operation": operation}
	if req.token.entity != "" {
		by["entity_id"] = req.token.entity
	}
	return by
}

// ints reads a list of numbers, or one, or some with commas.
func ints(raw any) []int {
	list, isList := raw.([]any)
	if !isList && raw != nil {
		list = nil
		for part := range strings.SplitSeq(fmt.Sprint(raw), ",") {
			list = append(list, part)
		}
	}
	var out []int
	for _, x := range list {
		if n, err := strconv.Atoi(fmt.Sprint(x)); err == nil {
			out = append(out, n)
		}
	}
	return out
}
