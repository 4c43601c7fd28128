package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/aws/aws-sdk-go-v2/aws"
	awsconfig "github.com/aws/aws-sdk-go-v2/config"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/pull"
	"github.com/keyturn/keyturn/internal/telemetry"
	"github.com/keyturn/keyturn/notifier"
	"github.com/keyturn/keyturn/notifier/gridpull"
	"github.com/keyturn/keyturn/notifier/pubsubpull"
	"github.com/keyturn/keyturn/notifier/sqs"
	"github.com/keyturn/keyturn/notifier/vaultaudit"
	"github.com/keyturn/keyturn/notifier/vaultevents"
)

// ways are the ways in of one configuration, opened and not running yet.
type ways struct {
	sources map[string]notifier.Source
	// audits are the sources of audit entries by their cluster, which routes
	// feed.
	audits map[string]*vaultaudit.Source
}

// openSources opens what pulls. It starts nothing.
func (p *pipeline) openSources(ctx context.Context, m *telemetry.Metrics) (*ways, error) {
	w := &ways{sources: map[string]notifier.Source{}, audits: map[string]*vaultaudit.Source{}}
	for i := range p.cfg.Notifier.Sources {
		s := &p.cfg.Notifier.Sources[i]
		src, err := p.openSource(ctx, s, w, m)
		if err != nil {
			w.close()
			return nil, fmt.Errorf("notifier.sources[%d] (%s): %w", i, s.Name, err)
		}
		w.sources[s.Name] = src
		measure(m, s.Name, src)
	}
	return w, nil
}

// measure adds what a source tells of itself to the metrics.
func measure(m *telemetry.Metrics, name string, src notifier.Source) {
	switch src := src.(type) {
	case interface{ Stats() pull.Stats }:
		m.SourceGauge(name, "source_up", "1 while the cloud that the source pulls from answers.", func() float64 {
			if src.Stats().Down {
				return 0
			}
			return 1
		})
		m.SourceGauge(name, "in_flight", "Messages that are pulled and not settled yet.", func() float64 { return float64(src.Stats().InFlight) })
	case *vaultaudit.Source:
		m.SourceGauge(name, "spool_disk_bytes", "Size of the spool on disk, with what is done of a file that is still used.", func() float64 { return float64(src.Stats().Bytes) })
		m.SourceGauge(name, "spool_waiting", "Audit entries that this process has stored or read and not published yet.", func() float64 {
			st := src.Stats()
			return float64(st.Waiting) + float64(st.Taken)
		})
	}
}

// close gives back what sources hold that never ran.
func (w *ways) close() {
	for _, a := range w.audits {
		_ = a.Close()
	}
}

func (p *pipeline) openSource(ctx context.Context, s *sourceConfig, w *ways, m *telemetry.Metrics) (notifier.Source, error) {
	switch s.Kind {
	case waySQS:
		return p.openSQS(ctx, s)
	case wayPubSub:
		project, sub, ok := strings.Cut(strings.TrimPrefix(s.Subscription, "projects/"), "/subscriptions/")
		if !ok {
			return nil, fault.Newf(fault.Invalid, "config", "subscription is %.120q; expected projects/PROJECT/subscriptions/NAME", s.Subscription)
		}
		// Another endpoint of Google's speaks TLS; an emulator does not.
		emulator := s.Endpoint != "" && !strings.HasSuffix(strings.Split(s.Endpoint, ":")[0], ".googleapis.com")
		return pubsubpull.New(pubsubpull.Options{
			Project: project, Subscription: sub, Endpoint: s.Endpoint, Insecure: emulator,
			Name: s.Name, MaxInFlight: s.MaxInFlight, Logger: p.log,
		})
	case wayEventGrid:
		return p.openGrid(s)
	case wayVaultAudit:
		src, err := p.openVaultAudit(ctx, s, m)
		if err == nil {
			w.audits[s.Cluster] = src
		}
		return src, err
	default:
		return p.openVaultEvents(s)
	}
}

func (p *pipeline) openSQS(ctx context.Context, s *sourceConfig) (notifier.Source, error) {
	region := s.Region
	if host := strings.Split(strings.TrimPrefix(s.QueueURL, "https://"), "."); region == "" && len(host) > 2 && host[0] == "sqs" {
		region = host[1]
	}
	opts := []func(*awsconfig.LoadOptions) error{awsconfig.WithRegion(region)}
	if s.Endpoint != "" {
		opts = append(opts, awsconfig.WithBaseEndpoint(s.Endpoint))
	}
	c, err := awsconfig.LoadDefaultConfig(ctx, opts...)
	if err != nil {
		return nil, fault.New(fault.Invalid, "AWS configuration", err)
	}
	c.RetryMaxAttempts, c.Retryer = 1, func() aws.Retryer { return aws.NopRetryer{} } // the source retries
	return sqs.New(sqs.Options{Config: &c, QueueURL: s.QueueURL, Name: s.Name, MaxInFlight: s.MaxInFlight, Logger: p.log})
}

func (p *pipeline) openGrid(s *sourceConfig) (notifier.Source, error) {
	o := gridpull.Options{
		Endpoint: s.Endpoint, Topic: s.Topic, Subscription: s.Subscription,
		Name: s.Name, MaxInFlight: s.MaxInFlight, Logger: p.log,
	}
	if s.TokenFile == "" {
		cred, err := azidentity.NewDefaultAzureCredential(nil)
		if err != nil {
			return nil, fault.New(fault.Denied, "Azure credentials", err)
		}
		o.Credential = cred
	} else {
		o.Credential = emulated{s.TokenFile}
	}
	if s.CAFile != "" {
		client, err := clientTrusting(s.CAFile)
		if err != nil {
			return nil, err
		}
		o.Client.Transport = client
	}
	return gridpull.New(o)
}

func (p *pipeline) openVaultAudit(ctx context.Context, s *sourceConfig, m *telemetry.Metrics) (*vaultaudit.Source, error) {
	o := vaultaudit.Options{Name: s.Name, Dir: s.Spool, MaxBytes: s.MaxSpool, MaxInFlight: s.MaxInFlight, RefuseWhenFull: s.RefuseWhenFull, Logger: p.log}
	if s.Listen != "" {
		network, addr, ok := strings.Cut(s.Listen, ":")
		if !ok || network != "tcp" && network != "unix" {
			return nil, fault.Newf(fault.Invalid, "config", "listen is %.120q; expected tcp:HOST:PORT or unix:PATH", s.Listen)
		}
		o.Socket = &vaultaudit.Socket{Network: network, Address: addr, AllowRemote: s.AllowRemote}
	}
	if s.File != "" {
		o.File = &vaultaudit.File{Path: s.File}
	}
	if m != nil {
		o.Observe = func(ob vaultaudit.Observation) {
			switch ob.What {
			case vaultaudit.Dropped:
				m.Lost(ob.Source, ob.Reason, ob.N)
			case vaultaudit.Unreadable:
				m.Rejected(ob.Source, "invalid")
			default:
			}
		}
	}
	return vaultaudit.Open(ctx, o)
}

func (p *pipeline) openVaultEvents(s *sourceConfig) (notifier.Source, error) {
	c, ok := p.cfg.Vault[s.Cluster]
	if !ok {
		return nil, fault.Newf(fault.Invalid, "config", "the Vault cluster %q is not configured; add vault.%s.address", s.Cluster, s.Cluster)
	}
	o := vaultevents.Options{
		Name: s.Name, Address: c.Address, Namespace: s.Namespace, Types: s.Types, Mounts: s.Mounts,
		ResyncEvery: s.Resync, MaxInFlight: s.MaxInFlight, Logger: p.log,
		// The session of the store signs in again by itself.
		Token: func(ctx context.Context) (string, error) { return p.stores.vaultToken(ctx, s.Cluster) },
	}
	pool, err := rootCAs(c.CAFile)
	if err != nil {
		return nil, err
	}
	if pool != nil {
		o.TLS = clientTLS(pool, "")
	}
	return vaultevents.New(o)
}
