package awssm

import (
	"context"
	"fmt"
	"slices"
	"time"
	"unicode/utf8"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/secretsmanager"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/secrets"
)

// The service's limits.
// https://docs.aws.amazon.com/secretsmanager/latest/apireference/API_PutSecretValue.html
const (
	minToken, maxToken = 32, 64
	maxValue           = 65536
)

// looks bounds how often a method looks again because somebody was faster.
const looks = 4

func checkToken(op, token string) error {
	if n := len(token); n < minToken || n > maxToken {
		return fault.Newf(fault.Invalid, op, "the rotation token %q has %d characters; AWS takes %d to %d, such as a UUID", token, n, minToken, maxToken)
	}
	return nil
}

func checkValue(op string, v secrets.Value) error {
	if n := v.Len(); n < 1 || n > maxValue {
		return fault.Newf(fault.Invalid, op, "the value has %d bytes; AWS takes 1 to %d", n, maxValue)
	}
	return nil
}

// PutPending implements [secrets.Store]. A version once stored is immutable
// in AWS, so that a token whose version was discarded is used up: a Conflict.
// A value that is valid UTF-8 is stored as SecretString, unless the current
// version is a SecretBinary, which its readers expect then.
func (s *Store) PutPending(ctx context.Context, r secrets.Ref, token string, v secrets.Value) (*secrets.Version, error) {
	return s.PutPendingAfter(ctx, r, token, "", v)
}

// PutPendingAfter implements [secrets.Succeeder]; an empty current is any.
// Where AWS opened the rotation AWSPENDING keeps others out, and nothing is
// compared.
func (s *Store) PutPendingAfter(ctx context.Context, r secrets.Ref, token, current string, v secrets.Value) (*secrets.Version, error) {
	const op = "awssm: put pending"
	if err := checkToken(op, token); err != nil {
		return nil, err
	}
	if err := checkValue(op, v); err != nil {
		return nil, err
	}
	ctx, cancel, err := s.begin(ctx, op, r)
	if err != nil {
		return nil, err
	}
	defer cancel()

	var stored *secrets.Version // by this call
	used := false               // a version of token exists, and is not ours
	for range looks {
		st, err := s.look(ctx, op, r)
		if err != nil {
			return nil, err
		}
		switch pending := st.pending(); {
		case st.promoted(token):
			if stored != nil {
				// A twin went on with what we stored. A Conflict would say
				// that the credential is nobody's.
				return stored, nil
			}
			return nil, fault.Newf(fault.Conflict, op, "rotation %s of %s was promoted already; start a new one", token, r)
		case pending == token:
			if stored != nil {
				return stored, nil
			}
			return s.fill(ctx, op, r, token, v)
		case pending != "":
			s.drop(ctx, op, r, st, Claim, token)
			return nil, fault.Newf(fault.Conflict, op, "AWSPENDING of %s is on version %s, of another rotation; let that one finish, or discard it", r, pending)
		case current != "" && st.holder(labelCurrent) != current:
			s.drop(ctx, op, r, st, Claim, token)
			return nil, fault.Newf(fault.Conflict, op, "version %s of %s is not current any more; read the secret again", current, r)
		case st.has(token, Claim): // stored, and not labelled yet
		case used:
			return nil, fault.Newf(fault.Conflict, op, "%s has a version %s already, which no rotation holds any more; start a new rotation", r, token)
		default:
			var labels []string
			stored, labels, err = s.put(ctx, op, r, token, v, Claim)
			if isCode(err, codeExists) || err == nil && !slices.Contains(labels, Claim) {
				// Stored before this call, by a twin or long ago: look which.
				stored, used = nil, true
				continue
			}
			if err != nil {
				return nil, err
			}
		}
		// Refused if anybody has the label but the version that is current,
		// on which a finished rotation left it.
		err = s.move(ctx, op, r, labelPending, token, st.holder(labelPending))
		switch {
		case isCode(err, codeParameter):
			continue
		case err != nil:
			return nil, err
		case stored != nil:
			return stored, nil
		}
		v, _, err := s.read(ctx, op, r, token, "")
		return v, err
	}
	return nil, busy(op, r)
}

func busy(op string, r ref.Ref) error {
	return &fault.Error{
		Kind: fault.Conflict, Class: fault.ClassConcurrency, Op: op,
		Msg: fmt.Sprintf("the labels of %s moved %d times in between; look again", r, looks),
	}
}

// fill gives the version that has AWSPENDING its value, or returns the value
// that it has. Only "there is no value" leads to a write.
func (s *Store) fill(ctx context.Context, op string, r ref.Ref, token string, v secrets.Value) (*secrets.Version, error) {
	found, _, err := s.read(ctx, op, r, token, labelPending)
	if !fault.Is(err, fault.NotFound) {
		return found, err
	}
	stored, _, err := s.put(ctx, op, r, token, v, labelPending)
	if isCode(err, codeExists) {
		// A twin was faster: what it stored is the truth.
		found, _, err = s.read(ctx, op, r, token, labelPending)
		return found, err
	}
	return stored, err
}

// put stores v as the version token under one label, and tells the labels that
// the version has then. The same content again is a success that changes
// nothing, labels included.
func (s *Store) put(ctx context.Context, op string, r ref.Ref, token string, v secrets.Value, label string) (*secrets.Version, []string, error) {
	in := &secretsmanager.PutSecretValueInput{
		SecretId: s.secretID(ctx, r), ClientRequestToken: &token, VersionStages: []string{label}, RotationToken: rotationToken(ctx),
	}
	b := v.Reveal()
	defer clear(b)
	binary := !utf8.Valid(b)
	if !binary {
		var err error
		if binary, err = s.binary(ctx, op, r); err != nil {
			return nil, nil, err
		}
	}
	if binary {
		in.SecretBinary = b
	} else {
		in.SecretString = aws.String(string(b))
	}
	out, err := s.client.PutSecretValue(ctx, in, quiet)
	if err != nil {
		return nil, nil, classify(ctx, op, fmt.Sprintf("store version %s of %s", token, r), err)
	}
	s.opts.Logger.DebugContext(ctx, "version stored", "secret", r.String(), "version", token, "label", label)
	// The answer does not say when the version was created.
	return &secrets.Version{ID: token, Token: token, Value: secrets.NewValue(b), Created: time.Now()}, out.VersionStages, nil
}

// binary reports whether the current version is a SecretBinary.
func (s *Store) binary(ctx context.Context, op string, r ref.Ref) (bool, error) {
	label := labelCurrent
	out, err := s.client.GetSecretValue(ctx, &secretsmanager.GetSecretValueInput{SecretId: s.secretID(ctx, r), VersionStage: &label}, quiet)
	if err != nil {
		if err = classify(ctx, op, "read AWSCURRENT of "+r.String(), err); fault.Is(err, fault.NotFound) {
			return false, nil
		}
		return false, err
	}
	clear(out.SecretBinary)
	return out.SecretString == nil, nil
}

// move attaches a label to the version to, which it leaves the version from
// for. An empty from means that nobody may have it, an empty to that it goes
// to nobody. When that is not so the error comes from codeParameter.
func (s *Store) move(ctx context.Context, op string, r ref.Ref, label, to, from string) error {
	in := &secretsmanager.UpdateSecretVersionStageInput{SecretId: s.secretID(ctx, r), VersionStage: &label}
	if to != "" {
		in.MoveToVersionId = &to
	}
	if from != "" {
		in.RemoveFromVersionId = &from
	}
	if _, err := s.client.UpdateSecretVersionStage(ctx, in, quiet); err != nil {
		return classify(ctx, op, fmt.Sprintf("move %s of %s from version %q to %q", label, r, from, to), err)
	}
	s.opts.Logger.DebugContext(ctx, "label moved", "secret", r.String(), "label", label, "from", from, "to", to)
	return nil
}

// drop takes a label from the version id if it was seen there, for tidiness:
// that somebody took it since is fine, and another failure is logged. The next
// rotation does not mind what is left.
func (s *Store) drop(ctx context.Context, op string, r ref.Ref, st *state, label, id string) {
	if !st.has(id, label) {
		return
	}
	if err := s.move(ctx, op, r, label, "", id); err != nil && !isCode(err, codeParameter) {
		s.opts.Logger.WarnContext(ctx, "a label stayed behind", "secret", r.String(), "version", id, "label", label, "err", err)
	}
}

// Promote implements [secrets.Store]. It moves AWSCURRENT only from the
// version that held it when Promote looked. Somebody else's move in between is
// a Conflict, unless token is current by then.
func (s *Store) Promote(ctx context.Context, r secrets.Ref, token string) (*secrets.Version, error) {
	const op = "awssm: promote"
	if err := checkToken(op, token); err != nil {
		return nil, err
	}
	ctx, cancel, err := s.begin(ctx, op, r)
	if err != nil {
		return nil, err
	}
	defer cancel()
	st, err := s.look(ctx, op, r)
	if err != nil {
		return nil, err
	}
	// Read before the move: it proves that the version has a value, and after
	// the move nothing is left that could fail.
	v, _, err := s.read(ctx, op, r, token, "")
	if err != nil && (!fault.Is(err, fault.NotFound) || st.pending() == "" || st.pending() == token) {
		return nil, err
	}
	holder := st.holder(labelCurrent)
	if holder != token {
		switch pending := st.pending(); {
		case pending != "" && pending != token:
			return nil, fault.Newf(fault.Conflict, op, "AWSPENDING of %s is on version %s, of another rotation than %s", r, pending, token)
		case pending == "":
			return nil, fault.Newf(fault.Conflict, op, "version %s of %s is not pending; it was superseded or discarded", token, r)
		}
		if err := s.move(ctx, op, r, labelCurrent, token, holder); isCode(err, codeParameter) {
			// A twin may have done it.
			if st, err = s.look(ctx, op, r); err != nil {
				return nil, err
			}
			if !st.has(token, labelCurrent) {
				return nil, &fault.Error{
					Kind: fault.Conflict, Class: fault.ClassConcurrency, Op: op,
					Msg: fmt.Sprintf("AWSCURRENT of %s left version %q, and not for %s; look again", r, holder, token),
				}
			}
		} else if err != nil {
			return nil, err
		}
	}
	// Claim first: Runner.Rotate looks for AWSPENDING on the current version
	// to learn that something was left.
	driven := st.driven(token)
	s.drop(ctx, op, r, st, Claim, token)
	if !driven {
		s.drop(ctx, op, r, st, labelPending, token)
	}
	return v, nil
}

// Discard implements [secrets.Store]. The version stays in AWS without a
// label until the service deletes it; one that never had a value is gone.
func (s *Store) Discard(ctx context.Context, r secrets.Ref, token string) error {
	const op = "awssm: discard"
	if err := checkToken(op, token); err != nil {
		return err
	}
	ctx, cancel, err := s.begin(ctx, op, r)
	if err != nil {
		return err
	}
	defer cancel()
	st, err := s.look(ctx, op, r)
	if err != nil {
		return err
	}
	for _, label := range []string{Claim, labelPending} {
		if !st.has(token, label) {
			continue
		}
		// codeParameter: somebody took the label since we looked.
		if err := s.move(ctx, op, r, label, "", token); err != nil && !isCode(err, codeParameter) {
			return err
		}
	}
	if p := st.pending(); p != "" && p != token {
		return fault.Newf(fault.Conflict, op, "AWSPENDING of %s is on version %s, of another rotation than %s", r, p, token)
	}
	return nil
}

// CreateSecret implements [secrets.Creator], with the key aws/secretsmanager
// and without rotation. The client's own retries are idempotent. Whoever
// calls again after a failure may find a Conflict that is his own.
func (s *Store) CreateSecret(ctx context.Context, r secrets.Ref, v secrets.Value) (*secrets.Version, error) {
	const op = "awssm: create"
	if err := checkValue(op, v); err != nil {
		return nil, err
	}
	ctx, cancel, err := s.begin(ctx, op, r)
	if err != nil {
		return nil, err
	}
	defer cancel()
	in := &secretsmanager.CreateSecretInput{Name: &r.Name}
	b := v.Reveal()
	defer clear(b)
	if utf8.Valid(b) {
		in.SecretString = aws.String(string(b))
	} else {
		in.SecretBinary = b
	}
	out, err := s.client.CreateSecret(ctx, in, quiet)
	if err != nil {
		return nil, classify(ctx, op, "create "+r.String(), err)
	}
	if err := verify(op, r, out.ARN, out.Name); err != nil {
		return nil, fmt.Errorf("the secret was created, but not where it was meant to be; delete it: %w", err)
	}
	id := aws.ToString(out.VersionId)
	s.opts.Logger.DebugContext(ctx, "secret created", "secret", r.String(), "version", id)
	return &secrets.Version{ID: id, Token: id, Value: secrets.NewValue(b), Created: time.Now()}, nil
}
