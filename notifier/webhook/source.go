package webhook

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/notifier"
)

var _ notifier.Source = (*Source)(nil)

const (
	readHeaderTimeout = 3 * time.Second
	idleTimeout       = time.Minute
	maxHeaderBytes    = 16 << 10
	// lastCall is how long Run waits for handlers whose context it has
	// cancelled.
	lastCall = 2 * time.Second
)

// A Source is an HTTP server that is a [notifier.Source].
type Source struct {
	o    Options
	ln   net.Listener
	tls  *tls.Config
	busy atomic.Pointer[gate]
}

// Listen opens the port of o.Addr, so that [Source.Addr] is known and a port
// that is taken is an error at once. Nothing is served before [Source.Run].
// The error is Invalid for options that cannot work and Unavailable for a port
// that cannot be had.
func Listen(ctx context.Context, o Options) (*Source, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	s := &Source{o: o}
	switch {
	case o.TLS != nil:
		s.tls = o.TLS.Clone()
	case o.CertFile != "":
		c := &certificate{certFile: o.CertFile, keyFile: o.KeyFile, log: o.Logger}
		if err := c.load(time.Now()); err != nil {
			return nil, err
		}
		s.tls = &tls.Config{GetCertificate: c.get, MinVersion: tls.VersionTLS12}
	}
	if s.tls != nil && s.tls.MinVersion < tls.VersionTLS12 {
		s.tls.MinVersion = tls.VersionTLS12
	}
	if s.ln, err = (&net.ListenConfig{}).Listen(ctx, "tcp", o.Addr); err != nil {
		return nil, &fault.Error{Kind: fault.Unavailable, Class: fault.ClassNetwork, Op: "webhook: listen", Err: err}
	}
	return s, nil
}

// Addr is where the source listens.
func (s *Source) Addr() net.Addr { return s.ln.Addr() }

// URL is where notices for the route at path are posted to, for a client on this
// machine.
func (s *Source) URL(path string) string {
	scheme := "http://"
	if s.tls != nil {
		scheme = "https://"
	}
	host, port, err := net.SplitHostPort(s.Addr().String())
	if ip := net.ParseIP(host); err == nil && (ip == nil || ip.IsUnspecified()) {
		host = "localhost"
	}
	return scheme + net.JoinHostPort(host, port) + path
}

// InFlight is how many requests are being read and handled, and how many bytes
// their bodies take, for metrics. It may be called at any time.
func (s *Source) InFlight() (requests int, bytes int64) {
	g := s.busy.Load()
	if g == nil {
		return 0, 0
	}
	return len(g.slots), g.bytes.Load()
}

// Close gives the port back if Run was never called.
func (s *Source) Close() error { return s.ln.Close() }

// Run serves until ctx is done. Then /readyz fails; after the lame-duck time no
// connection is taken any more, and requests in flight go on for at most the drain time before they are
// cut off; their senders repeat them. It returns nil after ctx is done, else the
// error that ended the server.
func (s *Source) Run(ctx context.Context, h notifier.Handler) error {
	if s.tls == nil {
		if a, ok := s.Addr().(*net.TCPAddr); ok && !a.IP.IsLoopback() {
			s.o.Logger.WarnContext(ctx, "serving plain HTTP beyond this machine; expected TLS here or in a proxy in front", "addr", a.String())
		}
	}
	// Requests outlive ctx for as long as the drain lasts.
	base, cut := context.WithCancel(context.WithoutCancel(ctx))
	defer cut()
	inner, err := newServer(h, s.o)
	if err != nil {
		return err
	}
	s.busy.Store(inner.gate)
	longest := s.o.longest()
	srv := &http.Server{
		Handler:           inner,
		TLSConfig:         s.tls,
		ReadHeaderTimeout: readHeaderTimeout,
		ReadTimeout:       readHeaderTimeout + longest,
		WriteTimeout:      readHeaderTimeout + longest + 5*time.Second,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		BaseContext:       func(net.Listener) context.Context { return base },
		// What HTTP/2 takes in before anybody has asked for it.
		HTTP2:    &http.HTTP2Config{MaxConcurrentStreams: 100, MaxReceiveBufferPerConnection: 256 << 10, MaxReceiveBufferPerStream: 64 << 10},
		ErrorLog: slog.NewLogLogger(s.o.Logger.Handler(), slog.LevelDebug),
	}
	ended := make(chan error, 1)
	go func() {
		if s.tls != nil {
			ended <- srv.ServeTLS(s.ln, "", "")
		} else {
			ended <- srv.Serve(s.ln)
		}
	}()
	var failed error
	select {
	case <-ctx.Done():
	case err := <-ended:
		failed = &fault.Error{Kind: fault.Unavailable, Class: fault.ClassNetwork, Op: "webhook: serve", Err: err}
		ended <- err
	}

	inner.draining.Store(true)
	if failed == nil {
		lameDuck(ended, s.o.LameDuck)
	}
	drain, cancel := context.WithTimeout(base, s.o.Drain)
	defer cancel()
	if err := srv.Shutdown(drain); err != nil {
		s.o.Logger.WarnContext(ctx, "requests in flight were cut off", "after", s.o.Drain)
		cut()
		_ = srv.Close()
	}
	if err := <-ended; failed == nil && !errors.Is(err, http.ErrServerClosed) {
		failed = &fault.Error{Kind: fault.Unavailable, Class: fault.ClassNetwork, Op: "webhook: serve", Err: err}
	}
	if !inner.gate.idle(lastCall) {
		s.o.Logger.ErrorContext(ctx, "a handler does not obey its context")
	}
	return failed
}

// lameDuck waits for d, or until the server ended.
func lameDuck(ended chan error, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case err := <-ended:
		ended <- err
	}
}
