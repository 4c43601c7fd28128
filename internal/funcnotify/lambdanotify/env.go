package lambdanotify

import (
	"context"
	"io"
	"log/slog"
	"net"
	"regexp"
	"time"

	"github.com/aws/aws-lambda-go/lambdacontext"
	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/secretsmanager"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/funcenv"
	"github.com/keyturn/keyturn/internal/funcnotify"
)

// dialTimeout and callTimeout bound reading a secret. A function in a VPC
// without an endpoint for Secrets Manager would otherwise hang until it is killed.
const (
	dialTimeout = 3 * time.Second
	callTimeout = 8 * time.Second
)

// Env is a function's environment.
type Env struct {
	funcnotify.Env
	// Secret is the ARN of the secret that holds the credentials of NATS, or "".
	Secret string
	// Endpoint of Secrets Manager, or "" for the region's own.
	Endpoint string
}

var arnForm = regexp.MustCompile(`^arn:aws[a-z-]*:secretsmanager:[a-z0-9-]+:[0-9]{12}:secret:.+$`)

// ParseEnv reads environ. The error is of kind Invalid.
func ParseEnv(environ []string) (e Env, err error) {
	e.Env, err = funcnotify.ParseEnv(environ, funcnotify.Form{
		Source: "eventbridge",
		// What Lambda's logging controls set.
		// https://docs.aws.amazon.com/lambda/latest/dg/monitoring-cloudwatchlogs-advanced.html
		LogLevel: "AWS_LAMBDA_LOG_LEVEL",
		More: func(p *funcenv.Parser) bool {
			e.Endpoint = p.Get("SECRETS_MANAGER_ENDPOINT")
			e.Secret = p.Get("KEYTURN_NATS_CREDS_SECRET")
			if e.Secret != "" && !arnForm.MatchString(e.Secret) {
				p.Bad("KEYTURN_NATS_CREDS_SECRET", "found %d bytes; expected the full ARN of a secret", len(e.Secret))
			}
			return e.Secret != ""
		},
	})
	return e, err
}

// Bus returns the connection of e, which reads the secret each time when it
// connects, so that rotated credentials are taken up. It calls nobody yet.
// Errors are of kind Invalid.
func Bus(ctx context.Context, e Env, log *slog.Logger) (*funcnotify.Bus, error) {
	if e.Secret == "" {
		return funcnotify.NewBus(e.Env, nil, log), nil
	}
	c, err := config.LoadDefaultConfig(ctx, config.WithHTTPClient(awshttp.NewBuildableClient().
		WithTimeout(callTimeout).
		WithDialerOptions(func(d *net.Dialer) { d.Timeout = dialTimeout })))
	if err != nil {
		return nil, fault.New(fault.Invalid, "AWS configuration", err)
	}
	client := secretsmanager.NewFromConfig(c, func(o *secretsmanager.Options) {
		if e.Endpoint != "" {
			o.BaseEndpoint = aws.String(e.Endpoint)
		}
	})
	return funcnotify.NewBus(e.Env, func(ctx context.Context) ([]byte, error) {
		out, err := client.GetSecretValue(ctx, &secretsmanager.GetSecretValueInput{SecretId: aws.String(e.Secret)})
		if err != nil {
			return nil, &fault.Error{Kind: fault.Unavailable, Op: "read KEYTURN_NATS_CREDS_SECRET", Msg: "expected a secret that the function's role may read, and a way to Secrets Manager", Err: err}
		}
		if out.SecretString == nil {
			return out.SecretBinary, nil
		}
		return []byte(*out.SecretString), nil
	}, log), nil
}

// NewLogger returns the function's logger: one JSON object a line, with the id
// of the invocation, so that its lines can be found together.
func NewLogger(w io.Writer, level slog.Level) *slog.Logger {
	return slog.New(requestID{slog.NewJSONHandler(w, &slog.HandlerOptions{Level: level})})
}

type requestID struct{ slog.Handler }

func (h requestID) Handle(ctx context.Context, r slog.Record) error {
	if lc, ok := lambdacontext.FromContext(ctx); ok {
		r.AddAttrs(slog.String("request_id", lc.AwsRequestID))
	}
	return h.Handler.Handle(ctx, r)
}

func (h requestID) WithAttrs(as []slog.Attr) slog.Handler { return requestID{h.Handler.WithAttrs(as)} }

func (h requestID) WithGroup(name string) slog.Handler { return requestID{h.Handler.WithGroup(name)} }
