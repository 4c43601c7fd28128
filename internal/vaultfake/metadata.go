package vaultfake

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
)

func (e *engine) configure(req *request) answer {
	if v, found := req.body["max_versions"]; found {
		e.maxVersions = number(v)
	}
	if v, found := req.body["cas_required"]; found {
		e.casRequired, _ = v.(bool)
	}
	if v, found := req.body["delete_version_after"]; found {
		e.deleteAfter = duration(v)
	}
	return done
}

func (k *key) metadata() map[string]any {
	versions := map[string]any{}
	for n, v := range k.versions {
		versions[strconv.Itoa(n)] = map[string]any{
			"created_time": stamp(v.created), "deletion_time": stamp(v.deletion), "destroyed": v.destroyed,
			"created_by": v.by, "deleted_by": v.deletedBy,
		}
	}
	return map[string]any{
		"versions": versions, "current_version": k.current, "oldest_version": k.oldest,
		"created_time": stamp(k.created), "updated_time": stamp(k.updated), "max_versions": k.maxVersions,
		"cas_required": k.casRequired, "delete_version_after": k.deleteAfter.String(),
		"custom_metadata": custom(k), "last_updated_by": k.by,
	}
}

// writeMetadata replaces what is given, custom metadata as a whole.
func (s *Server) writeMetadata(e *engine, k *key, name string, req *request) answer {
	if name == "" {
		return fail(http.StatusBadRequest, "missing path")
	}
	given := false
	for _, f := range []string{"max_versions", "cas_required", "delete_version_after", "custom_metadata"} {
		_, found := req.body[f]
		given = given || found
	}
	if !given {
		return done
	}
	pairs, a := customPairs(req)
	if a != nil {
		return *a
	}
	if k == nil {
		k = &key{versions: map[int]*version{}, created: s.now(), updated: s.now()}
		e.keys[name] = k
	}
	if pairs != nil {
		k.custom = map[string]string{}
		for key, v := range pairs {
			k.custom[key] = text(v)
		}
	}
	return k.settings(e, req)
}

// patchMetadata merges what is given: a null takes a key away (RFC 7396).
func (s *Server) patchMetadata(e *engine, k *key, req *request) answer {
	pairs, a := customPairs(req)
	if a != nil {
		return *a
	}
	if k == nil {
		return answer{status: http.StatusNotFound, full: true}
	}
	for key, v := range pairs {
		if v == nil {
			delete(k.custom, key)
			continue
		}
		if k.custom == nil {
			k.custom = map[string]string{}
		}
		k.custom[key] = text(v)
	}
	return k.settings(e, req)
}

func (k *key) settings(e *engine, req *request) answer {
	if v, found := req.body["max_versions"]; found {
		k.maxVersions = number(v)
	}
	if v, found := req.body["cas_required"]; found {
		k.casRequired, _ = v.(bool)
		if e.casRequired && !k.casRequired {
			return answer{status: http.StatusOK, warnings: []string{`"cas_required" set to false, but is mandated by backend config. This value will be ignored.`}}
		}
	}
	if v, found := req.body["delete_version_after"]; found {
		k.deleteAfter = duration(v)
	}
	return done
}

// customPairs checks the custom metadata of a request against Vault's limits.
func customPairs(req *request) (map[string]any, *answer) {
	raw, found := req.body["custom_metadata"]
	if !found {
		return nil, nil
	}
	pairs, _ := raw.(map[string]any)
	const prefix = "custom_metadata validation failed"
	var errs []string
	count := 0
	for k, v := range pairs {
		if v == nil && req.method == http.MethodPatch {
			continue
		}
		count++
		if len(k) == 0 || len(k) > 128 {
			errs = append(errs, fmt.Sprintf("%s: length of key %q is %d but must be 0 < len(key) <= 128", prefix, k, len(k)))
		}
		if n := len(text(v)); n == 0 || n > 512 {
			errs = append(errs, fmt.Sprintf("%s: length of value for key %q is %d but must be 0 < len(value) <= 512", prefix, k, n))
		}
		if !printable(k) || !printable(text(v)) {
			errs = append(errs, fmt.Sprintf("%s: value for key %q contains unprintable characters", prefix, k))
		}
	}
	if count > 64 {
		errs = []string{fmt.Sprintf("%s: payload must contain at most 64 keys, provided %d", prefix, count)}
	}
	if len(errs) > 0 {
		noun := "errors"
		if len(errs) == 1 {
			noun = "error"
		}
		a := fail(http.StatusBadRequest, fmt.Sprintf("%d %s occurred:\n\t* %s\n\n", len(errs), noun, strings.Join(errs, "\n\t* ")))
		return nil, &a
	}
	if pairs == nil {
		pairs = map[string]any{}
	}
	return pairs, nil
}

// A page is which part of a list is asked for. The zero page is all of it.
type page struct {
	after string
	limit int
}

// page reads the parameters of OpenBao's lists, which Vault ignores.
// https://openbao.org/api-docs/secret/kv/kv-v2/#list-secrets
func (s *Server) page(req *request) page {
	if !s.paged {
		return page{}
	}
	q := url.Values(req.query)
	return page{q.Get("after"), number(q.Get("limit"))}
}

// list tells the keys of a folder, and the folders in it with a slash.
func (e *engine) list(folder string, p page) answer {
	if folder != "" && !strings.HasSuffix(folder, "/") {
		folder += "/"
	}
	seen := map[string]bool{}
	for name := range e.keys {
		rest, inside := strings.CutPrefix(name, folder)
		if !inside {
			continue
		}
		if first, _, deeper := strings.Cut(rest, "/"); deeper {
			rest = first + "/"
		}
		seen[rest] = true
	}
	keys := make([]string, 0, len(seen))
	for k := range seen {
		if k > p.after {
			keys = append(keys, k)
		}
	}
	if len(keys) == 0 {
		return notFound
	}
	slices.Sort(keys)
	if p.limit > 0 && len(keys) > p.limit {
		keys = keys[:p.limit]
	}
	return ok(map[string]any{"keys": keys})
}

func printable(s string) bool {
	return strings.IndexFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) < 0
}

// text, number and duration read what Vault takes for one.
func text(v any) string {
	if v == nil {
		return ""
	}
	return fmt.Sprint(v)
}

func number(v any) int {
	n, _ := strconv.Atoi(text(v))
	return n
}

func duration(v any) time.Duration {
	if n, err := strconv.Atoi(text(v)); err == nil {
		return time.Duration(n) * time.Second
	}
	d, _ := time.ParseDuration(text(v))
	return d
}
