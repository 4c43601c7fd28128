package awssm

import (
	"context"

	"github.com/aws/aws-sdk-go-v2/aws"

	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/secrets"
)

type rotationTokenKey struct{}

// WithRotationToken returns a context under which PutPending passes the
// RotationToken of a rotation event on. The service wants it where the
// rotation function assumes a role or belongs to another account than the
// secret. It is as sensitive as a credential, and cannot be printed with the
// context.
func WithRotationToken(ctx context.Context, token string) context.Context {
	if token == "" {
		return ctx
	}
	return context.WithValue(ctx, rotationTokenKey{}, secrets.NewString(token))
}

func rotationToken(ctx context.Context) *string {
	v, ok := ctx.Value(rotationTokenKey{}).(secrets.Value)
	if !ok || v.IsZero() {
		return nil
	}
	return aws.String(string(v.Reveal()))
}

type arnKey struct{ ref ref.Ref }

// WithARN returns a context under which the secret that the full ARN names is
// asked for by that ARN, as in a rotation event: a function rotates the secret
// of another account, which no name finds. Other secrets are not affected, and
// contexts for several may be stacked. What is no ARN changes nothing.
func WithARN(ctx context.Context, arn string) context.Context {
	r, err := ref.FromARN(arn)
	if err != nil {
		return ctx
	}
	return context.WithValue(ctx, arnKey{r}, arn)
}

// secretID is what the service is asked for.
func (s *Store) secretID(ctx context.Context, r ref.Ref) *string {
	if arn, ok := ctx.Value(arnKey{r}).(string); ok {
		return &arn
	}
	if s.opts.ARN != nil {
		if arn := s.opts.ARN(r); arn != "" {
			return &arn
		}
	}
	return &r.Name
}
