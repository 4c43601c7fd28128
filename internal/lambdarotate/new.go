package lambdarotate

import (
	"context"
	"log/slog"
	"net"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"
	awseventbridge "github.com/aws/aws-sdk-go-v2/service/eventbridge"
	"github.com/aws/aws-sdk-go-v2/service/secretsmanager"

	"github.com/keyturn/keyturn/events/eventbridge"
	"github.com/keyturn/keyturn/events/putevents"
	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/lambdarotate/rds"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/rotators"
	"github.com/keyturn/keyturn/rotators/postgres"
	"github.com/keyturn/keyturn/secrets/awssm"
)

// Options of [New]. The zero value of each field means its default.
type Options struct {
	// Logger discards by default.
	Logger *slog.Logger
	// AWS is what the clients are made of. By default what the environment
	// says: in Lambda, the function's role and region.
	AWS *aws.Config
	// Postgres, if not nil, has the last word on the rotators' options.
	Postgres func(*postgres.Options)
}

const (
	// dialTimeout bounds a connection to an AWS service. A function in a VPC
	// without an endpoint for it would otherwise hang until it is killed.
	dialTimeout = 3 * time.Second
	callTimeout = 10 * time.Second
)

// logger returns the Logger, also of no Options.
func (o *Options) logger() *slog.Logger {
	if o == nil || o.Logger == nil {
		return slog.New(slog.DiscardHandler)
	}
	return o.Logger
}

// New makes the clients and returns the Handler. It is called once per cold
// start and makes no call itself. opts may be nil. Errors are of kind Invalid.
func New(ctx context.Context, env Env, opts *Options) (*Handler, error) {
	runner, err := newRunner(ctx, env, opts, func(o *rotators.Options, s *byStrategy) rotators.Rotator { return s })
	if err != nil {
		return nil, err
	}
	return &Handler{runner: runner, log: opts.logger()}, nil
}

// newRunner makes the clients and the runner. with has the last word on the
// runner's options, and says which rotator it has.
func newRunner(ctx context.Context, env Env, opts *Options, with func(*rotators.Options, *byStrategy) rotators.Rotator) (*rotators.Runner, error) {
	var o Options
	if opts != nil {
		o = *opts
	}
	o.Logger = opts.logger()
	for _, name := range env.Unknown {
		o.Logger.WarnContext(ctx, "environment variable means nothing to this function", "name", name, "expected", env.Known)
	}
	if o.AWS == nil {
		c, err := config.LoadDefaultConfig(ctx, config.WithHTTPClient(awshttp.NewBuildableClient().
			WithTimeout(callTimeout).
			WithDialerOptions(func(d *net.Dialer) { d.Timeout = dialTimeout })))
		if err != nil {
			return nil, fault.New(fault.Invalid, "AWS configuration", err)
		}
		o.AWS = &c
	}
	if o.AWS.Region == "" {
		return nil, fault.Newf(fault.Invalid, "AWS configuration", "no region; Lambda sets AWS_REGION, set it yourself elsewhere")
	}
	client := secretsmanager.NewFromConfig(*o.AWS, func(so *secretsmanager.Options) {
		if env.Endpoint != "" {
			so.BaseEndpoint = aws.String(env.Endpoint)
		}
	})
	store := awssm.New(client, &awssm.Options{Logger: o.Logger})
	m := &masters{store: store, client: client, rds: rds.New(*o.AWS, env.RDSEndpoint)}
	pg := postgres.Options{
		RootCAs: env.RootCAs, AllowPlaintext: env.AllowPlaintext, Policy: env.Policy, Logger: o.Logger,
		SameServer: m.sameServer, ResolveMaster: m.resolve,
	}
	if o.Postgres != nil {
		o.Postgres(&pg)
	}
	rotator := &byStrategy{
		strategy:    env.Strategy,
		single:      postgres.NewSingle(&pg),
		alternating: postgres.NewAlternating(m.value, &pg),
	}
	ro := rotators.Options{
		Tenant: func(ref.Ref) string { return env.Tenant },
		Logger: o.Logger, Budget: budget, KeepPrevious: true,
	}
	if env.EventBus != "" {
		ro.Publisher = putevents.New(awseventbridge.NewFromConfig(*o.AWS), env.EventBus, eventbridge.Entry)
	}
	r := with(&ro, rotator)
	return rotators.NewRunner(store, r, &ro), nil
}
