package vaultevents

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/keyturn/keyturn/fault"
)

// maxAnswer bounds an answer in bytes: the metadata of one secret, or the keys
// of one folder.
const maxAnswer = 16 << 20

const (
	headerToken     = "X-Vault-Token"
	headerNamespace = "X-Vault-Namespace"
	headerRequest   = "X-Vault-Request"
)

// proofHolds is for how long a token that Vault knew counts as good.
const proofHolds = 10 * time.Second

// A token is the one in use.
type token struct {
	ask     func(context.Context) (string, error)
	timeout time.Duration
	mu      sync.Mutex
	cur     string
	proven  time.Time // when Vault last knew cur, of what it refused a path
}

// get returns the token in use, asking for one if there is none.
func (t *token) get(ctx context.Context, op string) (string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.cur != "" {
		return t.cur, nil
	}
	ctx, cancel := context.WithTimeout(ctx, t.timeout)
	defer cancel()
	got, err := t.ask(ctx)
	if err != nil {
		kind := fault.KindOf(err)
		if kind == fault.Unknown {
			kind = fault.Unavailable
		}
		// The cause's text is another's, who had a token at hand.
		return "", fault.Newf(kind, op, "there is no token; look at what signs in to Vault")
	}
	if got == "" || strings.ContainsAny(got, "\r\n") {
		return "", fault.Newf(fault.Denied, op, "the token is empty or has a line break; look at what signs in to Vault")
	}
	t.cur, t.proven = got, time.Time{}
	return got, nil
}

// refused forgets a token that Vault does not take any more, unless another
// one is in use already.
func (t *token) refused(secret string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.cur == secret {
		t.cur = ""
	}
}

// good reports whether a token was proven a moment ago, or, with proof, is now.
func (t *token) good(secret string, proof bool) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.cur != secret {
		return false
	}
	if proof {
		t.proven = time.Now()
	}
	return time.Since(t.proven) < proofHolds
}

// A client makes bounded requests.
type client struct {
	http      *http.Client
	base      string // ends in /v1/
	namespace string
	timeout   time.Duration
	token     token
}

func (c *client) header(secret string) http.Header {
	h := http.Header{headerToken: {secret}, headerRequest: {"true"}}
	if c.namespace != "" {
		h.Set(headerNamespace, c.namespace)
	}
	return h
}

// over reports whether a 403 is about the token, and if so forgets it. Vault
// gives the same answer for a path that a good token may not read, and whoever
// signed in anew for each of those would fill Vault with tokens.
// https://developer.hashicorp.com/vault/api-docs/auth/token#lookup-a-token-self
func (c *client) over(ctx context.Context, op, secret string) bool {
	if c.token.good(secret, false) {
		return false
	}
	_, err := c.once(ctx, op, secret, "auth/token/lookup-self", nil)
	if !denied(err) {
		// Known, or an outage, which says nothing against the token.
		c.token.good(secret, err == nil)
		return false
	}
	c.token.refused(secret)
	return true
}

// get reads a path, which is escaped, and returns its data; nil if nothing is
// there. With a token that Vault does not know any more it asks for another,
// once.
func (c *client) get(ctx context.Context, op, path string, query url.Values) (json.RawMessage, error) {
	for again := false; ; again = true {
		secret, err := c.token.get(ctx, op)
		if err != nil {
			return nil, err
		}
		data, err := c.once(ctx, op, secret, path, query)
		if !denied(err) || again || !c.over(ctx, op, secret) {
			return data, err
		}
	}
}

func (c *client) once(ctx context.Context, op, secret, path string, query url.Values) (json.RawMessage, error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	u := c.base + path
	if len(query) > 0 {
		u += "?" + query.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u, nil)
	if err != nil {
		return nil, fault.Newf(fault.Invalid, op, "the path cannot be asked for")
	}
	req.Header = c.header(secret)
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, unreachable(op, err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return nil, unreachable(op, err)
	}
	if len(body) > maxAnswer {
		return nil, fault.Newf(fault.Unavailable, op, "the answer is longer than %d bytes; keep fewer secrets in one folder", maxAnswer)
	}
	var answer struct {
		Errors []json.RawMessage `json:"errors"`
		Data   json.RawMessage   `json:"data"`
	}
	parsed := json.Unmarshal(body, &answer) == nil
	switch {
	case resp.StatusCode == http.StatusNotFound && parsed && len(answer.Errors) == 0:
		return nil, nil
	case resp.StatusCode != http.StatusOK:
		return nil, refusal(op, resp.StatusCode)
	case !parsed || len(answer.Data) == 0:
		return nil, fault.Newf(fault.Unavailable, op, "the answer is not one of Vault; look at the address, and for a proxy in between")
	}
	return answer.Data, nil
}

// denied reports whether Vault answered 403, for a path or a token.
func denied(err error) bool {
	return fault.Is(err, fault.Denied) && fault.ClassOf(err) == fault.ClassPermission
}

// refusal says what a status means.
// https://developer.hashicorp.com/vault/api-docs#http-status-codes
func refusal(op string, status int) error {
	e := &fault.Error{Kind: fault.Unavailable, Op: op}
	switch status {
	case http.StatusForbidden, http.StatusUnauthorized:
		e.Kind, e.Class, e.Msg = fault.Denied, fault.ClassPermission, "Vault refuses the token (403); look at its policies and at its time to live"
	case http.StatusNotFound:
		e.Kind, e.Msg = fault.NotFound, "nothing is there (404); look at the namespace, at the mount, and at whether it is a key-value engine of version 2"
	case http.StatusTooManyRequests:
		e.Class, e.Msg = fault.ClassQuota, "Vault has too many requests (429), or is a standby"
	case http.StatusServiceUnavailable:
		e.Msg = "Vault is sealed or in maintenance (503); unseal it"
	default:
		return fault.Newf(fault.Unavailable, op, "Vault answers with status %d; expected 200", status)
	}
	return e
}

// unreachable says why no answer came. Its text has no path and no token.
func unreachable(op string, err error) error {
	e := &fault.Error{Kind: fault.Unavailable, Class: fault.ClassNetwork, Op: op, Msg: "Vault cannot be reached"}
	// Other causes may quote an answer.
	if errno, is := errors.AsType[syscall.Errno](err); is {
		e.Err = errno
	} else if dns, is := errors.AsType[*net.DNSError](err); is {
		e.Err = dns
	}
	switch {
	case fault.Untrusted(err):
		e.Kind, e.Class, e.Msg = fault.Denied, fault.ClassTLS, "the certificate of Vault is not trusted; add its authority to RootCAs"
	case errors.Is(err, context.DeadlineExceeded):
		e.Class = fault.ClassTimeout
	}
	return e
}

// escape escapes a path, part by part.
func escape(path string) string {
	parts := strings.Split(path, "/")
	for i, p := range parts {
		parts[i] = url.PathEscape(p)
	}
	return strings.Join(parts, "/")
}
