package integration_test

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"log/slog"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"cloud.google.com/go/secretmanager/apiv1/secretmanagerpb"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/security/keyvault/azsecrets"
	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/secretsmanager"
	vault "github.com/hashicorp/vault/api"
	"google.golang.org/grpc"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/awsfake"
	"github.com/keyturn/keyturn/internal/azurefake"
	"github.com/keyturn/keyturn/internal/crashtest"
	"github.com/keyturn/keyturn/internal/gcpfake"
	"github.com/keyturn/keyturn/internal/vaultfake"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/secrets"
	"github.com/keyturn/keyturn/secrets/azurekv"
	"github.com/keyturn/keyturn/secrets/gcpsm"
	"github.com/keyturn/keyturn/secrets/vaultkv"
)

// A platform is a backend that can be looked at past our store, as its own
// clients see it.
type platform interface {
	backend
	// plain reads a secret as they do who know nothing of stages: the
	// provider's read that names no version.
	plain(ctx context.Context, r ref.Ref) (secrets.Value, error)
	// state is what the provider says of a version.
	state(t *testing.T, r ref.Ref, version string) string
	// states are those of a superseded version that is in use, and of one that
	// was retired.
	states() (live, retired string)
	// remove removes a secret, for good and alone.
	remove(t *testing.T, r ref.Ref)
	// named is how another secret names r as its authority.
	named(r ref.Ref) string
}

// platforms are the five, each with a service of its own. locker keeps one
// writer a secret where the store cannot.
func platforms(locker secrets.Locker) map[string]func(*testing.T) platform {
	return map[string]func(*testing.T) platform{
		"aws":   func(t *testing.T) platform { return newAWS(t) },
		"gcp":   func(t *testing.T) platform { return newGCP(t, locker) },
		"azure": func(t *testing.T) platform { return newAzure(t, locker) },
		"vault": func(t *testing.T) platform { return newVault(t) },
		"nats":  func(t *testing.T) platform { return newNATS(t, newBroker(t)) },
	}
}

// oneProcess is a locker for stores that stand for processes and are in one.
type oneProcess struct {
	mu   sync.Mutex
	held map[string]chan struct{}
}

func (l *oneProcess) Lock(ctx context.Context, name string) (context.Context, func(), error) {
	l.mu.Lock()
	if l.held == nil {
		l.held = map[string]chan struct{}{}
	}
	c := l.held[name]
	if c == nil {
		c = make(chan struct{}, 1)
		l.held[name] = c
	}
	l.mu.Unlock()
	select {
	case c <- struct{}{}:
		return ctx, sync.OnceFunc(func() { <-c }), nil
	case <-ctx.Done():
		return nil, nil, fault.New(fault.Unavailable, "lock", ctx.Err())
	}
}

// fresh is a name that no other secret has.
func fresh() string { return "db-" + strings.ToLower(rand.Text()) }

type awsPlatform struct {
	*awsBackend
	sm *secretsmanager.Client
}

func newAWS(t *testing.T) *awsPlatform {
	t.Helper()
	f := awsfake.New(t)
	return &awsPlatform{&awsBackend{f}, f.SecretsManager()}
}

func (p *awsPlatform) plain(ctx context.Context, r ref.Ref) (secrets.Value, error) {
	out, err := p.sm.GetSecretValue(ctx, &secretsmanager.GetSecretValueInput{SecretId: aws.String(r.Name)})
	if err != nil {
		return secrets.Value{}, err
	}
	return secrets.NewString(aws.ToString(out.SecretString)), nil
}

func (p *awsPlatform) state(t *testing.T, r ref.Ref, version string) string {
	t.Helper()
	out, err := p.sm.DescribeSecret(t.Context(), &secretsmanager.DescribeSecretInput{SecretId: aws.String(r.Name)})
	must(t, err)
	live, retired := p.states()
	if slices.Contains(out.VersionIdsToStages[version], live) {
		return live
	}
	return retired
}

func (*awsPlatform) states() (string, string) { return "AWSPREVIOUS", "no AWSPREVIOUS" }

func (p *awsPlatform) remove(t *testing.T, r ref.Ref) {
	t.Helper()
	t.Fatalf("nobody asked for the removal of %s: AWS has no sibling that could stay behind", r)
}

func (p *awsPlatform) named(r ref.Ref) string { return p.fake.ARN(r.Name) }

type gcpPlatform struct {
	fake   *gcpfake.Server
	locker secrets.Locker
	direct gcpsm.Clients
}

func newGCP(t *testing.T, locker secrets.Locker) *gcpPlatform {
	t.Helper()
	f := gcpfake.New(t)
	return &gcpPlatform{f, locker, f.Clients(t)}
}

func (p *gcpPlatform) open(t *testing.T, in *crashtest.Injector) secrets.Store {
	t.Helper()
	clients := p.direct
	if in != nil {
		clients = p.fake.Clients(t, func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			return in.Call(method, func() error { return invoke(ctx, method, req, reply, cc, opts...) })
		})
	}
	return gcpsm.New(clients, &gcpsm.Options{Locker: p.locker})
}

const gcpTopic = "projects/" + gcpfake.Project + "/topics/secrets"

func (p *gcpPlatform) create(_ *testing.T, v secrets.Value) ref.Ref {
	r := ref.Ref{Provider: ref.GCP, Scope: gcpfake.Project, Name: fresh()}
	p.fake.Create(&secretmanagerpb.Secret{Name: gcpName(r), Topics: []*secretmanagerpb.Topic{{Name: gcpTopic}}}, string(v.Reveal()))
	return r
}

func gcpName(r ref.Ref) string { return "projects/" + r.ScopePart(0) + "/secrets/" + r.Name }

func (p *gcpPlatform) plain(ctx context.Context, r ref.Ref) (secrets.Value, error) {
	c, err := p.direct(ctx, "")
	if err != nil {
		return secrets.Value{}, err
	}
	out, err := c.AccessSecretVersion(ctx, &secretmanagerpb.AccessSecretVersionRequest{Name: gcpName(r) + "/versions/latest"})
	if err != nil {
		return secrets.Value{}, err
	}
	return secrets.NewValue(out.GetPayload().GetData()), nil
}

func (p *gcpPlatform) state(t *testing.T, r ref.Ref, version string) string {
	t.Helper()
	c, err := p.direct(t.Context(), "")
	must(t, err)
	v, err := c.GetSecretVersion(t.Context(), &secretmanagerpb.GetSecretVersionRequest{Name: gcpName(r) + "/versions/" + version})
	must(t, err)
	return v.GetState().String()
}

func (*gcpPlatform) states() (string, string) { return "ENABLED", "DISABLED" }

func (p *gcpPlatform) remove(_ *testing.T, r ref.Ref) { p.fake.Delete(gcpName(r)) }

func (*gcpPlatform) named(r ref.Ref) string { return r.String() }

const azureVault = "kv-agents"

type azurePlatform struct {
	fake   *azurefake.Server
	locker secrets.Locker
	own    *azsecrets.Client
}

func newAzure(t *testing.T, locker secrets.Locker) *azurePlatform {
	t.Helper()
	f := azurefake.New(t, azureVault)
	o := &azsecrets.ClientOptions{}
	o.Transport = f.Client()
	own, err := azsecrets.NewClient("https://"+azureVault+"."+azurefake.Domain, f.Credential(), o)
	must(t, err)
	return &azurePlatform{f, locker, own}
}

func (p *azurePlatform) open(_ *testing.T, in *crashtest.Injector) secrets.Store {
	rt := p.fake.Transport()
	if in != nil {
		rt = in.Transport(rt)
	}
	o := &azurekv.Options{Locker: p.locker, Logger: slog.New(slog.DiscardHandler)}
	o.Client.Transport = &http.Client{Transport: rt}
	o.Client.Retry = policy.RetryOptions{MaxRetries: -1} // each request is a point
	return azurekv.New(p.fake.Credential(), o)
}

// create makes a secret that is an hour old, since Key Vault tells times in
// whole seconds, and that is valid for long enough not to be rotated at once.
func (p *azurePlatform) create(_ *testing.T, v secrets.Value) ref.Ref {
	r := p.fake.Ref(azureVault, fresh())
	expires := time.Now().Add(90 * 24 * time.Hour).Unix()
	p.fake.Advance(-time.Hour)
	p.fake.Put(azureVault, r.Name, azurefake.Version{Value: string(v.Reveal()), Expires: &expires})
	p.fake.Advance(time.Hour)
	return r
}

func (p *azurePlatform) plain(ctx context.Context, r ref.Ref) (secrets.Value, error) {
	out, err := p.own.GetSecret(ctx, r.Name, "", nil)
	if err != nil {
		return secrets.Value{}, err
	}
	return secrets.NewString(*out.Value), nil
}

func (p *azurePlatform) state(t *testing.T, r ref.Ref, version string) string {
	t.Helper()
	for _, v := range p.fake.Versions(azureVault, r.Name) {
		if v.ID == version {
			return "enabled=" + strconv.FormatBool(v.Enabled)
		}
	}
	t.Fatalf("Key Vault has no version %s of %s", version, r)
	return ""
}

func (*azurePlatform) states() (string, string) { return "enabled=true", "enabled=false" }

func (p *azurePlatform) remove(_ *testing.T, r ref.Ref) { p.fake.Forget(azureVault, r.Name) }

func (*azurePlatform) named(r ref.Ref) string { return r.String() }

type vaultPlatform struct {
	fake *vaultfake.Server
	own  *vault.KVv2
}

const vaultMount = "secret"

func newVault(t *testing.T) *vaultPlatform {
	t.Helper()
	f := vaultfake.New(t)
	return &vaultPlatform{f, f.Client(vaultfake.Root, nil).KVv2(vaultMount)}
}

func (p *vaultPlatform) open(t *testing.T, in *crashtest.Injector) secrets.Store {
	t.Helper()
	rt := p.fake.Transport()
	if in != nil {
		rt = in.Transport(rt)
	}
	s, err := vaultkv.New(p.fake.Client(vaultfake.Root, rt), &vaultkv.Options{Cluster: "main"})
	must(t, err)
	return s
}

func (p *vaultPlatform) create(t *testing.T, v secrets.Value) ref.Ref {
	t.Helper()
	r, err := ref.New(ref.Vault, "team/"+fresh(), "main", "", vaultMount)
	must(t, err)
	_, err = p.open(t, nil).(secrets.Creator).CreateSecret(t.Context(), r, v)
	must(t, err)
	return r
}

func (p *vaultPlatform) plain(ctx context.Context, r ref.Ref) (secrets.Value, error) {
	out, err := p.own.Get(ctx, r.Name)
	if err != nil {
		return secrets.Value{}, err
	}
	b, err := json.Marshal(out.Data)
	return secrets.NewValue(b), err
}

func (p *vaultPlatform) state(t *testing.T, r ref.Ref, version string) string {
	t.Helper()
	all, err := p.own.GetVersionsAsList(t.Context(), r.Name)
	must(t, err)
	for _, v := range all {
		if strconv.Itoa(v.Version) != version {
			continue
		}
		switch {
		case v.Destroyed:
			return "destroyed"
		case !v.DeletionTime.IsZero():
			return "deleted"
		}
		return "there"
	}
	t.Fatalf("Vault has no version %s of %s", version, r)
	return ""
}

func (*vaultPlatform) states() (string, string) { return "there", "deleted" }

func (p *vaultPlatform) remove(t *testing.T, r ref.Ref) {
	t.Helper()
	must(t, p.own.DeleteMetadata(t.Context(), r.Name))
}

func (*vaultPlatform) named(r ref.Ref) string { return r.String() }
