package main

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/keyturn/keyturn/internal/awsfake"
	"github.com/keyturn/keyturn/internal/keyissuer"
	"github.com/keyturn/keyturn/internal/testenv"
	"github.com/keyturn/keyturn/rotators"
	"github.com/keyturn/keyturn/secrets"
)

// A secret in AWS that no Lambda rotates is rotated by the command.
func TestRotateInAWS(t *testing.T) {
	fake, srv := awsfake.New(t), testenv.NATS(t)
	const admin = "admin-key-of-the-issuer"
	issuer, err := keyissuer.Start(t.Context(), "127.0.0.1:0", keyissuer.Options{AdminKey: admin})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = issuer.Stop(t.Context()) })
	k, key, err := issuer.Issuer.Create("acme", "first")
	if err != nil {
		t.Fatal(err)
	}
	fake.Create("issuer/admin", fmt.Sprintf(`{"key":%q}`, admin))
	fake.Create("acme/llm", fmt.Sprintf(`{"key":%q,"id":%q,"adminarn":%q}`, key, k.ID, fake.ARN("issuer/admin")))
	r := fake.Ref("acme/llm")
	t.Setenv("AWS_ACCESS_KEY_ID", awsfake.AccessKey)
	t.Setenv("AWS_SECRET_ACCESS_KEY", awsfake.SecretKey)

	demo := demoIssuer{url: issuer.URL}
	apikey, err := json.Marshal(demo.config("acme"))
	if err != nil {
		t.Fatal(err)
	}
	conf := writeFile(t, "c.yaml", fmt.Sprintf("nats: {url: %q}\naws: {endpoint: %q}\nsecrets:\n  - {ref: %q, rotator: apikey, apikey: %s}\n", srv.URL(), fake.URL(), r, apikey))

	code, out, errs := command(t.Context(), "", "-c", conf, "rotate", r.String())
	if code != 0 || !strings.Contains(out, "rotated "+r.String()) {
		t.Fatalf("exit %d, %q, %q", code, out, errs)
	}
	if code, out, errs = command(t.Context(), "", "-c", conf, "status"); code != 0 || !strings.Contains(out, r.String()) {
		t.Errorf("status: exit %d, %q, %q", code, out, errs)
	}
	if got := len(issuer.Issuer.Keys("acme", "")); got != 2 {
		t.Errorf("%d keys live after one rotation, want the old and the new one", got)
	}

	// A rotation that was begun and is given up.
	cfg, err := loadConfig(conf)
	if err != nil {
		t.Fatal(err)
	}
	p, err := openPipeline(t.Context(), cfg, slog.New(slog.DiscardHandler), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.close)
	id := cfg.Secrets[0].ref
	store, err := p.stores.of(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	token := rotators.NewToken()
	if _, err := store.PutPending(t.Context(), id, token, secrets.NewString(`{"key":"k","id":"i"}`)); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args []string
		code int
		says string
	}{
		{nil, 1, "--token " + token},
		{[]string{"--token", rotators.NewToken()}, 1, "another rotation"},
		{[]string{"--token", token}, 0, "discarded"},
		{nil, 0, "nothing to discard"},
	} {
		code, out, errs := command(t.Context(), "", append([]string{"-c", conf, "discard", r.String()}, c.args...)...)
		if code != c.code || !strings.Contains(out+errs, c.says) {
			t.Errorf("discard %v: exit %d, %q, %q; want %d and %q", c.args, code, out, errs, c.code, c.says)
		}
	}
}
