package lambdarotate

import (
	"crypto/x509"
	"errors"
	"log/slog"
	"net"
	"net/url"
	"os"
	"regexp"
	"strconv"
	"strings"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/rotators"
)

// A Strategy says how a password is changed.
type Strategy string

// The strategies. AWS ships two functions; here one function does either.
const (
	// Single changes the password of the secret's own user.
	Single Strategy = "single"
	// Alternating keeps two users, and changes the password of the one that
	// is not in use, signed in as the user of the secret named by masterarn.
	Alternating Strategy = "alternating"
	// BySecret takes Alternating for a secret whose current value has a
	// masterarn, which only that strategy needs, and Single for others. A
	// function that was the single-user one has no right to read the master
	// secret, so a wrong guess is refused, while guessing Single would change
	// a password that is in use without a word.
	BySecret Strategy = "by-secret"
)

// defaultExclude is what GetRandomPassword is told to leave out by the
// PostgreSQL samples: what would need quoting in a URL or a shell.
const defaultExclude = `:/@"'\`

// Env is what the function's environment variables say.
type Env struct {
	// Endpoints of Secrets Manager and of the RDS API, or "" for the region's
	// own.
	Endpoint, RDSEndpoint string

	Policy   rotators.PasswordPolicy
	Strategy Strategy
	// EventBus is the name or ARN of the EventBridge bus that hears of
	// rotations, or "".
	EventBus string
	Tenant   string
	// RootCAs signs the databases' certificates; nil means the system's roots.
	RootCAs *x509.CertPool
	// AllowPlaintext lets a secret without the key ssl be rotated on a server
	// that has no TLS, and an endpoint be http.
	AllowPlaintext bool
	LogLevel       slog.Level
	// Unknown lists variables that start with KEYTURN_ and mean nothing here.
	Unknown []string
}

// known are our own variables. The others are those of the samples.
var known = []string{
	"KEYTURN_STRATEGY", "KEYTURN_EVENT_BUS", "KEYTURN_TENANT", "KEYTURN_CA_FILE", "KEYTURN_ALLOW_PLAINTEXT",
}

// What PutEvents and our event schema take. A tenant is a part of every
// subject, where other characters would only be escaped.
var (
	busForm    = regexp.MustCompile(`^[/.\-_A-Za-z0-9:]{1,1000}$`)
	tenantForm = regexp.MustCompile(`^[!-~]{1,128}$`)
)

// ParseEnv reads environ, which has the form of [os.Environ]. It reports
// everything that is wrong at once; the error is of kind Invalid.
func ParseEnv(environ []string) (Env, error) {
	p := parser{vars: map[string]string{}}
	for _, kv := range environ {
		k, v, _ := strings.Cut(kv, "=")
		p.vars[k] = v
	}
	e := Env{
		Endpoint:    p.vars["SECRETS_MANAGER_ENDPOINT"],
		RDSEndpoint: p.vars["AWS_ENDPOINT_URL_RDS"],
		Policy: rotators.PasswordPolicy{
			Length:             p.length("PASSWORD_LENGTH", 32),
			Exclude:            defaultExclude,
			ExcludeNumbers:     p.sampleBool("EXCLUDE_NUMBERS", false),
			ExcludePunctuation: p.sampleBool("EXCLUDE_PUNCTUATION", false),
			ExcludeUpper:       p.sampleBool("EXCLUDE_UPPERCASE", false),
			ExcludeLower:       p.sampleBool("EXCLUDE_LOWERCASE", false),
			AllowMissingType:   !p.sampleBool("REQUIRE_EACH_INCLUDED_TYPE", true),
		},
		Strategy:       p.strategy("KEYTURN_STRATEGY"),
		EventBus:       p.vars["KEYTURN_EVENT_BUS"],
		Tenant:         "default",
		RootCAs:        p.pool("KEYTURN_CA_FILE"),
		AllowPlaintext: p.strictBool("KEYTURN_ALLOW_PLAINTEXT"),
		LogLevel:       p.level("AWS_LAMBDA_LOG_LEVEL"),
	}
	if x, ok := p.vars["EXCLUDE_CHARACTERS"]; ok {
		e.Policy.Exclude = x // replaces the default, also when empty
	}
	if t := p.vars["KEYTURN_TENANT"]; t != "" {
		e.Tenant = t
	}
	if e.EventBus != "" && !busForm.MatchString(e.EventBus) {
		p.bad("KEYTURN_EVENT_BUS", "found %q; expected the name or ARN of an event bus", e.EventBus)
	}
	if !tenantForm.MatchString(e.Tenant) {
		p.bad("KEYTURN_TENANT", "found %d bytes; expected 1 to 128 printable characters without spaces", len(e.Tenant))
	}
	p.checkEndpoint("SECRETS_MANAGER_ENDPOINT", e.Endpoint, e.AllowPlaintext)
	p.checkEndpoint("AWS_ENDPOINT_URL_RDS", e.RDSEndpoint, e.AllowPlaintext)
	// A policy that cannot be met is found now, not in the first rotation.
	if _, err := e.Policy.Generate(); err != nil && e.Policy.Length > 0 {
		p.errs = append(p.errs, err)
	}
	for k := range p.vars {
		if strings.HasPrefix(k, "KEYTURN_") && !isKnown(k) {
			e.Unknown = append(e.Unknown, k)
		}
	}
	if len(p.errs) > 0 {
		return Env{}, fault.New(fault.Invalid, "environment", errors.Join(p.errs...))
	}
	return e, nil
}

func isKnown(name string) bool {
	for _, k := range known {
		if k == name {
			return true
		}
	}
	return false
}

// parser collects what is wrong.
type parser struct {
	vars map[string]string
	errs []error
}

func (p *parser) bad(name, format string, args ...any) {
	p.errs = append(p.errs, fault.Newf(fault.Invalid, name, format, args...))
}

// sampleBool is the rule of the samples: anything that is not one of four
// words is false.
func (p *parser) sampleBool(name string, otherwise bool) bool {
	v, ok := p.vars[name]
	if !ok {
		return otherwise
	}
	switch strings.ToLower(v) {
	case "true", "1", "y", "yes":
		return true
	}
	return false
}

// strictBool is for our own switches, where a typing error must not pass for
// a choice.
func (p *parser) strictBool(name string) bool {
	switch strings.ToLower(p.vars[name]) {
	case "true", "1", "y", "yes":
		return true
	case "", "false", "0", "n", "no":
		return false
	}
	p.bad(name, "found %q; expected true or false", p.vars[name])
	return false
}

func (p *parser) length(name string, otherwise int) int {
	v, ok := p.vars[name]
	if !ok {
		return otherwise
	}
	n, err := strconv.Atoi(strings.TrimSpace(v))
	if err != nil || n < 1 || n > 4096 {
		p.bad(name, "found %q; expected a number of characters from 1 to 4096", v)
		return 0
	}
	return n
}

func (p *parser) strategy(name string) Strategy {
	switch s := Strategy(p.vars[name]); s {
	case Single, Alternating:
		return s
	case "", BySecret:
		return BySecret
	default:
		p.bad(name, "found %q; expected %s or %s, or leave it out to let masterarn in the secret decide", string(s), Single, Alternating)
		return BySecret
	}
}

func (p *parser) pool(name string) *x509.CertPool {
	file := p.vars[name]
	if file == "" {
		return nil
	}
	pem, err := os.ReadFile(file)
	if err != nil {
		p.bad(name, "%v; expected a readable file of PEM certificates", err)
		return nil
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		p.bad(name, "%s holds no PEM certificate; use for example the RDS bundle of your region", file)
		return nil
	}
	return pool
}

func (p *parser) checkEndpoint(name, endpoint string, plain bool) {
	if endpoint == "" {
		return
	}
	u, err := url.Parse(endpoint)
	switch {
	case err != nil || u.Host == "" || (u.Scheme != "https" && u.Scheme != "http"):
		p.bad(name, "%q is not the URL of an endpoint; expected https and a host", endpoint)
	case u.User != nil:
		p.bad(name, "the URL holds a user name or password; leave it out")
	case u.Scheme == "http" && !plain && !isLoopback(u.Hostname()):
		p.bad(name, "%q would send secrets unencrypted; use https, or set KEYTURN_ALLOW_PLAINTEXT=true", endpoint)
	}
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// level reads what Lambda's logging controls set. An unknown word is
// somebody else's business and means the default.
// https://docs.aws.amazon.com/lambda/latest/dg/monitoring-cloudwatchlogs-advanced.html
func (p *parser) level(name string) slog.Level {
	switch strings.ToUpper(p.vars[name]) {
	case "TRACE", "DEBUG":
		return slog.LevelDebug
	case "WARN":
		return slog.LevelWarn
	case "ERROR", "FATAL":
		return slog.LevelError
	}
	return slog.LevelInfo
}
