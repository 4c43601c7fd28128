// Package azurekv keeps staged secrets in Azure Key Vault.
//
// # Layout
//
// A plain read of a Key Vault secret returns its newest version, so the
// pending version of <name> is kept in a secret of its own, <name>--pending
// (see package sibling), and promoting it makes it the newest version of
// <name>. Each version says in its tags whose it is: keyturn-token names the
// rotation and keyturn-previous the version that it superseded, written in the
// one call that makes the version. The secret's own tags and content type go
// with it from version to version, and its expiry as [Options.Validity] says.
// A not-before time does not: a version is tested before it becomes current,
// and is valid from then on. The sibling carries none of the secret's tags,
// since there are readers that take every secret with a tag.
//
// # Which version is current
//
// The one that a read without a version returns; a list of versions is in no
// order and tells their age in whole seconds only. Previous is the version
// that current names in its tag. Where nobody noted one, somebody wrote current
// by hand, and previous is the newest older version; of two that were made in
// the same second and do not name each other, nobody can tell which was later,
// and the greater id is taken. If somebody disables the newest version then
// plain readers are refused, and so is Get of Current.
//
// What manages the tags of a secret, such as Terraform, must leave those that
// begin with keyturn- alone: without them a promotion is a version that
// somebody wrote by hand.
//
// # One writer
//
// Key Vault has no compare-and-swap. A writer that stalls between its look and
// its write makes a superseded value current, whatever happened meanwhile: each
// write looks once more right before, which makes that unlikely and no more.
// [Options.Locker] keeps one writer a secret. Without one, run one process
// that writes, or one that holds a lease, such as that on a blob of Azure
// Storage, for as long as it runs.
//
// # Values
//
// A value is a string of at most [MaxValue] bytes of UTF-8, since that is what
// Key Vault hands to plain readers. Anything else is Invalid. Encode what is
// binary before it is stored.
//
// # Disable, destroy, delete
//
// A disabled version cannot be read. Key Vault cannot delete one version of a
// secret: Destroy leaves the value in the vault, disabled and tagged
// keyturn-destroyed, and only refuses to enable it again. It is gone when the
// whole secret has been deleted and purged. Whoever may update the secret can
// enable it by other means.
//
// The sibling is never deleted, since Key Vault keeps the name of a deleted
// secret until it is purged, which takes up to 90 days: what was promoted or
// discarded is disabled, and tagged keyturn-cleared. A pending version that
// somebody disabled by hand stops the rotation with an error that says how to
// enable it, or to discard it. A sibling that somebody deleted is recovered.
//
// # Permissions
//
// A reader needs to get secrets (Key Vault Secrets User). A writer needs to
// get, list (readMetadata), set and update them, and to recover them in case a
// sibling was deleted; the role Key Vault Secrets Officer has all of it.
package azurekv

import (
	"context"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/security/keyvault/azsecrets"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/secrets"
	"github.com/keyturn/keyturn/secrets/sibling"
)

var (
	_ secrets.Store        = (*Store)(nil)
	_ secrets.Succeeder    = (*Store)(nil)
	_ secrets.Creator      = (*Store)(nil)
	_ secrets.Disabler     = (*Store)(nil)
	_ secrets.Checker      = (*Store)(nil)
	_ secrets.OrphanFinder = (*Store)(nil)
	_ secrets.Tagger       = (*Store)(nil)
	_ sibling.Driver       = (*driver)(nil)
)

// Options of a [Store]. The zero value of each field means its default.
type Options struct {
	// Locker keeps one writer a secret; see the package's documentation for
	// why Key Vault needs one. Nil keeps apart the callers of one Store.
	Locker secrets.Locker
	// Logger is warned once of a missing Locker; the default one by default.
	Logger *slog.Logger
	// Timeout bounds each call with its retries, 30 s by default.
	Timeout time.Duration
	// Validity is how long a new version is valid. By default it is as long
	// as the version before it was, from its creation to its expiry, and no
	// time if that one never expires.
	Validity time.Duration
	// ShortValidity allows a validity of 30 days and less; see
	// [NearExpiryLoop] for what then has to be seen to.
	ShortValidity bool
	// VaultURL returns the address of a vault. By default it is in the public
	// cloud, https://<vault>.vault.azure.net.
	VaultURL func(vault string) string
	// Client is handed to the Azure client of each vault. By default it tries
	// a call three times. Logging of bodies is turned off in any case.
	Client azsecrets.ClientOptions
	// RecoveryWait bounds the wait for a deleted sibling to come back, 2 min
	// by default.
	RecoveryWait time.Duration
}

// A Store is the vaults that one credential opens. It is safe for concurrent
// use; by several processes if they share a Locker. Make one with [New].
type Store struct {
	*sibling.Store
	d *driver

	creating sync.Mutex // without a Locker
}

// New returns the store of all vaults that cred opens. It calls nobody. opts
// may be nil.
func New(cred azcore.TokenCredential, opts *Options) *Store {
	d := &driver{cred: credential{cred}, clients: map[string]*azsecrets.Client{}}
	if opts != nil {
		d.opts = *opts
	}
	o := &d.opts
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	if o.Timeout == 0 {
		o.Timeout = 30 * time.Second
	}
	if o.RecoveryWait == 0 {
		o.RecoveryWait = 2 * time.Minute
	}
	if o.VaultURL == nil {
		o.VaultURL = func(vault string) string { return "https://" + vault + ".vault.azure.net" }
	}
	if o.Client.Transport == nil {
		o.Client.Transport = &http.Client{
			Transport: http.DefaultTransport,
			// Key Vault does not redirect, and a value must not follow one.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		}
	}
	if o.Client.Retry.MaxRetries == 0 {
		o.Client.Retry.MaxRetries = 2
	}
	if o.Client.Retry.MaxRetryDelay == 0 {
		o.Client.Retry.MaxRetryDelay = 10 * time.Second
	}
	o.Client.Logging = policy.LogOptions{}
	if o.Locker == nil {
		o.Logger.Warn("Key Vault has no compare-and-swap, and no lock is set: only one process may write secrets at a time")
	}
	return &Store{d: d, Store: sibling.New(d, &sibling.Options{Locker: o.Locker, Logger: o.Logger})}
}

// Get implements [secrets.Reader]. Current is one call, the one that every
// plain reader makes, and needs no other permission; its token is what the
// version's tag says, which Describe compares with other versions and this does
// not. If the newest version is disabled then Current is Denied, as it is to
// everybody.
func (s *Store) Get(ctx context.Context, r ref.Ref, stage secrets.Stage) (*secrets.Version, error) {
	if stage != secrets.Current {
		return s.Store.Get(ctx, r, stage)
	}
	it, err := s.d.get(ctx, "azurekv: get", r, r.Name, "")
	if err != nil {
		return nil, err
	}
	return &secrets.Version{ID: it.version, Token: it.tags[tagToken], Value: it.take(), Created: it.created}, nil
}

// CreateSecret implements [secrets.Creator]. Key Vault has no call that makes
// a secret only if there is none: two processes without a Locker may both
// succeed. The name of a secret that was deleted and not purged is a Conflict.
func (s *Store) CreateSecret(ctx context.Context, r ref.Ref, v secrets.Value) (*secrets.Version, error) {
	if err := s.d.validate("azurekv: create secret", r); err != nil {
		return nil, err
	}
	if s.d.opts.Locker == nil {
		s.creating.Lock()
		defer s.creating.Unlock()
		return s.Store.CreateSecret(ctx, r, v)
	}
	held, unlock, err := s.d.opts.Locker.Lock(ctx, "secret "+r.String())
	if err != nil {
		return nil, err
	}
	defer unlock()
	made, err := s.Store.CreateSecret(held, r, v)
	if err != nil && held.Err() != nil && ctx.Err() == nil {
		return nil, fault.Newf(fault.Unavailable, "azurekv: create secret", "the lock on %s was lost while it was held; try again", r)
	}
	return made, err
}

// A driver is what [sibling.Store] makes a store of.
type driver struct {
	opts Options
	cred azcore.TokenCredential

	mu      sync.Mutex
	clients map[string]*azsecrets.Client // by vault
}

// client returns the client of r's vault. It calls nobody.
func (d *driver) client(op string, r ref.Ref) (*azsecrets.Client, error) {
	if err := d.validate(op, r); err != nil {
		return nil, err
	}
	vault := r.ScopePart(0)
	d.mu.Lock()
	defer d.mu.Unlock()
	if c := d.clients[vault]; c != nil {
		return c, nil
	}
	url := d.opts.VaultURL(vault)
	o := d.opts.Client
	var err error
	if o.Transport, err = guard(op, url, o.Transport); err != nil {
		return nil, err
	}
	c, err := azsecrets.NewClient(url, d.cred, &o)
	if err != nil {
		return nil, fault.Newf(fault.Invalid, op, "the Azure client's options are wrong for vault %s", vault)
	}
	d.clients[vault] = c
	return c, nil
}

// begin checks what can be checked of a call without making it, and bounds
// its time.
func (d *driver) begin(ctx context.Context, op string, r ref.Ref) (context.Context, context.CancelFunc, *azsecrets.Client, error) {
	c, err := d.client(op, r)
	if err != nil {
		return nil, nil, nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, nil, nil, fault.New(fault.Unavailable, op, err)
	}
	ctx, cancel := context.WithTimeout(ctx, d.opts.Timeout)
	return ctx, cancel, c, nil
}
