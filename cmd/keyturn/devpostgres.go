package main

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/jackc/pgx/v5"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/pgserver"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/rotators"
	"github.com/keyturn/keyturn/secrets"
)

const pgInstallHint = pgserver.InstallHint

// A demoPostgres is the database whose users rotate: one that dev started, or
// the user's own.
type demoPostgres struct {
	host, db                string
	port                    int
	user, password          string
	caFile                  string
	pool                    *x509.CertPool
	plaintext               bool
	ordersUser, billingUser string
}

// startPostgres returns nil where there is no server to use.
func startPostgres(ctx context.Context, w *world, dsn string) (*demoPostgres, error) {
	d := &demoPostgres{ordersUser: "keyturn_orders", billingUser: "keyturn_billing"}
	if dsn != "" {
		return d, d.fromDSN(dsn)
	}
	bin := pgserver.FindBinaries()
	if bin == "" {
		return nil, nil
	}
	logFile, err := os.OpenFile(w.path("postgres.log"), os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("PostgreSQL log: %w", err)
	}
	o := pgserver.Options{BinDir: bin, Dir: w.path("postgres"), Port: w.ports.Postgres, Log: logFile}
	s, err := pgserver.Start(ctx, o)
	if fault.Is(err, fault.Invalid) && os.Geteuid() == 0 {
		// PostgreSQL does not run as root, and the user that it runs as may be
		// shut out of where root keeps its checkout.
		sum := sha256.Sum256([]byte(w.dir))
		o.Dir = filepath.Join("/var/lib", fmt.Sprintf("keyturn-dev-%x", sum[:6]))
		w.log.InfoContext(ctx, "PostgreSQL keeps its files elsewhere", "dir", o.Dir, "why", err)
		s, err = pgserver.Start(ctx, o)
	}
	if err != nil {
		_ = logFile.Close()
		return nil, err
	}
	w.onClose(func() error { return errors.Join(s.Stop(), logFile.Close()) })
	d.host, d.port, d.db, d.caFile = s.Host, s.Port, "postgres", s.CAFile
	d.user, d.password = s.SuperUser, s.SuperPassword
	d.pool, err = rootCAs(s.CAFile)
	return d, err
}

// fromDSN takes the user's own server. A parser's error could quote the
// password, so it is dropped.
func (d *demoPostgres) fromDSN(dsn string) error {
	c, err := pgx.ParseConfig(dsn)
	if err != nil {
		return fault.Newf(fault.Invalid, "--postgres", "expected postgres://user:password@host:port/db?sslmode=verify-full&sslrootcert=FILE")
	}
	d.host, d.port, d.db, d.user, d.password = c.Host, int(c.Port), c.Database, c.User, c.Password
	d.plaintext = c.TLSConfig == nil
	if c.TLSConfig != nil {
		if c.TLSConfig.InsecureSkipVerify {
			return fault.Newf(fault.Invalid, "--postgres", "the DSN does not verify the server; expected sslmode=verify-full, or sslmode=disable for a server on this machine")
		}
		d.pool = c.TLSConfig.RootCAs
	}
	return nil
}

func (d *demoPostgres) config() map[string]any {
	c := map[string]any{"allow_plaintext": d.plaintext}
	if d.caFile != "" {
		c["ca_file"] = d.caFile
	}
	return c
}

func (d *demoPostgres) tls() *tls.Config {
	if d.plaintext {
		return nil
	}
	return clientTLS(d.pool, d.host)
}

// connect signs in as the superuser.
func (d *demoPostgres) connect(ctx context.Context) (*pgx.Conn, error) {
	c, err := pgx.ParseConfig("")
	if err != nil {
		return nil, fault.Newf(fault.Invalid, "PostgreSQL", "a PG* variable of the environment is damaged")
	}
	c.Host, c.Port, c.Database, c.User, c.Password = d.host, uint16(d.port), d.db, d.user, d.password
	c.TLSConfig, c.Fallbacks = d.tls(), nil
	conn, err := pgx.ConnectConfig(ctx, c)
	if err != nil {
		return nil, fault.New(fault.Unavailable, fmt.Sprintf("sign in to PostgreSQL at %s:%d as %s", d.host, d.port, d.user), err)
	}
	return conn, nil
}

// json is a secret in the form of the AWS samples.
func (d *demoPostgres) json(user, password, master string) secrets.Value {
	m := map[string]any{"engine": "postgres", "host": d.host, "port": d.port, "dbname": d.db, "username": user, "password": password, "ssl": !d.plaintext}
	if master != "" {
		m["masterarn"] = master
	}
	b, _ := json.Marshal(m) // of strings, numbers and booleans
	return secrets.NewValue(b)
}

// seed makes the users, their tables, and the secrets that are not there
// yet. Repeated after a crash it ends the same.
func (d *demoPostgres) seed(ctx context.Context, store seedStore) error {
	conn, err := d.connect(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	if err := ensureSecret(ctx, store, refMaster, func() (secrets.Value, error) {
		return d.json(d.user, d.password, ""), nil
	}); err != nil {
		return err
	}
	for _, u := range []struct{ ref, user, table, master string }{
		{refOrders, d.ordersUser, "keyturn_demo_orders", refMaster},
		{refBilling, d.billingUser, "keyturn_demo_billing", ""},
	} {
		err := ensureSecret(ctx, store, u.ref, func() (secrets.Value, error) {
			password, err := rotators.PasswordPolicy{ExcludePunctuation: true}.Generate()
			if err != nil {
				return secrets.Value{}, err
			}
			if err := seedUser(ctx, conn, u.user, password, u.table); err != nil {
				return secrets.Value{}, fault.New(fault.KindOf(err), "make the demo user "+u.user, err)
			}
			return d.json(u.user, password, u.master), nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// seedUser makes or resets a login and its table. The password is letters and
// digits, made here, and goes over a verified or local connection.
func seedUser(ctx context.Context, conn *pgx.Conn, user, password, table string) error {
	var exists bool
	if err := conn.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = $1)", user).Scan(&exists); err != nil {
		return err
	}
	verb := "CREATE"
	if exists {
		verb = "ALTER"
	}
	name, tab := pgx.Identifier{user}.Sanitize(), pgx.Identifier{table}.Sanitize()
	for _, sql := range []string{
		fmt.Sprintf("%s ROLE %s LOGIN PASSWORD '%s'", verb, name, password),
		fmt.Sprintf("CREATE TABLE IF NOT EXISTS %s (id bigserial PRIMARY KEY, note text NOT NULL)", tab),
		fmt.Sprintf("ALTER TABLE %s OWNER TO %s", tab, name),
	} {
		if _, err := conn.Exec(ctx, sql); err != nil {
			return err
		}
	}
	return nil
}

// seedStore is what seeding needs of a store.
type seedStore interface {
	secrets.Reader
	secrets.Creator
}

// ensureSecret creates a secret that is not there yet.
func ensureSecret(ctx context.Context, store seedStore, name string, first func() (secrets.Value, error)) error {
	r, err := ref.Parse(name)
	if err != nil {
		return err
	}
	if _, err := store.Get(ctx, r, secrets.Current); err == nil || !fault.Is(err, fault.NotFound) {
		return err
	}
	v, err := first()
	if err != nil {
		return err
	}
	_, err = store.CreateSecret(ctx, r, v)
	return err
}

// seed fills the world with what rotates.
func (w *world) seed(ctx context.Context, p *pipeline) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	store, err := p.stores.builtIn(ctx)
	if err != nil {
		return err
	}
	if err := w.issuer.seed(ctx, store, w.pg == nil); err != nil {
		return err
	}
	if w.pg == nil {
		return nil
	}
	return w.pg.seed(ctx, store)
}
