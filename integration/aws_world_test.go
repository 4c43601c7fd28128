package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/secretsmanager"
	"github.com/jackc/pgx/v5"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/awsfake"
	"github.com/keyturn/keyturn/internal/lambdarotate"
	"github.com/keyturn/keyturn/internal/leaktest"
	"github.com/keyturn/keyturn/internal/pgserver"
	"github.com/keyturn/keyturn/internal/testenv"
	"github.com/keyturn/keyturn/rotators"
)

const (
	createStep, setStep, testStep, finishStep = "createSecret", "setSecret", "testSecret", "finishSecret"

	current, pending, previous = "AWSCURRENT", "AWSPENDING", "AWSPREVIOUS"
)

var allSteps = []string{createStep, setStep, testStep, finishStep}

// A world is Secrets Manager, perhaps a PostgreSQL server, one secret, and
// the function that rotates it, called in this process as Lambda would.
type world struct {
	t    *testing.T
	fake *awsfake.Server
	tap  *tap
	sm   *secretsmanager.Client // past the tap: what others do
	pg   *pgserver.Server
	log  *leaktest.Recorder // everything that the function printed or returned
	pgl  *leaktest.Recorder // the database's log
	gate *gate              // in front of the database; its port is in secrets
	// plain says that the database has no TLS.
	plain bool
	h     *lambdarotate.Handler
	env   []string
	// The secret under rotation.
	name, arn string
	password  string // of its user, at the start
	// rotationToken is that of the rotation that begin opened last.
	rotationToken string
	canaries      []string
}

// newWorld starts a world without a database, whose secret names one that
// nobody may connect to.
func newWorld(t *testing.T, env ...string) *world {
	t.Helper()
	w := &world{t: t, fake: awsfake.New(t), log: &leaktest.Recorder{}, env: env, name: "orders/app", password: leaktest.Canary()}
	w.tap = newTap(t, w.fake.URL())
	w.sm = w.fake.SecretsManager()
	w.gate = newGate(t, "127.0.0.1:9")
	w.canaries = append(w.canaries, w.password)
	w.arn = w.create(w.name, w.json(nil))
	w.h = w.coldStart(w.env...)
	t.Cleanup(func() {
		if !t.Failed() {
			_, _ = fmt.Fprintln(w.log, "end") // a silent function leaks nothing
			w.log.Check(t, w.canaries...)
		}
	})
	return w
}

// withDatabase starts a world with a PostgreSQL server on which the secret's
// user exists.
func withDatabase(t *testing.T, settings map[string]string, env ...string) *world {
	t.Helper()
	bin := pgserver.FindBinaries()
	if bin == "" {
		testenv.Missing(t, "the PostgreSQL server", pgserver.InstallHint)
	}
	pgl := &leaktest.Recorder{}
	s := map[string]string{"log_statement": "ddl", "log_connections": "on"}
	maps.Copy(s, settings)
	pg, err := pgserver.Start(t.Context(), pgserver.Options{BinDir: bin, Dir: t.TempDir(), Log: pgl, NoSync: true, Settings: s})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := pg.Stop(); err != nil {
			t.Errorf("stop PostgreSQL: %v", err)
		}
	})
	w := newWorld(t, append([]string{"KEYTURN_CA_FILE=" + pg.CAFile}, env...)...)
	w.pg, w.pgl, w.plain = pg, pgl, settings["ssl"] == "off"
	w.gate = newGate(t, net.JoinHostPort(pg.Host, strconv.Itoa(pg.Port)))
	w.super("CREATE ROLE app LOGIN PASSWORD '" + w.password + "'")
	w.replace(w.json(nil))
	return w
}

// config is an AWS configuration for url. Retries are few and quick.
func config(url string) aws.Config {
	return aws.Config{
		Region: awsfake.Region, BaseEndpoint: aws.String(url), RetryMaxAttempts: 2,
		Credentials: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
			return aws.Credentials{AccessKeyID: awsfake.AccessKey, SecretAccessKey: awsfake.SecretKey}, nil
		}),
	}
}

// coldStart makes the function anew, as a new sandbox does.
func (w *world) coldStart(env ...string) *lambdarotate.Handler {
	w.t.Helper()
	e, err := lambdarotate.ParseEnv(env)
	if err != nil {
		w.t.Fatal(err)
	}
	cfg := config(w.tap.srv.URL)
	h, err := lambdarotate.New(w.t.Context(), e, &lambdarotate.Options{Logger: w.log.Logger(), AWS: &cfg})
	if err != nil {
		w.t.Fatal(err)
	}
	return h
}

// json is the secret's JSON with keys changed; a nil value takes a key out.
func (w *world) json(change map[string]any) string {
	w.t.Helper()
	m := map[string]any{
		"engine": "postgres", "host": "127.0.0.1", "port": w.gate.port(), "username": "app", "password": w.password, "dbname": "postgres",
	}
	for k, v := range change {
		if v == nil {
			delete(m, k)
		} else {
			m[k] = v
		}
	}
	b, err := json.Marshal(m)
	if err != nil {
		w.t.Fatal(err)
	}
	return string(b)
}

// create makes a secret and returns its ARN.
func (w *world) create(name, value string) string {
	w.t.Helper()
	out, err := w.sm.CreateSecret(w.t.Context(), &secretsmanager.CreateSecretInput{Name: aws.String(name), SecretString: aws.String(value)})
	if err != nil {
		w.t.Fatal(err)
	}
	return aws.ToString(out.ARN)
}

// replace makes value current by hand.
func (w *world) replace(value string) string {
	w.t.Helper()
	return w.put(rotators.NewToken(), value, current)
}

// put stores a version past the function and returns its id.
func (w *world) put(token, value string, stages ...string) string {
	w.t.Helper()
	_, err := w.sm.PutSecretValue(w.t.Context(), &secretsmanager.PutSecretValueInput{
		SecretId: aws.String(w.arn), ClientRequestToken: aws.String(token), SecretString: aws.String(value), VersionStages: stages,
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return token
}

// begin opens a rotation as Secrets Manager does, and returns its token.
func (w *world) begin() string {
	w.t.Helper()
	token := rotators.NewToken()
	w.rotationToken = w.fake.StartRotation(w.name, token)
	w.canaries = append(w.canaries, w.rotationToken)
	return token
}

// step runs one step as Lambda would, with 30 s.
func (w *world) step(step, token string) error {
	w.t.Helper()
	return w.stepOn(w.h, step, token, 30*time.Second)
}

func (w *world) stepOn(h *lambdarotate.Handler, step, token string, limit time.Duration) error {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), limit)
	defer cancel()
	err := h.Step(ctx, w.event(step, token))
	w.log.Record(err)
	return err
}

// event is what Secrets Manager sends. Once a rotation was begun it has a
// RotationToken.
func (w *world) event(step, token string) []byte {
	m := map[string]string{"Step": step, "SecretId": w.arn, "ClientRequestToken": token}
	if w.rotationToken != "" {
		m["RotationToken"] = w.rotationToken
	}
	b, err := json.Marshal(m)
	if err != nil {
		w.t.Error(err)
	}
	return b
}

// must runs steps that have to succeed.
func (w *world) must(token string, steps ...string) {
	w.t.Helper()
	for _, s := range steps {
		if err := w.step(s, token); err != nil {
			w.t.Fatalf("%s: %v", s, err)
		}
	}
}

// refused runs a step that has to fail with the given kind, and returns the
// error.
func (w *world) refused(step, token string, want fault.Kind) error {
	w.t.Helper()
	err := w.step(step, token)
	if err == nil || fault.KindOf(err) != want {
		w.t.Fatalf("%s: err %v of kind %s; want %s", step, err, fault.KindOf(err), want)
	}
	return err
}

// silent runs f and checks that it wrote nothing to Secrets Manager.
func (w *world) silent(f func()) {
	w.t.Helper()
	n := w.tap.written()
	f()
	if got := w.tap.written(); got != n {
		w.t.Errorf("%d writes to Secrets Manager; want none", got-n)
	}
}

// untouched runs f and checks that it neither wrote to Secrets Manager nor
// connected to a database.
func (w *world) untouched(f func()) {
	w.t.Helper()
	n := w.gate.n.Load()
	w.silent(f)
	if got := w.gate.n.Load(); got != n {
		w.t.Errorf("%d connections to the database; want none", got-n)
	}
}

// holder is the id of the version that has label, or "".
func (w *world) holder(label string) string {
	w.t.Helper()
	out, err := w.sm.DescribeSecret(w.t.Context(), &secretsmanager.DescribeSecretInput{SecretId: aws.String(w.arn)})
	if err != nil {
		w.t.Fatal(err)
	}
	for id, labels := range out.VersionIdsToStages {
		if slices.Contains(labels, label) {
			return id
		}
	}
	return ""
}

// move moves a label by hand.
func (w *world) move(label, from, to string) {
	w.t.Helper()
	in := &secretsmanager.UpdateSecretVersionStageInput{SecretId: aws.String(w.arn), VersionStage: aws.String(label)}
	if from != "" {
		in.RemoveFromVersionId = aws.String(from)
	}
	if to != "" {
		in.MoveToVersionId = aws.String(to)
	}
	if _, err := w.sm.UpdateSecretVersionStage(w.t.Context(), in); err != nil {
		w.t.Fatal(err)
	}
}

// value reads the version with the given id, or the holder of a label. A
// value that the function made is a canary from then on.
func (w *world) value(idOrLabel string) string {
	w.t.Helper()
	in := &secretsmanager.GetSecretValueInput{SecretId: aws.String(w.arn)}
	if strings.HasPrefix(idOrLabel, "AWS") {
		in.VersionStage = aws.String(idOrLabel)
	} else {
		in.VersionId = aws.String(idOrLabel)
	}
	out, err := w.sm.GetSecretValue(w.t.Context(), in)
	if err != nil {
		w.t.Fatal(err)
	}
	if p, ok := w.fields(aws.ToString(out.SecretString))["password"].(string); ok && p != "" {
		w.canaries = append(w.canaries, p)
	}
	return aws.ToString(out.SecretString)
}

// fields reads a secret's JSON, numbers as they were written.
func (w *world) fields(value string) map[string]any {
	w.t.Helper()
	m := map[string]any{}
	dec := json.NewDecoder(bytes.NewReader([]byte(value)))
	dec.UseNumber()
	if err := dec.Decode(&m); err != nil && !errors.Is(err, io.EOF) {
		return nil
	}
	return m
}

// field returns one string of a version.
func (w *world) field(idOrLabel, key string) string {
	w.t.Helper()
	s, _ := w.fields(w.value(idOrLabel))[key].(string)
	return s
}

// super runs statements as the database's superuser.
func (w *world) super(statements ...string) {
	w.t.Helper()
	c := w.superConn()
	defer func() { _ = c.Close(context.Background()) }()
	for _, s := range statements {
		if _, err := c.Exec(w.t.Context(), s); err != nil {
			w.t.Fatalf("%s: %v", s, err)
		}
	}
}

func (w *world) superConn() *pgx.Conn {
	w.t.Helper()
	c, err := pgx.Connect(w.t.Context(), w.dsn(w.pg.SuperUser, w.pg.SuperPassword, "postgres"))
	if err != nil {
		w.t.Fatal(err)
	}
	// The log is about what the function does.
	if _, err := c.Exec(w.t.Context(), "SET log_statement = none"); err != nil {
		w.t.Fatal(err)
	}
	return c
}

// dsn is the database past the gate.
func (w *world) dsn(user, password, db string) string {
	d := w.pg.DSN(user, password, db)
	if w.plain {
		d = strings.Replace(d, "sslmode=verify-full", "sslmode=disable", 1)
	}
	return d
}

// text reads one text from the database.
func (w *world) text(query string, args ...any) string {
	w.t.Helper()
	c := w.superConn()
	defer func() { _ = c.Close(context.Background()) }()
	var s string
	if err := c.QueryRow(w.t.Context(), query, args...).Scan(&s); err != nil {
		w.t.Fatalf("%s: %v", query, err)
	}
	return s
}

// signIn signs in to the database, past the gate.
func (w *world) signIn(user, password, db string) error {
	w.t.Helper()
	c, err := pgx.Connect(w.t.Context(), w.dsn(user, password, db))
	if err == nil {
		err = c.Close(w.t.Context())
	}
	return err
}

// accepts checks whether the database takes the credential of a version.
func (w *world) accepts(idOrLabel string, want bool) {
	w.t.Helper()
	f := w.fields(w.value(idOrLabel))
	err := w.signIn(fmt.Sprint(f["username"]), fmt.Sprint(f["password"]), fmt.Sprint(f["dbname"]))
	if (err == nil) != want {
		w.t.Errorf("sign in as %s (%s): %v; want success %v", f["username"], idOrLabel, err, want)
	}
}

// changes counts the password changes that the database's log tells of.
func (w *world) changes() int { return strings.Count(w.pgl.String(), "ALTER ROLE ") }

// useMaster makes the secret one of alternating users: a master user with its
// own secret, named in masterarn.
func (w *world) useMaster(change map[string]any) (masterARN string) {
	w.t.Helper()
	password := leaktest.Canary()
	w.canaries = append(w.canaries, password)
	w.super("CREATE ROLE master LOGIN CREATEROLE PASSWORD '"+password+"'", "GRANT app TO master WITH ADMIN OPTION")
	m := map[string]any{"username": "master", "password": password}
	maps.Copy(m, change)
	masterARN = w.create("orders/master", w.json(m))
	w.replace(w.json(map[string]any{"masterarn": masterARN}))
	return masterARN
}

// dial brings every database host to the gate.
func (w *world) dial(ctx context.Context, network, _ string) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, network, net.JoinHostPort("127.0.0.1", strconv.Itoa(w.gate.port())))
}
