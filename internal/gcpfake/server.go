// Package gcpfake is a stateful GCP Secret Manager for tests. It listens on
// loopback and speaks the service's gRPC, so that the real client is what is
// tested, and it keeps the service's rules for versions, states, etags,
// aliases, checksums, replication and delayed destruction. What the service
// publishes to Pub/Sub is handed to [Server.OnNotice].
//
// Each location has an endpoint of its own, "" the global one, and serves what
// is kept there only.
//
// What a test does behind the client's back (deny a permission, look at a
// value, let time pass) are methods of [Server]. Where the documentation
// leaves a rule open, the comment at the rule says that the choice is this
// package's.
package gcpfake

import (
	"context"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	secretmanager "cloud.google.com/go/secretmanager/apiv1"
	"cloud.google.com/go/secretmanager/apiv1/secretmanagerpb"
	"google.golang.org/api/option"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

// The project that every Server has. Requests may name it either way; answers
// and notices name it by number.
const (
	Project       = "example-project"
	ProjectNumber = "123456789012"
)

// A Server is the service with its secrets. It is safe for concurrent use, and
// ends with its test.
type Server struct {
	t testing.TB

	mu       sync.Mutex
	ended    bool
	secrets  map[string]*secret // by name, with the project's number
	projects map[string]string  // number by id and by number
	servers  map[string]*endpoint
	denied   map[string]map[string]bool // permissions by secret, "" for all
	grants   []grant                    // if there are any, nothing else is permitted
	faults   map[string][]error         // next failures by method
	corrupt  int                        // how many answers to damage
	calls    []Call
	skew     time.Duration
	stamp    int64     // of the last etag
	due      time.Time // of the next sweep, zero for none

	out      []Notice // of the request that is served
	history  []Notice
	messages int

	deliver  sync.Mutex
	onNotice func(Notice)
}

type endpoint struct {
	addr string
	grpc *grpc.Server
	done chan struct{}
}

// A Call is one request.
type Call struct {
	Method   string // AddSecretVersion, for example
	Resource string // as the client named it
	Location string // of the endpoint
	Code     codes.Code
}

// New starts a Server. It ends with t.
func New(t testing.TB) *Server {
	t.Helper()
	s := &Server{
		t: t, secrets: map[string]*secret{}, servers: map[string]*endpoint{},
		projects: map[string]string{Project: ProjectNumber, ProjectNumber: ProjectNumber},
		denied:   map[string]map[string]bool{}, faults: map[string][]error{},
	}
	t.Cleanup(func() {
		s.mu.Lock()
		s.ended = true
		servers := s.servers
		s.mu.Unlock()
		for _, e := range servers {
			e.grpc.Stop()
			<-e.done
		}
	})
	return s
}

// Endpoint is the address of the service for a location, "" for the global
// one. It speaks gRPC without TLS.
func (s *Server) Endpoint(location string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.servers[location]; e != nil {
		return e.addr
	}
	if s.ended {
		s.t.Fatal("gcpfake: the server has ended")
	}
	l, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		s.t.Fatalf("gcpfake: %v", err)
	}
	e := &endpoint{addr: l.Addr().String(), done: make(chan struct{})}
	e.grpc = grpc.NewServer(grpc.UnaryInterceptor(s.serve(location)))
	secretmanagerpb.RegisterSecretManagerServiceServer(e.grpc, &service{s: s, location: location})
	go func() {
		defer close(e.done)
		_ = e.grpc.Serve(l)
	}()
	s.servers[location] = e
	return e.addr
}

// ClientOptions are what a client of the fake is made with.
func (s *Server) ClientOptions(location string, through ...grpc.UnaryClientInterceptor) []option.ClientOption {
	return []option.ClientOption{
		option.WithEndpoint(s.Endpoint(location)),
		option.WithoutAuthentication(),
		option.WithTelemetryDisabled(),
		option.WithGRPCDialOption(grpc.WithTransportCredentials(insecure.NewCredentials())),
		option.WithGRPCDialOption(grpc.WithChainUnaryInterceptor(through...)),
	}
}

// Client returns a client of a location that ends with t.
func (s *Server) Client(t testing.TB, location string, through ...grpc.UnaryClientInterceptor) *secretmanager.Client {
	t.Helper()
	c, err := secretmanager.NewClient(context.Background(), s.ClientOptions(location, through...)...)
	if err != nil {
		t.Fatalf("gcpfake: %v", err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// Clients returns the client of any location, one each, until t ends.
func (s *Server) Clients(t testing.TB, through ...grpc.UnaryClientInterceptor) func(context.Context, string) (*secretmanager.Client, error) {
	t.Helper()
	var mu sync.Mutex
	made := map[string]*secretmanager.Client{}
	return func(_ context.Context, location string) (*secretmanager.Client, error) {
		mu.Lock()
		defer mu.Unlock()
		if made[location] == nil {
			made[location] = s.Client(t, location, through...)
		}
		return made[location], nil
	}
}

// serve runs one request at a time, so that each is one step for all others.
func (s *Server) serve(location string) grpc.UnaryServerInterceptor {
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		method := info.FullMethod[strings.LastIndex(info.FullMethod, "/")+1:]
		s.mu.Lock()
		s.sweep()
		err := s.injected(method)
		var resp any
		if err == nil {
			resp, err = handler(ctx, req)
		}
		s.calls = append(s.calls, Call{Method: method, Resource: resource(req), Location: location, Code: status.Code(err)})
		s.mu.Unlock()
		s.flush()
		return resp, err
	}
}

// resource is what a request is about.
func resource(req any) string {
	switch r := req.(type) {
	case interface{ GetName() string }:
		return r.GetName()
	case *secretmanagerpb.CreateSecretRequest:
		return r.GetParent() + "/secrets/" + r.GetSecretId()
	case interface{ GetParent() string }:
		return r.GetParent()
	case interface {
		GetSecret() *secretmanagerpb.Secret
	}:
		return r.GetSecret().GetName()
	case interface{ GetResource() string }:
		return r.GetResource()
	}
	return ""
}

// injected takes the next failure of a method. The caller holds the lock.
func (s *Server) injected(method string) error {
	next := s.faults[method]
	if len(next) == 0 {
		return nil
	}
	s.faults[method] = next[1:]
	return next[0]
}

// now is the service's clock. The caller holds the lock.
func (s *Server) now() time.Time { return time.Now().Add(s.skew).UTC().Truncate(time.Microsecond) }

// etag returns a fresh one. The quotes belong to it.
// https://cloud.google.com/secret-manager/docs/etags
func (s *Server) etag() string {
	s.stamp = max(s.stamp+1, s.now().UnixMicro())
	return fmt.Sprintf("%q", fmt.Sprintf("%x", s.stamp+0x1000000000000))
}

// service answers at the endpoint of one location. Its methods run under the
// Server's lock.
type service struct {
	secretmanagerpb.UnimplementedSecretManagerServiceServer
	s        *Server
	location string
	byHand   bool // a test's own request, which no permission limits
}
