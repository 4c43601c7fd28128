package postgres

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/keyturn/keyturn/fault"
)

func TestClassify(t *testing.T) {
	for code, want := range map[string]struct {
		kind  fault.Kind
		class fault.Class
	}{
		"28P01": {fault.Denied, fault.ClassAuth}, "28000": {fault.Denied, fault.ClassAuth}, "42501": {fault.Denied, fault.ClassPermission},
		"22023": {fault.Invalid, fault.ClassPolicy}, "53300": {fault.Unavailable, fault.ClassQuota}, "53400": {fault.Unavailable, fault.ClassQuota},
		"57P01": {fault.Unavailable, fault.ClassNetwork}, "57P03": {fault.Unavailable, fault.ClassNetwork}, "57014": {fault.Unavailable, fault.ClassTimeout},
		"40001": {fault.Unavailable, fault.ClassConcurrency}, "55P03": {fault.Unavailable, fault.ClassConcurrency}, "25006": {fault.Unavailable, ""},
		"3D000": {fault.NotFound, ""}, "42601": {fault.Invalid, ""}, "08006": {fault.Unavailable, fault.ClassNetwork}, "22P02": {fault.Unknown, ""},
	} {
		err := classify("op", "doing", fmt.Errorf("wrapped: %w", &pgconn.PgError{Code: code, Message: "message", Detail: "detail", Hint: "hint", Where: "where", InternalQuery: "query"}))
		if fault.KindOf(err) != want.kind || fault.ClassOf(err) != want.class || !strings.Contains(err.Error(), code) {
			t.Errorf("%s: got %v (%v, %v)", code, err, fault.KindOf(err), fault.ClassOf(err))
		}
		if shown := strings.Contains(err.Error(), "message"); shown == (want.kind == fault.Unknown) {
			t.Errorf("%s: %v; a message is shown for known codes only", code, err)
		}
		for _, part := range []string{"detail", "query", "where"} {
			if strings.Contains(err.Error(), part) {
				t.Errorf("%s: %v holds %s", code, err, part)
			}
		}
	}
	for in, want := range map[error]struct {
		kind  fault.Kind
		class fault.Class
	}{
		&pgconn.PgError{Code: "XX000", Message: "tuple concurrently updated"}: {fault.Unavailable, fault.ClassConcurrency},
		context.DeadlineExceeded: {fault.Unavailable, fault.ClassTimeout}, context.Canceled: {fault.Unavailable, ""},
		io.ErrUnexpectedEOF: {fault.Unavailable, fault.ClassNetwork}, &net.DNSError{}: {fault.Unavailable, fault.ClassNetwork},
		&net.OpError{Op: "dial", Err: errors.New("refused")}: {fault.Unavailable, fault.ClassNetwork}, errors.New("odd"): {fault.Unknown, ""},
	} {
		err := classify("op", "doing", in)
		if fault.KindOf(err) != want.kind || fault.ClassOf(err) != want.class {
			t.Errorf("%v: got %v (%v, %v)", in, err, fault.KindOf(err), fault.ClassOf(err))
		}
	}
	hba := classify("op", "doing", &pgconn.PgError{Code: "28000", Routine: "ClientAuthentication"})
	if refused(hba) || !refused(classify("op", "doing", &pgconn.PgError{Code: "28000", Routine: "InitializeSessionUserId"})) {
		t.Error("a missing line in pg_hba.conf counts as a refused password")
	}
}
