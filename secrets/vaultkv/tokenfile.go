package vaultkv

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"runtime"
	"syscall"
	"time"

	"github.com/keyturn/keyturn/fault"
)

// maxCredential bounds a file with a token or a secret id in bytes.
const maxCredential = 8 << 10

// A TokenFile takes the token from a file that somebody else keeps, such as
// the sink of Vault Agent. The session renews it if it can, reads the file
// again when it cannot, and does not revoke it.
//
// A token that never changes needs no session: api.NewClient takes VAULT_TOKEN
// by itself.
type TokenFile struct {
	// Path is the file. Others than its owner and group may not read it.
	Path string
}

func (TokenFile) owned() bool { return false }

// login implements [Method].
func (f TokenFile) login(ctx context.Context, c *conn, ns string, _ *unwrapped) (*lease, error) {
	const op = "vaultkv: take token"
	token, err := readCredential(op, f.Path, "a token")
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	resp, err := c.in(ns, token).ReadRawWithContext(ctx, "auth/token/lookup-self")
	got, err := finish(op, resp, err, 0)
	if err != nil {
		return nil, err
	}
	var info struct {
		TTL       int64 `json:"ttl"`
		Renewable bool  `json:"renewable"`
	}
	if err := got.data(op, &info); err != nil {
		return nil, err
	}
	return &lease{token: token, ttl: time.Duration(info.TTL) * time.Second, renewable: info.Renewable}, nil
}

// readCredential reads a file with one word in it. Errors: NotFound; Denied,
// it cannot be read, or can be by others; Invalid, it holds something else.
func readCredential(op, path, what string) (string, error) {
	// A FIFO would be waited for until somebody writes to it, and nothing ends
	// that wait: it is opened all the same, and then refused.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0) //nolint:gosec // which file is the caller's to say
	if err != nil {
		kind := fault.Denied
		if errors.Is(err, fs.ErrNotExist) {
			kind = fault.NotFound
		}
		return "", fault.New(kind, op, err)
	}
	defer func() { _ = f.Close() }()
	// The open file is looked at, not the path, which may be another file by
	// now.
	info, err := f.Stat()
	if err != nil {
		return "", fault.New(fault.Denied, op, err)
	}
	if !info.Mode().IsRegular() {
		return "", fault.Newf(fault.Invalid, op, "%s is not a regular file; expected one with %s", path, what)
	}
	// Windows has no such modes and shows every file as 0666.
	if mode := info.Mode().Perm(); mode&0o007 != 0 && runtime.GOOS != "windows" {
		return "", fault.Newf(fault.Denied, op, "%s has mode %04o; expected 0640 or stricter; run chmod o= on it, and issue another if others could read this one", path, mode)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxCredential+1))
	if err != nil {
		return "", fault.New(fault.Unavailable, op, err)
	}
	defer clear(b)
	word := bytes.TrimSpace(b)
	if len(word) == 0 || len(b) > maxCredential || bytes.ContainsFunc(word, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return "", fault.Newf(fault.Invalid, op, "%s does not hold one word; expected %s", path, what)
	}
	return string(word), nil
}
