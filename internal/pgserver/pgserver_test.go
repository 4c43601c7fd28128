//go:build unix

package pgserver_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"go.uber.org/goleak"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/pgserver"
	"github.com/keyturn/keyturn/internal/testenv"
)

// childDir makes this test binary start a server there and wait to be killed.
const childDir = "PGSERVER_TEST_CHILD_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		s, err := pgserver.Start(context.Background(), pgserver.Options{Dir: dir, NoSync: true, Log: os.Stderr})
		if err != nil {
			fmt.Println("error", err)
			os.Exit(1)
		}
		fmt.Println("pid", s.Pid)
		select {}
	}
	goleak.VerifyTestMain(m)
}

func start(t *testing.T, o pgserver.Options) *pgserver.Server {
	t.Helper()
	if pgserver.FindBinaries() == "" {
		testenv.Missing(t, "the PostgreSQL server", pgserver.InstallHint)
	}
	o.NoSync = true
	s, err := pgserver.Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func query(t *testing.T, dsn, sql string) (string, error) {
	t.Helper()
	c, err := pgconn.Connect(t.Context(), dsn)
	if err != nil {
		return "", err
	}
	defer func() { _ = c.Close(context.Background()) }()
	res, err := c.Exec(t.Context(), sql).ReadAll()
	if err != nil || len(res) == 0 || len(res[0].Rows) == 0 {
		return "", err
	}
	return string(res[0].Rows[0][0]), nil
}

func TestServer(t *testing.T) {
	dir := t.TempDir()
	s := start(t, pgserver.Options{Dir: dir})
	dsn := s.DSN(s.SuperUser, s.SuperPassword, "postgres")
	for sql, want := range map[string]string{
		"SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()": "t",
		"SHOW max_connections": "100",
		"SELECT rolpassword LIKE 'SCRAM-SHA-256$%' FROM pg_authid WHERE rolname = current_user":                                  "t",
		"SELECT string_agg(DISTINCT type || ' ' || auth_method, ',' ORDER BY type || ' ' || auth_method) FROM pg_hba_file_rules": "hostnossl scram-sha-256,hostssl scram-sha-256",
		"CREATE TABLE kept (x int); INSERT INTO kept VALUES (7)":                                                                 "",
	} {
		if got, err := query(t, dsn, sql); err != nil || got != want {
			t.Errorf("%s: got %q, %v; expected %q", sql, got, err, want)
		}
	}
	if _, err := query(t, s.DSN(s.SuperUser, "wrong", "postgres"), "SELECT 1"); err == nil {
		t.Error("a wrong password signed in")
	}
	if out := fmt.Sprintf("%v %+v %#v %s", s, s, s, s); strings.Contains(out, s.SuperPassword) {
		t.Error("a formatter printed the password")
	}
	if _, err := pgserver.Start(t.Context(), pgserver.Options{Dir: dir}); !fault.Is(err, fault.Conflict) {
		t.Errorf("second start on a directory in use: got %v; expected a Conflict", err)
	}
	fi, err := os.Stat(filepath.Join(dir, "superuser.password"))
	if err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("password file: %v, %v; expected mode 0600", fi, err)
	}
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(s.Pid, 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("after Stop the server is there: %v", err)
	}

	again := start(t, pgserver.Options{Dir: dir})
	if again.SuperPassword != s.SuperPassword || !bytes.Equal(again.CAPEM, s.CAPEM) || again.Port != s.Port {
		t.Error("a restart changed the password, the authority or the port")
	}
	if got, err := query(t, dsn, "SELECT x FROM kept"); err != nil || got != "7" {
		t.Errorf("after a restart: got %q, %v; expected 7", got, err)
	}
}

// TestParentKilled kills a process that runs a server, with a signal that it
// cannot handle. The server ends with it, or the next start ends it.
func TestParentKilled(t *testing.T) {
	if pgserver.FindBinaries() == "" {
		testenv.Missing(t, "the PostgreSQL server", pgserver.InstallHint)
	}
	dir := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	child := exec.Command(self)
	child.Env = append(os.Environ(), childDir+"="+dir)
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	var word string
	var pid int
	if _, err := fmt.Fscan(out, &word, &pid); err != nil || word != "pid" {
		t.Fatalf("the child said %q: %v", word, err)
	}
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = child.Wait()
	s := start(t, pgserver.Options{Dir: dir})
	if _, err := query(t, s.DSN(s.SuperUser, s.SuperPassword, "postgres"), "SELECT 1"); err != nil {
		t.Error(err)
	}
	testenv.Eventually(t, 10*time.Second, "the old server to be gone", func() bool {
		return errors.Is(syscall.Kill(pid, 0), syscall.ESRCH)
	})
}

func TestStartErrors(t *testing.T) {
	if _, err := pgserver.Start(t.Context(), pgserver.Options{}); !fault.Is(err, fault.Invalid) {
		t.Errorf("no directory: got %v; expected Invalid", err)
	}
	t.Setenv(pgserver.BinEnv, t.TempDir())
	if dir := pgserver.FindBinaries(); dir != "" {
		t.Errorf("an empty %s: found %s", pgserver.BinEnv, dir)
	}
	_, err := pgserver.Start(t.Context(), pgserver.Options{Dir: t.TempDir()})
	if !fault.Is(err, fault.NotFound) || !strings.Contains(err.Error(), pgserver.InstallHint) {
		t.Errorf("no binaries: got %v; expected NotFound with the command that installs them", err)
	}
	t.Setenv(pgserver.BinEnv, "")
	if pgserver.FindBinaries() == "" {
		return
	}
	_, err = pgserver.Start(t.Context(), pgserver.Options{Dir: t.TempDir(), NoSync: true, Settings: map[string]string{"no_such_setting": "1"}})
	if !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "no_such_setting") {
		t.Errorf("a bad setting: got %v; expected Unavailable with the server's words", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := pgserver.Start(ctx, pgserver.Options{Dir: t.TempDir(), NoSync: true}); !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled start: got %v; expected the context's error", err)
	}
}

// TestHalfMade starts on a directory where initdb was killed.
func TestHalfMade(t *testing.T) {
	dir := t.TempDir()
	for _, sub := range []string{"data.new", "data.new/base"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	s := start(t, pgserver.Options{Dir: dir})
	if _, err := os.Stat(filepath.Join(dir, "initdb.password")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the password given to initdb is left: %v", err)
	}
	if got, err := query(t, s.DSN(s.SuperUser, s.SuperPassword, "postgres"), "SHOW port"); err != nil || got != strconv.Itoa(s.Port) {
		t.Errorf("got %q, %v", got, err)
	}
}

// TestClosedParent is a directory that the server's user cannot reach: the
// operator's own directories are not opened up, but named.
func TestClosedParent(t *testing.T) {
	if os.Geteuid() != 0 || pgserver.FindBinaries() == "" {
		t.Skip("needs root, since otherwise the server runs as ourselves, and PostgreSQL")
	}
	dir := t.TempDir()
	closed := filepath.Join(dir, "closed")
	if err := os.Mkdir(closed, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("TMPDIR", filepath.Join(dir, "elsewhere"))
	_, err := pgserver.Start(t.Context(), pgserver.Options{Dir: filepath.Join(closed, "pg"), NoSync: true})
	if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "chmod o+x "+closed) {
		t.Errorf("got %v; expected Invalid with the command that opens %s", err, closed)
	}
	if fi, err := os.Stat(closed); err != nil || fi.Mode().Perm() != 0o700 {
		t.Errorf("the directory's mode was changed: %v, %v", fi.Mode(), err)
	}
}
