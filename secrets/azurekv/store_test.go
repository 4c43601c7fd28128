package azurekv_test

import (
	"maps"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"go.uber.org/goleak"

	"github.com/keyturn/keyturn/internal/azurefake"
	"github.com/keyturn/keyturn/internal/crashtest"
	"github.com/keyturn/keyturn/internal/leaktest"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/secrets"
	"github.com/keyturn/keyturn/secrets/azurekv"
	"github.com/keyturn/keyturn/secrets/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const vault = "kv-agents"

// backend is one fake service, with stores that reach it over HTTPS and share
// a lock.
type backend struct {
	fake   *azurefake.Server
	locker *locker
	logs   leaktest.Recorder
}

func newBackend(t *testing.T) storetest.Backend {
	t.Helper()
	b := &backend{fake: azurefake.New(t, vault), locker: newLocker()}
	b.fake.SetPageSize(2) // every list has several pages
	return b
}

func (b *backend) Open(t *testing.T, in *crashtest.Injector) secrets.Store {
	t.Helper()
	return b.open(in, func(o *azurekv.Options) { o.Locker = b.locker })
}

// open returns the store of a new process.
func (b *backend) open(in *crashtest.Injector, with ...func(*azurekv.Options)) *azurekv.Store {
	rt := b.fake.Transport()
	if in != nil {
		rt = in.Transport(rt)
	}
	o := &azurekv.Options{Logger: b.logs.Logger()}
	o.Client.Transport = &http.Client{Transport: rt}
	o.Client.Retry = policy.RetryOptions{MaxRetries: -1} // each request is one crash point
	for _, f := range with {
		f(o)
	}
	return azurekv.New(b.fake.Credential(), o)
}

func (b *backend) Create(t *testing.T, v secrets.Value) ref.Ref {
	t.Helper()
	r := b.fake.Ref(vault, name())
	text := v.Reveal()
	b.fake.Put(vault, r.Name, azurefake.Version{Value: string(text)})
	return r
}

func (b *backend) Begin(*testing.T, ref.Ref, string) {}

func (b *backend) Logs() string { return b.logs.String() }

func (b *backend) Limits() storetest.Limits {
	return storetest.Limits{MaxValue: azurekv.MaxValue, TextOnly: true}
}

func (b *backend) Advance(d time.Duration) { b.fake.Advance(d) }

// Kept tells what is enabled: the service removes no version.
func (b *backend) Kept(_ *testing.T, r ref.Ref) (own, pending []secrets.Value) {
	kept := func(name string) (out []secrets.Value) {
		for _, v := range b.fake.Versions(vault, name) {
			if v.Enabled {
				out = append(out, text(v.Value))
			}
		}
		return out
	}
	return kept(r.Name), kept(pendingName(r))
}

// Tag implements [storetest.Tagged]: a version has tags, ours among them.
func (b *backend) Tag(t *testing.T, r ref.Ref, tags map[string]string) {
	t.Helper()
	all := b.fake.Versions(vault, r.Name)
	newest := all[len(all)-1]
	maps.DeleteFunc(newest.Tags, func(k, _ string) bool { return !strings.HasPrefix(k, "keyturn-") })
	if newest.Tags == nil {
		newest.Tags = map[string]string{}
	}
	maps.Copy(newest.Tags, tags)
	b.fake.SetTags(vault, r.Name, newest.ID, newest.Tags)
}

func TestStore(t *testing.T) { storetest.Run(t, newBackend) }
