package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
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
	Name     string         `koanf:"name"`
	NATS     natsConfig     `koanf:"nats"`
	Store    storeConfig    `koanf:"store"`
	AWS      awsConfig      `koanf:"aws"`
	Notifier notifierConfig `koanf:"notifier"`
	Secrets  []secretConfig `koanf:"secrets"`
}

type natsConfig struct {
	URL          string `koanf:"url"`
	User         string `koanf:"user"`
	PasswordFile string `koanf:"password_file"`
	CredsFile    string `koanf:"creds_file"`
	CAFile       string `koanf:"ca_file"`
	Replicas     int    `koanf:"replicas"`
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

type notifierConfig struct {
	Listen     string `koanf:"listen"`
	APIKeyFile string `koanf:"api_key_file"`
	CertFile   string `koanf:"cert_file"`
	KeyFile    string `koanf:"key_file"`
	Tenant     string `koanf:"tenant"`
}

// The rotators that a secret may name.
const (
	rotatorPostgresSingle      = "postgres-single"
	rotatorPostgresAlternating = "postgres-alternating"
	rotatorAPIKey              = "apikey"
)

type secretConfig struct {
	Ref     string `koanf:"ref"`
	Tenant  string `koanf:"tenant"`
	Rotator string `koanf:"rotator"`
	// Schedule is "@every 24h", a word such as @daily, or a cron expression of
	// five fields, or six that begin with the second.
	Schedule string `koanf:"schedule"`
	// TimeZone is for cron; UTC by default.
	TimeZone string         `koanf:"time_zone"`
	Postgres postgresConfig `koanf:"postgres"`
	APIKey   map[string]any `koanf:"apikey"`

	ref  ref.Ref
	spec natsbus.Spec // zero without a schedule
}

type postgresConfig struct {
	CAFile         string        `koanf:"ca_file"`
	AllowPlaintext bool          `koanf:"allow_plaintext"`
	ConnectTimeout time.Duration `koanf:"connect_timeout"`
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
	c := &config{Name: "keyturn", Store: storeConfig{Bucket: "keyturn"}, Notifier: notifierConfig{Tenant: "default"}}
	err = k.UnmarshalWithConf("", c, koanf.UnmarshalConf{DecoderConfig: &mapstructure.DecoderConfig{
		Result: c, TagName: "koanf", WeaklyTypedInput: true, ErrorUnused: true,
		DecodeHook: mapstructure.StringToTimeDurationHookFunc(),
	}})
	if err != nil {
		return nil, fault.New(fault.Invalid, "config "+path, err)
	}
	if c.NATS.URL == "" {
		return nil, bad("nats.url is missing; expected something like nats://127.0.0.1:4222")
	}
	seen := map[ref.Ref]bool{}
	for i := range c.Secrets {
		s := &c.Secrets[i]
		if s.ref, err = ref.Parse(s.Ref); err != nil {
			return nil, bad("secrets[%d]: %v", i, err)
		}
		switch {
		case s.ref.Provider == ref.AWS:
		case s.ref.Provider != ref.NATS:
			return nil, bad("secrets[%d]: %s: this version rotates nats:// and aws:// secrets", i, s.ref)
		case s.ref.Scope != c.Store.Bucket:
			return nil, bad("secrets[%d]: %s is not in the store of this configuration; expected nats://%s/NAME", i, s.ref, c.Store.Bucket)
		case c.Store.KeyFile == "" && c.Store.KeyEnv == "":
			return nil, bad("store.key_file and store.key_env are both missing; make a key with keyturn keygen FILE")
		}
		if seen[s.ref] {
			return nil, bad("secrets[%d]: %s is named twice", i, s.ref)
		}
		seen[s.ref] = true
		switch s.Rotator {
		case rotatorPostgresSingle, rotatorPostgresAlternating, rotatorAPIKey:
		default:
			return nil, bad("secrets[%d]: rotator %q; expected %s, %s or %s", i, s.Rotator, rotatorPostgresSingle, rotatorPostgresAlternating, rotatorAPIKey)
		}
		if s.spec, err = parseSchedule(s.Schedule, s.TimeZone); err != nil {
			return nil, bad("secrets[%d]: %v", i, err)
		}
		if s.Tenant == "" {
			s.Tenant = c.Notifier.Tenant
		}
	}
	return c, nil
}

// parseSchedule reads the schedule of a secret. The server checks cron
// expressions and time zones.
func parseSchedule(text, zone string) (natsbus.Spec, error) {
	bad := func(why string) (natsbus.Spec, error) {
		return natsbus.Spec{}, fault.Newf(fault.Invalid, "schedule", "%q %s; expected \"@every 24h\", @daily, or a cron expression of five or six fields", text, why)
	}
	text = strings.TrimSpace(text)
	if text == "" {
		return natsbus.Spec{}, nil
	}
	if period, ok := strings.CutPrefix(text, "@every "); ok {
		d, err := time.ParseDuration(strings.TrimSpace(period))
		if err != nil || d < time.Second {
			return bad("is not a period of one second or more")
		}
		if zone != "" {
			return bad("has a time zone, which only cron takes")
		}
		return natsbus.Spec{Every: d}, nil
	}
	switch fields := strings.Fields(text); {
	case len(fields) == 1 && strings.HasPrefix(text, "@") && text != "@at":
		return natsbus.Spec{Cron: text, TimeZone: zone}, nil
	case len(fields) == 5: // as crontab(5) has it: at second 0
		return natsbus.Spec{Cron: "0 " + strings.Join(fields, " "), TimeZone: zone}, nil
	case len(fields) == 6:
		return natsbus.Spec{Cron: strings.Join(fields, " "), TimeZone: zone}, nil
	}
	return bad("is no schedule")
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
	names := make([]string, 0, len(c.Secrets))
	for i := range c.Secrets {
		if c.Secrets[i].ref == r {
			return &c.Secrets[i], nil
		}
		names = append(names, c.Secrets[i].Ref)
	}
	return nil, fault.Newf(fault.NotFound, "config", "%s is not configured; the configured secrets are %s", r, strings.Join(names, ", "))
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
