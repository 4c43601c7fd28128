package integration

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/lambdarotate"
	"github.com/keyturn/keyturn/internal/testenv"
	"github.com/keyturn/keyturn/rotators"
	"github.com/keyturn/keyturn/rotators/postgres"
)

// C12: set repeated after success finds that pending signs in.
func TestC12_SetRepeated(t *testing.T) {
	w := withDatabase(t, nil)
	token := w.begin()
	w.must(token, createStep, setStep)
	hash := w.text("SELECT rolpassword FROM pg_authid WHERE rolname = 'app'")
	n := w.changes()
	w.must(token, setStep, setStep)
	if w.changes() != n || w.text("SELECT rolpassword FROM pg_authid WHERE rolname = 'app'") != hash {
		t.Error("the password was set again")
	}
	w.must(token, testStep, finishStep)
	w.accepts(current, true)
	w.accepts(previous, false)
}

// C13: a pending value for another user or server is refused before any
// connection: it is what somebody who may only write the secret can forge.
func TestC13_ForgedPending(t *testing.T) {
	w := newWorld(t)
	other := newGate(t, "127.0.0.1:9")
	for _, change := range []map[string]any{
		{"username": "postgres"}, {"username": "APP"}, {"host": "localhost"}, {"host": "attacker.example.com"}, {"port": other.port()},
	} {
		token := rotators.NewToken()
		w.fake.SetLabel(w.name, pending, "")
		w.rotationToken = w.fake.StartRotation(w.name, token)
		w.put(token, w.json(change), pending)
		for _, env := range []string{"KEYTURN_STRATEGY=single", "KEYTURN_STRATEGY=alternating"} {
			h := w.coldStart(env)
			w.untouched(func() {
				for _, s := range []string{setStep, testStep} {
					if err := w.stepOn(h, s, token, 30*time.Second); !fault.Is(err, fault.Invalid) {
						t.Errorf("%v, %s, %s: err %v; want Invalid", change, env, s, err)
					}
				}
			})
		}
	}
	if other.n.Load() != 0 {
		t.Error("the server of a forged pending value was called")
	}
}

// C14: the label has moved and the database has not: the previous credential
// is used.
func TestC14_OnlyPreviousWorks(t *testing.T) {
	w := withDatabase(t, nil)
	w.replace(w.json(map[string]any{"password": "never-set-" + w.password}))
	w.accepts(previous, true)
	w.accepts(current, false)
	token := w.begin()
	w.must(token, allSteps...)
	w.accepts(token, true)
	if w.holder(current) != token {
		t.Error("pending did not become current")
	}
}

// C15: a refused password, an absent server, a silent one and an untrusted
// certificate are told apart.
func TestC15_WhySignInFails(t *testing.T) {
	w := withDatabase(t, nil)
	w.replace(w.json(map[string]any{"password": "wrong-" + w.password}))
	w.replace(w.json(map[string]any{"password": "wrong-too-" + w.password}))
	token := w.begin()
	w.must(token, createStep)
	check := func(what string, h *lambdarotate.Handler, token string, kind fault.Kind, class fault.Class) {
		t.Helper()
		err := w.stepOn(h, setStep, token, 30*time.Second)
		if !fault.Is(err, kind) || fault.ClassOf(err) != class {
			t.Errorf("%s: err %v of kind %s and class %q; want %s and %q", what, err, fault.KindOf(err), fault.ClassOf(err), kind, class)
		}
	}
	check("wrong passwords", w.h, token, fault.Denied, fault.ClassAuth)
	check("untrusted certificate", w.coldStart(), token, fault.Denied, fault.ClassTLS)

	for _, c := range []struct {
		name  string
		port  int
		class fault.Class
	}{{"nobody there", testenv.FreePort(t), fault.ClassNetwork}, {"silent server", silent(t), fault.ClassTimeout}} {
		w.fake.SetLabel(w.name, pending, "")
		w.replace(w.json(map[string]any{"port": c.port}))
		token := w.begin()
		w.must(token, createStep)
		check(c.name, w.h, token, fault.Unavailable, c.class)
	}
}

// silent is the port of a server that accepts and says nothing.
func silent(t *testing.T) int {
	t.Helper()
	g := newGate(t, "127.0.0.1:9")
	_ = g.l.Close()
	srv := httptest.NewUnstartedServer(http.NotFoundHandler()) // listens, and nobody accepts
	t.Cleanup(func() { _ = srv.Listener.Close() })
	var port int
	if _, err := fmt.Sscanf(srv.Listener.Addr().String(), "127.0.0.1:%d", &port); err != nil {
		t.Fatal(err)
	}
	return port
}

// waitFor waits until a session of the function waits for event.
func (w *world) waitFor(event string) {
	w.t.Helper()
	c := w.superConn()
	defer func() { _ = c.Close(context.Background()) }()
	testenv.Eventually(w.t, 20*time.Second, "a session that waits for "+event, func() bool {
		var n int
		err := c.QueryRow(w.t.Context(), "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'keyturn' AND $1 IN (wait_event, wait_event_type)", event).Scan(&n)
		return err == nil && n > 0
	})
}

// asReplicated are settings with which a commit can be held after it took
// place: the server waits for a replica that is not there.
var asReplicated = map[string]string{"wal_level": "replica", "max_wal_senders": "2", "synchronous_commit": "on"}

// holdCommits makes every further commit wait, after its effect and before
// its answer. release lets them go.
func (w *world) holdCommits() (release func()) {
	w.t.Helper()
	set := func(names string) {
		c := w.superConn()
		defer func() { _ = c.Close(context.Background()) }()
		for _, s := range []string{"SET synchronous_commit = off", "ALTER SYSTEM SET synchronous_standby_names = '" + names + "'", "SELECT pg_reload_conf()"} {
			if _, err := c.Exec(context.Background(), s); err != nil {
				w.t.Fatal(err)
			}
		}
		testenv.Eventually(w.t, 10*time.Second, "the server to read its settings", func() bool {
			fresh := w.superConn()
			defer func() { _ = fresh.Close(context.Background()) }()
			var got string
			return fresh.QueryRow(w.t.Context(), "SHOW synchronous_standby_names").Scan(&got) == nil && got == names
		})
	}
	set("nobody")
	return func() { set("") }
}

// holdRole keeps the row of a user in a transaction, so that whoever alters
// the user waits.
func (w *world) holdRole(user string) (release func()) {
	w.t.Helper()
	c := w.superConn()
	for _, s := range []string{"BEGIN", "ALTER ROLE " + pgx.Identifier{user}.Sanitize() + " CONNECTION LIMIT -1"} {
		if _, err := c.Exec(w.t.Context(), s); err != nil {
			w.t.Fatal(err)
		}
	}
	return func() {
		if _, err := c.Exec(context.Background(), "ROLLBACK"); err != nil {
			w.t.Error(err)
		}
		_ = c.Close(context.Background())
	}
}

// C16: the connection is lost after the change was sent, before or after it
// took place. The same token ends in success.
func TestC16_ConnectionLostInSet(t *testing.T) {
	for _, c := range []struct {
		name  string
		event string
		hold  func(*world) func()
		takes bool // the change takes place all the same
	}{
		{"before its effect", "Lock", func(w *world) func() { return w.holdRole("app") }, false},
		{"after its effect", "SyncRep", (*world).holdCommits, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := withDatabase(t, asReplicated)
			token := w.begin()
			w.must(token, createStep)
			release := c.hold(w)
			done := make(chan error, 1)
			go func() { done <- w.step(setStep, token) }()
			w.waitFor(c.event)
			w.gate.cut()
			err := <-done
			release()
			if !fault.Is(err, fault.Unavailable) || fault.ClassOf(err) != fault.ClassNetwork {
				t.Fatalf("err %v of kind %s and class %q; want Unavailable of class network", err, fault.KindOf(err), fault.ClassOf(err))
			}
			if w.holder(current) == token {
				t.Fatal("an untested value is current")
			}
			if c.takes {
				testenv.Eventually(t, 20*time.Second, "the change to show", func() bool {
					return w.signIn("app", w.field(token, "password"), "postgres") == nil
				})
			}
			n := w.changes()
			w.must(token, allSteps...)
			if c.takes && w.changes() != n {
				t.Error("the password was set again, although it had been")
			}
			w.accepts(token, true)
			w.accepts(current, true)
			w.accepts(previous, false)
		})
	}
}

// C17: with alternating users the master is not used unless the current
// credential signs in: else whoever can write the secret could have any
// user's password set.
func TestC17_MasterNeedsCurrent(t *testing.T) {
	w := withDatabase(t, nil)
	master := w.useMaster(nil)
	w.replace(w.json(map[string]any{"masterarn": master, "password": "wrong-" + w.password}))
	token := w.begin()
	w.must(token, createStep)
	n := w.changes()
	err := w.refused(setStep, token, fault.Denied)
	if fault.ClassOf(err) != fault.ClassAuth {
		t.Errorf("%v of class %q; want auth", err, fault.ClassOf(err))
	}
	if strings.Contains(w.pgl.String(), "user=master") || w.changes() != n {
		t.Error("the master signed in")
	}
	if got := w.text("SELECT count(*)::text FROM pg_roles WHERE rolname = 'app_clone'"); got != "0" {
		t.Error("the clone was made")
	}
}

// When rotation is set up without rotating at once, Secrets Manager calls
// testSecret alone, on a pending copy of the current value that it takes away
// again.
func TestRotationSetUpWithoutRotating(t *testing.T) {
	w := withDatabase(t, nil)
	token := w.begin()
	w.put(token, w.json(nil), pending)
	n := w.changes()
	w.silent(func() { w.must(token, testStep) })
	if w.changes() != n {
		t.Error("a password was changed")
	}
	w.accepts(current, true)
}

// A whole rotation with alternating users, there and back.
func TestAlternatingUsers(t *testing.T) {
	w := withDatabase(t, nil)
	w.useMaster(nil)
	w.super("CREATE TABLE orders (n int)", "GRANT SELECT ON orders TO app")
	for i, user := range []string{"app_clone", "app", "app_clone"} {
		token := w.begin()
		w.must(token, allSteps...)
		if got := w.field(current, "username"); got != user {
			t.Errorf("rotation %d: user %q; want %q", i+1, got, user)
		}
		w.accepts(current, true)
		w.accepts(previous, true) // nobody is locked out
		c, err := pgx.Connect(t.Context(), w.pg.DSN(user, w.field(current, "password"), "postgres"))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Exec(t.Context(), "SELECT n FROM orders"); err != nil {
			t.Errorf("rotation %d: %v", i+1, err)
		}
		_ = c.Close(t.Context())
	}
}

// C18: a masterarn in pending is ignored.
func TestC18_MasterOfPendingIsIgnored(t *testing.T) {
	w := withDatabase(t, nil)
	w.useMaster(nil)
	evil := w.create("attacker/master", w.json(map[string]any{"username": "postgres", "password": w.pg.SuperPassword}))
	w.canaries = append(w.canaries, w.pg.SuperPassword)
	token := w.begin()
	w.must(token, createStep)
	f := w.fields(w.value(token))
	f["masterarn"] = evil
	// A version cannot be changed: another takes its place, and the label.
	w.fake.SetLabel(w.name, pending, "")
	token = w.begin()
	w.put(token, w.json(f), pending)
	w.must(token, setStep, testStep)
	for _, c := range w.tap.of("GetSecretValue") {
		if id := fmt.Sprint(c.In["SecretId"]); strings.Contains(id, "attacker") {
			t.Errorf("%s was read", id)
		}
	}
	w.accepts(token, true)
}

// C19: which server the master's secret may be for.
func TestC19_MasterOfAnotherServer(t *testing.T) {
	set := func(w *world, h *lambdarotate.Handler) error {
		t.Helper()
		token := w.begin()
		w.must(token, createStep)
		return w.stepOn(h, setStep, token, 30*time.Second)
	}
	t.Run("another host", func(t *testing.T) {
		// The same server by another name: nothing says so.
		w := withDatabase(t, nil)
		w.useMaster(map[string]any{"host": "localhost"})
		api := newRDS(t, nil)
		if err := set(w, rdsHandler(w, api)); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "masterarn") {
			t.Errorf("err %v; want Invalid that speaks of masterarn", err)
		}
		if strings.Contains(w.pgl.String(), "user=master") {
			t.Error("the master signed in")
		}
	})
	// Names that RDS gives do not resolve here, so the hosts are addresses,
	// which the dialer brings to the one server, without TLS.
	for _, c := range []struct {
		name string
		api  map[string]string
		want fault.Kind // Unknown: allowed
	}{
		{"read replica", map[string]string{
			"instance 127": `<DBInstanceIdentifier>127</DBInstanceIdentifier><Endpoint><Address>127.0.0.1</Address></Endpoint><ReadReplicaSourceDBInstanceIdentifier>10</ReadReplicaSourceDBInstanceIdentifier>`,
			"instance 10":  `<DBInstanceIdentifier>10</DBInstanceIdentifier><Endpoint><Address>10.0.0.8</Address></Endpoint>`,
		}, fault.Unknown},
		{"reader endpoint", map[string]string{
			"cluster 10": `<DBClusterIdentifier>10</DBClusterIdentifier><Endpoint>10.0.0.8</Endpoint><ReaderEndpoint>127.0.0.1</ReaderEndpoint>`,
		}, fault.Unknown},
		{"replica of another", map[string]string{
			"instance 127": `<DBInstanceIdentifier>127</DBInstanceIdentifier><Endpoint><Address>127.0.0.1</Address></Endpoint><ReadReplicaSourceDBInstanceIdentifier>11</ReadReplicaSourceDBInstanceIdentifier>`,
			"instance 11":  `<DBInstanceIdentifier>11</DBInstanceIdentifier><Endpoint><Address>11.0.0.8</Address></Endpoint>`,
		}, fault.Invalid},
		{"RDS may not be asked", map[string]string{"refuse": "AccessDenied"}, fault.Denied},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := withDatabase(t, nil)
			master := w.useMaster(map[string]any{"host": "10.0.0.8", "ssl": false})
			w.replace(w.json(map[string]any{"ssl": false, "masterarn": master}))
			err := set(w, rdsHandler(w, newRDS(t, c.api)))
			if c.want == fault.Unknown && err != nil || c.want != fault.Unknown && !fault.Is(err, c.want) {
				t.Errorf("err %v of kind %s; want %s", err, fault.KindOf(err), c.want)
			}
			if allowed := strings.Contains(w.pgl.String(), "user=master"); allowed != (err == nil) {
				t.Errorf("the master signed in: %v, err %v", allowed, err)
			}
		})
	}
	t.Run("master that RDS manages", func(t *testing.T) {
		w := withDatabase(t, nil)
		w.useMaster(nil)
		password := w.fields(string(first(w.fake.Value("orders/master", current))))["password"]
		managed := w.create("rds!db-1", fmt.Sprintf(`{"username":"master","password":%q}`, password))
		w.replace(w.json(map[string]any{"masterarn": managed}))
		api := newRDS(t, map[string]string{"instance arn:aws:rds:us-east-1:111122223333:db:main": fmt.Sprintf(
			`<DBInstanceIdentifier>main</DBInstanceIdentifier><Engine>postgres</Engine><Endpoint><Address>127.0.0.1</Address><Port>%d</Port></Endpoint>`, w.gate.port())})
		h := rdsHandler(w, api)
		token := w.begin()
		w.must(token, createStep)
		// Without the tag that RDS sets nothing says where its server is.
		if err := w.stepOn(h, setStep, token, 30*time.Second); !fault.Is(err, fault.Invalid) {
			t.Errorf("err %v; want Invalid", err)
		}
		w.fake.SetTags("rds!db-1", map[string]string{"aws:rds:primaryDBInstanceArn": "arn:aws:rds:us-east-1:111122223333:db:main"})
		if err := w.stepOn(h, setStep, token, 30*time.Second); err != nil {
			t.Fatal(err)
		}
		w.accepts(token, true)
	})
}

func first(b []byte, _, _ bool) []byte { return b }

// newRDS is an RDS API that knows what answers says, by "instance ID" or
// "cluster ID".
func newRDS(t *testing.T, answers map[string]string) *httptest.Server {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fail := func(code string) {
			w.WriteHeader(http.StatusBadRequest)
			_, _ = fmt.Fprintf(w, "<ErrorResponse><Error><Code>%s</Code></Error></ErrorResponse>", code)
		}
		if code := answers["refuse"]; code != "" {
			fail(code)
			return
		}
		if r.FormValue("Action") == "DescribeDBClusters" {
			if x, ok := answers["cluster "+r.FormValue("DBClusterIdentifier")]; ok {
				_, _ = fmt.Fprintf(w, "<R><DescribeDBClustersResult><DBClusters><DBCluster>%s</DBCluster></DBClusters></DescribeDBClustersResult></R>", x)
				return
			}
			fail("DBClusterNotFoundFault")
			return
		}
		if x, ok := answers["instance "+r.FormValue("DBInstanceIdentifier")]; ok {
			_, _ = fmt.Fprintf(w, "<R><DescribeDBInstancesResult><DBInstances><DBInstance>%s</DBInstance></DBInstances></DescribeDBInstancesResult></R>", x)
			return
		}
		fail("DBInstanceNotFound")
	}))
	t.Cleanup(srv.Close)
	return srv
}

// rdsHandler is the function with an RDS API, and with every database host at
// the world's gate.
func rdsHandler(w *world, api *httptest.Server) *lambdarotate.Handler {
	w.t.Helper()
	e, err := lambdarotate.ParseEnv(append(slices.Clone(w.env), "AWS_ENDPOINT_URL_RDS="+api.URL))
	if err != nil {
		w.t.Fatal(err)
	}
	cfg := config(w.tap.srv.URL)
	h, err := lambdarotate.New(w.t.Context(), e, &lambdarotate.Options{Logger: w.log.Logger(), AWS: &cfg, Postgres: func(o *postgres.Options) {
		o.Dial = w.dial
	}})
	if err != nil {
		w.t.Fatal(err)
	}
	return h
}

// C20: an alternate user that an interrupted or manual setup left half made
// is put right.
func TestC20_PartialGrants(t *testing.T) {
	for _, c := range []struct {
		name string
		have []string
	}{
		{"bare role", []string{"CREATE ROLE app_clone NOLOGIN"}},
		{"member without login", []string{"CREATE ROLE app_clone NOLOGIN", "GRANT app TO app_clone"}},
		{"login without membership", []string{"CREATE ROLE app_clone LOGIN PASSWORD 'old'"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := withDatabase(t, nil)
			w.useMaster(nil)
			w.super(append(c.have, "GRANT app_clone TO master WITH ADMIN OPTION", "CREATE TABLE orders (n int)", "GRANT SELECT ON orders TO app")...)
			token := w.begin()
			w.must(token, createStep, setStep, setStep, testStep, finishStep)
			w.accepts(current, true)
			if got := w.text("SELECT pg_has_role('app_clone', 'app', 'USAGE')::text"); got != "true" {
				t.Error("the clone is no member of the user")
			}
			if got := w.text("SELECT has_table_privilege('app_clone', 'orders', 'SELECT')::text"); got != "true" {
				t.Error("the clone may not read what the user may")
			}
		})
	}
}

// C21: a credential that signs in and may not do its work does not pass the
// test, where the secret says what its work is.
func TestC21_Probe(t *testing.T) {
	w := withDatabase(t, nil)
	w.super("CREATE TABLE orders (n int)")
	w.replace(w.json(map[string]any{"probe": "SELECT n FROM orders"}))
	token := w.begin()
	w.must(token, createStep, setStep)
	if err := w.refused(testStep, token, fault.Denied); fault.ClassOf(err) != fault.ClassPermission {
		t.Errorf("%v of class %q; want permission", err, fault.ClassOf(err))
	}
	w.super("GRANT SELECT ON orders TO app")
	w.must(token, allSteps...)
	w.accepts(current, true)
}

// C26: what ssl means. Plaintext is for a secret that says so, or, where the
// operator allows it, for a server that has no TLS; never for a bad
// certificate.
func TestC26_SSL(t *testing.T) {
	const allow = "KEYTURN_ALLOW_PLAINTEXT=true"
	for _, server := range []string{"on", "off"} {
		w := withDatabase(t, map[string]string{"ssl": server})
		if server == "off" {
			t.Log("server without TLS")
		}
		strict, lax, distrusting := w.h, w.coldStart(append(slices.Clone(w.env), allow)...), w.coldStart(allow)
		for _, c := range []struct {
			name          string
			ssl           any // nil: absent
			h             *lambdarotate.Handler
			onTLS, onNone bool
		}{
			{"absent", nil, strict, true, false},
			{"absent, allowed", nil, lax, true, true},
			{"true", true, strict, true, false},
			{"true, allowed", true, lax, true, false},
			{`"TRUE", allowed`, "TRUE", lax, true, false},
			{"false", false, strict, true, true},
			{`"False"`, "False", strict, true, true},
			{"odd", 7, strict, true, false},
			{"odd, allowed", "maybe", lax, true, true},
			{"absent, allowed, untrusted", nil, distrusting, false, true},
			{"true, allowed, untrusted", true, distrusting, false, false},
		} {
			t.Run(server+"/"+c.name, func(t *testing.T) {
				change := map[string]any{"ssl": c.ssl, "password": w.currentPassword()}
				w.fake.SetLabel(w.name, pending, "")
				w.replace(w.json(change))
				token := w.begin()
				w.must(token, createStep)
				err := w.stepOn(c.h, setStep, token, 30*time.Second)
				want := c.onTLS
				if server == "off" {
					want = c.onNone
				}
				if (err == nil) != want {
					t.Fatalf("err %v; want success %v", err, want)
				}
				if err != nil && fault.ClassOf(err) != fault.ClassTLS {
					t.Errorf("err %v of class %q; want tls", err, fault.ClassOf(err))
				}
				if err == nil {
					if err := w.stepOn(c.h, testStep, token, 30*time.Second); err != nil {
						t.Error(err)
					}
					if err := w.stepOn(c.h, finishStep, token, 30*time.Second); err != nil {
						t.Error(err)
					}
				}
			})
		}
	}
}

// currentPassword is what the database takes now.
func (w *world) currentPassword() string {
	w.t.Helper()
	return w.field(current, "password")
}

// C27: exact bytes reach the database, and nothing of them is understood.
func TestC27_OddNames(t *testing.T) {
	for _, c := range []struct{ user, db string }{
		{`we"ird'; DROP ROLE victim; --`, `d"b'; --`},
		{`back\slash $1 %s ${x} $$`, "sp ace"},
		{"ünïcødé 🔑", "dätabase"},
		{`Upper.Case-_clone`, "postgres"},
	} {
		t.Run(c.user, func(t *testing.T) {
			w := withDatabase(t, nil, "EXCLUDE_CHARACTERS=")
			w.super("CREATE ROLE victim")
			q := func(s string) string { return pgx.Identifier{s}.Sanitize() }
			odd := `p"w'; \ % $1 $$ ` + "ü🔑"
			w.canaries = append(w.canaries, odd)
			w.super("CREATE ROLE " + q(c.user) + " LOGIN PASSWORD '" + strings.ReplaceAll(odd, "'", "''") + "'")
			if c.db != "postgres" {
				w.super("CREATE DATABASE " + q(c.db))
			}
			w.replace(w.json(map[string]any{"username": c.user, "password": odd, "dbname": c.db}))
			for range 3 {
				w.must(w.begin(), allSteps...)
				w.accepts(current, true)
				w.accepts(previous, false)
			}
			if w.text("SELECT count(*)::text FROM pg_roles WHERE rolname = 'victim'") != "1" {
				t.Error("a name was taken for SQL")
			}
		})
	}
}

// C30: no value in a log, an error, an event or a request that is not meant
// to carry one, whatever fails.
func TestC30_NoValueAnywhere(t *testing.T) {
	w := withDatabase(t, nil, "KEYTURN_EVENT_BUS=fleet", "AWS_LAMBDA_LOG_LEVEL=DEBUG")
	w.useMaster(nil)
	errs := 0
	for i := range 24 {
		token := w.holder(pending)
		if token == "" || token == w.holder(current) {
			token = w.begin()
		}
		// Every request fails once, by its place in the order.
		n := 0
		w.tap.set(func() {
			w.tap.before = func(c awsCall) *refusal {
				if n++; n == i+1 {
					return &refusal{http.StatusBadRequest, "AccessDeniedException"}
				}
				return nil
			}
		})
		for _, s := range allSteps {
			if err := w.step(s, token); err != nil {
				errs++
			}
			if h := w.holder(pending); h != "" && len(w.fake.Labels(w.name)) > 0 {
				if _, _, ok := w.fake.Value(w.name, h); ok {
					_ = w.value(h) // its password is a canary from now on
				}
			}
		}
	}
	if errs == 0 {
		t.Fatal("nothing failed, so no error was looked at")
	}
	for _, e := range w.fake.Events("fleet") {
		_, _ = fmt.Fprintf(w.log, "%+v %s\n", e, e.Detail)
	}
	if len(w.fake.Events("fleet")) == 0 {
		t.Error("nothing was announced")
	}
	// What the database's own log has seen, its administrators read.
	w.pgl.Check(t, w.canaries...)
}

// C32: two invocations of one step at once make one change, and both end
// well or are told to come again.
func TestC32_TwoAtOnce(t *testing.T) {
	w := withDatabase(t, nil)
	twin := w.coldStart(w.env...)
	for _, rotation := range []int{1, 2, 3} {
		token := w.begin()
		for _, s := range allSteps {
			n, puts, moves := w.changes(), w.fake.Versions(w.name), len(w.moves())
			errs := make(chan error, 2)
			for _, h := range []*lambdarotate.Handler{w.h, twin} {
				go func() { errs <- w.stepOn(h, s, token, 30*time.Second) }()
			}
			for range 2 {
				if err := <-errs; err != nil && !fault.Is(err, fault.Conflict) && !fault.Is(err, fault.Unavailable) {
					t.Errorf("rotation %d, %s: %v of kind %s", rotation, s, err, fault.KindOf(err))
				}
			}
			w.must(token, s)
			if got := w.changes() - n; got > 1 {
				t.Errorf("rotation %d, %s: %d changes of the password; want one at most", rotation, s, got)
			}
			if got := w.fake.Versions(w.name) - puts; got > 1 {
				t.Errorf("rotation %d, %s: %d new versions; want one at most", rotation, s, got)
			}
			if s != finishStep && len(w.moves()) != moves {
				t.Errorf("rotation %d, %s moved AWSCURRENT", rotation, s)
			}
		}
		if w.holder(current) != token {
			t.Errorf("rotation %d: current is %s; want %s", rotation, w.holder(current), token)
		}
		w.accepts(current, true)
		w.accepts(previous, false)
	}
}
