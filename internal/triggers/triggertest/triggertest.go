// Package triggertest is a database with two users who take turns, for tests
// of functions against a real PostgreSQL, and the calls of a platform.
package triggertest

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/keyturn/keyturn/internal/pgserver"
	"github.com/keyturn/keyturn/internal/testenv"
)

// A Database is a PostgreSQL with a user "app".
type Database struct {
	*pgserver.Server
	t testing.TB
}

// Password is that of the user app at the start.
const Password = "at-the-start-1"

// New starts a Database. It ends with t.
func New(t testing.TB) *Database {
	t.Helper()
	d := &Database{Server: testenv.Postgres(t), t: t}
	c, err := pgx.Connect(context.Background(), d.DSN(d.SuperUser, d.SuperPassword, "postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close(context.Background()) }()
	if _, err := c.Exec(context.Background(), "CREATE ROLE app LOGIN PASSWORD '"+Password+"'"); err != nil {
		t.Fatal(err)
	}
	return d
}

// Nowhere is a Database that is not there, for what must not connect to one.
func Nowhere(t testing.TB) *Database {
	return &Database{Server: &pgserver.Server{Host: "127.0.0.1", Port: 9, SuperUser: "postgres", SuperPassword: "at-the-start-2"}, t: t}
}

// JSON is a secret in the form of the AWS samples; master may be "".
func (d *Database) JSON(user, password, master string) string {
	m := map[string]any{"engine": "postgres", "host": d.Host, "port": d.Port, "dbname": "postgres", "username": user, "password": password, "ssl": true}
	if master != "" {
		m["masterarn"] = master
	}
	b, err := json.Marshal(m)
	if err != nil {
		d.t.Fatal(err)
	}
	return string(b)
}

// Master is the secret of the superuser.
func (d *Database) Master() string { return d.JSON(d.SuperUser, d.SuperPassword, "") }

// SignsIn reports whether the user in a secret's JSON can sign in, and fails
// the test if that cannot be told.
func (d *Database) SignsIn(value string) bool {
	d.t.Helper()
	var s struct{ Username, Password string }
	if err := json.Unmarshal([]byte(value), &s); err != nil {
		d.t.Fatalf("a value is no secret: %v", err)
	}
	c, err := pgx.Connect(context.Background(), d.DSN(s.Username, s.Password, "postgres"))
	if err == nil {
		_ = c.Close(context.Background())
		return true
	}
	var refused *pgconn.PgError
	if !errors.As(err, &refused) || !strings.HasPrefix(refused.Code, "28") {
		d.t.Fatalf("sign in: %v", err)
	}
	return false
}

// User is the user in a secret's JSON.
func User(t testing.TB, value string) string {
	t.Helper()
	var s struct{ Username string }
	if err := json.Unmarshal([]byte(value), &s); err != nil {
		t.Fatalf("a value is no secret: %v", err)
	}
	return s.Username
}

// Call posts body as a platform does, and returns the status and the answer.
func Call(t testing.TB, h http.Handler, body string, headers ...string) (status int, answer string) {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/", strings.NewReader(body))
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w.Code, w.Body.String()
}
