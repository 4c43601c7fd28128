package snssig

import (
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/sha1" //nolint:gosec // signature version 1 of SNS
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/keyturn/keyturn/fault"
)

const (
	// maxAnswer bounds an answer of SNS. A certificate has 2 KiB.
	maxAnswer = 64 << 10
	// fetchTimeout bounds a fetch, well below the 15 s that SNS waits.
	fetchTimeout = 4 * time.Second
	// maxCerts bounds the cache: a region has one certificate, for months.
	maxCerts = 64
	// Invented addresses cost us a call of SNS each, so there are no more than
	// fetchBurst at once and one each fetchEvery.
	fetchEvery, fetchBurst = 2 * time.Second, 10

	minRSA, maxRSA = 2048, 8192 // bits
)

// certs caches certificates by address. A file is never changed under its
// address, so what is here stays until the certificate expires.
type certs struct {
	limit *rate.Limiter

	mu      sync.Mutex
	byURL   map[string]*cert
	flights map[string]*flight
}

// A flight is one fetch. c and err may be read once done is closed.
type flight struct {
	done chan struct{}
	c    *cert
	err  error
}

type cert struct {
	key         *rsa.PublicKey
	from, until time.Time
}

func (s *certs) init() {
	s.limit = rate.NewLimiter(rate.Every(fetchEvery), fetchBurst)
	s.byURL, s.flights = map[string]*cert{}, map[string]*flight{}
}

// certificate returns the certificate at an address, which was checked.
func (v *Verifier) certificate(ctx context.Context, address string, p place) (*cert, error) {
	s := &v.certs
	s.mu.Lock()
	if c := s.byURL[address]; c != nil {
		s.mu.Unlock()
		return c, nil
	}
	f := s.flights[address]
	if f == nil {
		if !s.limit.AllowN(v.o.Now(), 1) {
			s.mu.Unlock()
			return nil, fault.Newf(fault.Unavailable, op, "too many signing certificates were asked for of late; this one will be fetched later")
		}
		f = &flight{done: make(chan struct{})}
		s.flights[address] = f
		go v.land(f, address, p) //nolint:gosec // it outlives the request on purpose
	}
	s.mu.Unlock()
	select {
	case <-f.done:
		return f.c, f.err
	case <-ctx.Done():
		return nil, &fault.Error{Kind: fault.Unavailable, Op: op, Msg: "the request ended before the signing certificate had come", Err: ctx.Err()}
	}
}

// land makes the fetch. It belongs to no request: the one that caused it may
// end, and others wait for it too.
func (v *Verifier) land(f *flight, address string, p place) {
	ctx, cancel := context.WithTimeout(context.Background(), fetchTimeout)
	defer cancel()
	f.c, f.err = v.fetch(ctx, address, p)
	s := &v.certs
	s.mu.Lock()
	delete(s.flights, address)
	if f.err == nil {
		if len(s.byURL) >= maxCerts {
			clear(s.byURL) // that many are no normal operation; the good ones come back
		}
		s.byURL[address] = f.c
	}
	s.mu.Unlock()
	close(f.done)
}

// client returns a copy of c that follows no redirect.
func client(c *http.Client) *http.Client {
	out := &http.Client{}
	if c != nil {
		*out = *c
	}
	out.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return out
}

// An answer is what came of a call, and the certificates that the host showed.
type answer struct {
	status int
	body   []byte
	peers  []*x509.Certificate
}

// call makes a GET.
func (v *Verifier) call(ctx context.Context, what, address string) (answer, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, http.NoBody)
	if err != nil {
		return answer{}, invalid("cannot %s: its address is broken", what)
	}
	resp, err := v.client.Do(req)
	if err != nil {
		return answer{}, cannot(ctx, what, err)
	}
	defer func() { _ = resp.Body.Close() }()
	// What the host is proven by is the connection, so it must have been.
	if resp.TLS == nil || len(resp.TLS.VerifiedChains) == 0 {
		return answer{}, fault.Newf(fault.Unavailable, op, "cannot %s: the HTTP client does not verify certificates; expected one that does", what)
	}
	body, err := io.ReadAll(http.MaxBytesReader(nil, resp.Body, maxAnswer))
	if err != nil {
		return answer{}, cannot(ctx, what, err)
	}
	return answer{resp.StatusCode, body, resp.TLS.PeerCertificates}, nil
}

func (v *Verifier) fetch(ctx context.Context, address string, p place) (*cert, error) {
	got, err := v.call(ctx, "fetch the signing certificate", address)
	if err != nil {
		return nil, err
	}
	switch got.status {
	case http.StatusOK:
	case http.StatusNotFound, http.StatusForbidden, http.StatusBadRequest:
		return nil, refuse("SNS has no signing certificate at the address that the message names (status %d)", got.status)
	default:
		return nil, fault.Newf(fault.Unavailable, op, "the signing certificate was answered with status %d; expected 200", got.status)
	}
	chain := parsePEM(got.body)
	if len(chain) == 0 {
		return nil, fault.Newf(fault.Unavailable, op, "SNS answered no certificate; expected one in PEM")
	}
	return v.accept(chain[0], append(chain[1:], got.peers...), p)
}

func parsePEM(b []byte) (out []*x509.Certificate) {
	for len(out) < 8 {
		var block *pem.Block
		if block, b = pem.Decode(b); block == nil {
			break
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if block.Type != "CERTIFICATE" || err != nil {
			return nil
		}
		out = append(out, c)
	}
	return out
}

// accept checks a signing certificate: its names, its key, its time, and its
// chain as far as there is one.
func (v *Verifier) accept(leaf *x509.Certificate, others []*x509.Certificate, p place) (*cert, error) {
	// In most regions it is that of SNS as a whole. No wildcards: those are
	// other services' too.
	// https://github.com/awsdocs/amazon-sns-developer-guide/issues/7
	want := []string{p.host, "sns.amazonaws.com"}
	if strings.HasSuffix(p.host, ".cn") {
		want = append(want, "sns.amazonaws.com.cn")
	}
	if !slices.ContainsFunc(leaf.DNSNames, func(n string) bool { return slices.Contains(want, n) }) {
		return nil, refuse("the signing certificate is not of SNS; expected the name %s", strings.Join(want, " or "))
	}
	key, ok := leaf.PublicKey.(*rsa.PublicKey)
	if !ok || key.N.BitLen() < minRSA || key.N.BitLen() > maxRSA {
		return nil, refuse("the signing certificate has another key; expected RSA of %d to %d bits", minRSA, maxRSA)
	}
	c := &cert{key, leaf.NotBefore, leaf.NotAfter}
	now := v.o.Now()
	if err := c.current(now); err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if v.o.Intermediates != nil {
		pool = v.o.Intermediates.Clone()
	}
	issuerKnown := slices.Equal(leaf.RawIssuer, leaf.RawSubject)
	for _, o := range others {
		pool.AddCert(o)
		issuerKnown = issuerKnown || slices.Equal(o.RawSubject, leaf.RawIssuer)
	}
	_, err := leaf.Verify(x509.VerifyOptions{Roots: v.o.Roots, Intermediates: pool, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	var unknown x509.UnknownAuthorityError
	switch {
	case err == nil:
	case errors.As(err, &unknown) && !issuerKnown && v.o.Intermediates == nil && !v.o.RequireChain:
		v.o.Logger.Info("the signing certificate's issuer is not at hand; accepted for the host that served it", "host", p.host)
	default:
		return nil, &fault.Error{Kind: fault.Denied, Class: fault.ClassTLS, Op: op, Msg: "the signing certificate is not trusted; expected a chain to a root of this machine"}
	}
	return c, nil
}

func (c *cert) current(now time.Time) error {
	if now.Before(c.from) || now.After(c.until) {
		return refuse("the signing certificate is good from %s to %s, and it is %s", c.from.Format(time.RFC3339), c.until.Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	return nil
}

// check verifies the signature. Version 1 hashes with SHA-1, which is all that
// a topic signs with unless it is set to version 2: to forge a message one
// would need a second text with the hash of one that SNS signed, which nobody
// can make.
func (c *cert) check(e *envelope, now time.Time) error {
	if err := c.current(now); err != nil {
		return err
	}
	text := e.signed()
	var err error
	if e.version == "2" {
		sum := sha256.Sum256(text)
		err = rsa.VerifyPKCS1v15(c.key, crypto.SHA256, sum[:], e.signature)
	} else {
		sum := sha1.Sum(text) //nolint:gosec // as above
		err = rsa.VerifyPKCS1v15(c.key, crypto.SHA1, sum[:], e.signature)
	}
	if err != nil {
		return refuse("the signature is wrong; expected that of SNS over this message")
	}
	return nil
}

// cannot classifies a call that failed. Its error is not wrapped: it holds the
// address, and that a token.
func cannot(ctx context.Context, what string, err error) error {
	e := &fault.Error{Kind: fault.Unavailable, Class: fault.ClassNetwork, Op: op, Msg: "cannot " + what}
	var long *http.MaxBytesError
	switch {
	case fault.Untrusted(err):
		e.Class = fault.ClassTLS
		e.Msg += ": the host's certificate is not trusted, or it does not speak TLS"
	case errors.As(err, &long):
		e.Class = ""
		e.Msg += ": the answer is too long"
	case ctx.Err() != nil:
		e.Class = fault.ClassTimeout
		e.Msg += ": it took too long"
	}
	return e
}
