package natsaccounts

import (
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nkeys"

	"github.com/keyturn/keyturn/fault"
)

// A Keyring finds the private key of a public one.
type Keyring func(public string) (nkeys.KeyPair, error)

// A Bundle is what servers need of the form [Operator]: no secrets.
type Bundle struct {
	Operator string // its JWT
	System   string // public key of the system account
	// Accounts in the order in which a running server must be told: what
	// imports comes before what exports, since an account is resolved anew
	// when one that it waits for arrives.
	Accounts []AccountJWT
}

// An AccountJWT is one account, signed by the operator.
type AccountJWT struct{ Name, Key, JWT string }

// Bundle signs all accounts anew from what s says. The same state gives the
// same claims, but for their time of issue. The error is of kind Unavailable if
// the clock is behind the last change.
func (s *State) Bundle(keys Keyring) (Bundle, error) {
	b := Bundle{System: s.SystemKey}
	if err := s.clock(); err != nil {
		return b, err
	}
	signer, err := keys(s.OperatorSigning)
	if err != nil {
		return b, err
	}
	root, err := keys(s.OperatorKey)
	if err != nil {
		return b, err
	}
	oc := jwt.NewOperatorClaims(s.OperatorKey)
	oc.Name, oc.SystemAccount = s.Name, s.SystemKey
	oc.SigningKeys.Add(s.OperatorSigning)
	if b.Operator, err = oc.Encode(root); err != nil {
		return b, signing("operator", err)
	}
	platform, err := s.platformClaims(keys)
	if err != nil {
		return b, err
	}
	all := []*jwt.AccountClaims{systemClaims(s.SystemKey)}
	for i := range s.Tenants {
		c, err := s.tenantClaims(&s.Tenants[i], keys)
		if err != nil {
			return b, err
		}
		all = append(all, c)
	}
	for _, c := range append(all, platform) {
		vr := jwt.CreateValidationResults()
		if c.Validate(vr); vr.IsBlocking(true) {
			return b, fault.Newf(fault.Invalid, "sign account "+c.Name, "the claims are not valid: %v", vr.Errors())
		}
		text, err := c.Encode(signer)
		if err != nil {
			return b, signing(c.Name, err)
		}
		b.Accounts = append(b.Accounts, AccountJWT{Name: c.Name, Key: c.Subject, JWT: text})
	}
	return b, nil
}

func signing(what string, err error) error { return fault.New(fault.Invalid, "sign "+what, err) }

func systemClaims(key string) *jwt.AccountClaims {
	c := jwt.NewAccountClaims(key)
	c.Name = System
	return c
}

// platformClaims is the account that owns the streams.
func (s *State) platformClaims(keys Keyring) (*jwt.AccountClaims, error) {
	a := &s.Platform
	c := jwt.NewAccountClaims(a.Key)
	c.Name = Platform
	c.Limits.JetStreamLimits = jwt.JetStreamLimits{MemoryStorage: jwt.NoLimit, DiskStorage: jwt.NoLimit, Streams: jwt.NoLimit, Consumer: jwt.NoLimit}
	c.Limits.DisallowBearer = true
	for _, k := range a.Signing {
		c.SigningKeys.Add(k.Key)
	}
	revoke(c, a)
	for i := range s.Tenants {
		t := &s.Tenants[i]
		c.Exports.Add(
			&jwt.Export{Name: "events of " + t.Name, Subject: jwt.Subject(EventSubjects(t.Name)), Type: jwt.Stream, TokenReq: true},
			&jwt.Export{Name: "last event of " + t.Name, Subject: jwt.Subject(LastEventSubjects(t.Name)), Type: jwt.Service, TokenReq: true},
		)
		token, err := activate(keys, t.Key, a.Key, AdoptionSubjects(t.Name), jwt.Stream)
		if err != nil {
			return nil, err
		}
		c.Imports.Add(&jwt.Import{Name: "adoption of " + t.Name, Subject: jwt.Subject(AdoptionSubjects(t.Name)), Account: t.Key, Token: token, Type: jwt.Stream})
	}
	return c, nil
}

// tenantClaims is the account of a tenant. Its signing keys carry the rights
// of its users, so that even who steals one can make no other users.
func (s *State) tenantClaims(a *Account, keys Keyring) (*jwt.AccountClaims, error) {
	c := jwt.NewAccountClaims(a.Key)
	c.Name = a.Name
	l := a.Limits.withDefaults()
	c.Limits.AccountLimits = jwt.AccountLimits{Imports: 2, Exports: 1, WildcardExports: true, DisallowBearer: true, Conn: l.Connections}
	c.Limits.NatsLimits = jwt.NatsLimits{Subs: l.Subscriptions, Data: jwt.NoLimit, Payload: l.Payload}
	for _, k := range a.Signing {
		scope := jwt.NewUserScope()
		scope.Key, scope.Role = k.Key, "agent"
		p := AgentPermissions(a.Name, "{{name()}}")
		scope.Template.Sub.Allow.Add(p.Subscribe...)
		scope.Template.Pub.Allow.Add(p.Publish...)
		scope.Template.AllowedConnectionTypes.Add(jwt.ConnectionTypeStandard, jwt.ConnectionTypeWebsocket)
		c.SigningKeys.AddScopedSigner(scope)
	}
	revoke(c, a)
	c.Exports.Add(&jwt.Export{Name: "adoption", Subject: jwt.Subject(AdoptionSubjects(a.Name)), Type: jwt.Stream, TokenReq: true})
	for _, im := range []struct {
		name, subject string
		kind          jwt.ExportType
	}{
		{"events", EventSubjects(a.Name), jwt.Stream},
		{"last event", LastEventSubjects(a.Name), jwt.Service},
	} {
		token, err := activate(keys, s.Platform.Key, a.Key, im.subject, im.kind)
		if err != nil {
			return nil, err
		}
		c.Imports.Add(&jwt.Import{Name: im.name, Subject: jwt.Subject(im.subject), Account: s.Platform.Key, Token: token, Type: im.kind})
	}
	return c, nil
}

func revoke(c *jwt.AccountClaims, a *Account) {
	if a.RevokedBefore > 0 {
		c.RevokeAt(jwt.All, time.Unix(a.RevokedBefore, 0))
	}
}

// activate signs that importer may import subject from exporter.
func activate(keys Keyring, exporter, importer, subject string, kind jwt.ExportType) (string, error) {
	kp, err := keys(exporter)
	if err != nil {
		return "", err
	}
	ac := jwt.NewActivationClaims(importer)
	ac.ImportSubject, ac.ImportType = jwt.Subject(subject), kind
	text, err := ac.Encode(kp)
	if err != nil {
		return "", signing("activation", err)
	}
	return text, nil
}

// userJWT signs a user of account a. One of a tenant has the rights of the
// signing key; one of the platform may do all that the account can.
func userJWT(a *Account, keys Keyring, name, user string, expires time.Time) (string, error) {
	kp, err := keys(a.signer())
	if err != nil {
		return "", err
	}
	uc := jwt.NewUserClaims(user)
	uc.Name, uc.IssuerAccount = name, a.Key
	if a.Name != Platform {
		uc.SetScoped(true)
	}
	if !expires.IsZero() {
		uc.Expires = expires.Unix()
	}
	text, err := uc.Encode(kp)
	if err != nil {
		return "", signing("user", err)
	}
	return text, nil
}

// systemUserJWT signs the user that pushes accounts, and can do no more.
func systemUserJWT(system nkeys.KeyPair, user string) (string, error) {
	uc := jwt.NewUserClaims(user)
	uc.Name = "push"
	uc.Pub.Allow.Add(claimsUpdate)
	uc.Sub.Allow.Add(InboxPrefix("push") + ".>")
	text, err := uc.Encode(system)
	if err != nil {
		return "", signing("system user", err)
	}
	return text, nil
}
