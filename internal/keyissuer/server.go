package keyissuer

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"
)

// A Server serves an [Issuer] without TLS, on loopback for one machine.
type Server struct {
	Issuer *Issuer
	// URL is where it listens, without a slash at the end.
	URL string

	srv  *http.Server
	done chan error
}

// Start listens on addr, such as "127.0.0.1:0", and serves an issuer with o.
func Start(ctx context.Context, addr string, o Options) (*Server, error) {
	i, err := New(o)
	if err != nil {
		return nil, err
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("key issuer: %w", err)
	}
	s := &Server{
		Issuer: i, URL: "http://" + l.Addr().String(), done: make(chan error, 1),
		srv: &http.Server{
			Handler: i, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second,
			WriteTimeout: 10 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10,
		},
	}
	go func() { s.done <- s.srv.Serve(l) }()
	return s, nil
}

// Stop lets calls end until ctx is done, then cuts them off. The goroutines
// are gone when it returns.
func (s *Server) Stop(ctx context.Context) error {
	err := s.srv.Shutdown(ctx)
	if err != nil {
		err = errors.Join(err, s.srv.Close())
	}
	if serr := <-s.done; !errors.Is(serr, http.ErrServerClosed) {
		err = errors.Join(err, serr)
	}
	s.done <- http.ErrServerClosed // a second Stop returns too
	return err
}
