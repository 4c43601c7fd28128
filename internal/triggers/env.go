package triggers

import (
	"crypto/x509"
	"log/slog"
	"strings"
	"time"

	"github.com/keyturn/keyturn/internal/funcenv"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/rotators"
	"github.com/keyturn/keyturn/rotators/apikey"
)

// The rotators that a function can have, by the names of the configuration
// file.
const (
	PostgresSingle      = "postgres-single"
	PostgresAlternating = "postgres-alternating"
	APIKey              = "apikey"
)

// Env is what a function's environment variables say.
type Env struct {
	// Rotator is one of the three.
	Rotator string
	Policy  rotators.PasswordPolicy
	// RootCAs signs the databases' certificates; nil means the system's roots.
	RootCAs *x509.CertPool
	// AllowPlaintext lets a secret without the key ssl be rotated on a server
	// that has no TLS.
	AllowPlaintext bool
	// Issuer is how the issuer of API keys is spoken to.
	Issuer apikey.Config
	// Master is the one secret that may be used as an authority; zero leaves
	// that to the function's permissions.
	Master ref.Ref
	// Secrets are those that the function is for; none means all that its
	// notices name.
	Secrets []ref.Ref
	Gate    rotators.Gate
	// MinAge is how old a current version is before it is rotated.
	MinAge   time.Duration
	LogLevel slog.Level
	// Address is where the platform calls.
	Address string
	// Unknown lists variables that start with KEYTURN_ and mean nothing here.
	Unknown []string

	provider ref.Provider
}

// ParseEnv reads environ for a function whose secrets are of provider, and
// which listens on the port that the variable port names. More reads what
// belongs to the provider alone, and may be nil. Everything that is wrong is
// reported at once; the error is of kind Invalid.
func ParseEnv(environ []string, provider ref.Provider, port string, minAge time.Duration, more func(*funcenv.Parser)) (Env, error) {
	p := funcenv.New(environ)
	e := Env{
		provider:       provider,
		Rotator:        p.Get("KEYTURN_ROTATOR"),
		Policy:         p.Policy(),
		RootCAs:        p.Pool("KEYTURN_CA_FILE"),
		AllowPlaintext: p.Bool("KEYTURN_ALLOW_PLAINTEXT"),
		Secrets:        refs(p, "KEYTURN_SECRETS", provider),
		Gate:           p.Gate(),
		MinAge:         p.Duration("KEYTURN_MIN_AGE", minAge),
		LogLevel:       p.Level("KEYTURN_LOG_LEVEL"),
		Address:        address(p, port),
	}
	if m := refs(p, "KEYTURN_MASTER", provider); len(m) == 1 {
		e.Master = m[0]
	} else if len(m) > 1 {
		p.Bad("KEYTURN_MASTER", "found %d refs; expected one", len(m))
	}
	issuer, given := p.Lookup("KEYTURN_APIKEY")
	switch e.Rotator {
	case PostgresSingle, PostgresAlternating:
	case APIKey:
		c, err := apikey.ParseConfig([]byte(issuer))
		if !given || err != nil {
			p.Note(err)
			p.Bad("KEYTURN_APIKEY", "expected the JSON of the issuer's configuration, such as {\"preset\": \"NAME\"}")
		}
		e.Issuer = c
	default:
		p.Bad("KEYTURN_ROTATOR", "found %q; expected %s, %s or %s", e.Rotator, PostgresSingle, PostgresAlternating, APIKey)
	}
	if more != nil {
		more(p)
	}
	e.Unknown = p.Unknown()
	if err := p.Err(); err != nil {
		return Env{}, err
	}
	return e, nil
}

// refs reads refs that are separated by blanks or commas.
func refs(p *funcenv.Parser, name string, provider ref.Provider) []ref.Ref {
	var out []ref.Ref
	for _, s := range strings.FieldsFunc(p.Get(name), func(r rune) bool { return r == ',' || r == ' ' || r == '\n' || r == '\t' }) {
		r, err := ref.Parse(s)
		switch {
		case err != nil:
			p.Bad(name, "%v", err)
		case r.Provider != provider:
			p.Bad(name, "%s is not a secret of this cloud; expected refs that begin with %s://", r, provider)
		default:
			out = append(out, canonical(r))
		}
	}
	return out
}

// canonical is r as notices name it: the names of Azure are case-insensitive.
func canonical(r ref.Ref) ref.Ref {
	if r.Provider == ref.Azure {
		r.Scope, r.Name = strings.ToLower(r.Scope), strings.ToLower(r.Name)
	}
	return r
}

func address(p *funcenv.Parser, name string) string {
	port := p.Get(name)
	if port == "" {
		port = "8080"
	}
	return ":" + port
}
