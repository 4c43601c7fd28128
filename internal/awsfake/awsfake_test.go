package awsfake_test

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/eventbridge"
	ebtypes "github.com/aws/aws-sdk-go-v2/service/eventbridge/types"
	"github.com/aws/aws-sdk-go-v2/service/secretsmanager"
	"github.com/aws/smithy-go"

	"github.com/keyturn/keyturn/internal/awsfake"
)

const (
	one = "11111111-1111-4111-8111-111111111111"
	two = "22222222-2222-4222-8222-222222222222"
)

// code is the code of an error of either service, or "".
func code(err error) string {
	var api smithy.APIError
	if errors.As(err, &api) {
		return api.ErrorCode()
	}
	return ""
}

func want(t *testing.T, err error, c string) {
	t.Helper()
	if code(err) != c || c != "" && err == nil || c == "" && err != nil {
		t.Fatalf("found %v; want code %q", err, c)
	}
}

func put(c *secretsmanager.Client, id, token, text string, stages ...string) (*secretsmanager.PutSecretValueOutput, error) {
	return c.PutSecretValue(context.Background(), &secretsmanager.PutSecretValueInput{
		SecretId: &id, ClientRequestToken: &token, SecretString: &text, VersionStages: stages,
	})
}

func move(c *secretsmanager.Client, id, label, to, from string) error {
	in := &secretsmanager.UpdateSecretVersionStageInput{SecretId: &id, VersionStage: &label}
	if to != "" {
		in.MoveToVersionId = &to
	}
	if from != "" {
		in.RemoveFromVersionId = &from
	}
	_, err := c.UpdateSecretVersionStage(context.Background(), in)
	return err
}

func get(c *secretsmanager.Client, id, version, stage string) (*secretsmanager.GetSecretValueOutput, error) {
	in := &secretsmanager.GetSecretValueInput{SecretId: &id}
	if version != "" {
		in.VersionId = &version
	}
	if stage != "" {
		in.VersionStage = &stage
	}
	return c.GetSecretValue(context.Background(), in)
}

func once(o *secretsmanager.Options) { o.RetryMaxAttempts = 1 }

func TestLookup(t *testing.T) {
	s := awsfake.New(t)
	c := s.SecretsManager()
	arn := s.Create("orders/db", "x")
	if i := strings.LastIndex(arn, "-"); len(arn)-i != 7 {
		t.Fatalf("ARN %s; want six characters after the last hyphen", arn)
	}
	for _, id := range []string{"orders/db", arn, arn[:len(arn)-7]} {
		out, err := get(c, id, "", "")
		if err != nil || aws.ToString(out.SecretString) != "x" || aws.ToString(out.ARN) != arn || aws.ToString(out.Name) != "orders/db" {
			t.Errorf("%s: %v", id, err)
		}
	}
	for _, id := range []string{"orders", "orders/db-abcdef", arn + "x"} {
		_, err := get(c, id, "", "")
		want(t, err, "ResourceNotFoundException")
	}
}

func TestVersionsAndStages(t *testing.T) {
	s := awsfake.New(t)
	c := s.SecretsManager(once)
	s.Create("db", "old")
	first := s.Holder("db", "AWSCURRENT")

	_, err := put(c, "db", one, "new", "AWSPENDING")
	want(t, err, "")
	_, err = put(c, "db", one, "new", "AWSCURRENT") // the same content: ignored
	want(t, err, "")
	if s.Holder("db", "AWSCURRENT") != first {
		t.Error("an ignored request moved a label")
	}
	_, err = put(c, "db", one, "other", "AWSPENDING")
	want(t, err, "ResourceExistsException")
	_, err = put(c, "db", "short", "x")
	want(t, err, "InvalidParameterException")
	_, err = get(c, "db", one, "AWSPENDING")
	want(t, err, "")
	_, err = get(c, "db", one, "AWSCURRENT")
	want(t, err, "InvalidRequestException")
	_, err = get(c, "db", "", "AWSPREVIOUS")
	want(t, err, "ResourceNotFoundException")

	want(t, move(c, "db", "AWSCURRENT", one, ""), "InvalidParameterException")
	want(t, move(c, "db", "AWSCURRENT", one, two), "InvalidParameterException")
	want(t, move(c, "db", "AWSCURRENT", two, first), "ResourceNotFoundException")
	want(t, move(c, "db", "AWSCURRENT", "", first), "InvalidParameterException")
	want(t, move(c, "db", "AWSCURRENT", one, first), "")
	if l := s.Labels("db"); !slices.Equal(l[one], []string{"AWSCURRENT", "AWSPENDING"}) || !slices.Equal(l[first], []string{"AWSPREVIOUS"}) {
		t.Errorf("labels %v", l)
	}
	want(t, move(c, "db", "AWSPENDING", "", first), "InvalidParameterException")
	want(t, move(c, "db", "AWSPENDING", "", one), "")

	_, err = put(c, "db", two, "by hand")
	want(t, err, "")
	if l := s.Labels("db"); !slices.Equal(l[two], []string{"AWSCURRENT"}) || !slices.Equal(l[one], []string{"AWSPREVIOUS"}) || len(l) != 2 {
		t.Errorf("labels %v", l)
	}
	if s.Versions("db") != 3 {
		t.Errorf("%d versions; want the deprecated one kept", s.Versions("db"))
	}
	for _, call := range s.Calls("PutSecretValue") {
		if strings.Contains(call.Params["SecretString"].(string), "new") {
			t.Error("the record of calls holds a value")
		}
	}
}

func TestCreateIsIdempotentByToken(t *testing.T) {
	s := awsfake.New(t)
	c := s.SecretsManager(once)
	create := func(token, text string) error {
		_, err := c.CreateSecret(t.Context(), &secretsmanager.CreateSecretInput{Name: aws.String("n"), ClientRequestToken: &token, SecretString: &text})
		return err
	}
	want(t, create(one, "x"), "")
	want(t, create(one, "x"), "")
	want(t, create(one, "y"), "ResourceExistsException")
	want(t, create(two, "x"), "ResourceExistsException")
}

func TestRotation(t *testing.T) {
	s := awsfake.New(t)
	c := s.SecretsManager(once)
	arn := s.Create("db", "old")
	var steps []string
	failures := 1
	s.RegisterLambda("arn:aws:lambda:us-east-1:111122223333:function:rotate", func(ctx context.Context, payload []byte) error {
		var e struct{ Step, SecretId, ClientRequestToken, RotationToken string } //nolint:revive // as sent
		if err := json.Unmarshal(payload, &e); err != nil {
			return err
		}
		steps = append(steps, e.Step)
		switch e.Step {
		case "createSecret":
			if _, err := get(c, e.SecretId, e.ClientRequestToken, "AWSPENDING"); code(err) != "ResourceNotFoundException" && err != nil {
				return err
			}
			_, err := c.PutSecretValue(ctx, &secretsmanager.PutSecretValueInput{
				SecretId: &e.SecretId, ClientRequestToken: &e.ClientRequestToken, RotationToken: &e.RotationToken,
				SecretString: aws.String("new"), VersionStages: []string{"AWSPENDING"},
			})
			return err
		case "testSecret":
			if failures--; failures >= 0 {
				return errors.New("not yet")
			}
		case "finishSecret":
			return move(c, e.SecretId, "AWSCURRENT", e.ClientRequestToken, s.Holder("db", "AWSCURRENT"))
		}
		return nil
	})
	rotate := func(token string) error {
		_, err := c.RotateSecret(t.Context(), &secretsmanager.RotateSecretInput{
			SecretId: &arn, ClientRequestToken: &token, RotationLambdaARN: aws.String("arn:aws:lambda:us-east-1:111122223333:function:rotate"),
		})
		return err
	}
	want(t, rotate(one), "")
	got := s.Wait()
	if len(got) != 1 || got[0].Err != nil || got[0].Tries != 2 || len(steps) != 7 {
		t.Fatalf("rotations %+v, steps %v", got, steps)
	}
	if l := s.Labels("db"); !slices.Equal(l[one], []string{"AWSCURRENT"}) {
		t.Errorf("labels %v", l)
	}
	d, err := c.DescribeSecret(t.Context(), &secretsmanager.DescribeSecretInput{SecretId: &arn})
	if err != nil || !aws.ToBool(d.RotationEnabled) || d.NextRotationDate.Before(time.Now()) {
		t.Errorf("describe %+v, %v", d, err)
	}

	failures = 99
	want(t, rotate(two), "")
	if got := s.Wait(); got[1].Err == nil || got[1].Tries != 3 {
		t.Fatalf("rotations %+v", got)
	}
	want(t, rotate(one[:35]+"9"), "InvalidRequestException") // AWSPENDING is still on two
	_, err = c.CancelRotateSecret(t.Context(), &secretsmanager.CancelRotateSecretInput{SecretId: &arn})
	want(t, err, "")
	if s.Holder("db", "AWSPENDING") != two {
		t.Error("CancelRotateSecret took AWSPENDING away")
	}
}

func TestPendingWithoutValue(t *testing.T) {
	s := awsfake.New(t)
	c := s.SecretsManager(once)
	s.Create("db", "old")
	s.StartRotation("db", one)
	d, err := c.DescribeSecret(t.Context(), &secretsmanager.DescribeSecretInput{SecretId: aws.String("db")})
	want(t, err, "")
	if !slices.Equal(d.VersionIdsToStages[one], []string{"AWSPENDING"}) {
		t.Errorf("stages %v", d.VersionIdsToStages)
	}
	_, err = get(c, "db", one, "")
	want(t, err, "ResourceNotFoundException")
	_, err = get(c, "db", "", "AWSPENDING")
	want(t, err, "ResourceNotFoundException")
	want(t, move(c, "db", "AWSPENDING", "", one), "")
	if len(s.Labels("db")) != 1 {
		t.Error("the empty version stayed")
	}
}

func TestDeleteAndRestore(t *testing.T) {
	s := awsfake.New(t)
	c := s.SecretsManager(once)
	s.Create("db", "x")
	_, err := c.DeleteSecret(t.Context(), &secretsmanager.DeleteSecretInput{SecretId: aws.String("db")})
	want(t, err, "")
	_, err = get(c, "db", "", "")
	want(t, err, "InvalidRequestException")
	d, err := c.DescribeSecret(t.Context(), &secretsmanager.DescribeSecretInput{SecretId: aws.String("db")})
	if err != nil || d.DeletedDate == nil {
		t.Errorf("describe %+v, %v", d, err)
	}
	_, err = c.RestoreSecret(t.Context(), &secretsmanager.RestoreSecretInput{SecretId: aws.String("db")})
	want(t, err, "")
	_, err = get(c, "db", "", "")
	want(t, err, "")
}

func TestInjectedFailures(t *testing.T) {
	s := awsfake.New(t)
	c := s.SecretsManager(once)
	s.Create("db", "x")
	codes := []string{"AccessDeniedException", "DecryptionFailure", "ThrottlingException", "InternalServiceError"}
	s.FailNext("GetSecretValue", codes...)
	for _, want := range append(codes, "") {
		if _, err := get(c, "db", "", ""); code(err) != want {
			t.Errorf("found %v; want %q", err, want)
		}
	}
	if got := s.Calls("GetSecretValue"); len(got) != 5 || got[0].Code != codes[0] || len(s.Writes()) != 0 {
		t.Errorf("calls %+v", got)
	}
}

func TestSignature(t *testing.T) {
	s := awsfake.New(t)
	s.Create("db", "x")
	for name, opt := range map[string]func(*secretsmanager.Options){
		"UnrecognizedClientException": func(o *secretsmanager.Options) {
			o.Credentials = aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
				return aws.Credentials{AccessKeyID: "AKIDOTHER", SecretAccessKey: "x"}, nil
			})
		},
		"InvalidSignatureException": func(o *secretsmanager.Options) { o.Region = "eu-west-1" },
	} {
		_, err := get(s.SecretsManager(once, opt), "db", "", "")
		want(t, err, name)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.URL(), strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Amz-Target", "secretsmanager.GetSecretValue")
	req.Header.Set("Content-Type", "application/x-amz-json-1.1")
	resp, err := (&http.Client{Transport: s.Transport()}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusBadRequest || resp.Header.Get("X-Amzn-Errortype") != "MissingAuthenticationTokenException" {
		t.Errorf("status %s, %v", resp.Status, resp.Header)
	}
}

func TestPutEvents(t *testing.T) {
	s := awsfake.New(t)
	c := s.EventBridge()
	when := time.Date(2026, 5, 4, 3, 2, 1, 0, time.UTC)
	s.RefuseEntries("ThrottlingException")
	entry := func(detail string) ebtypes.PutEventsRequestEntry {
		return ebtypes.PutEventsRequestEntry{
			EventBusName: aws.String("bus"), Source: aws.String("keyturn.rotator"), DetailType: aws.String("d"), Detail: &detail, Time: &when,
		}
	}
	out, err := c.PutEvents(t.Context(), &eventbridge.PutEventsInput{Entries: []ebtypes.PutEventsRequestEntry{entry("{}"), entry("no"), entry(`{"a":1}`)}})
	if err != nil || out.FailedEntryCount != 2 {
		t.Fatalf("%+v, %v", out, err)
	}
	if aws.ToString(out.Entries[0].ErrorCode) != "ThrottlingException" || aws.ToString(out.Entries[1].ErrorCode) != "MalformedDetail" || out.Entries[2].EventId == nil {
		t.Errorf("entries %+v", out.Entries)
	}
	if got := s.Events("bus"); len(got) != 1 || string(got[0].Detail) != `{"a":1}` || !got[0].Time.Equal(when) {
		t.Errorf("events %+v", got)
	}
}

func TestLastChangedDate(t *testing.T) {
	s := awsfake.New(t)
	c := s.SecretsManager(once)
	s.Create("db", "x")
	first := s.Holder("db", "AWSCURRENT")
	last := s.LastChanged("db")
	for what, change := range map[string]func() error{
		"a version":      func() error { _, err := put(c, "db", one, "new", "mine"); return err },
		"a label":        func() error { return move(c, "db", "other", first, "") },
		"a label's loss": func() error { return move(c, "db", "other", "", first) },
		"tags":           func() error { s.SetTags("db", map[string]string{"a": "b"}); return nil },
		"a rotation":     func() error { s.StartRotation("db", two); return nil },
		"nothing":        func() error { _, err := get(c, "db", "", ""); return err },
	} {
		if what == "a label's loss" {
			s.SetLabel("db", "other", first)
			last = s.LastChanged("db")
		}
		want(t, change(), "")
		d, err := c.DescribeSecret(t.Context(), &secretsmanager.DescribeSecretInput{SecretId: aws.String("db")})
		want(t, err, "")
		now := s.LastChanged("db")
		if changed := now.After(last); changed != (what != "nothing") || d.LastChangedDate.Sub(now).Abs() > 2*time.Millisecond {
			t.Errorf("%s: changed %t, told %s, expected %s", what, changed, d.LastChangedDate, now)
		}
		s.SetLabel("db", "other", "")
		last = s.LastChanged("db")
	}
}

// Labels that go to another version are told on the default bus, but for
// AWSPENDING and AWSPREVIOUS.
func TestLabelEvents(t *testing.T) {
	s := awsfake.New(t)
	c := s.SecretsManager(once)
	arn := s.Create("db", "old")
	first := s.Holder("db", "AWSCURRENT")
	_, err := put(c, "db", one, "new", "AWSPENDING", "mine")
	want(t, err, "")
	_, err = put(c, "db", one, "new", "mine") // ignored
	want(t, err, "")
	want(t, move(c, "db", "mine", one, ""), "") // it is there
	want(t, move(c, "db", "AWSCURRENT", one, first), "")
	want(t, move(c, "db", "AWSPENDING", "", one), "")
	want(t, move(c, "db", "mine", "", one), "")
	want(t, move(c, "db", "AWSCURRENT", two, one), "ResourceNotFoundException")
	var got []string
	for _, e := range s.Events("default") {
		var d struct{ Name, LabelUpdated, VersionID string }
		if err := json.Unmarshal(e.Detail, &d); err != nil || d.Name != "db" || d.VersionID != one ||
			e.Source != "aws.secretsmanager" || e.DetailType != "Secret Label Updated" || !slices.Equal(e.Resources, []string{arn}) {
			t.Errorf("event %+v, %s, %v", e, e.Detail, err)
		}
		got = append(got, d.LabelUpdated)
	}
	if !slices.Equal(got, []string{"mine", "AWSCURRENT"}) {
		t.Errorf("told of %v", got)
	}
}

func TestDeleteDeprecated(t *testing.T) {
	s := awsfake.New(t)
	c := s.SecretsManager(once)
	s.Create("db", "old")
	first := s.Holder("db", "AWSCURRENT")
	_, err := put(c, "db", one, "new")
	want(t, err, "")
	want(t, move(c, "db", "AWSPREVIOUS", "", first), "")
	want(t, move(c, "db", "mine", first, ""), "") // a deprecated version can be labelled again
	s.DeleteDeprecated("db")
	_, err = get(c, "db", first, "")
	want(t, err, "")
	want(t, move(c, "db", "mine", "", first), "")
	s.DeleteDeprecated("db")
	_, err = get(c, "db", first, "")
	want(t, err, "ResourceNotFoundException")
	want(t, move(c, "db", "mine", first, ""), "ResourceNotFoundException")
}

func TestListSecretVersionIds(t *testing.T) {
	s := awsfake.New(t)
	c := s.SecretsManager(once)
	s.Create("db", "old")
	_, err := put(c, "db", one, "new", "mine")
	want(t, err, "")
	_, err = put(c, "db", two, "new", "mine") // one has no label any more
	want(t, err, "")
	for deprecated, n := range map[bool]int{false: 2, true: 3} {
		in := &secretsmanager.ListSecretVersionIdsInput{SecretId: aws.String("db"), MaxResults: aws.Int32(1), IncludeDeprecated: &deprecated}
		seen := map[string]bool{}
		for range 9 {
			out, err := c.ListSecretVersionIds(t.Context(), in)
			want(t, err, "")
			for _, v := range out.Versions {
				seen[*v.VersionId] = v.CreatedDate != nil && (len(v.VersionStages) == 0) == (*v.VersionId == one)
			}
			if in.NextToken = out.NextToken; in.NextToken == nil {
				break
			}
		}
		if len(seen) != n || !seen[two] || seen[one] != deprecated {
			t.Errorf("deprecated %t: listed %v", deprecated, seen)
		}
	}
	_, err = c.ListSecretVersionIds(t.Context(), &secretsmanager.ListSecretVersionIdsInput{SecretId: aws.String("none")})
	want(t, err, "ResourceNotFoundException")
}
