package lambdarotate

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/secretsmanager"
	"github.com/aws/smithy-go"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/lambdarotate/rds"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/rotators/postgres"
	"github.com/keyturn/keyturn/secrets"
	"github.com/keyturn/keyturn/secrets/awssm"
)

// masters finds what alternating users need of the secret whose user may
// change others.
type masters struct {
	store  secrets.Reader
	client *secretsmanager.Client
	rds    *rds.Client
}

// value reads the current value of the master secret.
func (m *masters) value(ctx context.Context, arn string) (secrets.Value, error) {
	id, err := ref.FromARN(arn)
	if err != nil {
		return secrets.Value{}, fmt.Errorf("masterarn: %w", err)
	}
	v, err := m.store.Get(awssm.WithARN(ctx, arn), id, secrets.Current)
	if err != nil {
		return secrets.Value{}, fmt.Errorf("read the master secret: %w", err)
	}
	return v.Value, nil
}

// resolve finds the server of a master secret that RDS manages, which has
// only a user name and a password. RDS marks the secret with tags that nobody
// else can set, since they start with aws:.
// https://docs.aws.amazon.com/AmazonRDS/latest/UserGuide/rds-secrets-manager.html
func (m *masters) resolve(ctx context.Context, arn string) (postgres.Server, error) {
	const op = "master secret"
	d, err := m.client.DescribeSecret(ctx, &secretsmanager.DescribeSecretInput{SecretId: aws.String(arn)})
	if err != nil {
		return postgres.Server{}, refusal(op, err)
	}
	for _, tag := range d.Tags {
		target := aws.ToString(tag.Value)
		switch strings.ToLower(aws.ToString(tag.Key)) {
		case "aws:rds:primarydbinstancearn":
			i, err := m.rds.Instance(ctx, target)
			if err != nil {
				return postgres.Server{}, err
			}
			return server(i.Engine, i.Host, i.Port)
		case "aws:rds:primarydbclusterarn":
			c, err := m.rds.Cluster(ctx, target)
			if err != nil {
				return postgres.Server{}, err
			}
			return server(c.Engine, c.Host, c.Port)
		}
	}
	return postgres.Server{}, fault.Newf(fault.Invalid, op, "it has no host, and no tag of RDS that says where its server is; expected the keys engine, host, username and password, or a secret that RDS manages")
}

// refusal classifies a failed DescribeSecret of the master secret, which was
// read a moment ago.
func refusal(op string, err error) error {
	e := &fault.Error{Kind: fault.Unavailable, Op: op, Msg: "describe it", Err: err}
	var api smithy.APIError
	switch {
	case !errors.As(err, &api):
	case strings.HasPrefix(api.ErrorCode(), "AccessDenied"):
		e.Kind, e.Class = fault.Denied, fault.ClassPermission
		e.Msg = "describe it: allow secretsmanager:DescribeSecret on it in the function's role"
	case api.ErrorCode() == "ResourceNotFoundException":
		e.Kind = fault.NotFound
	}
	return e
}

func server(engine, host string, port int) (postgres.Server, error) {
	const op = "master secret"
	if engine != "postgres" && engine != "aurora-postgresql" {
		return postgres.Server{}, fault.Newf(fault.Invalid, op, "RDS says that its engine is %q; expected postgres or aurora-postgresql", engine)
	}
	if host == "" || port < 1 || port > 65535 {
		return postgres.Server{}, fault.Newf(fault.Unavailable, op, "RDS knows no endpoint of its server yet; try again when it is available")
	}
	return postgres.Server{Host: host, Port: port}, nil
}

// sameServer lets the secret name a replica or the reader endpoint of the
// master's server.
func (m *masters) sameServer(ctx context.Context, child, master postgres.Server) (bool, error) {
	return m.rds.IsReplica(ctx, child.Host, master.Host)
}
