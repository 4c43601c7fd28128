// Package natskv keeps staged secrets, sealed, in a NATS JetStream key-value
// bucket: the store for those who run no cloud's.
//
// # Layout
//
// One entry of the bucket is one secret: its current, pending and previous
// version, so that each transition is one compare-and-swap of the entry's
// revision and any number of processes may work on it. The bucket keeps no
// history. The tokens of the three versions are the only ones known: a token
// that was promoted before the previous version was is forgotten. What is
// stored is JSON; names, ids, tokens and times are readable to whoever may
// read the bucket, values are not. A program of before [Store.Disable] refuses
// an entry that a later one promoted: update the readers first.
//
// # Sealing
//
// Each value is sealed with XChaCha20-Poly1305 under a random nonce. The ref,
// stage, version id, token and times are bound to it, and that it is disabled,
// so a sealed value that was moved to another secret or stage does not open. Whoever may write to
// the bucket can still put back an older entry of the same secret, or delete
// it; the server's permissions must keep others out. See [Keys] for the keys
// and how to change them.
//
// # Permissions
//
// A reader needs $JS.API.STREAM.INFO.KV_<bucket> and, for each secret,
// $JS.API.DIRECT.GET.KV_<bucket>.$KV.<bucket>.<key>; see [EntryKey] for the last
// part. A writer also needs $KV.<bucket>.<key>. With more than one replica a
// read may come from a follower and lag by moments; a write never builds on
// such a read, since its revision is then refused.
package natskv

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/secrets"
)

var (
	_ secrets.Store     = (*Store)(nil)
	_ secrets.Succeeder = (*Store)(nil)
	_ secrets.Creator   = (*Store)(nil)
	_ secrets.Disabler  = (*Store)(nil)
)

const (
	// MaxValue is the longest value in bytes, as in AWS Secrets Manager.
	MaxValue = 64 << 10
	// maxToken is the longest rotation token in bytes.
	maxToken = 256
	// maxRecord holds three values of MaxValue in base64, with room for
	// their names.
	maxRecord = 384 << 10
)

// Options of a [Store]. The zero value of each field means its default.
type Options struct {
	// Bucket is the name of the key-value bucket, "keyturn" by default.
	Bucket string
	// Replicas is on how many servers the bucket is kept. An existing bucket
	// must have as many. By default a new bucket has one and an existing
	// bucket may have any number.
	Replicas int
	// MaxBytes bounds a bucket that Open creates; a full one refuses writes.
	// No bound by default.
	MaxBytes int64
	// Timeout bounds each call to the server, 5 s by default.
	Timeout time.Duration
}

// keyValue is what a Store calls of [jetstream.KeyValue].
type keyValue interface {
	Get(ctx context.Context, key string) (jetstream.KeyValueEntry, error)
	Create(ctx context.Context, key string, value []byte, opts ...jetstream.KVCreateOpt) (uint64, error)
	Update(ctx context.Context, key string, value []byte, revision uint64) (uint64, error)
	WatchAll(ctx context.Context, opts ...jetstream.WatchOpt) (jetstream.KeyWatcher, error)
	Status(ctx context.Context) (jetstream.KeyValueStatus, error)
}

// A Store is one bucket. It is safe for concurrent use, by several processes
// too; make one with [Open].
type Store struct {
	kv      keyValue
	keys    Keys
	bucket  string
	timeout time.Duration
}

// Open returns the store in a bucket, which it creates where there is none.
// An existing bucket that would lose or refuse what is stored is an error of
// kind Invalid that says what differs; it is not changed. opts may be nil.
func Open(ctx context.Context, js jetstream.JetStream, keys Keys, opts *Options) (*Store, error) {
	var o Options
	if opts != nil {
		o = *opts
	}
	if o.Bucket == "" {
		o.Bucket = "keyturn"
	}
	if o.Replicas < 0 || o.Replicas > 5 || o.MaxBytes < 0 {
		return nil, fault.Newf(fault.Invalid, "natskv: open", "%d replicas and a limit of %d bytes; expected 0 to 5 replicas and no negative limit", o.Replicas, o.MaxBytes)
	}
	if len(keys.ring) == 0 {
		return nil, fault.Newf(fault.Invalid, "natskv: open", "the keyring is empty; load one with LoadKeys")
	}
	s := newStore(nil, keys, o.Bucket, o.Timeout)
	if most := js.Conn().MaxPayload(); most > 0 && most < maxRecord {
		return nil, fault.Newf(fault.Invalid, "natskv: open", "the server takes messages of up to %d bytes; expected at least %d; raise max_payload", most, maxRecord)
	}
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	kv, err := js.KeyValue(ctx, o.Bucket)
	if errors.Is(err, jetstream.ErrBucketNotFound) {
		kv, err = js.CreateKeyValue(ctx, jetstream.KeyValueConfig{
			Bucket: o.Bucket, Description: "Sealed secrets of Keyturn", History: 1, Storage: jetstream.FileStorage,
			Replicas: max(o.Replicas, 1), MaxBytes: o.MaxBytes, MaxValueSize: maxRecord,
		})
		if errors.Is(err, jetstream.ErrBucketExists) {
			kv, err = js.KeyValue(ctx, o.Bucket) // another process was faster
		}
	}
	if err != nil {
		return nil, classify("natskv: open bucket "+o.Bucket, err)
	}
	status, err := kv.Status(ctx)
	if err != nil {
		return nil, classify("natskv: open bucket "+o.Bucket, err)
	}
	info, ok := status.(*jetstream.KeyValueBucketStatus)
	if !ok {
		return nil, fault.Newf(fault.Unknown, "natskv: open bucket "+o.Bucket, "the client told its status as %T", status)
	}
	if err := verify(o, info.StreamInfo().Config); err != nil {
		return nil, err
	}
	s.kv = kv
	return s, nil
}

func newStore(kv keyValue, keys Keys, bucket string, timeout time.Duration) *Store {
	if timeout <= 0 {
		timeout = 5 * time.Second
	}
	return &Store{kv: kv, keys: keys, bucket: bucket, timeout: timeout}
}

// verify says in which way a bucket would lose or refuse what is stored.
func verify(o Options, c jetstream.StreamConfig) error {
	edit := "nats stream edit " + c.Name
	for _, d := range []struct {
		bad                   bool
		what, found, expected string
		repair                string
	}{
		{c.Storage != jetstream.FileStorage, "storage", c.Storage.String(), "file", "storage cannot be changed, so take another bucket"},
		{c.MaxMsgsPerSubject != 1, "history", fmt.Sprint(c.MaxMsgsPerSubject), "1, so that no superseded value stays", edit + " --max-msgs-per-subject 1"},
		{c.MaxAge != 0, "time to live", c.MaxAge.String(), "none, since secrets would vanish", edit + " --max-age 0"},
		{c.MaxMsgs > 0, "limit of messages", fmt.Sprint(c.MaxMsgs), "none", edit + " --max-msgs=-1"},
		{c.Discard != jetstream.DiscardNew, "discard policy", c.Discard.String(), "new, since a full bucket would drop secrets", edit + " --discard new"},
		{c.MaxMsgSize >= 0 && c.MaxMsgSize < maxRecord, "longest value", fmt.Sprint(c.MaxMsgSize), fmt.Sprintf("at least %d", maxRecord), fmt.Sprintf("%s --max-msg-size %d", edit, maxRecord)},
		{o.Replicas != 0 && c.Replicas != o.Replicas, "replicas", fmt.Sprint(c.Replicas), fmt.Sprint(o.Replicas), fmt.Sprintf("%s --replicas %d", edit, o.Replicas)},
		{c.Mirror != nil || len(c.Sources) > 0, "origin", "a copy of another stream", "a bucket of its own", "take another bucket"},
	} {
		if d.bad {
			return fault.Newf(fault.Invalid, "natskv: open", "bucket %s exists with %s %s; expected %s; %s", o.Bucket, d.what, d.found, d.expected, d.repair)
		}
	}
	return nil
}

// Bucket returns the name of the bucket, which is the scope of every ref.
func (s *Store) Bucket() string { return s.bucket }

// key checks r and returns the key of its entry.
func (s *Store) key(op string, r ref.Ref) (string, error) {
	if err := r.Validate(); err != nil {
		return "", fault.New(fault.Invalid, op, err)
	}
	if r.Provider != ref.NATS || r.ScopePart(0) != s.bucket {
		return "", fault.Newf(fault.Invalid, op, "%s is not in this store; expected nats://%s/NAME", r, s.bucket)
	}
	k := EntryKey(r.Name)
	if len(k) > maxKey {
		return "", fault.Newf(fault.Invalid, op, "the name of %s takes %d bytes as a key; expected at most %d", r, len(k), maxKey)
	}
	return k, nil
}

// List returns the refs of all secrets in the bucket, in no order. It fails
// rather than return a part of them: an entry that is written while it lists
// is told after the others, so they are counted.
func (s *Store) List(ctx context.Context) ([]ref.Ref, error) {
	op := "natskv: list bucket " + s.bucket
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	slow := time.AfterFunc(s.timeout, cancel) // the watch lives as long as its context
	w, err := s.kv.WatchAll(ctx, jetstream.MetaOnly())
	slow.Stop()
	if err != nil {
		return nil, classify(op, err)
	}
	defer func() { _ = w.Stop() }()
	quiet := time.NewTimer(s.timeout)
	defer quiet.Stop()
	live := map[string]bool{} // by key; a deleted one is not
	expected := -1            // entries, unknown until the watch has told what was there
	for expected < 0 || len(live) < expected {
		select {
		case <-ctx.Done():
			return nil, classify(op, ctx.Err())
		case <-quiet.C:
			return nil, fault.Newf(fault.Unavailable, op, "no answer for %s after %d secrets; try again", s.timeout, len(live))
		case e, ok := <-w.Updates():
			if !ok {
				return nil, fault.Newf(fault.Unavailable, op, "the subscription ended after %d secrets; try again", len(live))
			}
			quiet.Reset(s.timeout)
			if e != nil {
				live[e.Key()] = e.Operation() == jetstream.KeyValuePut
				continue
			}
			bounded, cancel := context.WithTimeout(ctx, s.timeout)
			status, err := s.kv.Status(bounded)
			cancel()
			if err != nil {
				return nil, classify(op, err)
			}
			expected = int(status.Values())
		}
	}
	var refs []ref.Ref
	for key, is := range live {
		name, err := EntryName(key)
		if err != nil || !is {
			continue // not ours, or deleted
		}
		r, err := ref.New(ref.NATS, name, s.bucket)
		if err != nil {
			return nil, err
		}
		refs = append(refs, r)
	}
	return refs, nil
}
