package natsbus

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"github.com/fsnotify/fsnotify"
	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats.go"

	"github.com/keyturn/keyturn/fault"
)

// The defaults of [CredentialsOptions].
const (
	DefaultCredentialsPoll   = 30 * time.Second
	DefaultCredentialsJitter = 5 * time.Second
	DefaultCredentialsMargin = 5 * time.Minute
)

// credentialsSettle is how long a changed file must stay as it is before it is
// used: who writes it in two steps is done by then.
const credentialsSettle = 100 * time.Millisecond

// maxCreds bounds a creds file; one has about 1 KiB.
const maxCreds = 64 << 10

// CredentialsOptions of [WatchCredentials]. The zero value of each field means
// its default, and a nil *CredentialsOptions means all defaults.
type CredentialsOptions struct {
	// Poll is how often the file is looked at where nothing tells of changes,
	// as on a network file system.
	Poll time.Duration
	// Jitter is up to how long a reconnect waits, so that a fleet whose files
	// change together does not come back in one instant. It is shortened where
	// the credentials in use expire before.
	Jitter time.Duration
	// Margin is how long before the credentials in use expire the log begins
	// to warn that nobody renewed them.
	Margin time.Duration
	// Logger takes changes of state. Default: discard. It never gets a part of
	// the file.
	Logger *slog.Logger
}

func (o *CredentialsOptions) withDefaults() CredentialsOptions {
	var d CredentialsOptions
	if o != nil {
		d = *o
	}
	if d.Poll <= 0 {
		d.Poll = DefaultCredentialsPoll
	}
	if d.Jitter <= 0 {
		d.Jitter = DefaultCredentialsJitter
	}
	if d.Margin <= 0 {
		d.Margin = DefaultCredentialsMargin
	}
	if d.Logger == nil {
		d.Logger = slog.New(slog.DiscardHandler)
	}
	return d
}

// WatchCredentials reconnects nc whenever the creds file that it signs in with
// has been replaced, before the server cuts a connection whose credentials
// expire or are revoked. nc must have been made with
// nats.UserCredentials(file), which reads the file at each connect. The
// subscriptions stand again with the new connection, and a [Subscriber]
// replays what was published in the moment between.
//
// Call it when nc is connected; it returns nil when ctx is done, and an error
// of kind Unavailable when nc is closed for good. A file that is missing, is no
// creds file or has expired is not used: the connection stays as it is, and
// the log says so. The file should be replaced by a rename; its directory is
// watched, so links as in a Kubernetes volume work too. opts may be nil.
//
// A server that refuses the same client twice in a row makes nats.go give up
// for good unless it was told nats.IgnoreAuthErrorAbort.
func WatchCredentials(ctx context.Context, nc *nats.Conn, file string, opts *CredentialsOptions) error {
	w := &credsWatch{nc: nc, file: file, opts: opts.withDefaults()}
	// Watched before the first reading: a change between the two is seen.
	changed, stop := watchDir(filepath.Dir(file), w.opts.Logger)
	defer stop()
	closed := nc.StatusChanged(nats.CLOSED)
	defer nc.RemoveStatusListener(closed)
	if c, err := readCreds(file); err != nil {
		w.warn(ctx, err)
	} else {
		w.inUse = c
	}
	for {
		// The warning of an expiry to come has its own time; so has the last
		// moment at which a new file helps.
		wait := w.opts.Poll
		if left := time.Until(w.inUse.expires); !w.inUse.expires.IsZero() && left > 0 {
			wait = min(wait, max(left/4, credentialsSettle))
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return nil
		case <-closed:
			t.Stop()
			return classify("watch credentials", nats.ErrConnectionClosed)
		case <-changed:
			t.Stop()
			if !pause(ctx, credentialsSettle) {
				return nil
			}
			drain(changed)
		case <-t.C:
		}
		if nc.IsClosed() {
			return classify("watch credentials", nats.ErrConnectionClosed)
		}
		if err := w.look(ctx); err != nil {
			return err
		}
	}
}

// credsWatch is one call of WatchCredentials.
type credsWatch struct {
	nc     *nats.Conn
	file   string
	opts   CredentialsOptions
	inUse  creds
	warned bool
}

// look reads the file, and reconnects if it is new and good.
func (w *credsWatch) look(ctx context.Context) error {
	c, err := readCreds(w.file)
	switch {
	case err != nil:
		w.warn(ctx, err)
		return nil
	case c.sum == w.inUse.sum:
		left := time.Until(c.expires)
		if !c.expires.IsZero() && left < w.opts.Margin {
			w.warn(ctx, fault.Newf(fault.Denied, "natsbus: credentials", "they expire at %s, and the file holds no newer ones", c.expires.UTC().Format(time.RFC3339)))
		}
		return nil
	}
	jitter := w.opts.Jitter
	if left := time.Until(w.inUse.expires); !w.inUse.expires.IsZero() {
		jitter = min(jitter, max(left/2, 1))
	}
	if !pause(ctx, rand.N(jitter)) {
		return nil
	}
	w.inUse, w.warned = c, false
	if err := w.nc.ForceReconnect(); err != nil {
		return classify("watch credentials", err)
	}
	w.opts.Logger.InfoContext(ctx, "the NATS credentials were replaced; reconnecting with the new ones", "file", w.file)
	return nil
}

// warn says it once, until the file is good again.
func (w *credsWatch) warn(ctx context.Context, err error) {
	if !w.warned {
		w.warned = true
		w.opts.Logger.WarnContext(ctx, "the NATS credentials need a look; the connection stays as it is", "file", w.file, "error", err)
	}
}

// creds is what is known of a creds file: neither the token nor the seed.
type creds struct {
	sum     [sha256.Size]byte
	expires time.Time // zero: never
}

// readCreds reads a creds file that can be used now. Errors quote nothing.
func readCreds(file string) (creds, error) {
	bad := func(why string) (creds, error) {
		return creds{}, fault.Newf(fault.Invalid, "natsbus: credentials", "%s %s; expected a creds file with a user JWT and its nkey seed", file, why)
	}
	info, err := os.Stat(file)
	if err != nil {
		return creds{}, fault.New(fault.NotFound, "natsbus: credentials", err)
	}
	if info.Size() > maxCreds {
		return bad("is too large")
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return creds{}, fault.New(fault.NotFound, "natsbus: credentials", err)
	}
	defer clear(b)
	text, err := jwt.ParseDecoratedJWT(b)
	if err != nil {
		return bad("holds no JWT")
	}
	uc, err := jwt.DecodeUserClaims(text)
	if err != nil {
		return bad("holds no user JWT")
	}
	kp, err := jwt.ParseDecoratedUserNKey(b)
	if err != nil {
		return bad("holds no seed")
	}
	defer kp.Wipe()
	if public, err := kp.PublicKey(); err != nil || public != uc.Subject {
		return bad("holds the seed of another user")
	}
	c := creds{sum: sha256.Sum256(bytes.TrimSpace(b))}
	if uc.Expires > 0 {
		c.expires = time.Unix(uc.Expires, 0)
		if !time.Now().Before(c.expires) {
			return bad("has expired at " + c.expires.UTC().Format(time.RFC3339))
		}
	}
	return c, nil
}

// watchDir tells of changes in a directory. Where it cannot be watched there
// is the poll.
func watchDir(dir string, log *slog.Logger) (changed chan struct{}, stop func()) {
	changed = make(chan struct{}, 1)
	fw, err := fsnotify.NewWatcher()
	if err == nil {
		err = fw.Add(dir)
		if err != nil {
			err = errors.Join(err, fw.Close())
		}
	}
	if err != nil {
		log.Info("the directory of the NATS credentials cannot be watched; it is polled", "error", err)
		return changed, func() {}
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case _, ok := <-fw.Events:
				if !ok {
					return
				}
			case _, ok := <-fw.Errors: // an overflow: something changed
				if !ok {
					return
				}
			}
			select {
			case changed <- struct{}{}:
			default:
			}
		}
	}()
	return changed, func() { _ = fw.Close(); <-done }
}

func drain(ch <-chan struct{}) {
	select {
	case <-ch:
	default:
	}
}
