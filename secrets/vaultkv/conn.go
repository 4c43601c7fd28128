package vaultkv

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/hashicorp/vault/api"

	"github.com/keyturn/keyturn/fault"
)

// maxBody bounds an answer in bytes: a value, its exact text and what JSON
// makes of them, or the keys of one folder.
const maxBody = 4 << 20

// errLong is what reading a longer answer gives.
var errLong = errors.New("the answer is longer than 4 MiB")

// A conn makes bounded requests with the token that a client has at the time.
type conn struct {
	client  *api.Client // the caller's: its token may change
	bounded *api.Client // the same, with answers cut off
	timeout time.Duration
}

func newConn(client *api.Client, timeout time.Duration) (*conn, error) {
	const op = "vaultkv: new"
	if client == nil {
		return nil, fault.Newf(fault.Invalid, op, "there is no client; make one with api.NewClient")
	}
	if timeout <= 0 {
		timeout = 15 * time.Second
	}
	config := client.CloneConfig()
	config.HttpClient.Transport = limited{config.HttpClient.Transport}
	bounded, err := api.NewClient(config)
	if err != nil {
		return nil, fault.Newf(fault.Invalid, op, "the client's configuration cannot be used: %v", err)
	}
	bounded.SetHeaders(client.Headers())
	return &conn{client: client, bounded: bounded, timeout: timeout}, nil
}

// in returns the API of a namespace with a token.
func (c *conn) in(ns, token string) *api.Logical {
	client := c.bounded.WithNamespace(ns)
	client.SetToken(token)
	return client.Logical()
}

// A reply is what a request was answered with.
type reply struct {
	status int
	dated  time.Time // by the server, in whole seconds; zero if it was not
	body   []byte
}

// data decodes the data of a reply into out, and wipes the reply.
func (r *reply) data(op string, out any) error {
	defer clear(r.body)
	var envelope struct{ Data json.RawMessage }
	err := json.Unmarshal(r.body, &envelope)
	if err == nil && len(envelope.Data) > 0 {
		err = json.Unmarshal(envelope.Data, out)
	}
	clear(envelope.Data)
	if err != nil || len(envelope.Data) == 0 {
		// The decoder's error is dropped: it may quote the answer.
		return fault.Newf(fault.Unavailable, op, "the answer is not one of Vault's key-value engine, version 2; look at the address, and for a proxy in between")
	}
	return nil
}

// get reads a path. A 404 of Vault's is no error here: its reply may have data.
func (c *conn) get(ctx context.Context, op, ns, path string, query url.Values) (*reply, error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	resp, err := c.in(ns, c.client.Token()).ReadRawWithDataWithContext(ctx, path, query)
	return finish(op, resp, err, http.StatusNotFound)
}

// put writes a path.
func (c *conn) put(ctx context.Context, op, ns, path string, body any) (*reply, error) {
	return c.putAs(ctx, op, ns, c.client.Token(), path, body)
}

// putAs writes a path with another token than the client's.
func (c *conn) putAs(ctx context.Context, op, ns, token, path string, body any) (*reply, error) {
	b, err := json.Marshal(body)
	if err != nil {
		return nil, fault.Newf(fault.Invalid, op, "the request cannot be written as JSON")
	}
	defer clear(b)
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	resp, err := c.in(ns, token).WriteRawWithContext(ctx, path, b)
	return finish(op, resp, err, 0)
}

// patch merges into a path.
func (c *conn) patch(ctx context.Context, op, ns, path string, body map[string]any) error {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	_, err := c.in(ns, c.client.Token()).JSONMergePatch(ctx, path, body)
	return classify(op, err)
}

// list returns the keys of a folder; nothing there is no keys.
func (c *conn) list(ctx context.Context, op, ns, path string) ([]string, error) {
	got, err := c.get(ctx, op, ns, path, url.Values{"list": {"true"}})
	if err != nil || got.status == http.StatusNotFound {
		return nil, err
	}
	var found struct{ Keys []string }
	if err := got.data(op, &found); err != nil {
		return nil, err
	}
	return found.Keys, nil
}

// remove deletes a path. What is not there is success.
func (c *conn) remove(ctx context.Context, op, ns, path string) error {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	resp, err := c.in(ns, c.client.Token()).DeleteRawWithContext(ctx, path)
	_, err = finish(op, resp, err, http.StatusNotFound)
	return err
}

// finish reads an answer; one of Vault's with the status allowed is no error.
func finish(op string, resp *api.Response, err error, allowed int) (*reply, error) {
	if resp == nil || resp.Response == nil {
		if err == nil {
			err = io.ErrUnexpectedEOF
		}
		return nil, classify(op, err)
	}
	defer func() { _ = resp.Body.Close() }()
	var re *api.ResponseError
	if err != nil && (resp.StatusCode != allowed || !errors.As(err, &re)) {
		return nil, classify(op, err)
	}
	body, rerr := io.ReadAll(resp.Body)
	if rerr != nil {
		return nil, classify(op, rerr)
	}
	if re != nil && !nothing(re) && !hasData(body) {
		return nil, classify(op, err)
	}
	out := &reply{status: resp.StatusCode, body: body}
	if t, err := http.ParseTime(resp.Header.Get("Date")); err == nil {
		out.dated = t
	}
	return out, nil
}

// hasData reports whether an answer is an envelope that is not empty: a 404
// with one is about a version that was deleted.
func hasData(body []byte) bool {
	var envelope struct{ Data map[string]json.RawMessage }
	return json.Unmarshal(body, &envelope) == nil && len(envelope.Data) > 0
}

// limited cuts off the bodies of answers, those of errors too, which the
// client reads to their end.
type limited struct{ next http.RoundTripper }

func (l limited) RoundTrip(req *http.Request) (*http.Response, error) {
	next := l.next
	if next == nil {
		next = http.DefaultTransport
	}
	resp, err := next.RoundTrip(req)
	if err == nil {
		resp.Body = &limitedBody{resp.Body, maxBody}
	}
	return resp, err
}

type limitedBody struct {
	io.ReadCloser
	left int
}

func (b *limitedBody) Read(p []byte) (int, error) {
	if b.left <= 0 {
		// One more byte tells a body of just this length from a longer one.
		n, err := b.ReadCloser.Read(p[:min(len(p), 1)])
		if n > 0 {
			return 0, errLong
		}
		return 0, err
	}
	n, err := b.ReadCloser.Read(p[:min(len(p), b.left)])
	b.left -= n
	return n, err
}
