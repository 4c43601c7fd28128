package awssm_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/secretsmanager"
	"github.com/aws/smithy-go/logging"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/awsfake"
	"github.com/keyturn/keyturn/internal/leaktest"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/secrets"
	"github.com/keyturn/keyturn/secrets/awssm"
)

// at returns a store whose endpoint is url.
func at(t *testing.T, url string, opts ...func(*secretsmanager.Options)) *awssm.Store {
	t.Helper()
	tr := &http.Transport{}
	t.Cleanup(tr.CloseIdleConnections)
	o := secretsmanager.Options{
		Region: awsfake.Region, BaseEndpoint: &url, RetryMaxAttempts: 1, HTTPClient: &http.Client{Transport: tr},
		Credentials: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
			return aws.Credentials{AccessKeyID: awsfake.AccessKey, SecretAccessKey: awsfake.SecretKey}, nil
		}),
	}
	return awssm.New(secretsmanager.New(o, opts...), &awssm.Options{Timeout: time.Minute})
}

func someRef(t *testing.T) ref.Ref {
	t.Helper()
	r, err := ref.New(ref.AWS, name, awsfake.Account, awsfake.Region)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestCodes(t *testing.T) {
	f, s, r, _ := open(t, nil)
	for code, want := range map[string]struct {
		kind  fault.Kind
		class fault.Class
		text  string
	}{
		"ResourceNotFoundException":   {fault.NotFound, "", "full ARN"},
		"ResourceExistsException":     {fault.Conflict, fault.ClassConcurrency, ""},
		"InvalidRequestException":     {fault.Conflict, "", "restore"},
		"InvalidParameterException":   {fault.Invalid, "", ""},
		"AccessDeniedException":       {fault.Denied, fault.ClassPermission, "policy"},
		"DecryptionFailure":           {fault.Denied, fault.ClassPermission, "kms:Decrypt"},
		"EncryptionFailure":           {fault.Denied, fault.ClassPermission, "kms:GenerateDataKey"},
		"UnrecognizedClientException": {fault.Denied, fault.ClassAuth, "credentials"},
		"ExpiredTokenException":       {fault.Denied, fault.ClassAuth, "expired"},
		"ThrottlingException":         {fault.Unavailable, fault.ClassQuota, ""},
		"LimitExceededException":      {fault.Unavailable, fault.ClassQuota, "too many"},
		"InternalServiceError":        {fault.Unavailable, "", ""},
		"ServiceUnavailable":          {fault.Unavailable, "", ""},
		"NeverHeardOfException":       {fault.Unknown, "", ""},
	} {
		f.FailNext("DescribeSecret", code)
		_, err := s.Describe(t.Context(), r)
		wantKind(t, code, err, want.kind, want.class)
		for _, part := range []string{code, want.text, r.String(), "request "} {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("%v; want %q in it", err, part)
			}
		}
		if strings.Contains(err.Error(), "awsfake") != (code == "AccessDeniedException") {
			t.Errorf("%v; want the service's own text of a refusal only", err)
		}
	}
}

// Whatever the service answers, and however it repeats what was sent, no value
// is in the error or in the client's log.
func TestAnswersThatRepeatTheValue(t *testing.T) {
	canary := leaktest.Canary()
	var rec leaktest.Recorder
	for what, answer := range map[string]struct {
		status int
		body   string
	}{
		"an error":         {400, `{"__type":"ValidationException","message":"Value '` + canary + `' at 'secretString'","Message":"` + canary + `"}`},
		"an unknown error": {400, `{"__type":"` + "Odd" + `","message":"` + canary + `"}`},
		"half an answer":   {200, `{"SecretString":"` + canary},
		"a wrong type":     {200, `{"VersionId":"` + awsfake.Token() + `","SecretString":["` + canary + `"]}`},
		"no answer":        {200, `{"other":"` + canary + `"}`},
		"a page":           {502, `<html>` + canary + `</html>`},
		"a short page":     {200, canary},
	} {
		t.Run(what, func(t *testing.T) {
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				_, _ = io.Copy(io.Discard, r.Body)
				w.Header().Set("Content-Type", "application/x-amz-json-1.1")
				w.WriteHeader(answer.status)
				_, _ = io.WriteString(w, answer.body)
			}))
			t.Cleanup(srv.Close)
			s := at(t, srv.URL, func(o *secretsmanager.Options) {
				o.ClientLogMode = aws.LogRequestWithBody | aws.LogResponseWithBody | aws.LogRetries
				o.Logger = logging.NewStandardLogger(&rec)
			})
			r, ctx := someRef(t), awssm.WithRotationToken(t.Context(), canary)
			_, err := s.Get(ctx, r, secrets.Current)
			if err == nil {
				t.Error("get succeeded")
			}
			_, err2 := s.PutPending(ctx, r, awsfake.Token(), str(canary))
			_, err3 := s.CreateSecret(ctx, r, str(canary))
			rec.Record(err, err2, err3, s)
			_, _ = fmt.Fprintln(&rec, ctx)
			for _, err := range []error{err, err2, err3} {
				if j, jerr := json.Marshal(errors.Unwrap(err)); jerr == nil {
					_, _ = rec.Write(j)
				}
			}
			if answer.status == 502 && !fault.Is(err, fault.Unavailable) {
				t.Errorf("%v; want Unavailable", err)
			}
		})
	}
	rec.Check(t, canary)
}

func TestNetwork(t *testing.T) {
	r := someRef(t)
	gone := httptest.NewServer(http.NotFoundHandler())
	gone.Close()
	_, err := at(t, gone.URL).Get(t.Context(), r, secrets.Current)
	wantKind(t, "nobody there", err, fault.Unavailable, fault.ClassNetwork)
	var op *net.OpError
	if !errors.As(err, &op) {
		t.Errorf("%v; want the cause kept", err)
	}

	_, err = at(t, "http://no-such-host.invalid").Get(t.Context(), r, secrets.Current)
	wantKind(t, "no such host", err, fault.Unavailable, fault.ClassNetwork)

	untrusted := httptest.NewUnstartedServer(http.NotFoundHandler())
	untrusted.Config.ErrorLog = log.New(io.Discard, "", 0)
	untrusted.StartTLS()
	t.Cleanup(untrusted.Close)
	_, err = at(t, untrusted.URL).Get(t.Context(), r, secrets.Current)
	wantKind(t, "untrusted certificate", err, fault.Denied, fault.ClassTLS)

	_, err = at(t, untrusted.URL, func(o *secretsmanager.Options) {
		o.Credentials = aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) { return aws.Credentials{}, errors.New("none") })
	}).Get(t.Context(), r, secrets.Current)
	wantKind(t, "no credentials", err, fault.Denied, fault.ClassAuth)
}

func TestDeadline(t *testing.T) {
	release := make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release }))
	t.Cleanup(srv.Close)
	t.Cleanup(func() { close(release) })
	r := someRef(t)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := at(t, srv.URL).Get(ctx, r, secrets.Current)
	wantKind(t, "the caller's deadline", err, fault.Unavailable, fault.ClassTimeout)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v; want context.DeadlineExceeded in it", err)
	}
	client := secretsmanager.New(secretsmanager.Options{Region: awsfake.Region, BaseEndpoint: &srv.URL, HTTPClient: srv.Client(),
		Credentials: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
			return aws.Credentials{AccessKeyID: "x", SecretAccessKey: "x"}, nil
		})})
	_, err = awssm.New(client, &awssm.Options{Timeout: 50 * time.Millisecond}).Get(t.Context(), r, secrets.Current)
	wantKind(t, "the store's own", err, fault.Unavailable, fault.ClassTimeout)
}

func TestRefOfAnotherPlace(t *testing.T) {
	f, s, _, _ := open(t, nil)
	for text, part := range map[string]string{
		"aws://" + awsfake.Account + "/eu-west-1/" + name:   "use a client for eu-west-1",
		"aws://999999999999/" + awsfake.Region + "/" + name: "credentials of account 999999999999",
		"azure://vault/x": "not a secret of AWS",
	} {
		r, err := ref.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		f.ForgetCalls()
		_, err = s.Get(t.Context(), r, secrets.Current)
		_, err2 := s.PutPending(t.Context(), r, awsfake.Token(), str("new"))
		_, err3 := s.Promote(t.Context(), r, awsfake.Token())
		for _, err := range []error{err, err2, err3, s.Discard(t.Context(), r, awsfake.Token())} {
			wantKind(t, text, err, fault.Invalid, "")
			if err != nil && !strings.Contains(err.Error(), part) {
				t.Errorf("%v; want %q in it", err, part)
			}
		}
		if w := f.Writes(); len(w) != 0 {
			t.Errorf("%s: %d writes", text, len(w))
		}
	}
	r, err := ref.Parse("aws://999999999999/" + awsfake.Region + "/fresh")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.CreateSecret(t.Context(), r, str("x")); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "delete it") {
		t.Errorf("create: %v", err)
	}
}

func TestAskByARN(t *testing.T) {
	f := awsfake.New(t)
	f.Create("a", "A")
	f.Create("b", "B")
	c := f.SecretsManager()
	s := awssm.New(c, &awssm.Options{ARN: func(r ref.Ref) string {
		if r.Name == "a" {
			return f.ARN("a")
		}
		return ""
	}})
	// Of the secrets that a context names each is asked for by its own ARN.
	for want, ctx := range map[string]context.Context{
		f.ARN("a") + " b":             t.Context(),
		f.ARN("a") + " " + f.ARN("b"): awssm.WithARN(awssm.WithARN(awssm.WithARN(t.Context(), f.ARN("b")), f.ARN("a")), "no ARN"),
	} {
		f.ForgetCalls()
		for _, n := range []string{"a", "b"} {
			v, err := s.Get(ctx, f.Ref(n), secrets.Current)
			if err != nil || !v.Value.Equal(str(strings.ToUpper(n))) {
				t.Fatalf("get %s: %v", n, err)
			}
		}
		calls := f.Calls()
		if got := fmt.Sprint(calls[0].Params["SecretId"], " ", calls[1].Params["SecretId"]); got != want {
			t.Errorf("asked for %s; want %s", got, want)
		}
	}
	// An ARN of the wrong secret is noticed.
	wrong := awssm.New(c, &awssm.Options{ARN: func(ref.Ref) string { return f.ARN("a") }})
	_, err := wrong.Get(t.Context(), f.Ref("b"), secrets.Current)
	wantKind(t, "another secret's ARN", err, fault.Invalid, "")
}
