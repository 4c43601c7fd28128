package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"time"

	"github.com/go-viper/mapstructure/v2"
	"github.com/knadh/koanf/parsers/yaml"
	"github.com/knadh/koanf/providers/file"
	"github.com/knadh/koanf/v2"
	yamlv3 "go.yaml.in/yaml/v3"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/notifier/tenants"
	"github.com/keyturn/keyturn/ref"
)

// tenantsConfig says whose secrets are, and where the accounts of the tenants
// are kept.
type tenantsConfig struct {
	// Rules in order; the first that matches wins. Without any, every secret
	// is of notifier.tenant.
	Rules []tenantRule `koanf:"rules"`
	// Quarantine is the tenant of what no rule matches. "quarantine" by
	// default.
	Quarantine string `koanf:"quarantine"`
	// Dir is the directory of keyturn tenants init.
	Dir string `koanf:"dir"`
	// TagTTL is how long the tags of a secret are remembered. 5m by default.
	TagTTL time.Duration `koanf:"tag_ttl"`

	// compiled is what check made of the rules; it asks for no tags.
	compiled *tenants.Rules
}

// tenantRule is a [tenants.Rule].
type tenantRule struct {
	Tenant    string            `koanf:"tenant"`
	Provider  string            `koanf:"provider"`
	Account   string            `koanf:"account"`
	Region    string            `koanf:"region"`
	Project   string            `koanf:"project"`
	Location  string            `koanf:"location"`
	Vault     string            `koanf:"vault"`
	Cluster   string            `koanf:"cluster"`
	Namespace string            `koanf:"namespace"`
	Mount     string            `koanf:"mount"`
	Bucket    string            `koanf:"bucket"`
	Name      string            `koanf:"name"`
	Tags      map[string]string `koanf:"tags"`
}

// secretTags asks a provider for the tags of a secret.
type secretTags func(context.Context, ref.Ref) (map[string]string, error)

// errNeedsTags stands for the answer of a provider where none is asked.
var errNeedsTags = fault.Newf(fault.Unavailable, "tags", "a rule needs the secret's tags, which are not asked for here")

func noTags(context.Context, ref.Ref) (map[string]string, error) { return nil, errNeedsTags }

// rules compiles the rules. secrets are those whose tenant is configured.
func (t *tenantsConfig) rules(secrets map[ref.Ref]string, tags secretTags, log *slog.Logger) (*tenants.Rules, error) {
	rs := make([]tenants.Rule, len(t.Rules))
	for i := range t.Rules {
		rs[i] = tenants.Rule(t.Rules[i])
	}
	return tenants.New(tenants.Options{
		Rules: rs, Quarantine: t.Quarantine, Secrets: secrets, Tags: tags, TagTTL: t.TagTTL, Logger: log,
	})
}

// check compiles the rules. If they are wrong it does so again with one more
// each time, so that the error has the line of its rule in the file at path.
func (t *tenantsConfig) check(path string) error {
	lines := ruleLines(path)
	line := func(i int) string {
		if i < len(lines) {
			return fmt.Sprintf("line %d: ", lines[i].Line)
		}
		return ""
	}
	for i := range lines {
		if err := plainScalars(lines[i]); err != nil {
			return fault.Newf(fault.Invalid, "config "+path, "%stenants.rules: %v", line(i), err)
		}
	}
	compiled, failed := t.rules(nil, noTags, nil)
	if failed == nil {
		t.compiled = compiled
		return nil
	}
	all := *t
	for i := range t.Rules {
		some := all
		some.Rules = all.Rules[:i+1]
		if _, err := some.rules(nil, noTags, nil); err != nil {
			// A rule without a condition is wrong only when another follows it.
			at := i
			if r := t.Rules[max(i-1, 0)]; i > 0 && r.catchesAll() {
				at = i - 1
			}
			return fault.Newf(fault.Invalid, "config "+path, "%stenants.rules: %v", line(at), err)
		}
	}
	return fault.Newf(fault.Invalid, "config "+path, "tenants: %v", failed)
}

func (r tenantRule) catchesAll() bool {
	return len(r.Tags) == 0 && r.Provider+r.Account+r.Region+r.Project+r.Location+r.Vault+r.Cluster+r.Namespace+r.Mount+r.Bucket+r.Name == ""
}

// of is the tenant of a configured secret that does not name its own, and
// otherwise where there are no rules.
func (t *tenantsConfig) of(r ref.Ref, otherwise string) (string, error) {
	if len(t.Rules) == 0 {
		return otherwise, nil
	}
	x := t.compiled.Explain(context.Background(), eventOf(r))
	if x.Err != nil {
		return "", fmt.Errorf("a rule of tenants asks for its tags; name its tenant here")
	}
	return x.Tenant, nil
}

// ruleLines returns the YAML of each rule, or nothing: then errors have no
// line.
func ruleLines(path string) []*yamlv3.Node {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	var doc struct {
		Tenants struct {
			Rules []yamlv3.Node `yaml:"rules"`
		} `yaml:"tenants"`
	}
	if yamlv3.Unmarshal(b, &doc) != nil {
		return nil
	}
	out := make([]*yamlv3.Node, len(doc.Tenants.Rules))
	for i := range out {
		out[i] = &doc.Tenants.Rules[i]
	}
	return out
}

// plainScalars refuses what YAML does not read as it is written: an account
// 012345678901 without quotes is another number.
func plainScalars(n *yamlv3.Node) error {
	for _, c := range n.Content {
		if err := plainScalars(c); err != nil {
			return err
		}
	}
	if n.Kind != yamlv3.ScalarNode || n.Tag == "!!str" || n.Tag == "!!int" && n.Value[0] != '0' {
		return nil
	}
	return fmt.Errorf("line %d has a value that YAML takes for %s; put it in quotes", n.Line, n.Tag[2:])
}

// tenantsFile is what the commands of this file's section read: they work
// where the rest of the configuration is not there yet.
type tenantsFile struct {
	tenantsConfig
	url     string
	gcp     gcpConfig // the numbers of projects
	secrets map[ref.Ref]string
}

// readTenants reads the section tenants, and the tenants of secrets, of the
// file at path. No file is an empty one.
func readTenants(path string) (*tenantsFile, error) {
	k := koanf.New(".")
	switch err := k.Load(file.Provider(path), yaml.Parser()); {
	case errors.Is(err, fs.ErrNotExist):
		return &tenantsFile{}, nil
	case err != nil:
		return nil, fault.New(fault.Invalid, "config "+path, err)
	}
	out := &tenantsFile{url: k.String("nats.url"), secrets: map[ref.Ref]string{}}
	err := k.UnmarshalWithConf("tenants", &out.tenantsConfig, koanf.UnmarshalConf{DecoderConfig: &mapstructure.DecoderConfig{
		Result: &out.tenantsConfig, TagName: "koanf", WeaklyTypedInput: true, ErrorUnused: true,
		DecodeHook: mapstructure.StringToTimeDurationHookFunc(),
	}})
	if err != nil {
		return nil, fault.New(fault.Invalid, "config "+path, err)
	}
	if err := out.check(path); err != nil {
		return nil, err
	}
	out.gcp.Projects = k.StringMap("gcp.projects")
	var some []struct {
		Ref    string `koanf:"ref"`
		Tenant string `koanf:"tenant"`
	}
	if err := k.Unmarshal("secrets", &some); err != nil {
		return nil, fault.New(fault.Invalid, "config "+path, err)
	}
	for i, s := range some {
		r, err := ref.Parse(s.Ref)
		if err != nil {
			return nil, fault.Newf(fault.Invalid, "config "+path, "secrets[%d]: %v", i, err)
		}
		if s.Tenant != "" {
			out.secrets[r] = s.Tenant
		}
	}
	return out, nil
}
