package main

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"regexp"
	"strings"
	"time"

	"github.com/go-viper/mapstructure/v2"
	"github.com/knadh/koanf/parsers/yaml"
	envprovider "github.com/knadh/koanf/providers/env/v2"
	"github.com/knadh/koanf/providers/file"
	"github.com/knadh/koanf/v2"

	"github.com/keyturn/keyturn/events/natsbus"
	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/ref"
)

// config is the configuration file. Every scalar can also be set from the
// environment: nats.url is KEYTURN_NATS__URL.
type config struct {
	// Name tells deployments apart that share a NATS server. All replicas of
	// one have the same. "keyturn" by default.
	Name  string      `koanf:"name"`
	NATS  natsConfig  `koanf:"nats"`
	Store storeConfig `koanf:"store"`
	AWS   awsConfig   `koanf:"aws"`
	GCP   gcpConfig   `koanf:"gcp"`
	Azure azureConfig `koanf:"azure"`
	// Vault has the clusters by the name that refs call them.
	Vault    map[string]vaultConfig `koanf:"vault"`
	Notifier notifierConfig         `koanf:"notifier"`
	// Tenants says whose secrets are that are not listed below.
	Tenants tenantsConfig `koanf:"tenants"`
	// Defaults are for secrets that do not say otherwise.
	Defaults policyConfig   `koanf:"defaults"`
	Secrets  []secretConfig `koanf:"secrets"`
}

type natsConfig struct {
	URL          string `koanf:"url"`
	User         string `koanf:"user"`
	PasswordFile string `koanf:"password_file"`
	CredsFile    string `koanf:"creds_file"`
	NKeyFile     string `koanf:"nkey_file"`
	CAFile       string `koanf:"ca_file"`
	// InboxPrefix is where answers go, for credentials that may hear no other
	// inbox, as those of a tenant.
	InboxPrefix string `koanf:"inbox_prefix"`
	Replicas    int    `koanf:"replicas"`
	// GroupCommit is for one server with sync_interval: always; see
	// natsbus.Options.
	GroupCommit bool `koanf:"group_commit"`
}

// bus is how the streams are opened.
func (n natsConfig) bus(log *slog.Logger) *natsbus.Options {
	return &natsbus.Options{Replicas: n.Replicas, GroupCommit: n.GroupCommit, Logger: log}
}

type storeConfig struct {
	Bucket  string `koanf:"bucket"`
	KeyFile string `koanf:"key_file"`
	KeyEnv  string `koanf:"key_env"`
}

// awsConfig is what the environment and profile of AWS do not say.
type awsConfig struct {
	Endpoint string `koanf:"endpoint"`
}

// gcpConfig is what the application default credentials do not say.
type gcpConfig struct {
	// Endpoint replaces the service's own, in the clear: for an emulator.
	Endpoint string `koanf:"endpoint"`
	// Projects has the number of each project by its id: events tell numbers.
	Projects map[string]string `koanf:"projects"`
}

// azureConfig is what the environment of Azure does not say.
type azureConfig struct {
	// VaultSuffix is vault.azure.net, or that of another cloud.
	VaultSuffix string `koanf:"vault_suffix"`
	// Validity is how long a new version is valid, ShortValidity allows 30
	// days and less; see azurekv.NearExpiryLoop.
	Validity      time.Duration `koanf:"validity"`
	ShortValidity bool          `koanf:"short_validity"`
	// Endpoint replaces the vaults' own addresses, for an emulator; "{vault}"
	// in it is the vault's name. CAFile verifies it, and TokenFile holds the
	// token that it takes.
	Endpoint  string `koanf:"endpoint"`
	CAFile    string `koanf:"ca_file"`
	TokenFile string `koanf:"token_file"`
}

// vaultConfig is one Vault or OpenBao cluster.
type vaultConfig struct {
	Address string `koanf:"address"`
	CAFile  string `koanf:"ca_file"`
	// TokenFile, or AppRole.
	TokenFile string        `koanf:"token_file"`
	AppRole   approleConfig `koanf:"approle"`
}

// approleConfig signs in to Vault.
type approleConfig struct {
	Mount        string `koanf:"mount"` // "approle" by default
	Namespace    string `koanf:"namespace"`
	RoleIDFile   string `koanf:"role_id_file"`
	SecretIDFile string `koanf:"secret_id_file"`
	// Wrapped says that the file holds a response-wrapping token; Role is then
	// the role's name.
	Wrapped bool   `koanf:"wrapped"`
	Role    string `koanf:"role"`
}

// envPrefix starts the environment variables that set configuration; two
// underscores stand for the dot.
const envPrefix = "KEYTURN_"

// loadConfig reads and checks the file and the environment. A key that
// nothing reads is an error: a misspelt schedule would else be a secret that
// never rotates.
func loadConfig(path string) (*config, error) {
	bad := func(format string, args ...any) error {
		return fault.Newf(fault.Invalid, "config "+path, format, args...)
	}
	k := koanf.New(".")
	switch err := k.Load(file.Provider(path), yaml.Parser()); {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fault.Newf(fault.NotFound, "config", "%s is not there; run keyturn dev once, which writes one, or name yours with --config", path)
	case err != nil:
		return nil, fault.New(fault.Invalid, "config "+path, err)
	}
	err := k.Load(envprovider.Provider(".", envprovider.Opt{
		Prefix: envPrefix,
		TransformFunc: func(key, v string) (string, any) {
			key = strings.TrimPrefix(key, envPrefix)
			if !strings.Contains(key, "__") {
				return "", nil // a variable of the command line, not of the file
			}
			return strings.ToLower(strings.ReplaceAll(key, "__", ".")), v
		},
	}), nil)
	if err != nil {
		return nil, fault.New(fault.Invalid, "config from the environment", err)
	}
	c := &config{
		Name: "keyturn", Store: storeConfig{Bucket: "keyturn"}, Notifier: notifierConfig{Tenant: "default"},
		Azure: azureConfig{VaultSuffix: "vault.azure.net"},
	}
	err = k.UnmarshalWithConf("", c, koanf.UnmarshalConf{DecoderConfig: &mapstructure.DecoderConfig{
		Result: c, TagName: "koanf", WeaklyTypedInput: true, ErrorUnused: true,
		DecodeHook: mapstructure.StringToTimeDurationHookFunc(),
	}})
	if err != nil {
		return nil, unreadable(path, err)
	}
	if c.NATS.URL == "" {
		return nil, bad("nats.url is missing; expected something like nats://127.0.0.1:4222")
	}
	if err := errors.Join(c.Notifier.check(bad), c.Tenants.check(path)); err != nil {
		return nil, err
	}
	return c, c.checkSecrets(bad)
}

// find returns the secret that text names: a ref, or the end of just one that
// is configured, as "acme/orders-db".
func (c *config) find(text string) (ref.Ref, error) {
	if strings.Contains(text, "://") {
		return ref.Parse(text)
	}
	var found []ref.Ref
	for i := range c.Secrets {
		if text != "" && strings.HasSuffix(c.Secrets[i].ref.String(), "/"+text) {
			found = append(found, c.Secrets[i].ref)
		}
	}
	if len(found) == 1 {
		return found[0], nil
	}
	return ref.Ref{}, fault.Newf(fault.Invalid, "secret", "%q is the end of %d configured secrets; expected a ref, or the end of just one of %s", text, len(found), c.names())
}

// tenant says whose a secret is.
func (c *config) tenant(r ref.Ref) string {
	for i := range c.Secrets {
		if c.Secrets[i].ref == r {
			return c.Secrets[i].Tenant
		}
	}
	return c.Notifier.Tenant
}

// secret returns the configuration of r.
func (c *config) secret(r ref.Ref) (*secretConfig, error) {
	for i := range c.Secrets {
		if c.Secrets[i].ref == r {
			return &c.Secrets[i], nil
		}
	}
	return nil, c.errNotConfigured(r)
}

// readKeyFile reads a small secret file, which nobody else may read.
func readKeyFile(path string) (string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return "", fault.New(fault.Invalid, "key file", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return "", fault.Newf(fault.Denied, "key file", "%s has mode %04o and others may read it; run chmod 600 %s", path, info.Mode().Perm(), path)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return "", fault.New(fault.Invalid, "key file", err)
	}
	s := strings.TrimSpace(string(b))
	if s == "" {
		return "", fault.Newf(fault.Invalid, "key file", "%s is empty; put the key there, or delete the file if keyturn dev made it", path)
	}
	return s, nil
}

// writeFileAtomic writes a file that only its owner may read, whole or not at
// all.
func writeFileAtomic(path string, b []byte) error {
	tmp := path + ".tmp"
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	_, err = f.Write(b)
	// On the disk before it takes the old one's place: a power cut must not
	// leave an empty key.
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return os.Rename(tmp, path)
}

// unreadKey is how the decoder names keys that nothing reads.
var unreadKey = regexp.MustCompile(`'([^']*)' has invalid keys: ([^\n]+)`)

// unreadable says in the file's own words what the decoder found.
func unreadable(path string, err error) error {
	m := unreadKey.FindStringSubmatch(err.Error())
	if m == nil {
		return fault.New(fault.Invalid, "config "+path, err)
	}
	section := m[1]
	if section == "main.config" { // the decoder's name for the whole
		section = "the top of the file"
	}
	return fault.Newf(fault.Invalid, "config "+path, "nothing reads %s in %s; is it misspelt? docs/configuration.md has all keys", m[2], section)
}
