package funcnotify

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/events/natsbus"
	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/notifier"
)

const (
	// dialTimeout bounds connecting to one server.
	dialTimeout = 2 * time.Second
	// idle is after how long without use a connection is tried before it is
	// trusted, and probeTimeout how long it has to answer. A platform freezes a
	// process between invocations, while firewalls and load balancers forget
	// its connections without a word.
	idle         = 5 * time.Second
	probeTimeout = time.Second
)

// A Bus publishes and parks over one connection, which it makes at its first
// use and keeps over invocations. A connection that is lost is not repaired
// behind the back of an invocation, since between them the process may stand
// still: the next use makes a new one, with credentials that are read anew. It
// is safe for concurrent use.
type Bus struct {
	env   Env
	creds func(context.Context) ([]byte, error)
	log   *slog.Logger

	// idle is that of the package, but for tests.
	idle time.Duration
	turn chan struct{} // holds a token for who looks at the rest
	nc   *nats.Conn
	bus  *natsbus.Bus
	// lost ends when nc is closed, by whomever.
	lost context.Context
	// used is on the wall clock: another may stand still in a frozen process.
	used time.Time
}

var (
	_ events.ReceiptPublisher = (*Bus)(nil)
	_ notifier.DeadLetters    = (*Bus)(nil)
)

// NewBus returns a Bus that connects to nobody yet. creds returns the
// credentials, and is called once a connection; nil reads those of env.
func NewBus(env Env, creds func(context.Context) ([]byte, error), log *slog.Logger) *Bus {
	if creds == nil {
		creds = env.read
	}
	return &Bus{env: env, creds: creds, log: log, idle: idle, turn: make(chan struct{}, 1)}
}

// Publish is [Bus.PublishReceipt] without the receipt.
func (b *Bus) Publish(ctx context.Context, es ...events.Event) error {
	_, err := b.PublishReceipt(ctx, es...)
	return err
}

// PublishReceipt is that of [natsbus.Bus].
func (b *Bus) PublishReceipt(ctx context.Context, es ...events.Event) (r events.Receipt, err error) {
	err = b.do(ctx, func(ctx context.Context, bus *natsbus.Bus) error {
		r, err = bus.PublishReceipt(ctx, es...)
		return err
	})
	return r, err
}

// Park is that of [natsbus.Bus].
func (b *Bus) Park(ctx context.Context, l notifier.DeadLetter) error {
	return b.do(ctx, func(ctx context.Context, bus *natsbus.Bus) error { return bus.Park(ctx, l) })
}

// do calls f, and once more if the connection went away under it: what f does
// may be repeated, and the platform would repeat it only after a minute.
func (b *Bus) do(ctx context.Context, f func(context.Context, *natsbus.Bus) error) error {
	for try := 0; ; try++ {
		bus, lost, err := b.connected(ctx)
		if err != nil {
			return err
		}
		// An acknowledgement does not come over a connection that is gone.
		bounded, cancel := context.WithCancel(ctx)
		stop := context.AfterFunc(lost, cancel)
		err = f(bounded, bus)
		stop()
		cancel()
		if err == nil || try > 0 || lost.Err() == nil || ctx.Err() != nil {
			return err
		}
	}
}

// connected returns the connection, which it makes if there is none that works.
func (b *Bus) connected(ctx context.Context) (*natsbus.Bus, context.Context, error) {
	select {
	case b.turn <- struct{}{}:
		defer func() { <-b.turn }()
	case <-ctx.Done():
		return nil, nil, &fault.Error{Kind: fault.Unavailable, Class: fault.ClassTimeout, Op: "connect to NATS", Err: ctx.Err()}
	}
	now := time.Now().Round(0)
	if b.nc != nil && (now.Sub(b.used) > b.idle || now.Before(b.used)) && b.nc.FlushTimeout(probeTimeout) != nil {
		b.nc.Close()
	}
	if b.nc == nil || b.nc.IsClosed() {
		if err := b.connect(ctx); err != nil {
			return nil, nil, err
		}
	}
	b.used = now
	return b.bus, b.lost, nil
}

func (b *Bus) connect(ctx context.Context) error {
	text, err := b.creds(ctx)
	if err != nil {
		return err
	}
	signIn, err := parseCredentials(text)
	clear(text)
	if err != nil {
		return err
	}
	lost, closed := context.WithCancel(context.Background())
	opts := []nats.Option{
		nats.Name("keyturn notify function"), nats.NoReconnect(), nats.Timeout(dialTimeout),
		nats.ClosedHandler(func(*nats.Conn) { closed() }),
		// A refusal is the error of what was refused.
		nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}),
	}
	if signIn != nil {
		opts = append(opts, signIn)
	}
	if b.env.RootCAs != nil {
		opts = append(opts, nats.Secure(&tls.Config{MinVersion: tls.VersionTLS12, RootCAs: b.env.RootCAs}))
	}
	if b.env.InboxPrefix != "" {
		opts = append(opts, nats.CustomInboxPrefix(b.env.InboxPrefix))
	}
	nc, err := nats.Connect(b.env.URL, opts...)
	if err != nil {
		closed()
		return connectError(err)
	}
	o := &natsbus.Options{Domain: b.env.Domain, Logger: b.log, Replicas: b.env.Replicas}
	var bus *natsbus.Bus
	if b.env.Replicas > 0 {
		bus, err = natsbus.Open(ctx, nc, o)
	} else {
		bus, err = natsbus.Attach(nc, o)
	}
	if err != nil {
		nc.Close()
		return err
	}
	if b.bus != nil {
		b.log.InfoContext(ctx, "connected to NATS again")
	}
	b.nc, b.bus, b.lost = nc, bus, lost
	return nil
}

// connectError says what a connection failed of.
func connectError(err error) error {
	e := &fault.Error{Kind: fault.Unavailable, Class: fault.ClassNetwork, Op: "connect to NATS", Msg: "no server takes the connection; is KEYTURN_NATS_URL right, and within reach of the function's network?", Err: err}
	var authority *tls.CertificateVerificationError
	switch {
	case errors.Is(err, nats.ErrAuthorization), errors.Is(err, nats.ErrAuthExpired), errors.Is(err, nats.ErrAuthRevoked), errors.Is(err, nats.ErrAccountAuthExpired):
		e.Kind, e.Class, e.Msg = fault.Denied, fault.ClassAuth, "the server refuses the credentials"
	case errors.As(err, &authority):
		e.Kind, e.Class, e.Msg = fault.Denied, fault.ClassTLS, "the server's certificate is not trusted; see KEYTURN_CA_FILE"
	case errors.Is(err, nats.ErrSecureConnWanted):
		e.Kind, e.Class, e.Msg = fault.Denied, fault.ClassTLS, "the server has no TLS"
	}
	return e
}

// Close ends the connection, if there is one. Nothing is to be called after
// it.
func (b *Bus) Close() {
	b.turn <- struct{}{}
	if b.nc != nil {
		b.nc.Close()
	}
}
