package lambdarotate

import (
	"crypto/x509"
	"log/slog"
	"net"
	"net/url"
	"regexp"

	"github.com/keyturn/keyturn/internal/funcenv"
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
	// Unknown lists variables that start with KEYTURN_ and mean nothing here,
	// Known those that do.
	Unknown, Known []string
}

// busForm is what PutEvents takes.
var busForm = regexp.MustCompile(`^[/.\-_A-Za-z0-9:]{1,1000}$`)

// ParseEnv reads environ, which has the form of [os.Environ]. It reports
// everything that is wrong at once; the error is of kind Invalid.
func ParseEnv(environ []string) (Env, error) {
	e, p := parse(environ)
	e.Unknown, e.Known = p.Unknown(), p.Known()
	if err := p.Err(); err != nil {
		return Env{}, err
	}
	return e, nil
}

// parse reads what the functions that rotate and retire have in common.
func parse(environ []string) (Env, *funcenv.Parser) {
	p := funcenv.New(environ)
	e := Env{
		Endpoint:       p.Get("SECRETS_MANAGER_ENDPOINT"),
		RDSEndpoint:    p.Get("AWS_ENDPOINT_URL_RDS"),
		Policy:         p.Policy(),
		Strategy:       strategy(p, "KEYTURN_STRATEGY"),
		EventBus:       p.Get("KEYTURN_EVENT_BUS"),
		Tenant:         p.Tenant(),
		RootCAs:        p.Pool("KEYTURN_CA_FILE"),
		AllowPlaintext: p.Bool("KEYTURN_ALLOW_PLAINTEXT"),
		// What Lambda's logging controls set.
		// https://docs.aws.amazon.com/lambda/latest/dg/monitoring-cloudwatchlogs-advanced.html
		LogLevel: p.Level("AWS_LAMBDA_LOG_LEVEL"),
	}
	if e.EventBus != "" && !busForm.MatchString(e.EventBus) {
		p.Bad("KEYTURN_EVENT_BUS", "found %q; expected the name or ARN of an event bus", e.EventBus)
	}
	checkEndpoint(p, "SECRETS_MANAGER_ENDPOINT", e.Endpoint, e.AllowPlaintext)
	checkEndpoint(p, "AWS_ENDPOINT_URL_RDS", e.RDSEndpoint, e.AllowPlaintext)
	return e, p
}

func strategy(p *funcenv.Parser, name string) Strategy {
	switch s := Strategy(p.Get(name)); s {
	case Single, Alternating:
		return s
	case "", BySecret:
		return BySecret
	default:
		p.Bad(name, "found %q; expected %s or %s, or leave it out to let masterarn in the secret decide", string(s), Single, Alternating)
		return BySecret
	}
}

func checkEndpoint(p *funcenv.Parser, name, endpoint string, plain bool) {
	if endpoint == "" {
		return
	}
	u, err := url.Parse(endpoint)
	switch {
	case err != nil || u.Host == "" || (u.Scheme != "https" && u.Scheme != "http"):
		p.Bad(name, "%q is not the URL of an endpoint; expected https and a host", endpoint)
	case u.User != nil:
		p.Bad(name, "the URL holds a user name or password; leave it out")
	case u.Scheme == "http" && !plain && !isLoopback(u.Hostname()):
		p.Bad(name, "%q would send secrets unencrypted; use https, or set KEYTURN_ALLOW_PLAINTEXT=true", endpoint)
	}
}

func isLoopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}
