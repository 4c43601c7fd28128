package awssm_test

import (
	"context"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/secretsmanager"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/awsfake"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/secrets"
	"github.com/keyturn/keyturn/secrets/awssm"
)

const name = "orders/db"

// open returns a fake with one secret, its first version's id, and a store.
func open(t *testing.T, opts *awssm.Options) (*awsfake.Server, *awssm.Store, ref.Ref, string) {
	t.Helper()
	f := awsfake.New(t)
	f.Create(name, "old")
	s := awssm.New(f.SecretsManager(func(o *secretsmanager.Options) { o.RetryMaxAttempts = 1 }), opts)
	return f, s, f.Ref(name), f.Holder(name, "AWSCURRENT")
}

func str(s string) secrets.Value { return secrets.NewString(s) }

func wantKind(t *testing.T, what string, err error, k fault.Kind, c fault.Class) {
	t.Helper()
	if !fault.Is(err, k) || fault.ClassOf(err) != c {
		t.Errorf("%s: found %v (%s, class %q); want %s, class %q", what, err, fault.KindOf(err), fault.ClassOf(err), k, c)
	}
}

// wantWrites compares the writes since ForgetCalls, as "Op member=value ...".
func wantWrites(t *testing.T, f *awsfake.Server, want ...string) {
	t.Helper()
	got := []string{}
	for _, c := range f.Writes() {
		s := c.Op
		for _, k := range []string{"SecretId", "ClientRequestToken", "VersionStages", "VersionStage", "MoveToVersionId", "RemoveFromVersionId", "RotationToken", "SecretString", "SecretBinary"} {
			if v, ok := c.Params[k]; ok && !(k == "SecretId" && v == name) {
				s += fmt.Sprintf(" %s=%v", k, v)
			}
		}
		if c.Code != "" {
			s += " -> " + c.Code
		}
		got = append(got, s)
	}
	if !slices.Equal(got, want) {
		t.Errorf("writes:\n  %s\nwant:\n  %s", strings.Join(got, "\n  "), strings.Join(want, "\n  "))
	}
	f.ForgetCalls()
}

func wantLabels(t *testing.T, f *awsfake.Server, want map[string][]string) {
	t.Helper()
	if got := f.Labels(name); !reflect.DeepEqual(got, want) {
		t.Errorf("labels %v; want %v", got, want)
	}
}

// A rotation that the service drives, with the exact requests of the samples:
// one write each for create and finish.
func TestRequestsOfADrivenRotation(t *testing.T) {
	f, s, r, first := open(t, nil)
	token := awsfake.Token()
	proof := f.StartRotation(name, token)
	ctx := awssm.WithRotationToken(awssm.WithARN(t.Context(), f.ARN(name)), proof)
	f.ForgetCalls()

	if _, err := s.Get(ctx, r, secrets.Pending); !fault.Is(err, fault.NotFound) {
		t.Fatalf("AWSPENDING without a value: %v; want NotFound", err)
	}
	for range 2 {
		v, err := s.PutPending(ctx, r, token, str("new"))
		if err != nil || v.ID != token || v.Token != token || !v.Value.Equal(str("new")) {
			t.Fatalf("%+v, %v", v, err)
		}
	}
	wantWrites(t, f, fmt.Sprintf("PutSecretValue SecretId=%s ClientRequestToken=%s VersionStages=[AWSPENDING] RotationToken=%s SecretString=[redacted]", f.ARN(name), token, proof))
	for range 2 {
		if v, err := s.Promote(ctx, r, token); err != nil || v.ID != token {
			t.Fatalf("%+v, %v", v, err)
		}
	}
	wantWrites(t, f, fmt.Sprintf("UpdateSecretVersionStage SecretId=%s VersionStage=AWSCURRENT MoveToVersionId=%s RemoveFromVersionId=%s", f.ARN(name), token, first))
	wantLabels(t, f, map[string][]string{token: {"AWSCURRENT", "AWSPENDING"}, first: {"AWSPREVIOUS"}})
	for _, st := range []secrets.Stage{secrets.Current, secrets.Pending, secrets.Previous} {
		v, err := s.Get(ctx, r, st)
		switch {
		case st == secrets.Pending:
			wantKind(t, "AWSPENDING on AWSCURRENT", err, fault.NotFound, "")
		case err != nil || v.Created.IsZero():
			t.Errorf("get %s: %+v, %v", st, v, err)
		}
	}
	for _, c := range f.Calls("GetSecretValue") {
		if c.Params["VersionStage"] == nil && c.Params["VersionId"] == nil {
			t.Errorf("asked for neither a stage nor a version: %v", c.Params)
		}
	}
}

// A rotation of our own, on a secret that AWS does not rotate.
func TestRequestsOfOurOwnRotation(t *testing.T) {
	f, s, r, first := open(t, nil)
	token, ctx := awsfake.Token(), t.Context()
	if _, err := s.PutPending(ctx, r, token, str("new")); err != nil {
		t.Fatal(err)
	}
	wantWrites(t, f,
		"PutSecretValue ClientRequestToken="+token+" VersionStages=[KEYTURN] SecretString=[redacted]",
		"UpdateSecretVersionStage VersionStage=AWSPENDING MoveToVersionId="+token)
	if _, err := s.Promote(ctx, r, token); err != nil {
		t.Fatal(err)
	}
	wantWrites(t, f,
		"UpdateSecretVersionStage VersionStage=AWSCURRENT MoveToVersionId="+token+" RemoveFromVersionId="+first,
		"UpdateSecretVersionStage VersionStage=KEYTURN RemoveFromVersionId="+token,
		"UpdateSecretVersionStage VersionStage=AWSPENDING RemoveFromVersionId="+token)
	if _, err := s.Promote(ctx, r, token); err != nil {
		t.Fatal(err)
	}
	wantWrites(t, f)
	wantLabels(t, f, map[string][]string{token: {"AWSCURRENT"}, first: {"AWSPREVIOUS"}})
}

func TestPromoteRepeatedClearsWhatWasLeft(t *testing.T) {
	f, s, r, _ := open(t, nil)
	token, ctx := awsfake.Token(), t.Context()
	if _, err := s.PutPending(ctx, r, token, str("new")); err != nil {
		t.Fatal(err)
	}
	// The move takes effect, the tidying fails: the version is current, and
	// that is what Promote reports.
	f.FailNext("UpdateSecretVersionStage", "", "InternalServiceError", "InternalServiceError")
	if _, err := s.Promote(ctx, r, token); err != nil {
		t.Fatalf("promote: %v; want success, since readers have the version", err)
	}
	if l := f.Labels(name)[token]; len(l) != 3 {
		t.Fatalf("labels %v; want three left", l)
	}
	for range 2 {
		if _, err := s.Promote(ctx, r, token); err != nil {
			t.Fatal(err)
		}
		if l := f.Labels(name)[token]; !slices.Equal(l, []string{"AWSCURRENT"}) {
			t.Errorf("labels %v", l)
		}
	}
}

// What a finished rotation left on the current version is in nobody's way, and
// is taken over by compare-and-swap too.
func TestPendingLeftOnCurrent(t *testing.T) {
	f, s, r, first := open(t, nil)
	f.SetLabel(name, "AWSPENDING", first)
	token, ctx := awsfake.Token(), t.Context()
	if err := s.Discard(ctx, r, token); err != nil {
		t.Errorf("discard of another token: %v; want success, nothing is pending", err)
	}
	if _, err := s.PutPending(ctx, r, token, str("new")); err != nil {
		t.Fatal(err)
	}
	w := f.Writes()
	if got := w[len(w)-1].Params["RemoveFromVersionId"]; got != first {
		t.Errorf("AWSPENDING was taken from %v; want %s", got, first)
	}
	wantLabels(t, f, map[string][]string{first: {"AWSCURRENT"}, token: {"AWSPENDING", "KEYTURN"}})

	f.SetLabel(name, "AWSPENDING", first)
	if err := s.Discard(ctx, r, first); err != nil {
		t.Fatal(err)
	}
	if f.Holder(name, "AWSPENDING") != "" || f.Holder(name, "AWSCURRENT") != first {
		t.Errorf("labels %v; want AWSPENDING gone", f.Labels(name))
	}
}

// A rotation that the service opened and that got stuck is not pushed aside.
func TestStuckRotation(t *testing.T) {
	f, s, r, first := open(t, nil)
	stuck, token, ctx := awsfake.Token(), awsfake.Token(), t.Context()
	f.StartRotation(name, stuck)
	f.ForgetCalls()
	_, err := s.PutPending(ctx, r, token, str("new"))
	wantKind(t, "put pending", err, fault.Conflict, "")
	if !strings.Contains(err.Error(), stuck) {
		t.Errorf("%v; want the token that is in the way", err)
	}
	_, err = s.Promote(ctx, r, token)
	wantKind(t, "promote", err, fault.Conflict, "")
	wantKind(t, "discard", s.Discard(ctx, r, token), fault.Conflict, "")
	_, err = s.Promote(ctx, r, stuck)
	wantKind(t, "promote of a version without a value", err, fault.NotFound, "")
	wantWrites(t, f)
	if err := s.Discard(ctx, r, stuck); err != nil {
		t.Fatal(err)
	}
	wantLabels(t, f, map[string][]string{first: {"AWSCURRENT"}})
	if _, err := s.PutPending(ctx, r, token, str("new")); err != nil {
		t.Error(err)
	}
}

// Only "there is no value" leads to a write.
func TestNoWriteAfterAFailedRead(t *testing.T) {
	for code, want := range map[string]fault.Kind{
		"AccessDeniedException": fault.Denied, "DecryptionFailure": fault.Denied,
		"ThrottlingException": fault.Unavailable, "InternalServiceError": fault.Unavailable, "InvalidRequestException": fault.Conflict,
	} {
		for _, driven := range []bool{true, false} {
			f, s, r, _ := open(t, nil)
			token := awsfake.Token()
			if driven {
				f.StartRotation(name, token)
			}
			f.ForgetCalls()
			f.FailNext("GetSecretValue", code)
			if _, err := s.PutPending(t.Context(), r, token, str("new")); !fault.Is(err, want) {
				t.Errorf("%s, driven %t: found %v; want %s", code, driven, err, want)
			}
			wantWrites(t, f)
		}
	}
}

func TestTwinStoredAnotherValue(t *testing.T) {
	f, s, r, _ := open(t, nil)
	token, ctx := awsfake.Token(), t.Context()
	f.StartRotation(name, token)
	// The twin comes between our read and our write.
	client := &interloper{Client: f.SecretsManager(), before: func() {
		if _, err := s.PutPending(ctx, r, token, str("twin's")); err != nil {
			t.Error(err)
		}
	}}
	v, err := awssm.New(client, nil).PutPending(ctx, r, token, str("mine"))
	if err != nil || !v.Value.Equal(str("twin's")) {
		t.Errorf("found %v; want the value that was stored first", err)
	}
}

// A twin takes our version through its whole rotation while we are between
// storing it and labelling it. Told of a Conflict, a caller would revoke what
// it made, which is the current credential.
func TestTwinFinishedWhatWeStored(t *testing.T) {
	f, s, r, _ := open(t, nil)
	token, next, ctx := awsfake.Token(), awsfake.Token(), t.Context()
	client := &interloper{Client: f.SecretsManager(), beforeMove: func() {
		v, err := s.PutPending(ctx, r, token, str("twin's"))
		if err != nil || !v.Value.Equal(str("mine")) {
			t.Errorf("the twin got %v", err)
		}
		if _, err := s.Promote(ctx, r, token); err != nil {
			t.Error(err)
		}
		if _, err := s.PutPending(ctx, r, next, str("next")); err != nil {
			t.Error(err)
		}
	}}
	v, err := awssm.New(client, nil).PutPending(ctx, r, token, str("mine"))
	if err != nil || !v.Value.Equal(str("mine")) {
		t.Errorf("found %v; want what was stored", err)
	}
	if f.Holder(name, "AWSPENDING") != next || f.Holder(name, "AWSCURRENT") != token {
		t.Errorf("labels %v", f.Labels(name))
	}
}

// interloper lets somebody else act in front of the first write of each kind.
type interloper struct {
	*secretsmanager.Client
	before, beforeMove func()
}

func (i *interloper) PutSecretValue(ctx context.Context, in *secretsmanager.PutSecretValueInput, o ...func(*secretsmanager.Options)) (*secretsmanager.PutSecretValueOutput, error) {
	if f := i.before; f != nil {
		i.before = nil
		f()
	}
	return i.Client.PutSecretValue(ctx, in, o...)
}

func (i *interloper) UpdateSecretVersionStage(ctx context.Context, in *secretsmanager.UpdateSecretVersionStageInput, o ...func(*secretsmanager.Options)) (*secretsmanager.UpdateSecretVersionStageOutput, error) {
	if f := i.beforeMove; f != nil {
		i.beforeMove = nil
		f()
	}
	return i.Client.UpdateSecretVersionStage(ctx, in, o...)
}

// Somebody moves AWSCURRENT between Describe and the move.
func TestPromoteIsACompareAndSwap(t *testing.T) {
	f, s, r, _ := open(t, nil)
	token, byHand, ctx := awsfake.Token(), awsfake.Token(), t.Context()
	f.StartRotation(name, token)
	if _, err := s.PutPending(ctx, r, token, str("new")); err != nil {
		t.Fatal(err)
	}
	client := &interloper{Client: f.SecretsManager(), beforeMove: func() {
		f.SetLabel(name, "AWSPREVIOUS", f.Holder(name, "AWSCURRENT"))
		f.SetLabel(name, "AWSCURRENT", byHand)
	}}
	_, err := awssm.New(client, nil).Promote(ctx, r, token)
	wantKind(t, "promote", err, fault.Conflict, fault.ClassConcurrency)
	if f.Holder(name, "AWSCURRENT") != byHand {
		t.Error("AWSCURRENT was taken from a version that nobody had looked at")
	}
	if _, err := s.Promote(ctx, r, token); err != nil || f.Holder(name, "AWSCURRENT") != token {
		t.Errorf("promote again: %v", err)
	}
}

func TestNobodyHoldsCurrent(t *testing.T) {
	f, s, r, _ := open(t, nil)
	token, ctx := awsfake.Token(), t.Context()
	f.SetLabel(name, "AWSCURRENT", "")
	if _, err := s.Get(ctx, r, secrets.Current); !fault.Is(err, fault.NotFound) {
		t.Errorf("get: %v; want NotFound", err)
	}
	if _, err := s.PutPending(ctx, r, token, str("new")); err != nil {
		t.Fatal(err)
	}
	f.ForgetCalls()
	if _, err := s.Promote(ctx, r, token); err != nil {
		t.Fatal(err)
	}
	if w := f.Writes(); w[0].Params["RemoveFromVersionId"] != nil || w[0].Params["MoveToVersionId"] != token {
		t.Errorf("first write %v; want no RemoveFromVersionId", w[0].Params)
	}
}

func TestDescribe(t *testing.T) {
	f, s, r, first := open(t, nil)
	yes, no, next := true, false, time.Date(2027, 1, 2, 3, 4, 5, 0, time.UTC)
	for what, enabled := range map[string]*bool{"absent": nil, "true": &yes, "false": &no} {
		f.SetRotation(name, enabled, next)
		d, err := s.Describe(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		if d.RotationDisabled != (what == "false") || !d.Opened || !d.NextRotation.Equal(next) || d.ID != f.ARN(name) {
			t.Errorf("RotationEnabled %s: %+v", what, d)
		}
	}
	token := awsfake.Token()
	f.StartRotation(name, token)
	f.SetLabel(name, "mine", first)
	d, err := s.Describe(t.Context(), r)
	if err != nil || !d.Has(token, secrets.Pending) || !d.Has(first, secrets.Current) || len(d.Versions) != 2 {
		t.Errorf("%+v, %v; want the empty version as pending", d, err)
	}
}

func TestBinary(t *testing.T) {
	f, s, _, _ := open(t, nil)
	ctx := t.Context()
	f.CreateBinary("bin", []byte{0xff, 0, 1})
	r := f.Ref("bin")
	v, err := s.Get(ctx, r, secrets.Current)
	if err != nil || !v.Value.Equal(secrets.NewValue([]byte{0xff, 0, 1})) {
		t.Fatalf("get: %v", err)
	}
	// Text that succeeds a binary value stays one, for those who read it.
	token := awsfake.Token()
	if _, err := s.PutPending(ctx, r, token, str("text")); err != nil {
		t.Fatal(err)
	}
	if b, binary, _ := f.Value("bin", token); !binary || string(b) != "text" {
		t.Errorf("stored %q, binary %t", b, binary)
	}
	// And what is no text cannot be a string, whatever it succeeds.
	if _, err := s.PutPending(ctx, f.Ref(name), token, secrets.NewValue([]byte{0xff})); err != nil {
		t.Fatal(err)
	}
	if b, binary, _ := f.Value(name, token); !binary || string(b) != "\xff" {
		t.Errorf("stored %q, binary %t", b, binary)
	}
}

func TestTokensOfAVersionThatIsGone(t *testing.T) {
	f, s, r, _ := open(t, nil)
	token, ctx := awsfake.Token(), t.Context()
	if _, err := s.PutPending(ctx, r, token, str("new")); err != nil {
		t.Fatal(err)
	}
	if err := s.Discard(ctx, r, token); err != nil {
		t.Fatal(err)
	}
	for _, v := range []string{"new", "other"} { // the same content is ignored by the service
		_, err := s.PutPending(ctx, r, token, str(v))
		wantKind(t, "put pending of a discarded token", err, fault.Conflict, "")
	}
	if f.Holder(name, "AWSPENDING") != "" {
		t.Error("a discarded version is pending again")
	}
	for _, bad := range []string{"", "short", strings.Repeat("x", 65)} {
		_, err := s.PutPending(ctx, r, bad, str("new"))
		wantKind(t, "put pending with a token of "+fmt.Sprint(len(bad)), err, fault.Invalid, "")
	}
}

func TestDeleted(t *testing.T) {
	f, s, r, _ := open(t, nil)
	if _, err := f.SecretsManager().DeleteSecret(t.Context(), &secretsmanager.DeleteSecretInput{SecretId: aws.String(name)}); err != nil {
		t.Fatal(err)
	}
	_, err := s.Get(t.Context(), r, secrets.Current)
	wantKind(t, "get", err, fault.Conflict, "")
	_, err = s.Describe(t.Context(), r)
	wantKind(t, "describe", err, fault.Conflict, "")
	if !strings.Contains(err.Error(), "restore it") {
		t.Errorf("%v; want what to do", err)
	}
}

// The service opens a rotation while we are between storing and labelling.
func TestLoserLeavesNoLabel(t *testing.T) {
	f, _, r, first := open(t, nil)
	token, theirs := awsfake.Token(), awsfake.Token()
	client := &interloper{Client: f.SecretsManager(), beforeMove: func() { f.StartRotation(name, theirs) }}
	_, err := awssm.New(client, nil).PutPending(t.Context(), r, token, str("mine"))
	wantKind(t, "put pending", err, fault.Conflict, "")
	wantLabels(t, f, map[string][]string{first: {"AWSCURRENT"}, theirs: {"AWSPENDING"}})
}
