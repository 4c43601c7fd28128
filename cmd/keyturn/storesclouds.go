package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/Azure/azure-sdk-for-go/sdk/security/keyvault/azsecrets"
	"github.com/aws/aws-sdk-go-v2/aws"
	awsconfig "github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/secretsmanager"
	vault "github.com/hashicorp/vault/api"
	"google.golang.org/api/option"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/secrets"
	"github.com/keyturn/keyturn/secrets/awssm"
	"github.com/keyturn/keyturn/secrets/azurekv"
	"github.com/keyturn/keyturn/secrets/gcpsm"
	"github.com/keyturn/keyturn/secrets/vaultkv"
)

// Credentials are looked for where every tool of a cloud looks: environment,
// profile, instance or workload identity.

func (s *stores) openAWS(ctx context.Context, region string) (secrets.Store, error) {
	c, err := awsconfig.LoadDefaultConfig(ctx, awsconfig.WithRegion(region))
	if err != nil {
		return nil, fault.New(fault.Invalid, "AWS configuration", err)
	}
	return awssm.New(secretsmanager.NewFromConfig(c, func(o *secretsmanager.Options) {
		if s.cfg.AWS.Endpoint != "" {
			o.BaseEndpoint = aws.String(s.cfg.AWS.Endpoint)
		}
	}), &awssm.Options{Logger: s.log}), nil
}

func (s *stores) openGCP(context.Context) (secrets.Store, error) {
	pool := &gcpsm.Pool{}
	if e := s.cfg.GCP.Endpoint; e != "" {
		pool.Options = []option.ClientOption{
			option.WithEndpoint(e), option.WithoutAuthentication(),
			option.WithGRPCDialOption(grpc.WithTransportCredentials(insecure.NewCredentials())),
		}
	}
	for id, number := range s.cfg.GCP.Projects {
		s.gcp.Add(id, number)
	}
	s.closes = append(s.closes, pool.Close)
	return gcpsm.New(pool.Client, &gcpsm.Options{Locker: s.locks, Projects: &s.gcp, Logger: s.log}), nil
}

func (s *stores) openAzure(context.Context) (secrets.Store, error) {
	c := s.cfg.Azure
	opts := &azurekv.Options{Locker: s.locks, Logger: s.log, Validity: c.Validity, ShortValidity: c.ShortValidity}
	if c.Endpoint == "" {
		cred, err := azidentity.NewDefaultAzureCredential(nil)
		if err != nil {
			return nil, fault.New(fault.Denied, "Azure credentials", err)
		}
		opts.VaultURL = func(vault string) string { return "https://" + vault + "." + c.VaultSuffix }
		return azurekv.New(cred, opts), nil
	}
	// An emulator has neither Entra ID nor a name of its own for each vault.
	client, err := clientTrusting(c.CAFile)
	if err != nil {
		return nil, err
	}
	opts.VaultURL = func(vault string) string { return strings.ReplaceAll(c.Endpoint, "{vault}", vault) }
	opts.Client = azsecrets.ClientOptions{DisableChallengeResourceVerification: true}
	opts.Client.Transport = client
	return azurekv.New(emulated{c.TokenFile}, opts), nil
}

// emulated is the credential that an emulator takes: the token in a file.
type emulated struct{ file string }

func (e emulated) GetToken(context.Context, policy.TokenRequestOptions) (azcore.AccessToken, error) {
	token, err := readKeyFile(e.file)
	return azcore.AccessToken{Token: token, ExpiresOn: time.Now().Add(time.Hour)}, err
}

func (s *stores) openVault(ctx context.Context, cluster string) (secrets.Store, error) {
	client, err := s.vaultClient(ctx, cluster)
	if err != nil {
		return nil, err
	}
	return vaultkv.New(client, &vaultkv.Options{Cluster: cluster, Logger: s.log, Locker: s.locks})
}

// vaultToken returns a token that works at present, for what speaks to Vault
// by itself.
func (s *stores) vaultToken(ctx context.Context, cluster string) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	client, err := s.vaultClient(ctx, cluster)
	if err != nil {
		return "", err
	}
	return client.Token(), nil
}

// vaultClient returns the client of a cluster, which is signed in and stays so
// until close. The caller holds s.mu.
func (s *stores) vaultClient(ctx context.Context, cluster string) (*vault.Client, error) {
	if c, ok := s.vaults[cluster]; ok {
		return c, nil
	}
	c, ok := s.cfg.Vault[cluster]
	if !ok {
		return nil, fault.Newf(fault.Invalid, "store", "the Vault cluster %q is not configured; add vault.%s.address", cluster, cluster)
	}
	conf := vault.DefaultConfig()
	if conf.Error != nil {
		return nil, fault.New(fault.Invalid, "Vault configuration", conf.Error)
	}
	conf.Address = c.Address
	if c.CAFile != "" {
		if err := conf.ConfigureTLS(&vault.TLSConfig{CACert: c.CAFile}); err != nil {
			return nil, fault.New(fault.Invalid, "Vault configuration", err)
		}
	}
	client, err := vault.NewClient(conf)
	if err != nil {
		return nil, fault.New(fault.Invalid, "Vault configuration", err)
	}
	// What the environment says is for another cluster.
	client.ClearToken()
	client.ClearNamespace()
	method, err := c.method()
	if err != nil {
		return nil, fmt.Errorf("vault.%s: %w", cluster, err)
	}
	// The session outlives the call that opened it.
	session, err := vaultkv.SignIn(context.WithoutCancel(ctx), client, method, &vaultkv.SessionOptions{Namespace: c.AppRole.Namespace, Logger: s.log})
	if err != nil {
		return nil, fmt.Errorf("vault.%s: %w", cluster, err)
	}
	s.closes = append(s.closes, func() error { session.Close(); return nil })
	if s.vaults == nil {
		s.vaults = map[string]*vault.Client{}
	}
	s.vaults[cluster] = client
	return client, nil
}

// method is how a cluster is signed in to.
func (c vaultConfig) method() (vaultkv.Method, error) {
	if c.TokenFile != "" {
		return vaultkv.TokenFile{Path: c.TokenFile}, nil
	}
	id, err := readKeyFile(c.AppRole.RoleIDFile)
	if err != nil {
		return nil, err
	}
	return vaultkv.AppRole{
		RoleID: id, SecretIDFile: c.AppRole.SecretIDFile, Wrapped: c.AppRole.Wrapped,
		Role: c.AppRole.Role, Mount: c.AppRole.Mount,
	}, nil
}
