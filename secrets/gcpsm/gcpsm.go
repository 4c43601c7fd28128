// Package gcpsm is a [secrets.Store] on GCP Secret Manager, for global and
// regional secrets: gcp://<project>/<name> and
// gcp://<project>/<location>/<name>.
//
// # Stages
//
// Current is the newest version that was created, since that is what every
// plain reader of `latest` gets. If somebody disabled or destroyed it, plain
// readers fail, and so does Get.
// Pending is kept in a secret of its own, <name>--pending; see package sibling.
// Previous is the version that the current one superseded.
// The aliases `current` and `previous` follow, for readers that ask by alias;
// they are moved moments after `latest` does.
//
// # What is noted where
//
// A version has neither labels nor a client's token, so tokens are noted in
// annotations of the secret, beside the number of the version they belong to:
//
//   - keyturn-versions on the main secret: the current and the previous version
//     with their tokens, and which was enabled again. It is written together
//     with the aliases in one update under the secret's etag; other
//     annotations and aliases stay as they are.
//   - keyturn-pending on the sibling: the number, token and predecessor of the
//     pending version. The value is added first and this pointer is set after
//     it, under the etag, so token, predecessor and value are one unit: a
//     version that the pointer does not name was never pending, whoever added
//     it and however late. What a process that died or lost has added is
//     destroyed with the next Clear.
//     A pending version that somebody else disabled is neither given back nor
//     given up: its credential may be in use, so all that needs the sibling is
//     a Conflict until it is enabled, or destroyed. The current version can be
//     read all the while.
//   - keyturn-claim on the main secret: who is about to add a version to it.
//   - keyturn-secret on the sibling: whose it is.
//
// # Two writers
//
// Adding a version has no precondition and no client token, so nothing can
// make it depend on the state of the secret. Who wants to add sets a claim
// under the secret's etag, looks whether the newest version still is the one
// that it read, and adds, all of it within one deadline of Options.Timeout.
// Who finds another's claim waits until that has added, or longer than the
// other's deadline, and takes over. What remains:
//
//   - a version that somebody adds by hand between the look and the addition
//     is superseded unseen;
//   - an addition that the service carries out more than a quarter of Timeout
//     after its client has given up can make a superseded value current, as can
//     a process that stood still for that long between its clock and the wire.
//
// A claim tells whether it was made under Options.Locker. Who holds the lock
// waits for no such claim, since its holder has ended, and for every other: a
// process without a lock may write beside those that have one, and then waits
// and is waited for. Where all have the lock, nothing of this remains but what
// is added by hand.
//
// # The sibling
//
// It should be there before the first rotation, made with the replication and
// the keys of the main secret and nothing else, and with the same permissions.
// Otherwise it is created on demand with the replication, the labels and the
// customer-managed keys of the main secret. It gets no topics, since they would
// announce a pending version to everyone who listens for new ones, no rotation,
// which needs topics, no expiry, which would delete a pending version, and no
// delayed destruction, which would keep it. Later changes of the main secret's
// keys do not follow.
//
// On demand works only with permissions on the project. What is granted on
// secrets says nothing of one that is not there, and the service then answers
// that the permission is missing "or it may not exist", which is Denied here:
// a sibling that may hold a pending version is not taken for none.
//
// # Retiring
//
// Disable and Enable set the state. Destroy leaves a version alone that somebody
// enabled meanwhile, which its etag tells. It destroys for good, unless the
// secret has a version_destroy_ttl: the version is then scheduled for
// destruction and can be brought back with Enable until the time has come.
// https://cloud.google.com/secret-manager/docs/delayed-destruction
//
// # Permissions
//
// A [Reader] needs secretmanager.versions.access, which is
// roles/secretmanager.secretAccessor, and its reads count against the quota of
// accesses, which is 150 times that of other reads. A Store needs, on the
// secret and its sibling, secretmanager.secrets.{get,update} and
// secretmanager.versions.{get,list,access,add,enable,disable,destroy}. To make
// the sibling on demand it needs these on the project, where a condition on
// resource.name can limit them to the two, and beside them
// secretmanager.secrets.create, which such a condition would refuse: making a
// secret is about the project. See [Store.Check].
// https://cloud.google.com/secret-manager/docs/access-control
// https://cloud.google.com/iam/docs/conditions-resource-attributes#resource-name
// https://cloud.google.com/secret-manager/quotas
package gcpsm

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/secrets"
	"github.com/keyturn/keyturn/secrets/sibling"
)

// Limits of the service.
// https://cloud.google.com/secret-manager/quotas
const (
	// MaxValue is the longest value in bytes.
	MaxValue = 64 << 10
	// maxToken is the longest rotation token in bytes: three of them must fit
	// into the annotations of a secret beside what others keep there.
	maxToken = 256
)

// Options of [New] and [NewReader]. The zero value of each field means its
// default.
type Options struct {
	// Timeout bounds each call to the service, 10 s by default. It also is how
	// long a claim counts; all writers of a secret must have the same.
	Timeout time.Duration
	// Locker keeps one writer a secret, and is recommended wherever there is
	// one: where all writers have the same, it ends what claims leave open, and
	// nobody waits for a claim whose holder died. One without it may write too,
	// as a function does beside a command; it is known by its claim.
	Locker secrets.Locker
	// NoAliases leaves the aliases of secrets alone.
	NoAliases bool
	// Projects resolves project ids and numbers; by default the Store has one
	// of its own, which learns from the service's answers.
	Projects *Projects
	// Logger hears of what was found half done. The default discards.
	Logger *slog.Logger
}

func (o *Options) defaults() Options {
	var out Options
	if o != nil {
		out = *o
	}
	if out.Timeout <= 0 {
		out.Timeout = 10 * time.Second
	}
	if out.Projects == nil {
		out.Projects = &Projects{}
	}
	if out.Logger == nil {
		out.Logger = slog.New(slog.DiscardHandler)
	}
	return out
}

// A Store is the secrets that its clients' credentials may use, of any project
// and location. It is safe for concurrent use, by several processes as far as
// the package comment says.
type Store struct {
	*sibling.Store
	d *driver
}

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

// New returns a Store. opts may be nil.
func New(clients Clients, opts *Options) *Store {
	o := opts.defaults()
	d := &driver{clients: clients, opts: o}
	return &Store{Store: sibling.New(d, &sibling.Options{Locker: o.Locker, Logger: o.Logger}), d: d}
}

// driver is what package sibling needs of the service.
type driver struct {
	clients Clients
	opts    Options
}

// Get implements [secrets.Reader]. A current version that was disabled or
// destroyed is Denied, since every plain reader fails too until somebody acts.
func (s *Store) Get(ctx context.Context, r ref.Ref, stage secrets.Stage) (*secrets.Version, error) {
	v, err := s.Store.Get(ctx, r, stage)
	if stage != secrets.Current || !fault.Is(err, fault.NotFound) {
		return v, err
	}
	m, merr := s.d.Main(ctx, r)
	if merr != nil || m.Current == nil || !m.Current.Disabled {
		return nil, err
	}
	return nil, &fault.Error{
		Kind: fault.Denied, Op: "gcpsm: get",
		Msg: fmt.Sprintf("the newest version %s of %s is disabled or destroyed, so plain readers fail too; enable it, or add a version", m.Current.ID, r),
	}
}
