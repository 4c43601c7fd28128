package natsbus

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/leaktest"
	"github.com/keyturn/keyturn/internal/testenv"
)

// An issuer is an operator with one account and a real server that trusts it.
type issuer struct {
	t       *testing.T
	account nkeys.KeyPair
	url     string
}

func newIssuer(t *testing.T) *issuer {
	t.Helper()
	ok := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	op, err := nkeys.CreateOperator()
	ok(err)
	acc, err := nkeys.CreateAccount()
	ok(err)
	opKey, err := op.PublicKey()
	ok(err)
	accKey, err := acc.PublicKey()
	ok(err)
	text, err := jwt.NewAccountClaims(accKey).Encode(op)
	ok(err)
	res := &server.MemAccResolver{}
	ok(res.Store(accKey, text))
	srv, err := server.NewServer(&server.Options{
		Host: "127.0.0.1", Port: -1, NoSigs: true, NoLog: true, TrustedKeys: []string{opKey}, AccountResolver: res,
	})
	ok(err)
	srv.Start()
	t.Cleanup(func() { srv.Shutdown(); srv.WaitForShutdown() })
	if !srv.ReadyForConnections(limit) {
		t.Fatal("the server did not start")
	}
	return &issuer{t: t, account: acc, url: srv.ClientURL()}
}

// creds makes a creds file's content.
func (i *issuer) creds(ttl time.Duration) []byte {
	i.t.Helper()
	kp, err := nkeys.CreateUser()
	if err != nil {
		i.t.Fatal(err)
	}
	key, _ := kp.PublicKey()
	seed, _ := kp.Seed()
	uc := jwt.NewUserClaims(key)
	if ttl != 0 {
		uc.Expires = time.Now().Add(ttl).Unix()
	}
	text, err := uc.Encode(i.account)
	if err != nil {
		i.t.Fatal(err)
	}
	b, err := jwt.FormatUserConfig(text, seed)
	if err != nil {
		i.t.Fatal(err)
	}
	return b
}

func replace(t *testing.T, file string, b []byte) {
	t.Helper()
	if err := os.WriteFile(file+".new", b, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(file+".new", file); err != nil {
		t.Fatal(err)
	}
}

// watched connects with a creds file and watches it.
func (i *issuer) watched(b []byte, o CredentialsOptions) (nc *nats.Conn, file string, log *leaktest.Recorder, end func() error) {
	i.t.Helper()
	file = filepath.Join(i.t.TempDir(), "a.creds")
	replace(i.t, file, b)
	nc, err := nats.Connect(i.url, nats.UserCredentials(file), nats.MaxReconnects(-1), nats.ReconnectWait(10*time.Millisecond),
		nats.IgnoreAuthErrorAbort(), nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
	if err != nil {
		i.t.Fatal(err)
	}
	i.t.Cleanup(nc.Close)
	log = &leaktest.Recorder{}
	o.Logger = log.Logger()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- WatchCredentials(ctx, nc, file, &o) }()
	ended := false
	end = func() error {
		if ended {
			return nil
		}
		ended = true
		cancel()
		return <-done
	}
	i.t.Cleanup(func() { _ = end() })
	return nc, file, log, end
}

// TestCredentialsAreReplaced: by a rename, and where only the poll sees it;
// what is no creds file changes nothing until it is one.
func TestCredentialsAreReplaced(t *testing.T) {
	i := newIssuer(t)
	nc, file, log, end := i.watched(i.creds(0), CredentialsOptions{Jitter: time.Millisecond, Poll: 50 * time.Millisecond})
	reconnects := func() uint64 { return nc.Stats().Reconnects }
	for name, bad := range map[string][]byte{
		"empty": nil, "garbage": []byte("garbage"), "expired": i.creds(-time.Minute), "half": i.creds(0)[:200],
		"two users": append(i.creds(0)[:strings.Index(string(i.creds(0)), "-----BEGIN USER NKEY SEED")], i.creds(0)[strings.Index(string(i.creds(0)), "-----BEGIN USER NKEY SEED"):]...),
	} {
		replace(t, file, bad)
		if _, err := readCreds(file); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v; expected invalid", name, err)
		}
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, limit, "a warning", func() bool { return strings.Contains(log.String(), "need a look") })
	if n := reconnects(); n != 0 || !nc.IsConnected() {
		t.Errorf("%d reconnects for files that are no credentials", n)
	}
	good := i.creds(time.Hour)
	replace(t, file, good)
	testenv.Eventually(t, limit, "a reconnect", func() bool { return reconnects() == 1 && nc.IsConnected() })
	replace(t, file, good) // nothing new
	replace(t, file, i.creds(0))
	testenv.Eventually(t, limit, "another", func() bool { return reconnects() == 2 && nc.IsConnected() })
	if err := end(); err != nil {
		t.Errorf("%v; expected nil at the end of the context", err)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if len(line) > 40 && !strings.Contains(line, "-") && !strings.Contains(line, "*") {
			log.Check(t, strings.TrimSpace(line))
		}
	}
}

// TestCredentialsThatExpire: the log says that nobody renewed them, and the
// new ones are used before the old ones end.
func TestCredentialsThatExpire(t *testing.T) {
	i := newIssuer(t)
	nc, file, log, _ := i.watched(i.creds(8*time.Second), CredentialsOptions{Jitter: time.Hour, Poll: time.Hour})
	cut := nc.StatusChanged(nats.RECONNECTING)
	testenv.Eventually(t, limit, "a warning", func() bool { return strings.Contains(log.String(), "no newer ones") })
	replace(t, file, i.creds(time.Hour))
	select {
	case <-cut:
	case <-time.After(limit):
		t.Fatal("no reconnect; the jitter of an hour should be cut short")
	}
	testenv.Eventually(t, limit, "the connection", nc.IsConnected)
	if err := nc.LastError(); err != nil {
		t.Errorf("the server cut the connection: %v", err)
	}
}

// TestWatchEndsWithTheConnection: so that its caller knows.
func TestWatchEndsWithTheConnection(t *testing.T) {
	i := newIssuer(t)
	file := filepath.Join(t.TempDir(), "a.creds")
	replace(t, file, i.creds(0))
	nc, err := nats.Connect(i.url, nats.UserCredentials(file))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		done <- WatchCredentials(t.Context(), nc, file, &CredentialsOptions{Poll: 20 * time.Millisecond})
	}()
	nc.Close()
	select {
	case err := <-done:
		if !fault.Is(err, fault.Unavailable) {
			t.Errorf("%v; expected an error of kind unavailable", err)
		}
	case <-time.After(limit):
		t.Fatal("the watch goes on")
	}
}
