package keyissuer

import (
	"encoding/json"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/keyturn/keyturn/fault"
)

const (
	maxBody  = 64 << 10
	pageSize = 100
)

// ServeHTTP is the API. The administrator's calls carry the admin key as
// bearer token, the others a key.
//
//	POST   /v1/projects/{project}/keys       {"name": N}: 201 with id, name, created_at and key
//	GET    /v1/projects/{project}/keys       ?prefix=&after=&limit=: 200 {"data": [...], "has_more": B, "last_id": ID}
//	DELETE /v1/projects/{project}/keys/{id}  204, or 404 if there is none
//	POST   /v1/projects/{project}/keys/{id}/disable  204, or 404 if there is none; enable undoes it
//	GET    /v1/verify                        200 with the key's id, project and name
//	POST   /v1/chat/completions              200 with an answer
//
// A refused bearer token is 401, one of the wrong sort 403, a full project
// 429. Errors are {"error": {"code": C, "message": M}}.
func (i *Issuer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, maxBody)
	w.Header().Set("Cache-Control", "no-store")
	parts := strings.Split(strings.TrimPrefix(r.URL.Path, "/"), "/")
	switch {
	case len(parts) == 4 && parts[0] == "v1" && parts[1] == "projects" && parts[3] == "keys":
		if !i.admitAdmin(w, r) {
			return
		}
		switch r.Method {
		case http.MethodPost:
			i.create(w, r, parts[2])
		case http.MethodGet:
			i.list(w, r, parts[2])
		default:
			fail(w, http.StatusMethodNotAllowed, "method", "expected GET or POST")
		}
	case len(parts) == 5 && parts[0] == "v1" && parts[1] == "projects" && parts[3] == "keys":
		if !i.admitAdmin(w, r) {
			return
		}
		if r.Method != http.MethodDelete {
			fail(w, http.StatusMethodNotAllowed, "method", "expected DELETE")
			return
		}
		i.change(w, parts[2], parts[4], i.Revoke)
	case len(parts) == 6 && parts[0] == "v1" && parts[1] == "projects" && parts[3] == "keys" && (parts[5] == "disable" || parts[5] == "enable"):
		if !i.admitAdmin(w, r) {
			return
		}
		if r.Method != http.MethodPost {
			fail(w, http.StatusMethodNotAllowed, "method", "expected POST")
			return
		}
		f := i.Disable
		if parts[5] == "enable" {
			f = i.Enable
		}
		i.change(w, parts[2], parts[4], f)
	case r.URL.Path == "/v1/verify":
		if k, ok := i.admitKey(w, r); ok {
			reply(w, http.StatusOK, k)
		}
	case r.URL.Path == "/v1/chat/completions":
		i.complete(w, r)
	default:
		fail(w, http.StatusNotFound, "not_found", "nothing here")
	}
}

func bearer(r *http.Request) string {
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return ""
	}
	return strings.TrimSpace(token)
}

func (i *Issuer) admitAdmin(w http.ResponseWriter, r *http.Request) bool {
	token := bearer(r)
	if i.isAdmin(token) {
		return true
	}
	if _, ok := i.Verify(token); ok {
		fail(w, http.StatusForbidden, "not_admin", "a project's key cannot manage keys")
		return false
	}
	fail(w, http.StatusUnauthorized, "unauthorized", "no valid admin key")
	return false
}

func (i *Issuer) admitKey(w http.ResponseWriter, r *http.Request) (Key, bool) {
	k, ok := i.Verify(bearer(r))
	if !ok {
		fail(w, http.StatusUnauthorized, "unauthorized", "no valid key")
	}
	return k, ok
}

func (i *Issuer) create(w http.ResponseWriter, r *http.Request, project string) {
	var in struct {
		Name string `json:"name"`
	}
	d := json.NewDecoder(r.Body)
	d.DisallowUnknownFields()
	if err := d.Decode(&in); err != nil {
		fail(w, http.StatusBadRequest, "body", `expected a JSON object {"name": ...} of at most 64 KiB`)
		return
	}
	k, secret, err := i.Create(project, in.Name)
	if err != nil {
		failWith(w, err)
		return
	}
	reply(w, http.StatusCreated, struct {
		Key
		Secret string `json:"key"`
	}{k, secret})
}

func (i *Issuer) list(w http.ResponseWriter, r *http.Request, project string) {
	q := r.URL.Query()
	limit := pageSize
	if s := q.Get("limit"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 || n > pageSize {
			fail(w, http.StatusBadRequest, "limit", "expected 1 to "+strconv.Itoa(pageSize))
			return
		}
		limit = n
	}
	keys := i.Keys(project, q.Get("prefix"))
	if after := q.Get("after"); after != "" {
		at := slices.IndexFunc(keys, func(k Key) bool { return k.ID == after })
		if at < 0 {
			// It was revoked between two pages; begin again.
			fail(w, http.StatusBadRequest, "after", "no such key")
			return
		}
		keys = keys[at+1:]
	}
	out := struct {
		Data    []Key  `json:"data"`
		HasMore bool   `json:"has_more"`
		LastID  string `json:"last_id,omitempty"`
	}{Data: keys}
	if len(keys) > limit {
		out.Data, out.HasMore = keys[:limit], true
	}
	if n := len(out.Data); n > 0 {
		out.LastID = out.Data[n-1].ID
	}
	reply(w, http.StatusOK, out)
}

// change makes one change to a key.
func (i *Issuer) change(w http.ResponseWriter, project, id string, f func(project, id string) (bool, error)) {
	ok, err := f(project, id)
	switch {
	case err != nil:
		failWith(w, err)
	case !ok:
		fail(w, http.StatusNotFound, "not_found", "no such key")
	default:
		w.WriteHeader(http.StatusNoContent)
	}
}

// complete answers a chat, as much as a demonstration needs.
func (i *Issuer) complete(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost {
		fail(w, http.StatusMethodNotAllowed, "method", "expected POST")
		return
	}
	k, ok := i.admitKey(w, r)
	if !ok {
		return
	}
	var in struct {
		Messages []struct {
			Content string `json:"content"`
		} `json:"messages"`
	}
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil || len(in.Messages) == 0 {
		fail(w, http.StatusBadRequest, "body", `expected a JSON object {"messages": [{"content": ...}]} of at most 64 KiB`)
		return
	}
	type message struct {
		Role    string `json:"role"`
		Content string `json:"content"`
	}
	type choice struct {
		Index        int     `json:"index"`
		Message      message `json:"message"`
		FinishReason string  `json:"finish_reason"`
	}
	reply(w, http.StatusOK, struct {
		Object  string   `json:"object"`
		Created int64    `json:"created"`
		Model   string   `json:"model"`
		KeyID   string   `json:"key_id"`
		Choices []choice `json:"choices"`
	}{
		"chat.completion", i.opts.Now().Unix(), "echo", k.ID,
		[]choice{{Message: message{"assistant", "You said: " + in.Messages[len(in.Messages)-1].Content}, FinishReason: "stop"}},
	})
}

func failWith(w http.ResponseWriter, err error) {
	switch {
	case fault.ClassOf(err) == fault.ClassQuota:
		fail(w, http.StatusTooManyRequests, "key_limit", err.Error())
	case fault.Is(err, fault.Invalid):
		fail(w, http.StatusBadRequest, "invalid", err.Error())
	default:
		w.Header().Set("Retry-After", strconv.Itoa(int((5 * time.Second).Seconds())))
		fail(w, http.StatusServiceUnavailable, "unavailable", "the issuer could not save its keys")
	}
}

func fail(w http.ResponseWriter, status int, code, message string) {
	type body struct {
		Code    string `json:"code"`
		Message string `json:"message"`
	}
	reply(w, status, struct {
		Error body `json:"error"`
	}{body{code, message}})
}

func reply(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // the caller went away
}
