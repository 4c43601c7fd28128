package apikey

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"net/http"
	"slices"

	"github.com/keyturn/keyturn/fault"
)

// A Config says how one issuer is spoken to. It can be written as JSON; see
// [ParseConfig], and [Presets] for issuers that are known.
//
// URL, Headers and Body are templates of package text/template. What they may
// use:
//
//	.Vars.NAME  a constant of Vars, anywhere
//	.Admin      the administrator's credential: headers and bodies of all but verify
//	.Name       the name that tags the new key: create
//	.ID         the id of the key: revoke, disable, enable, verify
//	.Key        the key: headers and body of verify
//	.Cursor     where the next page begins, "" for the first: list
//
// What an action yields is always escaped for its place: percent-encoded in a
// URL and a form body, a whole JSON value with its quotes in any other body
// ({"name": {{.Name}}}), refused in a header if it has control characters. The
// functions json and url are for values within values.
type Config struct {
	// Preset is a name from [Presets]; then only Vars, Admin and AdminKey may
	// be given besides.
	Preset string `json:"preset,omitempty"`
	// Vars are constants for the templates, such as a project's id.
	Vars map[string]string `json:"vars,omitempty"`
	// Admin names the secret that holds the administrator's credential. By
	// default it is the member adminarn of the secret that is rotated.
	Admin string `json:"admin,omitempty"`
	// AdminKey is the JSON pointer to the credential in that secret. "/key" by
	// default; "-" says that the whole secret is the credential.
	AdminKey string `json:"admin_key,omitempty"`
	// AllowPlaintext allows http URLs to hosts other than loopback.
	AllowPlaintext bool `json:"allow_plaintext,omitempty"`

	Create CreateRequest `json:"create,omitzero"`
	Verify Request       `json:"verify,omitzero"`
	Revoke Request       `json:"revoke,omitzero"`
	// Disable and Enable, both or neither, turn a key off and on again. With
	// them a superseded key is disabled and can be restored; without them it
	// is revoked. A disabled key stays at the issuer, and may count against
	// its limits, until it is destroyed.
	Disable *Request `json:"disable,omitempty"`
	Enable  *Request `json:"enable,omitempty"`
	// List is needed to find the keys that an interrupted create left; without
	// it they stay alive until somebody revokes them by hand.
	List *ListRequest `json:"list,omitempty"`
}

// A Request is one call to the issuer.
type Request struct {
	// Method is by default POST for create, disable and enable, DELETE for
	// revoke and GET for the others.
	Method string `json:"method,omitempty"`
	// URL begins with https:// and a literal host; http is for loopback.
	URL string `json:"url,omitempty"`
	// Headers by name. With a Body, Content-Type is application/json by
	// default; the one other that is known is
	// application/x-www-form-urlencoded.
	Headers map[string]string `json:"headers,omitempty"`
	Body    string            `json:"body,omitempty"`
	// Expect lists the statuses that mean success. By default 200 and 201 for
	// create, 200, 202 and 204 for revoke, disable and enable, 200 for the
	// others.
	Expect []int `json:"expect,omitempty"`
	// Gone lists, for revoke, disable and enable, those that say that there is
	// no such key. By default 404 and 410.
	Gone []int `json:"gone,omitempty"`
}

// A CreateRequest makes a key.
type CreateRequest struct {
	Request
	// Key and ID are where in the answer, as JSON pointers (RFC 6901), the key
	// and its id are. "/key" and "/id" by default.
	Key string `json:"key,omitempty"`
	ID  string `json:"id,omitempty"`
}

// A ListRequest lists all live keys, those that it did not make too.
type ListRequest struct {
	Request
	// Items points to the array in the answer, "/data" by default; ID, Name,
	// Created and Disabled point into each item, "/id", "/name",
	// "/created_at" and "/disabled" by default. Created is a time of RFC 3339
	// or seconds since 1970. Disabled is true for a key that is disabled, which
	// is never taken for an orphan.
	Items    string `json:"items,omitempty"`
	ID       string `json:"id,omitempty"`
	Name     string `json:"name,omitempty"`
	Created  string `json:"created,omitempty"`
	Disabled string `json:"disabled,omitempty"`
	// Next points to the cursor of the next page. By default there are no
	// pages. More, if given, points to the boolean that says whether another
	// page follows; without it one does as long as Next is there.
	Next string `json:"next,omitempty"`
	More string `json:"more,omitempty"`
}

// ParseConfig reads a Config from JSON. A member that it does not know is an
// error of kind Invalid; whether the configuration makes sense is for [New]
// to say.
func ParseConfig(b []byte) (Config, error) {
	var c Config
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&c); err != nil {
		return Config{}, fault.New(fault.Invalid, "apikey configuration", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return Config{}, fault.Newf(fault.Invalid, "apikey configuration", "something follows the JSON object")
	}
	return c, nil
}

// resolve expands the preset and fills in what is default.
func (c Config) resolve() (Config, error) {
	if c.Preset != "" {
		p, err := preset(c)
		if err != nil {
			return Config{}, err
		}
		p.Admin = c.Admin
		if c.AdminKey != "" {
			p.AdminKey = c.AdminKey
		}
		c = p
	}
	or(&c.AdminKey, "/key")
	c.Create.Request = c.Create.with(http.MethodPost, http.StatusOK, http.StatusCreated)
	or(&c.Create.Key, "/key")
	or(&c.Create.ID, "/id")
	c.Verify = c.Verify.with(http.MethodGet, http.StatusOK)
	c.Revoke = c.Revoke.ofKey(http.MethodDelete)
	if (c.Disable == nil) != (c.Enable == nil) {
		return Config{}, fault.Newf(fault.Invalid, "apikey configuration", "one of disable and enable; give both, or neither")
	}
	if c.Disable != nil {
		d, e := c.Disable.ofKey(http.MethodPost), c.Enable.ofKey(http.MethodPost)
		c.Disable, c.Enable = &d, &e
	}
	if c.List != nil {
		l := *c.List
		l.Request = l.with(http.MethodGet, http.StatusOK)
		or(&l.Items, "/data")
		or(&l.ID, "/id")
		or(&l.Name, "/name")
		or(&l.Created, "/created_at")
		or(&l.Disabled, "/disabled")
		c.List = &l
	}
	return c, nil
}

// ofKey is with for a request about one key, which may be gone.
func (r Request) ofKey(method string) Request {
	r = r.with(method, http.StatusOK, http.StatusAccepted, http.StatusNoContent)
	if r.Gone == nil {
		r.Gone = []int{http.StatusNotFound, http.StatusGone}
	}
	return r
}

func or(s *string, def string) {
	if *s == "" {
		*s = def
	}
}

// with returns a copy of r with its defaults.
func (r Request) with(method string, expect ...int) Request {
	or(&r.Method, method)
	r.Headers = maps.Clone(r.Headers)
	if len(r.Expect) == 0 {
		r.Expect = expect
	}
	r.Expect, r.Gone = slices.Clone(r.Expect), slices.Clone(r.Gone)
	return r
}
