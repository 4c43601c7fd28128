// Package funcenv reads the environment variables of functions: those of the
// rotation functions of AWS under their names and by their rules, and our own,
// KEYTURN_*. A [Parser] collects all that is wrong, so that a deployment is
// corrected in one go.
package funcenv

import (
	"crypto/x509"
	"errors"
	"log/slog"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/rotators"
)

// defaultExclude is what GetRandomPassword is told to leave out by the
// PostgreSQL samples of AWS: what would need quoting in a URL or a shell.
const defaultExclude = `:/@"'\`

// A Parser reads variables. Its methods take a variable's name, return the
// default where it is not set, and note what is wrong for [Parser.Err].
type Parser struct {
	vars  map[string]string
	asked map[string]bool
	errs  []error
}

// New returns a Parser of environ, which has the form of [os.Environ].
func New(environ []string) *Parser {
	p := &Parser{vars: map[string]string{}, asked: map[string]bool{}}
	for _, kv := range environ {
		k, v, _ := strings.Cut(kv, "=")
		p.vars[k] = v
	}
	return p
}

// Lookup returns a variable, and whether it is set.
func (p *Parser) Lookup(name string) (string, bool) {
	p.asked[name] = true
	v, ok := p.vars[name]
	return v, ok
}

// Get returns a variable, or "".
func (p *Parser) Get(name string) string {
	v, _ := p.Lookup(name)
	return v
}

// Bad notes what is wrong with a variable.
func (p *Parser) Bad(name, format string, args ...any) {
	p.errs = append(p.errs, fault.Newf(fault.Invalid, name, format, args...))
}

// Note notes err, if there is one.
func (p *Parser) Note(err error) {
	if err != nil {
		p.errs = append(p.errs, err)
	}
}

// Err returns all that is wrong as one error of kind Invalid, or nil.
func (p *Parser) Err() error {
	if len(p.errs) == 0 {
		return nil
	}
	return fault.New(fault.Invalid, "environment", errors.Join(p.errs...))
}

// Unknown lists the variables that start with KEYTURN_ and were not asked for.
func (p *Parser) Unknown() []string {
	var out []string
	for k := range p.vars {
		if strings.HasPrefix(k, "KEYTURN_") && !p.asked[k] {
			out = append(out, k)
		}
	}
	slices.Sort(out)
	return out
}

// Known lists our own variables that were asked for.
func (p *Parser) Known() []string {
	var out []string
	for k := range p.asked {
		if strings.HasPrefix(k, "KEYTURN_") {
			out = append(out, k)
		}
	}
	slices.Sort(out)
	return out
}

// SampleBool is the rule of the samples: anything that is not one of four
// words is false.
func (p *Parser) SampleBool(name string, otherwise bool) bool {
	v, ok := p.Lookup(name)
	if !ok {
		return otherwise
	}
	switch strings.ToLower(v) {
	case "true", "1", "y", "yes":
		return true
	}
	return false
}

// Bool is for our own switches, where a typing error must not pass for a
// choice.
func (p *Parser) Bool(name string) bool {
	v := p.Get(name)
	switch strings.ToLower(v) {
	case "true", "1", "y", "yes":
		return true
	case "", "false", "0", "n", "no":
		return false
	}
	p.Bad(name, "found %q; expected true or false", v)
	return false
}

// Duration reads a time such as 24h.
func (p *Parser) Duration(name string, otherwise time.Duration) time.Duration {
	v := p.Get(name)
	if v == "" {
		return otherwise
	}
	d, err := time.ParseDuration(v)
	if err != nil || d < 0 {
		p.Bad(name, "found %q; expected a time such as 90m or 24h", v)
		return 0
	}
	return d
}

// Pairs reads pairs such as a=b,c=d.
func (p *Parser) Pairs(name string) map[string]string {
	out := map[string]string{}
	for _, s := range strings.FieldsFunc(p.Get(name), func(r rune) bool { return r == ',' || r == ' ' }) {
		k, v, ok := strings.Cut(s, "=")
		if !ok || k == "" || v == "" {
			p.Bad(name, "found %q; expected pairs such as a=b,c=d", s)
			continue
		}
		out[k] = v
	}
	return out
}

// Policy reads the variables of the samples for passwords. A policy that
// cannot be met is found now, not in the first rotation.
func (p *Parser) Policy() rotators.PasswordPolicy {
	policy := rotators.PasswordPolicy{
		Length:             p.length("PASSWORD_LENGTH", 32),
		Exclude:            defaultExclude,
		ExcludeNumbers:     p.SampleBool("EXCLUDE_NUMBERS", false),
		ExcludePunctuation: p.SampleBool("EXCLUDE_PUNCTUATION", false),
		ExcludeUpper:       p.SampleBool("EXCLUDE_UPPERCASE", false),
		ExcludeLower:       p.SampleBool("EXCLUDE_LOWERCASE", false),
		AllowMissingType:   !p.SampleBool("REQUIRE_EACH_INCLUDED_TYPE", true),
	}
	if x, ok := p.Lookup("EXCLUDE_CHARACTERS"); ok {
		policy.Exclude = x // replaces the default, also when empty
	}
	if policy.Length > 0 {
		_, err := policy.Generate()
		p.Note(err)
	}
	return policy
}

func (p *Parser) length(name string, otherwise int) int {
	v, ok := p.Lookup(name)
	if !ok {
		return otherwise
	}
	n, err := strconv.Atoi(strings.TrimSpace(v))
	if err != nil || n < 1 || n > 4096 {
		p.Bad(name, "found %q; expected a number of characters from 1 to 4096", v)
		return 0
	}
	return n
}

// Pool reads the authorities in a file of PEM certificates; nil, which means
// those of the system, without a file.
func (p *Parser) Pool(name string) *x509.CertPool {
	file := p.Get(name)
	if file == "" {
		return nil
	}
	pem, err := os.ReadFile(file)
	if err != nil {
		p.Bad(name, "%v; expected a readable file of PEM certificates", err)
		return nil
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		p.Bad(name, "%s holds no PEM certificate; use for example the bundle of your database service", file)
		return nil
	}
	return pool
}

// A tenant is a part of every subject, where other characters would only be
// escaped.
var tenantForm = regexp.MustCompile(`^[!-~]{1,128}$`)

// Tenant reads KEYTURN_TENANT.
func (p *Parser) Tenant() string {
	t := p.Get("KEYTURN_TENANT")
	if t == "" {
		return "default"
	}
	if !tenantForm.MatchString(t) {
		p.Bad("KEYTURN_TENANT", "found %d bytes; expected 1 to 128 printable characters without spaces", len(t))
	}
	return t
}

// Level reads a log level. An unknown word is somebody else's business and
// means the default.
func (p *Parser) Level(name string) slog.Level {
	switch strings.ToUpper(p.Get(name)) {
	case "TRACE", "DEBUG":
		return slog.LevelDebug
	case "WARN":
		return slog.LevelWarn
	case "ERROR", "FATAL":
		return slog.LevelError
	}
	return slog.LevelInfo
}

// Gate reads KEYTURN_GATE_*: what must hold before a superseded credential is
// taken out of use. A function hears of no agents, so the condition that they
// have adopted is refused.
func (p *Parser) Gate() rotators.Gate {
	g := rotators.Gate{
		After:        p.Duration("KEYTURN_GATE_AFTER", 0),
		NextRotation: p.Bool("KEYTURN_GATE_NEXT_ROTATION"),
		Manual:       p.Bool("KEYTURN_GATE_MANUAL"),
		Min:          p.Duration("KEYTURN_GATE_MIN", 0),
		Max:          p.Duration("KEYTURN_GATE_MAX", 0),
		AtLimit:      rotators.AtLimit(p.Get("KEYTURN_GATE_AT_LIMIT")),
	}
	if p.Bool("KEYTURN_GATE_ADOPTED") {
		p.Bad("KEYTURN_GATE_ADOPTED", "a function does not hear which agents have adopted a version; use KEYTURN_GATE_AFTER")
	}
	p.Note(g.Validate())
	return g
}
