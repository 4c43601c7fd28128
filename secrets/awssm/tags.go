package awssm

import (
	"context"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/secretsmanager"

	"github.com/keyturn/keyturn/secrets"
)

// Tags implements [secrets.Tagger], in one call of DescribeSecret. Those of
// AWS itself, whose keys begin with aws:, are among them. A secret that is
// marked for deletion still tells its tags, so that a notice of its deletion
// can be told apart.
// https://docs.aws.amazon.com/secretsmanager/latest/apireference/API_DescribeSecret.html
func (s *Store) Tags(ctx context.Context, r secrets.Ref) (map[string]string, error) {
	const op = "awssm: tags"
	ctx, cancel, err := s.begin(ctx, op, r)
	if err != nil {
		return nil, err
	}
	defer cancel()
	out, err := s.client.DescribeSecret(ctx, &secretsmanager.DescribeSecretInput{SecretId: s.secretID(ctx, r)}, quiet)
	if err != nil {
		return nil, classify(ctx, op, "describe "+r.String(), err)
	}
	if err := verify(op, r, out.ARN, out.Name); err != nil {
		return nil, err
	}
	tags := make(map[string]string, len(out.Tags))
	for _, t := range out.Tags {
		tags[aws.ToString(t.Key)] = aws.ToString(t.Value)
	}
	return tags, nil
}
