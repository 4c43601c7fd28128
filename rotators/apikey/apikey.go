// Package apikey rotates API keys that an issuer makes over HTTP, as providers
// of language models and most services with keys do. Which issuer, and how it
// is spoken to, is a [Config]; [Presets] lists those that are known.
//
// The secret is a JSON object. Members other than these are kept as they are:
//
//	key       the key
//	id        what the issuer calls it, so that it can be revoked
//	adminarn  the secret that holds the administrator's credential
//
// Create makes a key, which signs in at once; Set has nothing to change; Test
// uses the new key; Retire revokes the old one, or disables it where the
// issuer can do that and undo it. So two keys are alive from one rotation to
// the next, and the issuer must allow two.
//
// An issuer shows a key once. A create whose answer or whose process is lost
// leaves a live key that nobody knows: an orphan. Each key is therefore named
// keyturn-SECRET-TOKEN, where SECRET stands for the secret's ref, and orphans
// are found by that name in the issuer's list and revoked: those of the same
// rotation in Set, when pending is stored and a twin can store no other; those
// of any attempt to succeed the same key in Create, Set and Retire, once they
// are older than [Options.OrphanAge], since a younger one may be about to be
// stored by another process. Keys with other names are never touched.
package apikey

import (
	"context"
	"crypto/sha256"
	"encoding/base32"
	"log/slog"
	"net/http"
	"regexp"
	"strings"
	"time"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/rotators"
	"github.com/keyturn/keyturn/secrets"
)

var (
	_ rotators.Rotator      = (*rotator)(nil)
	_ rotators.Retirer      = (*rotator)(nil)
	_ rotators.Verifier     = (*rotator)(nil)
	_ rotators.DryRunner    = (*rotator)(nil)
	_ rotators.OrphanFinder = finder{}
)

// Options of the rotator. The zero value of each field but Admin means its
// default.
type Options struct {
	// Admin reads the current value of the secret with the administrator's
	// credential, named as in Config.Admin or in adminarn.
	Admin func(ctx context.Context, name string) (secrets.Value, error)
	// Transport makes the calls. http.DefaultTransport by default.
	Transport http.RoundTripper
	// Timeout bounds one call whose context has no nearer deadline. 15 s by
	// default.
	Timeout time.Duration
	// OrphanAge is from when on a key that is no version is an orphan: more
	// than any process needs from making a key to storing it, which is the
	// runner's PhaseTimeout. 5 min by default, never if negative.
	OrphanAge time.Duration
	// Logger gets a line for each orphan. The default discards.
	Logger *slog.Logger
	// Now tells the time.
	Now func() time.Time
}

// defaultOrphanAge is well above the runner's default PhaseTimeout of a
// minute.
const defaultOrphanAge = 5 * time.Minute

type rotator struct {
	cfg                    Config
	opts                   Options
	create, verify, revoke *call
	list, disable, enable  *call // may be nil
	at                     pointers
	client                 *http.Client
	now                    func() time.Time
}

// pointers are where things are in answers and in the admin's secret.
type pointers struct {
	adminKey                                    pointer // nil: the whole secret
	key, id                                     pointer
	items, next, more                           pointer
	listID, listName, listCreated, listDisabled pointer // in an item
}

// New returns the rotator for one issuer, which is a [rotators.Retirer],
// [rotators.Verifier] and [rotators.DryRunner]; with a list request it is a
// [rotators.OrphanFinder], and with requests to disable and enable a
// [rotators.Restorer] and a [rotators.Destroyer]. Errors are of kind Invalid and say
// what is wrong with c: every template is tried with made-up values.
func New(c Config, opts *Options) (rotators.Rotator, error) {
	c, err := c.resolve()
	if err != nil {
		return nil, err
	}
	r := &rotator{cfg: c}
	if opts != nil {
		r.opts = *opts
	}
	if r.opts.Admin == nil {
		return nil, fault.Newf(fault.Invalid, "apikey", "no Options.Admin; it reads the administrator's credential")
	}
	if r.opts.Timeout == 0 {
		r.opts.Timeout = 15 * time.Second
	}
	if r.opts.OrphanAge == 0 {
		r.opts.OrphanAge = defaultOrphanAge
	}
	if r.opts.Logger == nil {
		r.opts.Logger = slog.New(slog.DiscardHandler)
	}
	if r.now = r.opts.Now; r.now == nil {
		r.now = time.Now
	}
	r.client = &http.Client{
		Transport: r.opts.Transport,
		// A redirect would take the credential elsewhere, or turn a POST into
		// a GET.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	if err := r.compile(); err != nil {
		return nil, err
	}
	if err := r.point(); err != nil {
		return nil, err
	}
	switch {
	case r.list != nil && r.disable != nil:
		return struct {
			*rotator
			finder
			switcher
		}{r, finder{r}, switcher{r}}, nil
	case r.list != nil:
		return struct {
			*rotator
			finder
		}{r, finder{r}}, nil
	case r.disable != nil:
		return struct {
			*rotator
			switcher
		}{r, switcher{r}}, nil
	}
	return r, nil
}

func (r *rotator) compile() (err error) {
	c := &r.cfg
	if r.create, err = compile("create", c.Create.Request, c, adminField, "Name"); err != nil {
		return err
	}
	r.create.reads = true
	if r.verify, err = compile("verify", c.Verify, c, keyField, "ID"); err != nil {
		return err
	}
	if r.revoke, err = compile("revoke", c.Revoke, c, adminField, "ID"); err != nil {
		return err
	}
	if c.Disable != nil {
		if r.disable, err = compile("disable", *c.Disable, c, adminField, "ID"); err != nil {
			return err
		}
		if r.enable, err = compile("enable", *c.Enable, c, adminField, "ID"); err != nil {
			return err
		}
	}
	if c.List == nil {
		return nil
	}
	if r.list, err = compile("list", c.List.Request, c, adminField, "Cursor"); err != nil {
		return err
	}
	r.list.reads = true
	return nil
}

func (r *rotator) point() error {
	c, at := &r.cfg, &r.at
	texts := map[*pointer]string{&at.key: c.Create.Key, &at.id: c.Create.ID}
	if c.AdminKey != "-" {
		texts[&at.adminKey] = c.AdminKey
	}
	if l := c.List; l != nil {
		texts[&at.items], texts[&at.listID], texts[&at.listName] = l.Items, l.ID, l.Name
		texts[&at.listCreated], texts[&at.listDisabled] = l.Created, l.Disabled
		if l.Next != "" {
			texts[&at.next] = l.Next
		}
		if l.More != "" {
			texts[&at.more] = l.More
		}
	}
	for p, text := range texts {
		var err error
		if *p, err = parsePointer(text); err != nil {
			return err
		}
	}
	return nil
}

// Create implements [rotators.Rotator].
func (r *rotator) Create(ctx context.Context, c rotators.Change) (secrets.Value, error) {
	cur, err := parse("create", "current", c.Current)
	if err != nil {
		return secrets.Value{}, err
	}
	admin, err := r.admin(ctx, cur)
	if err != nil {
		return secrets.Value{}, err
	}
	if err := r.sweep(ctx, admin, c, cur, nil, ""); err != nil {
		return secrets.Value{}, err
	}
	a, err := r.do(ctx, r.create, data{adminField: admin, "Name": tag(c.Ref) + rotation(c.Token)})
	if err != nil {
		return secrets.Value{}, err
	}
	key, id := r.at.key.text(a.doc), r.at.id.text(a.doc)
	if id == "" || key == "" {
		return secrets.Value{}, fault.Newf(fault.Invalid, r.create.name(), "no key and id where create.key (%s) and create.id (%s) point to in the answer of %s; correct them, and revoke the key that was made", r.cfg.Create.Key, r.cfg.Create.ID, r.create.host)
	}
	return cur.with(key, id)
}

// Set implements [rotators.Rotator]. The key is live already; what is left is
// to revoke those that earlier attempts of this rotation made.
func (r *rotator) Set(ctx context.Context, c rotators.Change) error {
	cur, pend, err := pair("set", c)
	if err != nil {
		return err
	}
	if r.list == nil {
		return nil
	}
	admin, err := r.admin(ctx, cur)
	if err != nil {
		return err
	}
	return r.sweep(ctx, admin, c, cur, pend, c.Token)
}

// Test implements [rotators.Rotator].
func (r *rotator) Test(ctx context.Context, c rotators.Change) error {
	_, pend, err := pair("test", c)
	if err != nil {
		return err
	}
	_, err = r.do(ctx, r.verify, data{keyField: pend.key, "ID": pend.id})
	return err
}

// admin returns the administrator's credential. Its secret is named by the
// configuration or by current, never by pending.
func (r *rotator) admin(ctx context.Context, cur *secret) (string, error) {
	name := r.cfg.Admin
	or(&name, cur.admin)
	if name == "" {
		return "", fault.Newf(fault.Invalid, "apikey: admin", "no secret with the administrator's credential; name it as admin in the configuration, or as adminarn in the secret")
	}
	v, err := r.opts.Admin(ctx, name)
	if err != nil {
		return "", &fault.Error{Kind: fault.KindOf(err), Class: fault.ClassOf(err), Op: "apikey: read the administrator's secret " + name, Err: err}
	}
	if r.at.adminKey == nil {
		if s := strings.TrimSpace(string(v.Reveal())); s != "" {
			return s, nil
		}
	} else if doc, ok := decode(v); ok {
		if s := r.at.adminKey.text(doc); s != "" {
			return s, nil
		}
	}
	return "", fault.Newf(fault.Invalid, "apikey: admin", "the secret %s has no credential where admin_key (%s) points to", name, r.cfg.AdminKey)
}

// tag begins the name of every key that is made for the secret r.
func tag(r ref.Ref) string {
	h := sha256.Sum256([]byte(r.String()))
	return "keyturn-" + strings.ToLower(base32.HexEncoding.WithPadding(base32.NoPadding).EncodeToString(h[:]))[:12] + "-"
}

var plainToken = regexp.MustCompile(`^[A-Za-z0-9-]{1,64}$`)

// rotation is how a rotation token is written in a name.
func rotation(token string) string {
	if plainToken.MatchString(token) {
		return token
	}
	h := sha256.Sum256([]byte(token))
	return strings.ToLower(base32.HexEncoding.WithPadding(base32.NoPadding).EncodeToString(h[:]))
}
