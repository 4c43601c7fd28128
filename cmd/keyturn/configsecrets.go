package main

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/keyturn/keyturn/events/natsbus"
	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/scheduler"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/rotators"
)

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
	// After names the secrets whose credentials this one's rotation uses.
	After    []string       `koanf:"after"`
	Postgres postgresConfig `koanf:"postgres"`
	APIKey   map[string]any `koanf:"apikey"`

	policyConfig `koanf:",squash"`

	ref      ref.Ref
	spec     natsbus.Spec // zero without a schedule
	after    []ref.Ref
	calendar scheduler.Calendar
	gate     rotators.Gate
}

type postgresConfig struct {
	CAFile         string        `koanf:"ca_file"`
	AllowPlaintext bool          `koanf:"allow_plaintext"`
	ConnectTimeout time.Duration `koanf:"connect_timeout"`
}

// policyConfig is what secrets have in common, and defaults can say for all.
type policyConfig struct {
	// TimeZone is for cron, windows and freezes; UTC by default.
	TimeZone string `koanf:"time_zone"`
	// Windows are when a rotation may begin, Freezes when none may.
	Windows  []string       `koanf:"windows"`
	Freezes  []string       `koanf:"freezes"`
	Jitter   time.Duration  `koanf:"jitter"`
	MinAge   time.Duration  `koanf:"min_age"`
	Gate     gateConfig     `koanf:"gate"`
	Retry    retryConfig    `koanf:"retry"`
	Password passwordConfig `koanf:"password"`
}

type gateConfig struct {
	After        time.Duration `koanf:"after"`
	Adopted      bool          `koanf:"adopted"`
	NextRotation bool          `koanf:"next_rotation"`
	Manual       bool          `koanf:"manual"`
	Min          time.Duration `koanf:"min"`
	Max          time.Duration `koanf:"max"`
	AtLimit      string        `koanf:"at_limit"`
}

type retryConfig struct {
	First   time.Duration `koanf:"first"`
	Longest time.Duration `koanf:"longest"`
	Limit   int           `koanf:"limit"`
}

// passwordConfig has the knobs of the AWS samples under their names.
type passwordConfig struct {
	Length              int     `koanf:"password_length"`
	ExcludeCharacters   *string `koanf:"exclude_characters"`
	ExcludeNumbers      bool    `koanf:"exclude_numbers"`
	ExcludePunctuation  bool    `koanf:"exclude_punctuation"`
	ExcludeUppercase    bool    `koanf:"exclude_uppercase"`
	ExcludeLowercase    bool    `koanf:"exclude_lowercase"`
	RequireEachIncluded *bool   `koanf:"require_each_included_type"`
}

// minPassword is the least length of a password, which no provider's own
// policy goes below.
const minPassword = 8

// excludeDefault is what the samples exclude unless told otherwise.
const excludeDefault = ":/@\"'\\"

// policy returns the rotators' form, with the defaults of the samples.
func (p passwordConfig) policy() rotators.PasswordPolicy {
	exclude := excludeDefault
	if p.ExcludeCharacters != nil {
		exclude = *p.ExcludeCharacters
	}
	return rotators.PasswordPolicy{
		Length: p.Length, Exclude: exclude,
		ExcludeNumbers: p.ExcludeNumbers, ExcludePunctuation: p.ExcludePunctuation,
		ExcludeUpper: p.ExcludeUppercase, ExcludeLower: p.ExcludeLowercase,
		AllowMissingType: p.RequireEachIncluded != nil && !*p.RequireEachIncluded,
	}
}

// orDefault fills what p does not say from d. Freezes add up: one that holds
// for all cannot be lifted for one.
func (p *policyConfig) orDefault(d policyConfig) {
	if p.TimeZone == "" {
		p.TimeZone = d.TimeZone
	}
	if len(p.Windows) == 0 {
		p.Windows = d.Windows
	}
	p.Freezes = slices.Concat(p.Freezes, d.Freezes)
	if p.Jitter == 0 {
		p.Jitter = d.Jitter
	}
	if p.MinAge == 0 {
		p.MinAge = d.MinAge
	}
	if p.Gate == (gateConfig{}) {
		p.Gate = d.Gate
	}
	if p.Retry == (retryConfig{}) {
		p.Retry = d.Retry
	}
	if p.Password == (passwordConfig{}) {
		p.Password = d.Password
	}
}

// checkSecrets checks and completes the secrets. bad makes an error that
// names the file.
func (c *config) checkSecrets(bad func(format string, args ...any) error) error {
	seen := map[ref.Ref]bool{}
	for i := range c.Secrets {
		s := &c.Secrets[i]
		if err := c.checkSecret(s); err != nil {
			return bad("secrets[%d]: %v", i, err)
		}
		if seen[s.ref] {
			return bad("secrets[%d]: %s is named twice", i, s.ref)
		}
		seen[s.ref] = true
	}
	for i := range c.Secrets {
		for _, a := range c.Secrets[i].after {
			if !seen[a] {
				return bad("secrets[%d]: it comes after %s, which is not configured; add it, or remove it from after", i, a)
			}
		}
	}
	return nil
}

func (c *config) checkSecret(s *secretConfig) (err error) {
	bad := func(format string, args ...any) error { return fmt.Errorf(format, args...) }
	if s.ref, err = ref.Parse(s.Ref); err != nil {
		return err
	}
	if err := c.checkStore(s.ref); err != nil {
		return err
	}
	switch s.Rotator {
	case rotatorPostgresSingle, rotatorPostgresAlternating, rotatorAPIKey:
	default:
		return bad("rotator %q; expected %s, %s or %s", s.Rotator, rotatorPostgresSingle, rotatorPostgresAlternating, rotatorAPIKey)
	}
	s.orDefault(c.Defaults)
	if s.Tenant == "" {
		tenant, err := c.Tenants.of(s.ref, c.Notifier.Tenant)
		if err != nil {
			return bad("secret %s: %v", s.ref, err)
		}
		s.Tenant = tenant
	}
	zone, err := time.LoadLocation(s.TimeZone)
	if err != nil {
		return bad("time_zone %q is unknown; expected an IANA name such as Europe/Berlin", s.TimeZone)
	}
	cronZone := s.TimeZone
	if strings.HasPrefix(strings.TrimSpace(s.Schedule), "@every") {
		cronZone = "" // windows and freezes still have it
	}
	if s.spec, err = parseSchedule(s.Schedule, cronZone); err != nil {
		return err
	}
	if s.calendar, err = scheduler.ParseCalendar(s.Windows, s.Freezes, zone); err != nil {
		return err
	}
	for _, a := range s.After {
		r, err := ref.Parse(a)
		if err != nil {
			return bad("after: %v", err)
		}
		s.after = append(s.after, r)
	}
	if s.Jitter < 0 || s.MinAge < 0 || s.Retry.First < 0 || s.Retry.Longest < 0 || s.Retry.Limit < 0 {
		return bad("jitter, min_age and retry take no negative numbers")
	}
	if n := s.Password.Length; n != 0 && n < minPassword {
		return bad("password.password_length is %d; expected %d or more", n, minPassword)
	}
	if _, err := s.Password.policy().Generate(); err != nil {
		return bad("password: %v", err)
	}
	if s.Rotator == rotatorAPIKey && len(s.APIKey) == 0 {
		return bad("the section apikey is missing; expected preset, or create, verify and revoke")
	}
	return s.checkGate()
}

// checkGate also refuses a gate that every scheduled rotation would have to
// wait for.
func (s *secretConfig) checkGate() error {
	g := s.Gate
	s.gate = rotators.Gate{
		After: g.After, Adopted: g.Adopted, NextRotation: g.NextRotation, Manual: g.Manual,
		Min: g.Min, Max: g.Max, AtLimit: rotators.AtLimit(g.AtLimit),
	}
	if err := s.gate.Validate(); err != nil {
		return err
	}
	if s.gate.Adopted && s.gate.Max == 0 {
		return fmt.Errorf("gate: adopted waits for ever, since nothing here knows the fleet yet; set max and at_limit, or use after")
	}
	period := shortestPeriod(s.spec)
	if period > 0 && s.Jitter >= period {
		return fmt.Errorf("jitter is %s and the schedule %q comes every %s: the next firing would take the place of one that waits; shorten jitter", s.Jitter, s.Schedule, period)
	}
	if least := max(g.After, g.Min, s.MinAge); period > 0 && least >= period {
		return fmt.Errorf("the schedule %q comes every %s, and the gate or min_age lets none begin within %s; rotate less often, or shorten them", s.Schedule, period, least)
	}
	return nil
}

// checkStore reports what the configuration lacks for the store of r.
func (c *config) checkStore(r ref.Ref) error {
	switch r.Provider {
	case ref.NATS:
		if r.Scope != c.Store.Bucket {
			return fmt.Errorf("%s is not in the store of this configuration; expected nats://%s/NAME", r, c.Store.Bucket)
		}
		if c.Store.KeyFile == "" && c.Store.KeyEnv == "" {
			return fmt.Errorf("store.key_file and store.key_env are both missing; make a key with keyturn keygen FILE")
		}
	case ref.Vault:
		v, ok := c.Vault[r.ScopePart(0)]
		switch {
		case !ok:
			return fmt.Errorf("%s is in a Vault cluster that is not configured; add vault.%s.address", r, r.ScopePart(0))
		case v.Address == "":
			return fmt.Errorf("vault.%s.address is missing", r.ScopePart(0))
		case (v.TokenFile == "") == (v.AppRole.RoleIDFile == ""):
			return fmt.Errorf("vault.%s: expected one of token_file and approle.role_id_file", r.ScopePart(0))
		}
	case ref.AWS, ref.GCP, ref.Azure:
	}
	return nil
}

// errNotConfigured is in the way of every command that needs a rotator.
func (c *config) errNotConfigured(r ref.Ref) error {
	return fault.Newf(fault.NotFound, "config", "%s is not configured; the configured secrets are %s", r, c.names())
}

// names lists the configured secrets, for messages.
func (c *config) names() string {
	names := make([]string, 0, len(c.Secrets))
	for i := range c.Secrets {
		names = append(names, c.Secrets[i].Ref)
	}
	return strings.Join(names, ", ")
}
