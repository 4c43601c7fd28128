package gcpsm

import (
	"context"
	"log/slog"
	"sync"

	secretmanager "cloud.google.com/go/secretmanager/apiv1"
	"google.golang.org/api/option"
	"google.golang.org/grpc"

	"github.com/keyturn/keyturn/fault"
)

// Clients gives the client for a location, "" for the global service. It is
// called for every operation, so it keeps what it makes. Errors are of package
// fault.
//
// The client must not repeat an AddSecretVersion whose answer was lost, which
// would add a second version: the official one repeats only
// AccessSecretVersion unless its CallOptions are changed.
type Clients func(ctx context.Context, location string) (*secretmanager.Client, error)

// maxAnswer bounds an answer of the service: a payload, or a page of a list of
// secrets with 16 KiB of annotations each.
const maxAnswer = 8 << 20

// A Pool makes one client a location, with Google's application default
// credentials, and keeps them. It is safe for concurrent use. The zero value
// is ready.
type Pool struct {
	// Options are added to those of each client.
	Options []option.ClientOption

	mu     sync.Mutex
	closed bool
	made   map[string]*secretmanager.Client
}

// Endpoint is the address of the service for a location, "" for the global
// one. Only a regional endpoint serves regional secrets.
// https://cloud.google.com/secret-manager/regional-secrets/config-regional-endpoint
func Endpoint(location string) string {
	if location == "" {
		return "secretmanager.googleapis.com:443"
	}
	return "secretmanager." + location + ".rep.googleapis.com:443"
}

// Client is a [Clients]. Credentials that cannot be found are Denied.
func (p *Pool) Client(ctx context.Context, location string) (*secretmanager.Client, error) {
	const op = "gcpsm: client"
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, fault.Newf(fault.Invalid, op, "the pool is closed")
	}
	if c := p.made[location]; c != nil {
		return c, nil
	}
	opts := append([]option.ClientOption{
		option.WithEndpoint(Endpoint(location)),
		// With GOOGLE_SDK_GO_LOGGING_LEVEL=debug the library logs what it sends
		// and gets, payloads too.
		option.WithLogger(slog.New(slog.DiscardHandler)),
		option.WithGRPCDialOption(grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxAnswer))),
	}, p.Options...)
	// The client outlives the call that happened to need it first.
	c, err := secretmanager.NewClient(context.WithoutCancel(ctx), opts...)
	if err != nil {
		return nil, &fault.Error{
			Kind: fault.Denied, Class: fault.ClassAuth, Op: op, Err: err,
			Msg: "no client could be made; set GOOGLE_APPLICATION_CREDENTIALS, run gcloud auth application-default login, or attach a service account",
		}
	}
	if p.made == nil {
		p.made = map[string]*secretmanager.Client{}
	}
	p.made[location] = c
	return c, nil
}

// Close ends all clients, and calls that still run. The pool makes no more.
func (p *Pool) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	var first error
	for _, c := range p.made {
		if err := c.Close(); err != nil && first == nil {
			first = err
		}
	}
	p.made = nil
	return first
}
