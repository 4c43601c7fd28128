package awssm

import (
	"context"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/secretsmanager"

	"github.com/keyturn/keyturn/ref"
)

// versionPages bounds how many pages of versions are read. All that count fit
// into one, since a secret has twenty labels.
const versionPages = 3

// activated is since when AWSCURRENT is where it is, or later. AWS does not
// tell, but for two dates of the secret.
//
//   - LastChangedDate is that of the last change of any kind, so never too
//     early. A tag or a label moves it, that with which the service opens the
//     next rotation too.
//   - LastRotatedDate is when a rotation of the service ended. It is taken if
//     the current version was there by then and is younger than the previous
//     one: a later rotation of ours or a value written by hand is younger than
//     the date, and a version that somebody moved AWSCURRENT back to is older
//     than the one that it was taken from. Only who moved it by hand back, and
//     forth again, is not noticed.
//
// When the versions were created is another call, made only where the two
// dates differ. Without its permission LastChangedDate has to do.
// https://docs.aws.amazon.com/secretsmanager/latest/apireference/API_DescribeSecret.html
func (s *Store) activated(ctx context.Context, r ref.Ref, st *state) time.Time {
	id := st.holder(labelCurrent)
	if id == "" || st.rotated.IsZero() || !st.rotated.Before(st.changed) {
		return st.changed
	}
	created, err := s.created(ctx, r)
	if err != nil {
		s.opts.Logger.DebugContext(ctx, "versions were not listed, so LastChangedDate counts", "secret", r.String(), "err", err)
		return st.changed
	}
	before := st.holder(labelPrevious)
	if before == "" {
		before = st.retired()
	}
	made, known := created[id]
	older, compared := created[before]
	if !known || !compared || made.After(st.rotated) || !older.Before(made) {
		return st.changed
	}
	return st.rotated
}

// created tells when each version that has a label was created.
func (s *Store) created(ctx context.Context, r ref.Ref) (map[string]time.Time, error) {
	const op = "awssm: list versions"
	in := &secretsmanager.ListSecretVersionIdsInput{SecretId: s.secretID(ctx, r), MaxResults: aws.Int32(100)}
	dates := map[string]time.Time{}
	for range versionPages {
		out, err := s.client.ListSecretVersionIds(ctx, in, quiet)
		if err != nil {
			return nil, classify(ctx, op, "list the versions of "+r.String(), err)
		}
		for _, v := range out.Versions {
			dates[aws.ToString(v.VersionId)] = aws.ToTime(v.CreatedDate)
		}
		if out.NextToken == nil {
			break
		}
		in.NextToken = out.NextToken
	}
	return dates, nil
}
