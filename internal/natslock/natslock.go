// Package natslock keeps locks between processes in a NATS JetStream
// key-value bucket: one writer or many readers a name.
//
// # How
//
// A name is one entry, which lists its holders, and every change of it is a
// compare-and-swap of its revision. A holder adds one to its beat every third
// of its TTL. No two machines' clocks are compared: who waits watches the
// entry, and evicts a holder whose beat it has seen unchanged for that
// holder's TTL by its own monotonic clock. A holder gives up sooner: its
// context ends three quarters of a TTL after it sent the last beat that was
// stored, whatever the network does, and others cannot have seen that beat
// before it was sent.
//
// A writer that finds readers notes itself in the entry, and no reader enters
// past the note: the readers that are in come out, and the writer is next. Its
// note beats like a holder, so that a dead one keeps nobody out. Where a
// writer holds the lock nobody is noted, and all who wait, readers too, have
// the same chance when it leaves: neither side starves the other.
//
// # What it guarantees
//
// While a held context has not ended, nobody else holds the name in a way that
// excludes it, provided that the clocks of the machines run at about the same
// rate (within a quarter), and that the server keeps what it acknowledged. One
// replica on a machine that loses power may forget the last seconds; use three
// where that matters.
//
// # What it does not
//
// A process that is paused, by its machine or a debugger, may act after it
// lost the lock, before it can see that. Check the context right before an
// effect, and do not count on the lock where a compare-and-swap of the store
// itself can decide: that one fences, this one only keeps order. The lock is
// not reentrant. Every holder writes to the entry: it is made for tens of
// readers a name, not for thousands.
package natslock

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/secrets"
)

var _ secrets.Locker = (*Locks)(nil)

const (
	// DefaultTTL is how long the lock of a dead process keeps others out.
	DefaultTTL = 15 * time.Second
	// minTTL leaves time for a beat and its repetition; maxTTL is far below
	// backstop.
	minTTL, maxTTL = 200 * time.Millisecond, time.Hour
	// backstop is after which time the server drops an entry that nobody wrote
	// to. It only tidies: a holder writes all the time.
	backstop = 24 * time.Hour
	// callTimeout bounds each call to the server.
	callTimeout = 5 * time.Second
)

// Options of [Open]. The zero value of each field means its default.
type Options struct {
	// Bucket is the name of the key-value bucket, "keyturn-locks" by default.
	// It holds nothing but locks.
	Bucket string
	// Replicas is on how many servers a new bucket is kept, one by default. An
	// existing bucket must have as many, if it is set.
	Replicas int
	// TTL is how long the lock of a process that died keeps others out, and
	// how long an outage of the server a holder survives three quarters of.
	// DefaultTTL by default. Each process may have its own.
	TTL time.Duration
	// Logger gets a line when a lock is lost or a holder evicted. The default
	// discards.
	Logger *slog.Logger
}

// keyValue is what Locks call of [jetstream.KeyValue].
type keyValue interface {
	Get(ctx context.Context, key string) (jetstream.KeyValueEntry, error)
	Create(ctx context.Context, key string, value []byte, opts ...jetstream.KVCreateOpt) (uint64, error)
	Update(ctx context.Context, key string, value []byte, revision uint64) (uint64, error)
	Watch(ctx context.Context, keys string, opts ...jetstream.WatchOpt) (jetstream.KeyWatcher, error)
}

// Locks are the locks of one bucket. They are safe for concurrent use; make
// them with [Open].
type Locks struct {
	kv  keyValue
	ttl time.Duration
	log *slog.Logger
}

// Open returns the locks in a bucket, which it creates where there is none. An
// existing bucket that would lose locks is Invalid and not changed. opts may
// be nil.
func Open(ctx context.Context, js jetstream.JetStream, opts *Options) (*Locks, error) {
	const op = "natslock: open"
	var o Options
	if opts != nil {
		o = *opts
	}
	if o.Bucket == "" {
		o.Bucket = "keyturn-locks"
	}
	if o.TTL == 0 {
		o.TTL = DefaultTTL
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.TTL < minTTL || o.TTL > maxTTL || o.Replicas < 0 || o.Replicas > 5 {
		return nil, fault.Newf(fault.Invalid, op, "a TTL of %s and %d replicas; expected %s to %s and 0 to 5", o.TTL, o.Replicas, minTTL, maxTTL)
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	kv, err := js.KeyValue(ctx, o.Bucket)
	if errors.Is(err, jetstream.ErrBucketNotFound) {
		kv, err = js.CreateKeyValue(ctx, jetstream.KeyValueConfig{
			Bucket: o.Bucket, Description: "Locks of Keyturn", History: 1, Storage: jetstream.FileStorage,
			Replicas: max(o.Replicas, 1), TTL: backstop, MaxValueSize: maxEntry,
		})
		if errors.Is(err, jetstream.ErrBucketExists) {
			kv, err = js.KeyValue(ctx, o.Bucket) // another process was faster
		}
	}
	if err != nil {
		return nil, classify(op+" bucket "+o.Bucket, err)
	}
	status, err := kv.Status(ctx)
	if err != nil {
		return nil, classify(op+" bucket "+o.Bucket, err)
	}
	info, ok := status.(*jetstream.KeyValueBucketStatus)
	if !ok {
		return nil, fault.Newf(fault.Unknown, op, "the client told the status of bucket %s as %T", o.Bucket, status)
	}
	switch c := info.StreamInfo().Config; {
	case c.MaxAge != 0 && c.MaxAge < backstop:
		return nil, fault.Newf(fault.Invalid, op, "bucket %s drops entries after %s; expected %s or never; set it with nats stream edit %s --max-age %s", o.Bucket, c.MaxAge, backstop, c.Name, backstop)
	case c.Storage != jetstream.FileStorage:
		return nil, fault.Newf(fault.Invalid, op, "bucket %s is kept in memory, so a restart of the server would free every lock; take another bucket", o.Bucket)
	case o.Replicas != 0 && c.Replicas != o.Replicas:
		return nil, fault.Newf(fault.Invalid, op, "bucket %s has %d replicas; expected %d; set it with nats stream edit %s --replicas %d", o.Bucket, c.Replicas, o.Replicas, c.Name, o.Replicas)
	}
	return &Locks{kv: kv, ttl: o.TTL, log: o.Logger}, nil
}

// Lock implements [secrets.Locker]: it waits until nobody else holds name,
// neither as a writer nor as a reader. An outage of the server is waited for
// too. Errors: Unavailable, ctx ended or the connection was closed; Denied,
// the server refuses the user or the entry is not ours; Invalid, the name is
// empty.
//
// held ends when ctx does, when the lock is lost, and with unlock. The lock is
// kept until then: whoever lets ctx end and works on may lose it. unlock
// waits a little for the server and gives up then, so that the others wait for
// a TTL. It may be called more than once, by several goroutines too.
func (l *Locks) Lock(ctx context.Context, name string) (held context.Context, unlock func(), err error) {
	return l.acquire(ctx, "natslock: lock", name, write)
}

// RLock is Lock for a reader: it waits until no writer holds name or waits
// for the readers to leave.
func (l *Locks) RLock(ctx context.Context, name string) (held context.Context, unlock func(), err error) {
	return l.acquire(ctx, "natslock: read lock", name, read)
}

func (l *Locks) acquire(ctx context.Context, op, name string, m mode) (context.Context, func(), error) {
	if name == "" {
		return nil, nil, fault.Newf(fault.Invalid, op, "the name is empty; expected one such as that of a secret")
	}
	w := &waiter{
		op: op, seat: seat{locks: l, key: entryKey(name), name: name, id: rand.Text()},
		mode: m, seen: map[string]sighting{},
	}
	sent, err := w.wait(ctx)
	if err != nil {
		if w.wrote {
			w.release(ctx)
		}
		return nil, nil, err
	}
	h := newHold(ctx, w.seat, sent)
	return h.ctx, h.unlock, nil
}
