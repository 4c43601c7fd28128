package main

import (
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"time"
)

// The kinds of ways in: routes are pushed to, sources pull. vaultaudit is both:
// its source may be fed by a route.
const (
	wayEventBridge = "eventbridge"
	wayEventGrid   = "eventgrid"
	wayPubSub      = "pubsub"
	waySNS         = "sns"
	wayCloudEvents = "cloudevents"
	waySQS         = "sqs"
	wayVaultAudit  = "vaultaudit"
	wayVaultEvents = "vaultevents"
)

var (
	routeKinds  = []string{wayEventBridge, wayEventGrid, wayPubSub, waySNS, wayCloudEvents, wayVaultAudit}
	sourceKinds = []string{waySQS, wayPubSub, wayEventGrid, wayVaultAudit, wayVaultEvents}
)

// notifierConfig is how notices come in.
type notifierConfig struct {
	// Listen is where routes are served.
	Listen   string `koanf:"listen"`
	CertFile string `koanf:"cert_file"`
	KeyFile  string `koanf:"key_file"`
	// Tenant is that of secrets that are not listed and that no rule matches,
	// where there are no rules.
	Tenant string `koanf:"tenant"`
	// LameDuck is how long the routes serve on after SIGTERM while /readyz fails:
	// 3 s by default, and nothing where only this machine can reach them.
	LameDuck *time.Duration `koanf:"lame_duck"`
	// RedactDeadLetters keeps the shape of a notice that cannot be handed on,
	// instead of the notice.
	RedactDeadLetters bool `koanf:"redact_deadletters"`
	// Metrics is where Prometheus may ask; nowhere by default.
	Metrics string         `koanf:"metrics"`
	Routes  []routeConfig  `koanf:"routes"`
	Sources []sourceConfig `koanf:"sources"`
}

// routeConfig is one way in by HTTP.
type routeConfig struct {
	Kind string `koanf:"kind"`
	// Name is the source's name in logs, metrics and dead letters; the kind by
	// default.
	Name    string        `koanf:"name"`
	Path    string        `koanf:"path"` // /v1/<name> by default
	MaxBody int64         `koanf:"max_body"`
	Timeout time.Duration `koanf:"timeout"`

	// Who may send: any one of these that is set accepts.
	APIKeyFiles []string      `koanf:"api_key_files"`
	Header      string        `koanf:"header"` // X-Api-Key by default
	Basic       []basicConfig `koanf:"basic"`
	OAuth       *oauthConfig  `koanf:"oauth"`
	Entra       *entraConfig  `koanf:"entra"`
	Google      *googleConfig `koanf:"google"`
	HMACFiles   []string      `koanf:"hmac_key_files"`
	Topics      []string      `koanf:"topics"` // of SNS, whose messages are signed
	// AnonymousHandshake answers Event Grid's OPTIONS without credentials.
	AnonymousHandshake bool `koanf:"anonymous_handshake"`

	// Cluster is the name that refs have for the Vault cluster.
	Cluster string `koanf:"cluster"`
}

type basicConfig struct {
	User         string `koanf:"user"`
	PasswordFile string `koanf:"password_file"`
}

type oauthConfig struct {
	Issuer   string   `koanf:"issuer"`
	JWKSURL  string   `koanf:"jwks_url"`
	CAFile   string   `koanf:"ca_file"`
	Audience string   `koanf:"audience"`
	Clients  []string `koanf:"clients"`
	Scopes   []string `koanf:"scopes"`
}

type entraConfig struct {
	TenantID  string   `koanf:"tenant_id"`
	Audiences []string `koanf:"audiences"`
	CallerID  string   `koanf:"caller_app_id"`
	Role      string   `koanf:"role"`
	Authority string   `koanf:"authority"`
	CAFile    string   `koanf:"ca_file"`
}

type googleConfig struct {
	Audience string   `koanf:"audience"`
	Emails   []string `koanf:"emails"`
	JWKSURL  string   `koanf:"jwks_url"`
	CAFile   string   `koanf:"ca_file"`
}

// sourceConfig is one way in that pulls, or listens by itself.
type sourceConfig struct {
	Kind string `koanf:"kind"`
	Name string `koanf:"name"`

	QueueURL string `koanf:"queue_url"` // sqs
	Region   string `koanf:"region"`
	// Subscription is projects/P/subscriptions/S, or that of a namespace topic.
	Subscription string `koanf:"subscription"`
	Topic        string `koanf:"topic"` // eventgrid
	// Endpoint is the namespace's host for eventgrid; elsewhere it replaces the
	// service's own, for an emulator.
	Endpoint  string `koanf:"endpoint"`
	CAFile    string `koanf:"ca_file"`
	TokenFile string `koanf:"token_file"`

	// Cluster names an entry of vault, and is what refs call it.
	Cluster string `koanf:"cluster"`
	// Listen is a socket for audit entries: tcp:HOST:PORT or unix:PATH. File is
	// an audit log that is followed. A route of kind vaultaudit with the same
	// cluster feeds the source by HTTP.
	Listen    string        `koanf:"listen"`
	File      string        `koanf:"file"`
	Spool     string        `koanf:"spool"`
	MaxSpool  int64         `koanf:"max_spool"`
	Namespace string        `koanf:"namespace"`
	Mounts    []string      `koanf:"mounts"`
	Types     []string      `koanf:"types"`
	Resync    time.Duration `koanf:"resync"`
	// AllowRemote lets anybody who reaches a TCP socket say what Vault did.
	AllowRemote bool `koanf:"allow_remote"`
	// RefuseWhenFull answers 503 when the spool is full, which stops a Vault
	// that has no other device.
	RefuseWhenFull bool `koanf:"refuse_when_full"`

	MaxInFlight int `koanf:"max_in_flight"`
}

// lameDuck is the configured time or its default.
func (n *notifierConfig) lameDuck() time.Duration {
	if n.LameDuck != nil {
		return *n.LameDuck
	}
	host, _, err := net.SplitHostPort(n.Listen)
	if ip := net.ParseIP(host); err == nil && (host == "localhost" || ip != nil && ip.IsLoopback()) {
		return 0
	}
	return 3 * time.Second
}

// check completes names and paths, and refuses what cannot work.
func (n *notifierConfig) check(bad func(string, ...any) error) error {
	names, paths, audited := map[string]bool{}, map[string]bool{}, map[string]bool{}
	taken := func(where, name string) error {
		if !wayName(name) {
			return bad("%s.name is %.60q; expected 1 to 40 lower-case letters, digits, hyphens and underscores", where, name)
		}
		if names[name] {
			return bad("%s: the name %q is there twice; give each way in a name of its own", where, name)
		}
		names[name] = true
		return nil
	}
	for i := range n.Routes {
		r, where := &n.Routes[i], fmt.Sprintf("notifier.routes[%d]", i)
		if !slices.Contains(routeKinds, r.Kind) {
			return bad("%s.kind is %.40q; expected one of %s", where, r.Kind, strings.Join(routeKinds, ", "))
		}
		setIfEmpty(&r.Name, r.Kind)
		setIfEmpty(&r.Path, "/v1/"+r.Name)
		if r.Kind != wayVaultAudit { // its notices come from the source that it feeds
			if err := taken(where, r.Name); err != nil {
				return err
			}
		}
		if paths[r.Path] {
			return bad("%s.path %q is there twice", where, r.Path)
		}
		paths[r.Path] = true
		if err := r.check(where, bad); err != nil {
			return err
		}
	}
	for i := range n.Sources {
		s, where := &n.Sources[i], fmt.Sprintf("notifier.sources[%d]", i)
		if !slices.Contains(sourceKinds, s.Kind) {
			return bad("%s.kind is %.40q; expected one of %s", where, s.Kind, strings.Join(sourceKinds, ", "))
		}
		setIfEmpty(&s.Name, s.Kind)
		if err := taken(where, s.Name); err != nil {
			return err
		}
		if err := s.check(where, bad); err != nil {
			return err
		}
		if s.Kind == wayVaultAudit {
			if audited[s.Cluster] {
				return bad("%s: cluster %.40q has a source of kind vaultaudit already; one takes socket, file and routes together", where, s.Cluster)
			}
			audited[s.Cluster] = true
		}
	}
	for i := range n.Routes {
		if r := &n.Routes[i]; r.Kind == wayVaultAudit && !audited[r.Cluster] {
			return bad("notifier.routes[%d] is for cluster %.40q; expected a source of kind vaultaudit with the same cluster, which keeps the entries until they are published", i, r.Cluster)
		}
	}
	if len(n.Routes) > 0 && n.Listen == "" {
		return bad("notifier.listen is missing; expected an address such as 0.0.0.0:8443 for the routes")
	}
	if n.Listen != "" && len(n.Routes) == 0 {
		return bad("notifier.listen is set and nothing is served there; add notifier.routes")
	}
	return nil
}

// check says what a route lacks. One that anybody could post to is refused.
func (r *routeConfig) check(where string, bad func(string, ...any) error) error {
	byKind := map[string]string{
		wayEventBridge: "api_key_files, basic or oauth", wayEventGrid: "entra or api_key_files (a secret delivery header)",
		wayPubSub: "google", waySNS: "topics", wayCloudEvents: "hmac_key_files, api_key_files, basic or oauth", wayVaultAudit: "api_key_files",
	}
	auths := len(r.APIKeyFiles) + len(r.Basic) + len(r.HMACFiles)
	for _, set := range []bool{r.OAuth != nil, r.Entra != nil, r.Google != nil} {
		if set {
			auths++
		}
	}
	if r.Kind == waySNS {
		if auths > 0 {
			return bad("%s: SNS messages are signed; expected topics and nothing else", where)
		}
		auths = len(r.Topics)
	} else if len(r.Topics) > 0 {
		return bad("%s.topics is only for kind sns", where)
	}
	if auths == 0 {
		return bad("%s: nothing says who may send; expected %s", where, byKind[r.Kind])
	}
	if len(r.HMACFiles) > 0 && r.Kind != wayCloudEvents {
		return bad("%s.hmac_key_files is only for kind cloudevents; expected %s", where, byKind[r.Kind])
	}
	if r.Kind == wayPubSub && (r.Google == nil && len(r.APIKeyFiles) > 0) {
		return bad("%s: Pub/Sub cannot send a key in a header; expected google", where)
	}
	if r.Cluster == "" && r.Kind == wayVaultAudit {
		return bad("%s.cluster is missing; expected that of the source of kind vaultaudit which the entries are for", where)
	}
	if !strings.HasPrefix(r.Path, "/") {
		return bad("%s.path is %.80q; expected one that begins with a slash", where, r.Path)
	}
	return nil
}

// check says what a source lacks.
func (s *sourceConfig) check(where string, bad func(string, ...any) error) error {
	need := map[string][]string{}
	switch s.Kind {
	case waySQS:
		need["queue_url"] = []string{s.QueueURL, "https://sqs.eu-west-1.amazonaws.com/111122223333/keyturn"}
	case wayPubSub:
		need["subscription"] = []string{s.Subscription, "projects/PROJECT/subscriptions/NAME"}
	case wayEventGrid:
		need["endpoint"] = []string{s.Endpoint, "https://NAMESPACE.REGION.eventgrid.azure.net"}
		need["topic"] = []string{s.Topic, "the namespace topic's name"}
		need["subscription"] = []string{s.Subscription, "the event subscription's name"}
	case wayVaultAudit:
		need["cluster"] = []string{s.Cluster, "what refs call the cluster"}
		need["spool"] = []string{s.Spool, "a directory for entries that are not published yet"}
	case wayVaultEvents:
		need["cluster"] = []string{s.Cluster, "an entry of vault"}
	}
	for _, key := range slices.Sorted(maps.Keys(need)) {
		if need[key][0] == "" {
			return bad("%s.%s is missing; expected %s", where, key, need[key][1])
		}
	}
	return nil
}

// wayName reports whether s is fit for a metric's label and a subject.
func wayName(s string) bool {
	return s != "" && len(s) <= 40 && !strings.ContainsFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' && r != '_'
	})
}

func setIfEmpty(p *string, v string) {
	if *p == "" {
		*p = v
	}
}
