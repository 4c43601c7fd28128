// Package awssm is a [secrets.Store] on AWS Secrets Manager. Stages are the
// service's staging labels, and a rotation token is the ClientRequestToken,
// which the service makes the version's id.
//
// A rotation may be driven by the service, which calls a Lambda function that
// uses this package, or by ourselves (keyturn rotate), whether or not the
// secret is set up for rotation in AWS:
//
//   - The service labels the token AWSPENDING before there is a value, and
//     that label is its lock: it refuses a second rotation. PutPending only
//     fills the version. Promote leaves AWSPENDING where it is, on the version
//     that is now current; the service takes it away, and holds a rotation for
//     finished either way.
//   - Without the service nobody has labelled the token, and PutSecretValue
//     moves a label without asking who holds it: two rotations could both
//     believe that they are pending. So PutPending stores the value under the
//     label [Claim], which nobody reads, and then moves AWSPENDING with
//     UpdateSecretVersionStage, which does ask. Promote and Discard take both
//     labels away. EventBridge reports the move of Claim as it does that of
//     any label of a user's own; who listens goes by AWSCURRENT.
//
// AWSCURRENT moves in one call that names the version it is to leave, a
// compare-and-swap. AWSPREVIOUS follows by itself. A disabled version is one
// that AWSPREVIOUS was taken from; see [Store.Disable].
//
// The leaf needs secretsmanager:DescribeSecret, GetSecretValue, PutSecretValue
// and UpdateSecretVersionStage, a reader GetSecretValue alone, and
// [Store.CreateSecret] that permission too. With ListSecretVersionIds it can
// tell better since when a version is current that the service rotated.
// https://docs.aws.amazon.com/secretsmanager/latest/userguide/rotate-secrets_lambda-functions.html
package awssm

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/secretsmanager"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/secrets"
)

// The staging labels. The first three are the service's.
const (
	labelCurrent  = "AWSCURRENT"
	labelPending  = "AWSPENDING"
	labelPrevious = "AWSPREVIOUS"

	// Claim is on a version that we store without the service having opened a
	// rotation, until it is promoted or discarded.
	Claim = "KEYTURN"

	// Retired is on the version that was disabled last. It counts while nobody
	// has AWSPREVIOUS.
	Retired = "KEYTURNRETIRED"

	// Held is on the version that was enabled last. It counts on the version
	// that has AWSPREVIOUS.
	Held = "KEYTURNHELD"
)

// stageOf says which labels are stages.
var stageOf = map[string]secrets.Stage{
	labelCurrent: secrets.Current, labelPending: secrets.Pending, labelPrevious: secrets.Previous,
}

func labelOf(s secrets.Stage) (string, bool) {
	for label, stage := range stageOf {
		if stage == s {
			return label, true
		}
	}
	return "", false
}

// client is what is called of a [secretsmanager.Client].
type client interface {
	GetSecretValue(context.Context, *secretsmanager.GetSecretValueInput, ...func(*secretsmanager.Options)) (*secretsmanager.GetSecretValueOutput, error)
	PutSecretValue(context.Context, *secretsmanager.PutSecretValueInput, ...func(*secretsmanager.Options)) (*secretsmanager.PutSecretValueOutput, error)
	DescribeSecret(context.Context, *secretsmanager.DescribeSecretInput, ...func(*secretsmanager.Options)) (*secretsmanager.DescribeSecretOutput, error)
	ListSecretVersionIds(context.Context, *secretsmanager.ListSecretVersionIdsInput, ...func(*secretsmanager.Options)) (*secretsmanager.ListSecretVersionIdsOutput, error)
	UpdateSecretVersionStage(context.Context, *secretsmanager.UpdateSecretVersionStageInput, ...func(*secretsmanager.Options)) (*secretsmanager.UpdateSecretVersionStageOutput, error)
	CreateSecret(context.Context, *secretsmanager.CreateSecretInput, ...func(*secretsmanager.Options)) (*secretsmanager.CreateSecretOutput, error)
}

var _ client = (*secretsmanager.Client)(nil)

// Options of [New]. The zero value of each field means its default.
type Options struct {
	// Logger gets a line for each write. The default discards.
	Logger *slog.Logger
	// Timeout bounds a method whose context has no nearer deadline, retries of
	// the client included. 30 s by default.
	Timeout time.Duration
	// ARN gives the full ARN by which to ask for a secret, or "" to ask by
	// name. The secrets of another account are found by ARN only. [WithARN]
	// comes before it.
	ARN func(ref.Ref) string
}

// A Store is the secrets of one region, as its client's credentials may use
// them. It is safe for concurrent use, keeps nothing, and does not retry
// beyond what its client is set to.
type Store struct {
	client client
	region string // "" when the client does not tell
	opts   Options
}

var (
	_ secrets.Store     = (*Store)(nil)
	_ secrets.Succeeder = (*Store)(nil)
	_ secrets.Creator   = (*Store)(nil)
	_ secrets.Disabler  = (*Store)(nil)
	_ secrets.Tagger    = (*Store)(nil)
)

// New returns a Store. opts may be nil.
func New(c client, opts *Options) *Store {
	s := &Store{client: c}
	if opts != nil {
		s.opts = *opts
	}
	if s.opts.Logger == nil {
		s.opts.Logger = slog.New(slog.DiscardHandler)
	}
	if s.opts.Timeout == 0 {
		s.opts.Timeout = 30 * time.Second
	}
	if o, ok := c.(interface {
		Options() secretsmanager.Options
	}); ok {
		s.region = o.Options().Region
	}
	return s
}

// begin checks what can be checked of a call without making it, and bounds
// its time.
func (s *Store) begin(ctx context.Context, op string, r ref.Ref) (context.Context, context.CancelFunc, error) {
	if err := r.Validate(); err != nil {
		return nil, nil, fault.New(fault.Invalid, op, err)
	}
	if r.Provider != ref.AWS {
		return nil, nil, fault.Newf(fault.Invalid, op, "%s is not a secret of AWS; expected aws://ACCOUNT/REGION/NAME", r)
	}
	if region := r.ScopePart(1); s.region != "" && region != s.region {
		return nil, nil, fault.Newf(fault.Invalid, op, "%s is in region %s, but the AWS client is set to %s; use a client for %s", r, region, s.region, region)
	}
	ctx, cancel := context.WithTimeout(ctx, s.opts.Timeout)
	return ctx, cancel, nil
}

// verify compares the secret that answered with the one that was meant: the
// same name may exist in several accounts, and credentials pick the account.
func verify(op string, r ref.Ref, arn, name *string) error {
	found, err := ref.FromARN(aws.ToString(arn))
	if err != nil {
		return nil //nolint:nilerr // an emulator's ARN; nothing to compare with
	}
	if found.Scope == r.Scope && (name == nil || *name == r.Name) {
		return nil
	}
	return fault.Newf(fault.Invalid, op, "asked for %s and found %s; use credentials of account %s, or the secret's full ARN if it is shared across accounts",
		r, aws.ToString(arn), r.ScopePart(0))
}

// quiet keeps values out of the SDK's own log, however the client is set. A
// retry is logged with the service's text, which may repeat what was sent.
func quiet(o *secretsmanager.Options) {
	o.ClientLogMode &^= aws.LogRequestWithBody | aws.LogResponseWithBody | aws.LogRetries
}

// Get implements [secrets.Reader]. It always asks by label. Asked for Pending
// it ends an interrupted PutPending, if there is one. Errors: NotFound,
// no version holds the stage with a value, or there is no such secret (of
// another account only an ARN finds one); Conflict, the secret is marked for
// deletion; Denied, permission or key; Invalid, the ref is not one of this
// client; Unavailable.
func (s *Store) Get(ctx context.Context, r secrets.Ref, stage secrets.Stage) (*secrets.Version, error) {
	const op = "awssm: get"
	label, ok := labelOf(stage)
	if !ok {
		return nil, fault.Newf(fault.Invalid, op, "%q is not a stage; expected current, pending or previous", stage)
	}
	ctx, cancel, err := s.begin(ctx, op, r)
	if err != nil {
		return nil, err
	}
	defer cancel()
	v, stages, err := s.read(ctx, op, r, "", label)
	if stage != secrets.Pending {
		return v, err
	}
	if err == nil && slices.Contains(stages, labelCurrent) {
		// What a finished rotation left behind is no pending version.
		err = fault.Newf(fault.NotFound, op, "no version of %s is pending: AWSPENDING is on the current one", r)
	}
	if fault.Is(err, fault.NotFound) {
		return s.recover(ctx, op, r, err)
	}
	return v, err
}

// recover ends a PutPending that died after it had stored its version and
// before that had AWSPENDING. The value is the only trace of a credential that
// may be live, so nobody may be told that there is none. AWSPENDING is taken
// by compare-and-swap as in PutPending: of several who help one succeeds, and
// a rival that was faster is the one that is pending. none is what to return
// when nothing was left.
func (s *Store) recover(ctx context.Context, op string, r ref.Ref, none error) (*secrets.Version, error) {
	st, err := s.look(ctx, op, r)
	if err != nil {
		return nil, err
	}
	id := st.holder(Claim)
	if id == "" || st.pending() != "" || st.promoted(id) {
		return nil, none
	}
	if err := s.move(ctx, op, r, labelPending, id, st.holder(labelPending)); err != nil && !isCode(err, codeParameter) {
		return nil, err
	}
	v, stages, err := s.read(ctx, op, r, "", labelPending)
	if err == nil && slices.Contains(stages, labelCurrent) {
		return nil, none
	}
	return v, err
}

// read gets a version by its id or by a label, and tells its labels.
func (s *Store) read(ctx context.Context, op string, r ref.Ref, id, label string) (*secrets.Version, []string, error) {
	in := &secretsmanager.GetSecretValueInput{SecretId: s.secretID(ctx, r)}
	what := label
	if id != "" {
		in.VersionId, what = &id, "version "+id
	}
	if label != "" {
		in.VersionStage = &label
	}
	out, err := s.client.GetSecretValue(ctx, in, quiet)
	if err != nil {
		return nil, nil, classify(ctx, op, fmt.Sprintf("read %s of %s", what, r), err)
	}
	if err := verify(op, r, out.ARN, out.Name); err != nil {
		return nil, nil, err
	}
	v := &secrets.Version{ID: aws.ToString(out.VersionId), Token: aws.ToString(out.VersionId), Created: aws.ToTime(out.CreatedDate)}
	switch {
	case out.SecretString != nil:
		v.Value = secrets.NewString(*out.SecretString)
	default:
		v.Value = secrets.NewValue(out.SecretBinary)
		clear(out.SecretBinary)
	}
	if v.ID == "" || v.Value.IsZero() {
		return nil, nil, fault.Newf(fault.Unavailable, op, "read %s of %s: the answer holds no version id or no value; is the endpoint Secrets Manager?", what, r)
	}
	return v, out.VersionStages, nil
}

// Describe implements [secrets.Store]. A version that a rotation announced
// and nobody has written yet is described as pending.
//
// Opened is always true: a step that a service asks for comes from a rotation
// that labelled its token first, so that a step called by hand opens nothing,
// whatever RotationEnabled says, as with the samples of AWS. A rotation that
// we drive does not go by Opened. RotationDisabled is what the service says
// explicitly: a secret that was never set up for rotation is not disabled.
//
// For Activated see activated. Describe reads no value, and needs
// ListSecretVersionIds only for a secret that the service rotates.
func (s *Store) Describe(ctx context.Context, r secrets.Ref) (*secrets.Description, error) {
	const op = "awssm: describe"
	ctx, cancel, err := s.begin(ctx, op, r)
	if err != nil {
		return nil, err
	}
	defer cancel()
	st, err := s.look(ctx, op, r)
	if err != nil {
		return nil, err
	}
	d := &secrets.Description{
		Ref: r, ID: st.arn, Opened: true,
		RotationDisabled: st.rotation != nil && !*st.rotation, NextRotation: st.next,
	}
	retired := st.retired()
	activated := s.activated(ctx, r, st)
	for id, labels := range st.labels {
		info := secrets.VersionInfo{ID: id, Token: id}
		for _, l := range labels {
			if stage, ok := stageOf[l]; ok {
				info.Stages = append(info.Stages, stage)
			}
			if l == labelCurrent {
				info.Activated = activated
			}
		}
		if id == retired {
			info.Stages, info.Disabled = append(info.Stages, secrets.Previous), true
		}
		info.Held = st.has(id, labelPrevious) && st.has(id, Held)
		if len(info.Stages) > 0 {
			d.Versions = append(d.Versions, info)
		}
	}
	return d, nil
}

// A state is what DescribeSecret told.
type state struct {
	arn      string
	labels   map[string][]string // by version id
	rotation *bool
	next     time.Time
	changed  time.Time // LastChangedDate
	rotated  time.Time // LastRotatedDate, or zero
}

// holder returns the id of the version with the label, or "".
func (st *state) holder(label string) string {
	for id, labels := range st.labels {
		if slices.Contains(labels, label) {
			return id
		}
	}
	return ""
}

func (st *state) has(id, label string) bool { return slices.Contains(st.labels[id], label) }

// pending returns the id of the version of an unfinished rotation, or "".
// AWSPENDING on the current version is what a finished one left.
func (st *state) pending() string {
	id := st.holder(labelPending)
	if id != "" && st.has(id, labelCurrent) {
		return ""
	}
	return id
}

// promoted reports that the version was current once, as far as labels tell.
func (st *state) promoted(id string) bool {
	return st.has(id, labelCurrent) || st.has(id, labelPrevious) || st.has(id, Retired)
}

// retired returns the id of the version that would be previous and is
// disabled, or "". Beside AWSPREVIOUS the label is what is left of a version
// that was superseded once more or enabled again.
func (st *state) retired() string {
	id := st.holder(Retired)
	if id == "" || st.holder(labelPrevious) != "" || st.has(id, labelCurrent) || st.has(id, labelPending) {
		return ""
	}
	return id
}

// driven reports that the service drives the rotation named token.
func (st *state) driven(token string) bool {
	return aws.ToBool(st.rotation) && !st.has(token, Claim)
}

func (s *Store) look(ctx context.Context, op string, r ref.Ref) (*state, error) {
	out, err := s.client.DescribeSecret(ctx, &secretsmanager.DescribeSecretInput{SecretId: s.secretID(ctx, r)}, quiet)
	if err != nil {
		return nil, classify(ctx, op, "describe "+r.String(), err)
	}
	if err := verify(op, r, out.ARN, out.Name); err != nil {
		return nil, err
	}
	if out.DeletedDate != nil {
		return nil, fault.Newf(fault.Conflict, op, "%s is marked for deletion on %s; restore it first", r, out.DeletedDate.UTC().Format(time.RFC3339))
	}
	st := &state{
		arn: aws.ToString(out.ARN), labels: out.VersionIdsToStages,
		rotation: out.RotationEnabled, next: aws.ToTime(out.NextRotationDate), changed: time.Now(), rotated: aws.ToTime(out.LastRotatedDate),
	}
	if out.LastChangedDate != nil { // an emulator may not tell
		st.changed = *out.LastChangedDate
	}
	return st, nil
}
