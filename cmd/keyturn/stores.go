package main

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsconfig "github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/secretsmanager"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/secrets"
	"github.com/keyturn/keyturn/secrets/awssm"
	"github.com/keyturn/keyturn/secrets/natskv"
)

// stores opens the store that a ref points into, each on first use and once.
// It is safe for concurrent use.
type stores struct {
	cfg *config
	nc  *nats.Conn
	log *slog.Logger

	mu   sync.Mutex
	nats *natskv.Store
	aws  map[string]*awssm.Store // by region
}

// of returns the store that holds r.
func (s *stores) of(ctx context.Context, r ref.Ref) (secrets.Store, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch r.Provider {
	case ref.NATS:
		return s.openNATS(ctx)
	case ref.AWS:
		region := r.ScopePart(1)
		if st, ok := s.aws[region]; ok {
			return st, nil
		}
		// Credentials are looked for where every AWS tool looks: environment,
		// profile, instance or task role.
		c, err := awsconfig.LoadDefaultConfig(ctx, awsconfig.WithRegion(region))
		if err != nil {
			return nil, fault.New(fault.Invalid, "AWS configuration", err)
		}
		st := awssm.New(secretsmanager.NewFromConfig(c, func(o *secretsmanager.Options) {
			if s.cfg.AWS.Endpoint != "" {
				o.BaseEndpoint = aws.String(s.cfg.AWS.Endpoint)
			}
		}), &awssm.Options{Logger: s.log})
		if s.aws == nil {
			s.aws = map[string]*awssm.Store{}
		}
		s.aws[region] = st
		return st, nil
	case ref.GCP, ref.Azure, ref.Vault:
	}
	return nil, fault.Newf(fault.Invalid, "store", "%s: this version reads and writes nats:// and aws:// secrets", r)
}

// builtIn returns the built-in store.
func (s *stores) builtIn(ctx context.Context) (*natskv.Store, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.openNATS(ctx)
}

func (s *stores) openNATS(ctx context.Context) (*natskv.Store, error) {
	if s.nats != nil {
		return s.nats, nil
	}
	if s.cfg.Store.KeyFile == "" && s.cfg.Store.KeyEnv == "" {
		return nil, fault.Newf(fault.Invalid, "store", "store.key_file and store.key_env are both missing; make a key with keyturn keygen FILE")
	}
	keys, err := natskv.LoadKeys(s.cfg.Store.KeyFile, s.cfg.Store.KeyEnv)
	if err != nil {
		return nil, err
	}
	js, err := jetstream.New(s.nc)
	if err != nil {
		return nil, fmt.Errorf("JetStream: %w", err)
	}
	st, err := natskv.Open(ctx, js, keys, &natskv.Options{Bucket: s.cfg.Store.Bucket, Replicas: s.cfg.NATS.Replicas})
	if err == nil {
		s.nats = st
	}
	return st, err
}

// value reads the current value of the secret that another one names as its
// authority, as a ref or as an ARN.
func (s *stores) value(ctx context.Context, name string) (secrets.Value, error) {
	parse := ref.Parse
	if strings.HasPrefix(name, "arn:") {
		parse = ref.FromARN
	}
	r, err := parse(name)
	if err != nil {
		return secrets.Value{}, err
	}
	st, err := s.of(ctx, r)
	if err != nil {
		return secrets.Value{}, err
	}
	if r.Provider == ref.AWS && strings.HasPrefix(name, "arn:") {
		ctx = awssm.WithARN(ctx, name) // a name alone does not reach another account
	}
	v, err := st.Get(ctx, r, secrets.Current)
	if err != nil {
		return secrets.Value{}, err
	}
	return v.Value, nil
}

// describe tells the stages of r.
func (s *stores) describe(ctx context.Context, r ref.Ref) (*secrets.Description, error) {
	st, err := s.of(ctx, r)
	if err != nil {
		return nil, err
	}
	return st.Describe(ctx, r)
}
