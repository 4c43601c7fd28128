package apikey

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/keyturn/keyturn/fault"
)

// maxAnswer bounds the answers that are read.
const maxAnswer = 64 << 10

// An answer is a response that was expected.
type answer struct {
	doc  any       // the body as JSON, nil if it is not or is not needed
	gone bool      // the status was one of the call's Gone
	date time.Time // the issuer's clock, zero if it did not tell
}

// do makes one call. Errors name the host and the status and quote nothing
// that was sent or received.
func (r *rotator) do(ctx context.Context, c *call, d data) (*answer, error) {
	ctx, cancel := context.WithTimeout(ctx, r.opts.Timeout)
	defer cancel()
	d["Vars"] = r.cfg.Vars
	target, headers, body, err := c.render(d, false)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, c.method, target, strings.NewReader(body))
	if err != nil {
		return nil, fault.Newf(fault.Invalid, c.name(), "the URL cannot be parsed once filled in")
	}
	req.Header = headers
	if headers.Get("Accept") == "" {
		req.Header.Set("Accept", "application/json")
	}
	if headers.Get("User-Agent") == "" {
		req.Header.Set("User-Agent", "keyturn")
	}
	if c.body == nil {
		req.Body, req.ContentLength = http.NoBody, 0
	}
	resp, err := r.client.Do(req)
	if err != nil {
		return nil, c.transportError(ctx, err)
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	defer clear(b)
	ok, gone := slices.Contains(c.expect, resp.StatusCode), slices.Contains(c.gone, resp.StatusCode)
	if !ok && !gone {
		return nil, c.statusError(resp, r.now())
	}
	out := &answer{gone: gone}
	out.date, _ = http.ParseTime(resp.Header.Get("Date"))
	if !c.reads {
		return out, nil
	}
	if err != nil {
		return nil, c.transportError(ctx, err)
	}
	if len(b) > maxAnswer {
		return nil, fault.Newf(fault.Invalid, c.name(), "%s answered with more than %d KiB; ask for less at once", c.host, maxAnswer>>10)
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.UseNumber()
	if dec.Decode(&out.doc) != nil {
		out.doc = nil
	}
	return out, nil
}

func (c *call) name() string { return "apikey: " + c.op }

// transportError classifies what net/http says. The texts of its parsers
// quote what the other side sent, so only those of known types are kept.
func (c *call) transportError(ctx context.Context, err error) error {
	e := &fault.Error{Kind: fault.Unavailable, Class: fault.ClassNetwork, Op: c.name()}
	var (
		netErr   net.Error
		opErr    *net.OpError
		dnsErr   *net.DNSError
		verify   *tls.CertificateVerificationError
		unknown  x509.UnknownAuthorityError
		hostname x509.HostnameError
		invalid  x509.CertificateInvalidError
		record   tls.RecordHeaderError
		alert    tls.AlertError
	)
	switch {
	case ctx.Err() != nil && errors.Is(ctx.Err(), context.Canceled):
		e.Class, e.Msg, e.Err = "", "cancelled while calling "+c.host, context.Canceled
	case ctx.Err() != nil || errors.Is(err, context.DeadlineExceeded):
		e.Class, e.Msg, e.Err = fault.ClassTimeout, "no answer from "+c.host+" before the deadline", context.DeadlineExceeded
	case errors.As(err, &verify), errors.As(err, &unknown), errors.As(err, &hostname), errors.As(err, &invalid):
		e.Kind, e.Class, e.Msg = fault.Denied, fault.ClassTLS, "the certificate of "+c.host+" is not trusted; correct the host, or trust its issuer"
	case errors.As(err, &record), errors.As(err, &alert), errors.Is(err, http.ErrSchemeMismatch):
		e.Kind, e.Class, e.Msg = fault.Denied, fault.ClassTLS, "no TLS with "+c.host
	case errors.As(err, &netErr) && netErr.Timeout():
		e.Class, e.Msg = fault.ClassTimeout, "no answer from "+c.host+" in time"
	case errors.As(err, &dnsErr):
		e.Msg = c.host + " cannot be resolved"
	case errors.As(err, &opErr):
		e.Msg = "no connection to " + c.host + " (" + opErr.Op + ")"
	default:
		e.Msg = "the connection to " + c.host + " broke, or its answer was not HTTP"
	}
	return e
}

// statusError classifies an answer that was not expected.
func (c *call) statusError(resp *http.Response, now time.Time) error {
	e := &fault.Error{Kind: fault.Invalid, Op: c.name(), Msg: fmt.Sprintf("%s answered %d", c.host, resp.StatusCode)}
	s := resp.StatusCode
	switch {
	case s == http.StatusUnauthorized:
		e.Kind, e.Class = fault.Denied, fault.ClassAuth
	case s == http.StatusForbidden:
		e.Kind, e.Class = fault.Denied, fault.ClassPermission
	case s == http.StatusPaymentRequired:
		e.Kind, e.Class = fault.Denied, fault.ClassQuota
	case s == http.StatusNotFound, s == http.StatusGone:
		e.Kind = fault.NotFound
	case s == http.StatusConflict, s == http.StatusPreconditionFailed:
		e.Kind = fault.Conflict
	case s == http.StatusTooManyRequests:
		e.Kind, e.Class = fault.Unavailable, fault.ClassQuota
	case s == http.StatusRequestTimeout, s == http.StatusGatewayTimeout:
		e.Kind, e.Class = fault.Unavailable, fault.ClassTimeout
	case s == http.StatusTooEarly, s >= 500:
		e.Kind = fault.Unavailable
	case s >= 300 && s < 400:
		e.Msg += ", a redirect, which is not followed with credentials; set the URL that it leads to"
	}
	if after, ok := parseRetryAfter(resp.Header.Get("Retry-After"), now); ok && e.Kind == fault.Unavailable {
		e.Msg += ", to be retried after " + after.String()
		e.Err = &waitError{after}
	}
	if id := requestID(resp.Header); id != "" {
		e.Msg += ", request " + id
	}
	return e
}

// A waitError adds no text to the error that it is the cause of.
type waitError struct{ d time.Duration }

func (*waitError) Error() string { return "the issuer asks to wait" }

// RetryAfter returns how long the issuer asked to wait, if err came from an
// answer that said so. It is at most a day.
func RetryAfter(err error) (time.Duration, bool) {
	var r *waitError
	if !errors.As(err, &r) {
		return 0, false
	}
	return r.d, true
}

// parseRetryAfter reads seconds or a date.
// https://www.rfc-editor.org/rfc/rfc9110#section-10.2.3
func parseRetryAfter(s string, now time.Time) (time.Duration, bool) {
	if s == "" {
		return 0, false
	}
	var d time.Duration
	if n, err := strconv.ParseUint(s, 10, 32); err == nil {
		d = time.Duration(n) * time.Second
	} else if at, err := http.ParseTime(s); err == nil {
		d = max(at.Sub(now).Round(time.Second), 0)
	} else {
		return 0, false
	}
	return min(d, 24*time.Hour), true
}

var plainID = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,80}$`)

// requestID is by what the issuer's support finds the call again.
func requestID(h http.Header) string {
	for _, name := range []string{"X-Request-Id", "Request-Id", "Cf-Ray"} {
		if v := h.Get(name); plainID.MatchString(v) {
			return v
		}
	}
	return ""
}
