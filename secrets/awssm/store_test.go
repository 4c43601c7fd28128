package awssm_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/secretsmanager"
	"go.uber.org/goleak"

	"github.com/keyturn/keyturn/internal/awsfake"
	"github.com/keyturn/keyturn/internal/crashtest"
	"github.com/keyturn/keyturn/internal/leaktest"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/secrets"
	"github.com/keyturn/keyturn/secrets/awssm"
	"github.com/keyturn/keyturn/secrets/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// backend is one fake service, with stores that reach it over HTTP.
type backend struct {
	fake    *awsfake.Server
	retries int  // attempts of the client; 1 makes each call one crash point
	driven  bool // the service opens the rotations
	logs    leaktest.Recorder
}

func newBackend(retries int, driven bool) func(t *testing.T) storetest.Backend {
	return func(t *testing.T) storetest.Backend {
		t.Helper()
		return &backend{fake: awsfake.New(t), retries: retries, driven: driven}
	}
}

func (b *backend) Open(t *testing.T, in *crashtest.Injector) secrets.Store {
	t.Helper()
	rt := b.fake.Transport()
	if in != nil {
		rt = in.Transport(rt)
	}
	c := b.fake.SecretsManager(func(o *secretsmanager.Options) {
		o.RetryMaxAttempts = b.retries
		o.HTTPClient = &http.Client{Transport: rt}
	})
	return awssm.New(c, &awssm.Options{Logger: b.logs.Logger()})
}

func (b *backend) Create(t *testing.T, v secrets.Value) ref.Ref {
	t.Helper()
	r := b.fake.Ref("team/" + awsfake.Token())
	if _, err := b.Open(t, nil).(secrets.Creator).CreateSecret(t.Context(), r, v); err != nil {
		t.Fatal(err)
	}
	return r
}

func (b *backend) Begin(t *testing.T, r ref.Ref, token string) {
	t.Helper()
	if b.driven {
		b.fake.StartRotation(r.Name, token)
	}
}

func (b *backend) Logs() string { return b.logs.String() }

// Tag implements [storetest.Tagged].
func (b *backend) Tag(t *testing.T, r ref.Ref, tags map[string]string) {
	t.Helper()
	b.fake.SetTags(r.Name, tags)
}

func TestStore(t *testing.T) { storetest.Run(t, newBackend(1, false)) }

// The service labels the token before there is a value.
func TestStoreDrivenByTheService(t *testing.T) { storetest.Run(t, newBackend(1, true)) }

// With retries a failure that happens once is not seen at all, and a retry
// finds what the attempt before has done already.
func TestStoreWithRetries(t *testing.T) {
	for name, driven := range map[string]bool{"self": false, "service": true} {
		t.Run(name, func(t *testing.T) {
			b := newBackend(3, driven)(t).(*backend)
			points := crashtest.Run(t, func(t *testing.T, in *crashtest.Injector) {
				v0, v1, tok := secrets.NewString("old"), secrets.NewString("new"), awsfake.Token()
				r := b.Create(t, v0)
				b.Begin(t, r, tok)
				s := b.Open(t, in)
				_, err := s.PutPending(t.Context(), r, tok, v1)
				if err == nil {
					_, err = s.Promote(t.Context(), r, tok)
				}
				if err != nil {
					if !strings.Contains(t.Name(), "/die/") {
						t.Fatalf("one failed attempt at %q was not retried: %v", in.Fired(), err)
					}
					in.Restart()
					if _, err := s.PutPending(t.Context(), r, tok, v1); err != nil && b.fake.Holder(r.Name, "AWSCURRENT") != tok {
						t.Fatal(err)
					}
					if _, err := s.Promote(t.Context(), r, tok); err != nil {
						t.Fatal(err)
					}
				}
				if got, _, _ := b.fake.Value(r.Name, "AWSCURRENT"); string(got) != "new" {
					t.Errorf("AWSCURRENT is %q", got)
				}
				if got, _, _ := b.fake.Value(r.Name, "AWSPREVIOUS"); string(got) != "old" {
					t.Errorf("AWSPREVIOUS is %q", got)
				}
			})
			t.Logf("crash points with retries: %d", points)
		})
	}
}
