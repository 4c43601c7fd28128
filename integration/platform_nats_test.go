package integration_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"os"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/crypto/chacha20poly1305"

	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/secrets"
	"github.com/keyturn/keyturn/secrets/natskv"
)

type natsPlatform struct {
	*natsBackend
	kv  jetstream.KeyValue
	key []byte
}

func newNATS(t *testing.T, b *broker) *natsPlatform {
	t.Helper()
	p := &natsPlatform{natsBackend: &natsBackend{broker: b, js: b.jetStream(t)}}
	_ = b.store(t, p.js) // makes the bucket
	var err error
	p.kv, err = p.js.KeyValue(t.Context(), bucket)
	must(t, err)
	file, err := os.ReadFile(b.file)
	must(t, err)
	for line := range bytes.Lines(file) {
		if k, err := base64.StdEncoding.DecodeString(string(bytes.TrimSpace(line))); err == nil && len(k) == chacha20poly1305.KeySize {
			p.key = k
		}
	}
	if p.key == nil {
		t.Fatal("the key file holds no key")
	}
	return p
}

// A natsVersion is one version in an entry of the bucket.
type natsVersion struct {
	ID, Token          string
	Created, Activated time.Time
	Disabled, Held     bool
	Box                []byte
}

type natsEntry struct{ Current, Previous *natsVersion }

func (p *natsPlatform) entry(ctx context.Context, r ref.Ref) (out natsEntry, err error) {
	e, err := p.kv.Get(ctx, natskv.EntryKey(r.Name))
	if err != nil {
		return out, err
	}
	return out, json.Unmarshal(e.Value(), &out)
}

// plain reads the bucket without the store's code: who has the sealing key
// and knows the stored form needs nothing else.
func (p *natsPlatform) plain(ctx context.Context, r ref.Ref) (secrets.Value, error) {
	e, err := p.entry(ctx, r)
	if err != nil {
		return secrets.Value{}, err
	}
	c := e.Current
	if c == nil || len(c.Box) < chacha20poly1305.NonceSizeX {
		return secrets.Value{}, errors.New("the entry has no current version")
	}
	parts := []string{r.String(), "current", c.ID, c.Token, c.Created.UTC().Format(time.RFC3339Nano)}
	if !c.Activated.IsZero() {
		parts = append(parts, "activated", c.Activated.UTC().Format(time.RFC3339Nano))
	}
	bound := []byte("keyturn natskv 1")
	for _, part := range parts {
		bound = append(binary.AppendUvarint(bound, uint64(len(part))), part...)
	}
	aead, err := chacha20poly1305.NewX(p.key)
	if err != nil {
		return secrets.Value{}, err
	}
	n := aead.NonceSize()
	b, err := aead.Open(nil, c.Box[:n], c.Box[n:], bound)
	return secrets.NewValue(b), err
}

func (p *natsPlatform) state(t *testing.T, r ref.Ref, version string) string {
	t.Helper()
	e, err := p.entry(t.Context(), r)
	must(t, err)
	live, retired := p.states()
	switch {
	case e.Previous == nil || e.Previous.ID != version:
		t.Fatalf("the entry of %s has no previous version %s", r, version)
	case e.Previous.Disabled:
		return retired
	}
	return live
}

func (*natsPlatform) states() (string, string) { return "in use", "disabled" }

func (p *natsPlatform) remove(t *testing.T, r ref.Ref) {
	t.Helper()
	t.Fatalf("nobody asked for the removal of %s: an entry holds all stages, and none stays behind", r)
}

func (*natsPlatform) named(r ref.Ref) string { return r.String() }
