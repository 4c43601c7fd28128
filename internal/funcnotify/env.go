package funcnotify

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"log/slog"
	"net"
	"net/url"
	"os"
	"regexp"
	"strings"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/funcenv"
	"github.com/keyturn/keyturn/notifier/tenants"
)

// Env is what a function's environment variables say.
type Env struct {
	// URL is where NATS is: one or several URLs of one cluster, separated by
	// commas.
	URL string
	// Plaintext lets a connection that leaves this machine be without TLS.
	Plaintext bool
	// RootCAs signs the servers' certificates; nil means the system's roots.
	RootCAs *x509.CertPool
	// Domain is the JetStream domain, or "".
	Domain string
	// InboxPrefix is where answers are received, or "" for _INBOX.
	InboxPrefix string
	// Replicas of the streams that the function may create; 0 means that it
	// may create none.
	Replicas int
	// Source is the source name of deliveries, and so of dead letters.
	Source string
	// Redact parks the shape of a notice instead of the notice.
	Redact   bool
	LogLevel slog.Level
	// Address is where the platform calls, or "" for a function that it does
	// not call by HTTP.
	Address string
	// Unknown lists variables that start with KEYTURN_ and mean nothing here.
	Unknown []string

	tenant string
	rules  tenantRules
	// credentials is the text or the file of them, of which one is set, or none.
	credentials, file string
	elsewhere         bool
}

// Form says what belongs to one platform.
type Form struct {
	// Source is the default of KEYTURN_SOURCE: what the daemon calls such a way
	// in, so that its deadletters replay reads what was parked here.
	Source string
	// Port is the variable that holds the port, or "".
	Port string
	// LogLevel is the variable that holds the level.
	LogLevel string
	// More reads what belongs to the platform alone. It reports whether it
	// says where credentials are. It may be nil.
	More func(*funcenv.Parser) (credentials bool)
}

var (
	sourceForm = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)
	prefixForm = regexp.MustCompile(`^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$`)
	domainForm = regexp.MustCompile(`^[A-Za-z0-9_-]{0,64}$`)
)

// ParseEnv reads environ. Everything that is wrong is reported at once; the
// error is of kind Invalid, and quotes no credentials.
func ParseEnv(environ []string, f Form) (Env, error) {
	p := funcenv.New(environ)
	e := Env{
		URL:         p.Get("KEYTURN_NATS_URL"),
		Plaintext:   p.Bool("KEYTURN_ALLOW_PLAINTEXT"),
		RootCAs:     p.Pool("KEYTURN_CA_FILE"),
		Domain:      p.Get("KEYTURN_NATS_DOMAIN"),
		InboxPrefix: p.Get("KEYTURN_NATS_INBOX"),
		Source:      p.Get("KEYTURN_SOURCE"),
		Redact:      p.Bool("KEYTURN_REDACT_DEADLETTERS"),
		LogLevel:    p.Level(f.LogLevel),
		tenant:      p.Get("KEYTURN_TENANT"),
		credentials: p.Get("KEYTURN_NATS_CREDS"),
		file:        p.Get("KEYTURN_NATS_CREDS_FILE"),
	}
	if f.More != nil {
		e.elsewhere = f.More(p)
	}
	if e.Source == "" {
		e.Source = f.Source
	}
	if !sourceForm.MatchString(e.Source) {
		p.Bad("KEYTURN_SOURCE", "expected 1 to 64 letters, digits, hyphens and underscores")
	}
	if !domainForm.MatchString(e.Domain) {
		p.Bad("KEYTURN_NATS_DOMAIN", "expected the name of a JetStream domain")
	}
	if e.InboxPrefix != "" && !prefixForm.MatchString(e.InboxPrefix) {
		p.Bad("KEYTURN_NATS_INBOX", "found %q; expected a subject without wildcards, such as _INBOX_notify", e.InboxPrefix)
	}
	e.checkURL(p)
	e.checkCredentials(p)
	switch n := p.Get("KEYTURN_CREATE_STREAMS"); n {
	case "":
	case "1", "3", "5":
		e.Replicas = int(n[0] - '0')
	default:
		p.Bad("KEYTURN_CREATE_STREAMS", "found %q; expected 1, 3 or 5 replicas, or leave it out where the streams are there", n)
	}
	e.readTenants(p)
	if f.Port != "" {
		port := p.Get(f.Port)
		if port == "" {
			port = "8080"
		}
		e.Address = ":" + port
	}
	e.Unknown = p.Unknown()
	if err := p.Err(); err != nil {
		return Env{}, err
	}
	return e, nil
}

func (e *Env) checkURL(p *funcenv.Parser) {
	const name = "KEYTURN_NATS_URL"
	if e.URL == "" {
		p.Bad(name, "it is missing; expected tls://HOST:PORT, or several separated by commas")
		return
	}
	for s := range strings.SplitSeq(e.URL, ",") {
		u, err := url.Parse(strings.TrimSpace(s))
		switch {
		// A URL that cannot be parsed is not quoted: it may hold a password.
		case err != nil || u.Host == "" || u.Scheme != "tls" && u.Scheme != "nats":
			p.Bad(name, "expected tls://HOST:PORT, or several separated by commas")
		case u.User != nil:
			p.Bad(name, "the URL holds a user name, password or token; use KEYTURN_NATS_CREDS_FILE")
		case u.Scheme == "nats" && !e.Plaintext && !loopback(u.Hostname()):
			p.Bad(name, "%q would be unencrypted; use tls, or set KEYTURN_ALLOW_PLAINTEXT=true", s)
		}
	}
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

func (e *Env) checkCredentials(p *funcenv.Parser) {
	n := 0
	for _, set := range []bool{e.credentials != "", e.file != "", e.elsewhere} {
		if set {
			n++
		}
	}
	if n > 1 {
		p.Bad("KEYTURN_NATS_CREDS", "credentials are set in %d ways; expected one of KEYTURN_NATS_CREDS, its _FILE and, on AWS, its _SECRET", n)
		return
	}
	if e.credentials != "" {
		_, err := parseCredentials([]byte(e.credentials))
		p.Note(err)
	}
}

// tenantRules is the value of KEYTURN_TENANTS: the section tenants of the
// daemon's configuration, as JSON.
type tenantRules struct {
	Rules      []tenants.Rule
	Quarantine string
}

func (e *Env) readTenants(p *funcenv.Parser) {
	const name = "KEYTURN_TENANTS"
	text := p.Get(name)
	switch {
	case e.tenant != "" && text != "":
		p.Bad(name, "KEYTURN_TENANT is set too; expected one tenant or rules")
	case e.tenant != "":
		if err := tenants.CheckName(e.tenant); err != nil {
			p.Bad("KEYTURN_TENANT", "%v", err)
		}
	case text != "":
		d := json.NewDecoder(bytes.NewReader([]byte(text)))
		d.DisallowUnknownFields()
		if err := d.Decode(&e.rules); err != nil || d.More() {
			p.Bad(name, `it is not JSON of the form {"rules": [{"tenant": "acme", "account": "111122223333"}], "quarantine": "quarantine"}: %v`, err)
			return
		}
		_, err := e.rules.compile(nil)
		p.Note(err)
	}
}

func (r tenantRules) compile(log *slog.Logger) (*tenants.Rules, error) {
	return tenants.New(tenants.Options{Rules: r.Rules, Quarantine: r.Quarantine, Logger: log})
}

// Tenants returns what names the tenant of an event: the one that is set, or
// the rules, of which none means that every secret goes to the quarantine.
func (e Env) Tenants(log *slog.Logger) (func(context.Context, events.Event) (string, error), error) {
	if e.tenant != "" {
		return func(context.Context, events.Event) (string, error) { return e.tenant, nil }, nil
	}
	if len(e.rules.Rules) == 0 {
		log.Warn("neither KEYTURN_TENANT nor KEYTURN_TENANTS is set: every event goes to the quarantine, where no agent hears it")
	}
	rules, err := e.rules.compile(log)
	if err != nil {
		return nil, err
	}
	return rules.Tenant, nil
}

// read returns the credentials that the environment tells of, or nil for none.
func (e Env) read(context.Context) ([]byte, error) {
	if e.file == "" {
		return []byte(e.credentials), nil
	}
	b, err := os.ReadFile(e.file)
	if err != nil {
		// It may be about to be mounted or replaced.
		return nil, &fault.Error{Kind: fault.Unavailable, Op: "KEYTURN_NATS_CREDS_FILE", Msg: "expected a readable file of credentials", Err: err}
	}
	return b, nil
}
