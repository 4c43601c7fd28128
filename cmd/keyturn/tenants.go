package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/natsaccounts"
	"github.com/keyturn/keyturn/ref"
)

// defaultTenantsDir is where the accounts are unless the configuration says.
const defaultTenantsDir = ".keyturn/tenants"

// pushLimit bounds telling a server of the accounts.
const pushLimit = 30 * time.Second

// tenantsCmd keeps tenants apart: rules say whose a secret is, NATS accounts
// who hears it.
type tenantsCmd struct {
	Init    tenantsInitCmd    `cmd:"" help:"Make the platform's NATS account, and the keys of an operator."`
	Add     tenantsAddCmd     `cmd:"" help:"Make the account of a tenant."`
	Creds   tenantsCredsCmd   `cmd:"" help:"Make credentials for an agent of a tenant, or with KEYTURN for the platform."`
	Rotate  tenantsRotateCmd  `cmd:"" help:"Take the next step of rotating the keys of a tenant."`
	List    tenantsListCmd    `cmd:"" help:"List tenants, users and unfinished rotations."`
	Explain tenantsExplainCmd `cmd:"" help:"Say whose a secret is, and by which rule."`
}

// tenantsPlace is where the accounts are.
type tenantsPlace struct {
	Dir string `help:"Directory of the accounts; by default that of the configuration, or .keyturn/tenants." type:"path"`
}

func (p *tenantsPlace) dir(c *tenantsFile) string {
	switch {
	case p.Dir != "":
		return p.Dir
	case c.Dir != "":
		return c.Dir
	}
	return defaultTenantsDir
}

// open opens the accounts.
func (p *tenantsPlace) open(e *env) (*natsaccounts.Store, *natsaccounts.State, *tenantsFile, error) {
	c, err := readTenants(e.config)
	if err != nil {
		return nil, nil, nil, err
	}
	st, err := natsaccounts.Open(p.dir(c))
	if err != nil {
		return nil, nil, nil, err
	}
	s, err := st.State()
	return st, s, c, err
}

// tenantsPush says how servers hear of a change.
type tenantsPush struct {
	Push   string `help:"Tell this running server, as nats://HOST:PORT or tls://HOST:PORT. Otherwise load the new configuration yourself." placeholder:"URL"`
	CAFile string `name:"ca-file" help:"Authority of that server; the system's by default." type:"path"`
}

// tell pushes all accounts, and reports whether the server has them.
func (p *tenantsPush) tell(e *env, st *natsaccounts.Store) (bool, error) {
	s, err := st.State()
	if err != nil {
		return false, err
	}
	if s.Form == natsaccounts.Config || p.Push == "" {
		if p.Push != "" {
			return false, fault.Newf(fault.Invalid, "push", "a server takes plain accounts from its configuration only; leave out --push, and reload it")
		}
		_, _ = fmt.Fprintf(e.stdout, "next: %s\n", loadHint(st, s))
		return false, nil
	}
	b, err := s.Bundle(st.Key)
	if err != nil {
		return false, err
	}
	opts := []nats.Option{nats.Name("keyturn tenants"), nats.UserCredentials(st.SystemCreds()), nats.CustomInboxPrefix(natsaccounts.InboxPrefix("push"))}
	if p.CAFile != "" {
		opts = append(opts, nats.RootCAs(p.CAFile))
	}
	nc, err := nats.Connect(p.Push, opts...)
	if err != nil {
		return false, &fault.Error{Kind: fault.Unavailable, Class: fault.ClassNetwork, Op: "push", Msg: "the server cannot be reached with the system account of these keys; the change is saved: repeat the command when it can, or load " + st.ServerConfig(s.Form), Err: err}
	}
	defer nc.Close()
	ctx, cancel := context.WithTimeout(e.ctx, pushLimit)
	defer cancel()
	err = b.Push(ctx, func(ctx context.Context, subject string, body []byte) ([]byte, error) {
		m, err := nc.RequestWithContext(ctx, subject, body)
		if err != nil {
			return nil, err
		}
		return m.Data, nil
	})
	if err != nil {
		return false, err
	}
	_, _ = fmt.Fprintf(e.stdout, "the server at %s has the accounts\n", nc.ConnectedUrlRedacted())
	return true, nil
}

func loadHint(st *natsaccounts.Store, s *natsaccounts.State) string {
	if s.Form == natsaccounts.Config {
		return fmt.Sprintf("let nats-server include %s, and reload it (nats-server --signal reload)", st.ServerConfig(s.Form))
	}
	return fmt.Sprintf("repeat with --push URL if the server runs, or let it include %s and start it", st.ServerConfig(s.Form))
}

type tenantsInitCmd struct {
	tenantsPlace
	Form string `help:"How servers learn of accounts: ${enum}." enum:"operator,config" default:"operator"`
	Name string `help:"Name of the operator." default:"keyturn"`
}

func (c *tenantsInitCmd) Run(e *env) error {
	conf, err := readTenants(e.config)
	if err != nil {
		return err
	}
	st, err := natsaccounts.Init(c.dir(conf), c.Name, natsaccounts.Form(c.Form))
	if err != nil {
		return err
	}
	s, err := st.State()
	if err != nil {
		return err
	}
	_, _ = fmt.Fprintf(e.stdout, "made the account %s in %s; whoever can read that directory is the operator of your NATS: keep a copy where your other root keys are\n", natsaccounts.Platform, c.dir(conf))
	if s.Form == natsaccounts.Operator {
		_, _ = fmt.Fprintf(e.stdout, "next: let nats-server include %s, with JetStream, and start it\n", st.ServerConfig(s.Form))
	}
	key := "nats.creds_file"
	if s.Form == natsaccounts.Config {
		key = "nats.nkey_file"
	}
	_, _ = fmt.Fprintf(e.stdout, "next: keyturn tenants creds %s notifier, for %s of keyturn serve\nnext: keyturn tenants add TENANT\n", natsaccounts.Platform, key)
	return nil
}

type tenantsAddCmd struct {
	tenantsPlace
	tenantsPush
	Tenant        string `arg:"" help:"Its name: lower-case letters, digits, hyphen, underscore."`
	Connections   int64  `help:"Connections at a time; 1000 by default."`
	Subscriptions int64  `help:"Subscriptions of one connection; 4096 by default."`
	Payload       int64  `help:"Bytes of one message; 16384 by default."`
}

func (c *tenantsAddCmd) Run(e *env) error {
	st, _, conf, err := c.open(e)
	if err != nil {
		return err
	}
	l := natsaccounts.Limits{Connections: c.Connections, Subscriptions: c.Subscriptions, Payload: c.Payload}
	switch err := st.AddTenant(c.Tenant, conf.Quarantine, l); {
	case fault.Is(err, fault.Conflict) && c.Push != "" && fault.ClassOf(err) == "":
		// The one before failed to push: this repeats it.
		_, _ = fmt.Fprintf(e.stdout, "tenant %s is there already\n", c.Tenant)
	case err != nil:
		return err
	default:
		_, _ = fmt.Fprintf(e.stdout, "made the account of tenant %s: it hears %s and publishes %s, and nothing else\n", c.Tenant, natsaccounts.EventSubjects(c.Tenant), natsaccounts.AdoptionSubjects(c.Tenant))
	}
	if _, err := c.tell(e, st); err != nil {
		return err
	}
	_, _ = fmt.Fprintf(e.stdout, "next: keyturn tenants creds %s AGENT\n", c.Tenant)
	return nil
}

type tenantsCredsCmd struct {
	tenantsPlace
	Tenant string        `arg:"" help:"The tenant, or KEYTURN."`
	User   string        `arg:"" help:"Name of the agent, unique in the tenant."`
	TTL    time.Duration `name:"ttl" help:"How long the credentials are valid; for ever by default. Not for plain accounts."`
	Kind   string        `help:"How it signs in, with plain accounts: ${enum}." enum:"nkey,password" default:"nkey"`
}

func (c *tenantsCredsCmd) Run(e *env) error {
	st, s, _, err := c.open(e)
	if err != nil {
		return err
	}
	if c.TTL != 0 && (c.TTL < time.Second || s.Form == natsaccounts.Config) {
		return fault.Newf(fault.Invalid, "credentials", "--ttl %s; expected a second or more, and the form operator, whose credentials can expire", c.TTL)
	}
	file, err := st.Creds(c.Tenant, c.User, natsaccounts.CredsOptions{TTL: c.TTL, Kind: natsaccounts.UserKind(c.Kind)})
	if err != nil {
		return err
	}
	_, _ = fmt.Fprintf(e.stdout, "wrote %s, readable by its owner only\n", file)
	if s.Form == natsaccounts.Config {
		_, _ = fmt.Fprintf(e.stdout, "next: %s\n", loadHint(st, s))
	}
	if c.Tenant != natsaccounts.Platform {
		_, _ = fmt.Fprintf(e.stdout, "next: bring it to the agent, whose inbox prefix must be %s\n", natsaccounts.InboxPrefix(c.User))
	}
	return nil
}

type tenantsRotateCmd struct {
	tenantsPlace
	tenantsPush
	Tenant string        `arg:"" help:"The tenant, or KEYTURN."`
	Grace  time.Duration `help:"How long the old credentials stay valid." default:"24h"`
	Force  bool          `help:"Remove the old keys now, as when one has leaked."`
}

func (c *tenantsRotateCmd) Run(e *env) error {
	st, _, _, err := c.open(e)
	if err != nil {
		return err
	}
	if c.Push != "" {
		// An earlier push may have failed: agents must not get credentials
		// that the server does not know yet.
		if _, err := c.tell(e, st); err != nil {
			return err
		}
	}
	for {
		r, err := st.Rotate(c.Tenant, natsaccounts.RotateOptions{Grace: c.Grace, Force: c.Force})
		if err != nil {
			return err
		}
		until := r.Until.UTC().Format(time.RFC3339)
		switch r.Step {
		case natsaccounts.Added:
			_, _ = fmt.Fprintf(e.stdout, "added %s; the old keys stay valid until %s or later\n", strings.Join(r.Keys, ", "), until)
			told, err := c.tell(e, st)
			if err != nil {
				return err
			}
			if !told {
				_, _ = fmt.Fprintf(e.stdout, "next: when every server has it, repeat this command: it writes the new credentials\n")
				return nil
			}
			continue
		case natsaccounts.Issued:
			for _, f := range r.Files {
				_, _ = fmt.Fprintf(e.stdout, "wrote %s\n", f)
			}
			if c.Force {
				continue
			}
			_, _ = fmt.Fprintf(e.stdout, "next: bring them to the agents, which reconnect by themselves; after %s repeat this command: it removes the old keys\n", until)
		case natsaccounts.Waiting:
			_, _ = fmt.Fprintf(e.stdout, "nothing done: agents may use the old credentials until %s. Repeat then, or with --force if a key has leaked\n", until)
		case natsaccounts.Removed:
			_, _ = fmt.Fprintf(e.stdout, "removed %s: all that they signed is refused\n", strings.Join(r.Keys, ", "))
			told, err := c.tell(e, st)
			if err != nil {
				return err
			}
			if told {
				_, _ = fmt.Fprintf(e.stdout, "done: who still used them is cut off\n")
			}
		}
		return nil
	}
}

type tenantsListCmd struct{ tenantsPlace }

func (c *tenantsListCmd) Run(e *env) error {
	_, s, _, err := c.open(e)
	if err != nil {
		return err
	}
	w := tabwriter.NewWriter(e.stdout, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(w, "TENANT\tUSER\tISSUED\tEXPIRES\tROTATION")
	day := func(t time.Time, none string) string {
		if t.IsZero() {
			return none
		}
		return t.UTC().Format(time.RFC3339)
	}
	for _, a := range append([]natsaccounts.Account{s.Platform}, s.Tenants...) {
		until, under := a.Leaving()
		state := "-"
		if under {
			state = "old keys until " + day(until, "")
		}
		if len(a.Users) == 0 {
			_, _ = fmt.Fprintf(w, "%s\t-\t-\t-\t%s\n", a.Name, state)
		}
		for _, u := range a.Users {
			_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", a.Name, u.Name, day(u.Issued, "-"), day(u.Expires, "never"), state)
		}
	}
	return w.Flush()
}

type tenantsExplainCmd struct {
	File string `arg:"" optional:"" help:"A provider's notice, or an event as keyturn prints it; standard input by default." type:"path"`
	From string `help:"Who sent the notice: ${enum}." enum:"eventbridge,eventgrid,pubsub,vault,cloudevents" default:"eventbridge"`
	Ref  string `help:"Explain this secret; reads no notice."`

	Cluster string `help:"What refs call the Vault cluster, which notices do not name." default:"vault"`
}

// Run exits with 1 for a secret in quarantine, so that a script can test the
// rules.
func (c *tenantsExplainCmd) Run(e *env) error {
	conf, err := readTenants(e.config)
	if err != nil {
		return err
	}
	if len(conf.Rules) == 0 {
		return fault.Newf(fault.Invalid, "explain", "%s has no tenants.rules; add some, see docs/tenants.md", e.config)
	}
	rules, err := conf.rules(conf.secrets, noTags, e.log)
	if err != nil {
		return err
	}
	es, err := c.events(e, conf)
	if err != nil {
		return err
	}
	if len(es) == 0 {
		_, _ = fmt.Fprintln(e.stdout, "the notice means no event, so it is nobody's")
		return nil
	}
	nobody := 0
	for _, ev := range es {
		x := rules.Explain(e.ctx, ev)
		_, _ = fmt.Fprintln(e.stdout, x)
		if x.Quarantined || x.Err != nil {
			nobody++
		}
	}
	if nobody > 0 {
		return fault.Newf(fault.NotFound, "explain", "%d of %d events are of no tenant", nobody, len(es))
	}
	return nil
}

// events reads what is to be explained.
func (c *tenantsExplainCmd) events(e *env, conf *tenantsFile) ([]events.Event, error) {
	if c.Ref != "" {
		r, err := ref.Parse(c.Ref)
		return []events.Event{eventOf(r)}, err
	}
	in := e.stdin
	if c.File != "" {
		f, err := os.Open(c.File)
		if err != nil {
			return nil, fault.New(fault.NotFound, "explain", err)
		}
		defer func() { _ = f.Close() }()
		in = f
	}
	body, err := io.ReadAll(io.LimitReader(in, maxNotice+1))
	if err != nil {
		return nil, fmt.Errorf("read: %w", err)
	}
	if len(body) > maxNotice {
		return nil, fault.Newf(fault.Invalid, "explain", "the notice is over %d bytes", maxNotice)
	}
	// An event of ours has a ref where no provider has one.
	var ours struct{ Data struct{ Ref ref.Ref } }
	if json.Unmarshal(body, &ours) == nil && !ours.Data.Ref.IsZero() {
		return []events.Event{eventOf(ours.Data.Ref)}, nil
	}
	return conf.gcp.decodeAny(c.From, c.Cluster, body, time.Now())
}

// eventOf is an event about r, for who only asks whose r is.
func eventOf(r ref.Ref) events.Event {
	return events.Event{Type: events.SecretChanged, Data: events.Data{Ref: r}}
}
