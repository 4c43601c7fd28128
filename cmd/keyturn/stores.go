package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"

	vault "github.com/hashicorp/vault/api"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/secrets"
	"github.com/keyturn/keyturn/secrets/awssm"
	"github.com/keyturn/keyturn/secrets/azurekv"
	"github.com/keyturn/keyturn/secrets/gcpsm"
	"github.com/keyturn/keyturn/secrets/natskv"
)

// stores opens the store that a ref points into, each on first use and once.
// It is safe for concurrent use.
type stores struct {
	cfg *config
	nc  *nats.Conn
	log *slog.Logger
	// locks keep one writer a secret where the store cannot.
	locks secrets.Locker

	mu     sync.Mutex
	nats   *natskv.Store
	clouds map[string]secrets.Store // by what one client serves
	closes []func() error
	gcp    gcpsm.Projects
	vaults map[string]*vault.Client // signed in, by cluster
}

// of returns the store that holds r.
func (s *stores) of(ctx context.Context, r ref.Ref) (secrets.Store, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.Provider == ref.NATS {
		return s.openNATS(ctx)
	}
	key, open := string(r.Provider), s.openGCP
	switch r.Provider {
	case ref.AWS:
		key, open = "aws "+r.ScopePart(1), func(ctx context.Context) (secrets.Store, error) { return s.openAWS(ctx, r.ScopePart(1)) }
	case ref.Vault:
		key, open = "vault "+r.ScopePart(0), func(ctx context.Context) (secrets.Store, error) { return s.openVault(ctx, r.ScopePart(0)) }
	case ref.Azure:
		open = s.openAzure
	case ref.GCP:
	case ref.NATS:
	}
	if st, ok := s.clouds[key]; ok {
		return st, nil
	}
	st, err := open(ctx)
	if err != nil {
		return nil, err
	}
	if s.clouds == nil {
		s.clouds = map[string]secrets.Store{}
	}
	s.clouds[key] = st
	return st, nil
}

// close ends what the stores keep open.
func (s *stores) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, f := range s.closes {
		errs = append(errs, f())
	}
	s.closes = nil
	return errors.Join(errs...)
}

// canonical returns r as the configuration spells it: events of GCP have the
// project's number, and Azure tells names in the case in which they were
// first written.
func (s *stores) canonical(r ref.Ref) ref.Ref {
	switch r.Provider {
	case ref.GCP:
		if named, ok := s.gcp.Named(r); ok {
			return named
		}
	case ref.Azure:
		return azurekv.Canonical(r)
	case ref.AWS, ref.Vault, ref.NATS:
	}
	return r
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
