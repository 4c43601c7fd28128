package testenv

import (
	"bytes"
	"context"
	"testing"

	"github.com/keyturn/keyturn/internal/pgserver"
)

// Postgres starts a PostgreSQL server of its own for t, with TLS on and
// scram-sha-256 for every TCP connection. It ends with t.
func Postgres(t testing.TB) *pgserver.Server {
	t.Helper()
	bin := pgserver.FindBinaries()
	if bin == "" {
		Missing(t, "the PostgreSQL server", pgserver.InstallHint)
	}
	var log bytes.Buffer
	s, err := pgserver.Start(context.Background(), pgserver.Options{BinDir: bin, Dir: t.TempDir(), Log: &log, NoSync: true})
	if err != nil {
		t.Fatalf("start PostgreSQL: %v\n%s", err, log.String())
	}
	t.Cleanup(func() {
		if err := s.Stop(); err != nil {
			t.Errorf("stop PostgreSQL: %v", err)
		}
	})
	return s
}
