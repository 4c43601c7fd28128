package main

import (
	"crypto/tls"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"cloud.google.com/go/secretmanager/apiv1/secretmanagerpb"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"

	"github.com/keyturn/keyturn/internal/azurefake"
	"github.com/keyturn/keyturn/internal/gcpfake"
	"github.com/keyturn/keyturn/internal/keyissuer"
	"github.com/keyturn/keyturn/internal/testenv"
	"github.com/keyturn/keyturn/internal/vaultfake"
	"github.com/keyturn/keyturn/secrets"
)

// A place is a store on the wire, as the configuration reaches it.
type place struct {
	ref, config string
	put         func(name, value string)
}

func places(t *testing.T) map[string]place {
	gcp := gcpfake.New(t)
	azure := azurefake.New(t, "kv-agents")
	vault := vaultfake.New(t)
	bearer, err := azure.Credential().GetToken(t.Context(), policy.TokenRequestOptions{Scopes: []string{azurefake.Resource + "/.default"}, TenantID: azurefake.Tenant})
	if err != nil {
		t.Fatal(err)
	}
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte(vaultfake.Root+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return map[string]place{
		"gcp": {
			"gcp://example-project/", fmt.Sprintf("gcp: {endpoint: %q, projects: {example-project: %q}}", gcp.Endpoint(""), gcpfake.ProjectNumber),
			func(name, value string) {
				gcp.Create(&secretmanagerpb.Secret{Name: "projects/" + gcpfake.Project + "/secrets/" + name}, value)
			},
		},
		"azure": {
			"azure://kv-agents/", fmt.Sprintf("azure: {endpoint: %q, ca_file: %q, token_file: %q}", strings.Replace(azure.URL("kv-agents"), "kv-agents", "{vault}", 1), certificate(t, azure.URL("kv-agents")), writeFile(t, "bearer", bearer.Token)),
			func(name, value string) { azure.Put("kv-agents", name, azurefake.Version{Value: value, Enabled: true}) },
		},
		"vault": {
			"vault://test//secret/", fmt.Sprintf("vault: {test: {address: %q, token_file: %q}}", vault.URL(), token),
			func(name, value string) {
				var data map[string]any
				if err := json.Unmarshal([]byte(value), &data); err != nil {
					t.Fatal(err)
				}
				if _, err := vault.Client(vaultfake.Root, nil).KVv2("secret").Put(t.Context(), name, data); err != nil {
					t.Fatal(err)
				}
			},
		},
	}
}

// certificate writes what a server on loopback shows as a CA file.
func certificate(t *testing.T, at string) string {
	t.Helper()
	u, err := url.Parse(at)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := (&tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true}}).DialContext(t.Context(), "tcp", u.Host) //nolint:gosec // to learn the certificate that is then trusted
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	chain := conn.(*tls.Conn).ConnectionState().PeerCertificates
	return writeFile(t, "ca.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: chain[len(chain)-1].Raw})))
}

// Every command that works on one secret, on every cloud's store.
func TestCommandsOnEveryStore(t *testing.T) {
	for name, pl := range places(t) {
		t.Run(name, func(t *testing.T) {
			srv := testenv.NATS(t)
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
			pl.put("issuer-admin", fmt.Sprintf(`{"key":%q}`, admin))
			pl.put("llm", fmt.Sprintf(`{"key":%q,"id":%q,"adminarn":%q}`, key, k.ID, pl.ref+"issuer-admin"))
			demo := demoIssuer{url: issuer.URL}
			apikey, err := json.Marshal(demo.config("acme"))
			if err != nil {
				t.Fatal(err)
			}
			r := pl.ref + "llm"
			conf := writeFile(t, "c.yaml", fmt.Sprintf("nats: {url: %q}\n%s\nsecrets:\n  - {ref: %q, rotator: apikey, gate: {manual: true}, apikey: %s}\n", srv.URL(), pl.config, r, apikey))
			do := func(code int, says string, args ...string) {
				t.Helper()
				got, out, errs := command(t.Context(), "", append([]string{"-c", conf}, args...)...)
				if got != code || !strings.Contains(out+errs, says) {
					t.Errorf("%v: exit %d, %q, %q; want %d and %q", args, got, out, errs, code, says)
				}
				if strings.Contains(out+errs, admin) || strings.Contains(out+errs, key) {
					t.Errorf("%v printed a value", args)
				}
			}
			alive := func(want int) {
				t.Helper()
				if got := len(issuer.Issuer.Keys("acme", "")); got != want {
					t.Errorf("%d keys are alive; want %d", got, want)
				}
			}
			do(0, "a rotation should work", "rotate", "--dry-run", "llm")
			stdin := "a first value"
			if code, out, errs := command(t.Context(), stdin, "-c", conf, "create", pl.ref+"made"); code != 0 || !strings.Contains(out, "created "+pl.ref+"made") {
				t.Errorf("create: exit %d, %q, %q", code, out, errs)
			}
			if code, _, errs := command(t.Context(), stdin, "-c", conf, "create", pl.ref+"made"); code != 1 || errs == "" || strings.Contains(errs, stdin) {
				t.Errorf("create again: exit %d, %q", code, errs)
			}
			do(0, "rotated "+r, "rotate", r)
			alive(2)
			do(0, "gate: manual", "status")
			do(1, "manual: keyturn retire has not been given", "rotate", r)
			do(1, "is not retired", "destroy", r)
			do(0, "sound", "doctor")
			do(1, "is not the superseded version", "destroy", r, "--id", "nope")
			do(1, "no rollback", "rollback", "--undo", r)
			do(0, "rolled "+r+" back", "rollback", r)
			do(0, "that was done already", "rollback", r)
			do(0, "the target was seen to refuse it", "retire", r)
			alive(1)
			do(0, "retired", "status")
			do(0, "was retired already", "retire", r)
			do(0, "the target does not honour it", "restore", r)
			do(0, "held", "status", "--json")
			do(1, "held: somebody restored it", "rotate", r)
			do(0, "retired version", "retire", r)
			do(1, "repeat with --id", "destroy", r)
			do(0, "rotated", "rotate", r)

			// An unfinished rotation is found and mended.
			cfg, err := loadConfig(conf)
			if err != nil {
				t.Fatal(err)
			}
			e := &env{ctx: t.Context(), config: conf, log: slog.New(slog.DiscardHandler)}
			ctx, p, done, err := e.open(lookLimit, nil)
			if err != nil {
				t.Fatal(err)
			}
			store, err := p.stores.of(ctx, cfg.Secrets[0].ref)
			if err != nil {
				t.Fatal(err)
			}
			k2, key2, err := issuer.Issuer.Create("acme", "pending")
			if err != nil {
				t.Fatal(err)
			}
			v := secrets.NewString(fmt.Sprintf(`{"key":%q,"id":%q,"adminarn":%q}`, key2, k2.ID, pl.ref+"issuer-admin"))
			if _, err := store.PutPending(ctx, cfg.Secrets[0].ref, "0b9c6c1e-3a51-4e6f-9f0e-5f5f3b1f2a11", v); err != nil {
				t.Fatal(err)
			}
			done()
			do(1, "pending works but is not current", "doctor", "--stuck", "0s", r)
			do(0, "mended: keyturn rotate", "doctor", "--stuck", "0s", "--fix", r)
			do(0, "sound", "doctor", "--stuck", "0s", r)
		})
	}
}
