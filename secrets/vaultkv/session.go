package vaultkv

import (
	"context"
	"encoding/json"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/hashicorp/vault/api"

	"github.com/keyturn/keyturn/fault"
)

// A Method is a way to get a token: [AppRole] or [TokenFile].
type Method interface {
	// login returns a token that works now. u is the session's, from one login
	// to the next.
	login(ctx context.Context, c *conn, namespace string, u *unwrapped) (*lease, error)
	// owned reports that the token is the session's own, to be revoked when
	// it ends.
	owned() bool
}

// A lease is a token and how long it lives; 0 is for ever.
type lease struct {
	token     string
	ttl       time.Duration
	renewable bool
}

// SessionOptions of [SignIn]. The zero value of each field means its default.
type SessionOptions struct {
	// Namespace is where the method and its tokens are; the root by default.
	Namespace string
	// Logger gets a line for each sign-in and each renewal that failed, never
	// a token. The default discards.
	Logger *slog.Logger
	// Timeout bounds each request, 15 s by default.
	Timeout time.Duration

	// after is time.After, where no test says otherwise.
	after func(time.Duration) <-chan time.Time
	// patience is closeTimeout, where no test says otherwise.
	patience time.Duration
}

const (
	// minRenew bounds how often a token of a very short life is renewed.
	minRenew = time.Second
	// minRetry and maxRetry bound the wait after a failure.
	minRetry, maxRetry = time.Second, time.Minute
	// closeTimeout bounds the wait for a session to end, and revokeTimeout its
	// last request.
	closeTimeout, revokeTimeout = 5 * time.Second, 5 * time.Second
	// signInTries bounds how often SignIn tries a secret id that it unwrapped.
	signInTries = 5
)

// A Session keeps a client signed in: it renews the client's token when two
// thirds of its life are over, and signs in again when renewing ends. While
// neither works it tries again, and the client's calls are Denied once the
// token has expired.
type Session struct {
	c      *conn
	client *api.Client
	m      Method
	opts   SessionOptions
	held   unwrapped // of SignIn, then of keep
	cancel context.CancelFunc
	done   chan struct{}
	end    sync.Once
}

// SignIn signs client in and starts a Session, which ends with ctx or
// [Session.Close]. Errors: Denied, the credential was refused; NotFound, there
// is no file; Invalid, the method lacks something; Unavailable. A secret id
// that was unwrapped is lost with an error, so while Vault is Unavailable it is
// tried again, for about 15 s beside the requests, or until ctx ends. opts may
// be nil.
func SignIn(ctx context.Context, client *api.Client, m Method, opts *SessionOptions) (*Session, error) {
	s := &Session{client: client, m: m, done: make(chan struct{})}
	if opts != nil {
		s.opts = *opts
	}
	if s.opts.Logger == nil {
		s.opts.Logger = slog.New(slog.DiscardHandler)
	}
	if s.opts.after == nil {
		s.opts.after = time.After
	}
	var err error
	if s.c, err = newConn(client, s.opts.Timeout); err != nil {
		return nil, err
	}
	if s.opts.patience == 0 {
		s.opts.patience = closeTimeout
	}
	first, err := s.begin(ctx)
	if err != nil {
		return nil, err
	}
	ctx, s.cancel = context.WithCancel(ctx)
	go func() {
		defer close(s.done)
		s.keep(ctx, first)
	}()
	return s, nil
}

// begin signs in for the first time.
func (s *Session) begin(ctx context.Context) (*lease, error) {
	l, err := s.signIn(ctx)
	for try := 1; try < signInTries && ctx.Err() == nil && s.held.unused(err) && fault.Is(err, fault.Unavailable); try++ {
		s.opts.Logger.WarnContext(ctx, "signing in failed, and is tried again with the secret id that was unwrapped", "error", err)
		select {
		case <-s.opts.after(backoff(try)):
			l, err = s.signIn(ctx)
		case <-ctx.Done():
		}
	}
	if s.held.unused(err) {
		s.held.wipe()
		err = &fault.Error{
			Kind: fault.KindOf(err), Class: fault.ClassOf(err), Op: "vaultkv: sign in",
			Msg: "the secret id was unwrapped here and is given up; wrap another one", Err: err,
		}
	}
	return l, err
}

// Close ends the session. A token that the session got for itself is revoked,
// so that nothing is left that could be stolen; that it could not be is
// logged. Close takes some seconds at most, even where a file system hangs. It
// may be called more than once.
func (s *Session) Close() {
	s.end.Do(func() {
		s.cancel()
		late := time.NewTimer(s.opts.patience)
		defer late.Stop()
		select {
		case <-s.done:
			s.held.wipe()
		case <-late.C:
			// It gets no token any more: its context has ended.
			s.opts.Logger.Warn("signing in hangs and was left alone; look at the file system of the credential")
		}
		token := s.client.Token()
		if !s.m.owned() || token == "" {
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), revokeTimeout)
		defer cancel()
		if _, err := s.c.putAs(ctx, "vaultkv: revoke token", s.opts.Namespace, token, "auth/token/revoke-self", map[string]any{}); err != nil {
			s.opts.Logger.WarnContext(ctx, "the token could not be revoked and lives to its end", "error", err)
		}
		s.client.ClearToken()
	})
}

// signIn gets a token and gives it to the client.
func (s *Session) signIn(ctx context.Context) (*lease, error) {
	l, err := s.m.login(ctx, s.c, s.opts.Namespace, &s.held)
	if err != nil {
		return nil, err
	}
	s.client.SetToken(l.token)
	s.opts.Logger.InfoContext(ctx, "signed in to Vault", "ttl", l.ttl, "renewable", l.renewable)
	return l, nil
}

// keep renews l, and what follows it, until ctx ends.
func (s *Session) keep(ctx context.Context, l *lease) {
	full := l.ttl // what the token lived when it was new
	failures := 0
	for {
		wait := due(l.ttl)
		if failures > 0 {
			wait = backoff(failures)
		}
		var tick <-chan time.Time
		if l.ttl > 0 {
			tick = s.opts.after(wait)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick:
		}
		next, err := s.renew(ctx, l)
		// A renewal that gives little is near the token's end, which no
		// renewal moves.
		if err != nil || next.ttl < full/2 {
			fresh, lerr := s.signIn(ctx)
			switch {
			case lerr == nil:
				next, err, full = fresh, nil, fresh.ttl
			case err == nil:
				s.opts.Logger.WarnContext(ctx, "the token nears its end and signing in again failed", "error", lerr)
			default:
				err = lerr
			}
		}
		if err != nil {
			if ctx.Err() != nil {
				return
			}
			failures++
			s.opts.Logger.WarnContext(ctx, "the token was not renewed", "failures", failures, "error", err)
			continue
		}
		l, failures = next, 0
	}
}

// due is when a token is to be renewed: after two thirds of its life, a tenth
// earlier or later, so that a fleet does not come at once.
func due(ttl time.Duration) time.Duration {
	return max(time.Duration(float64(ttl)*(0.6+0.14*rand.Float64())), minRenew) //nolint:gosec // jitter, not a secret
}

// backoff is the wait after a number of failures.
func backoff(failures int) time.Duration {
	limit := min(minRetry<<min(failures-1, 10), maxRetry)
	return limit/2 + time.Duration(rand.Int64N(int64(limit))) //nolint:gosec // jitter, not a secret
}

// renew makes a token live longer.
func (s *Session) renew(ctx context.Context, l *lease) (*lease, error) {
	const op = "vaultkv: renew token"
	if !l.renewable {
		return nil, fault.Newf(fault.Denied, op, "the token cannot be renewed")
	}
	got, err := s.c.putAs(ctx, op, s.opts.Namespace, l.token, "auth/token/renew-self", map[string]any{})
	if err != nil {
		return nil, err
	}
	return got.auth(op)
}

// auth decodes the token of a reply.
func (r *reply) auth(op string) (*lease, error) {
	defer clear(r.body)
	var envelope struct {
		Auth struct {
			Token     string `json:"client_token"`
			Seconds   int64  `json:"lease_duration"`
			Renewable bool   `json:"renewable"`
		}
	}
	// The decoder's error is dropped: it may quote the token.
	if err := json.Unmarshal(r.body, &envelope); err != nil || envelope.Auth.Token == "" {
		return nil, fault.Newf(fault.Unavailable, op, "the answer holds no token; look at the address, and for a proxy in between")
	}
	a := envelope.Auth
	return &lease{token: a.Token, ttl: time.Duration(a.Seconds) * time.Second, renewable: a.Renewable}, nil
}
