// Package vaultevents is the way in for the event notifications of Vault
// Enterprise: a websocket for each type, kept open.
//
// Vault sends them on a best-effort basis, never again, and lets go of who is
// slow for a minute. So the websocket only makes it fast. What makes it
// complete, for the key-value engine of version 2, is a look at the metadata
// of every secret after each connection was made, and now and then besides: a
// secret whose current version was not handed on yet is handed on as a
// notification of its write. A decoder gives that the id of the one that was
// missed, so it does no harm where nothing was.
//
// The community edition and OpenBao have no notifications and answer 404. Then
// the look comes every ResyncEvery, and the websocket is tried again rarely.
//
// A look finds current versions. It does not find what was deleted, restored
// or destroyed, and not the rotations of static roles, whose passwords it
// would have to read; an audit log tells of those that a person asked for.
//
// # Permissions
//
//	path "sys/events/subscribe/*" { capabilities = ["read"] }
//	path "<mount>/metadata/*"     { capabilities = ["read", "list"] }
//
// and capability subscribe on the paths whose events are to be heard, beside
// read of auth/token/lookup-self, which the default policy gives. Folders and
// secrets whose metadata is denied are passed over. No permission on
// <mount>/data/* is used or wanted: no value comes this way.
// https://developer.hashicorp.com/vault/docs/concepts/events
// https://developer.hashicorp.com/vault/api-docs/system/events
package vaultevents

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/notifier"
)

const opNew = "vaultevents: new"

// Options of [New]. Address and Token are needed; the zero value of each other
// field means its default.
type Options struct {
	// Name is the source name of deliveries, "vaultevents" by default.
	Name string
	// Address is where Vault is, as https://vault.example.com:8200. Only on
	// loopback may it be http.
	Address string
	// Token returns a token. It is called once, and again whenever Vault refuses
	// the token that it gave.
	Token func(ctx context.Context) (string, error)
	// Namespace is where Types and Mounts are, the root by default. Children are
	// not heard.
	Namespace string
	// Types are the types of events to subscribe to, with * at the end for any;
	// kv-v2/* and database/* by default. Each is a connection.
	Types []string
	// Mounts are the key-value engines of version 2 whose metadata is looked at.
	// Without any, what was missed stays missed.
	Mounts []string

	// TLS holds the certificate authorities that Vault is trusted by. Nil means
	// those of the system. Verification cannot be turned off.
	TLS *tls.Config
	// HTTPClient is used in place of one made from TLS. Its transport must speak
	// HTTP/1.1, which websockets need.
	HTTPClient *http.Client

	// ResyncEvery is how often metadata is looked at while the websocket is not
	// there, a minute by default, and a fifth more or less. FullResyncEvery is
	// the same while it is, ten times that by default.
	ResyncEvery, FullResyncEvery time.Duration
	// RetryUnsupported is after what time a Vault without notifications is asked
	// again, an hour by default.
	RetryUnsupported time.Duration

	// MaxInFlight bounds the deliveries of notifications that are being handled,
	// 64 by default. While so many are, nothing more is read.
	MaxInFlight int
	// MaxMessage bounds one notification in bytes, 64 KiB by default. A longer
	// one ends the connection.
	MaxMessage int64
	// MaxSecrets bounds how many secrets and folders are looked at, and
	// remembered, 100,000 by default.
	MaxSecrets int
	// MaxAttempts is how often one notification is handed to the handler, 30 by
	// default. After that the metadata of all secrets is looked at.
	MaxAttempts int
	// MinBackoff and MaxBackoff bound the waits between attempts of all kinds,
	// 500 ms and 30 s by default.
	MinBackoff, MaxBackoff time.Duration
	// PingEvery is how often the connection is tried while nothing is heard, 20 s
	// by default.
	PingEvery time.Duration
	// Timeout bounds each request and the wait for a pong, 15 s by default.
	Timeout time.Duration
	// DrainTimeout bounds how long deliveries in flight may go on after the
	// context of Run is done, 10 s by default.
	DrainTimeout time.Duration
	// Logger is told when the state of the connection changes; nil is the default
	// one.
	Logger *slog.Logger
}

// A Source is one cluster, seen from one namespace.
type Source struct {
	o      Options
	client *client
}

var _ notifier.Source = (*Source)(nil)

// New returns the source that o describes. It connects to nothing yet. The
// error is of kind Invalid.
func New(o Options) (*Source, error) {
	bad := func(format string, args ...any) (*Source, error) {
		return nil, fault.Newf(fault.Invalid, opNew, format, args...)
	}
	base, err := url.Parse(o.Address)
	switch {
	case err != nil || base.Host == "" || base.User != nil || base.RawQuery != "" || base.Fragment != "":
		return bad("the address is no address of a server; expected https://HOST:PORT")
	case base.Scheme != "https" && (base.Scheme != "http" || !loopback(base.Hostname())):
		return bad("the address has scheme %q; expected https, or http on loopback: the token is sent there", base.Scheme)
	case o.Token == nil:
		return bad("there is no function for the token; set Token")
	}
	o.defaults()
	for _, typ := range o.Types {
		if typ == "" || strings.ContainsAny(typ, "?#% \t\n") || strings.HasPrefix(typ, "/") || strings.Contains(typ, "..") {
			return bad("a type of events is not of the form PLUGIN/OPERATION, with * at its end for any")
		}
	}
	for i, m := range o.Mounts {
		if o.Mounts[i] = strings.Trim(m, "/"); o.Mounts[i] == "" {
			return bad("a mount is empty; expected the path of a key-value engine of version 2")
		}
	}
	hc, err := httpClient(&o)
	if err != nil {
		return nil, err
	}
	c := &client{http: hc, base: strings.TrimSuffix(base.String(), "/") + "/v1/", namespace: o.Namespace, timeout: o.Timeout}
	c.token.ask, c.token.timeout = o.Token, o.Timeout
	return &Source{o: o, client: c}, nil
}

// defaults fills in what was not set.
func (o *Options) defaults() {
	set := func(to *time.Duration, d time.Duration) {
		if *to <= 0 {
			*to = d
		}
	}
	if o.Name == "" {
		o.Name = "vaultevents"
	}
	o.Namespace = strings.Trim(o.Namespace, "/")
	if len(o.Types) == 0 {
		o.Types = []string{"kv-v2/*", "database/*"}
	}
	o.Types, o.Mounts = slices.Clone(o.Types), slices.Clone(o.Mounts)
	set(&o.ResyncEvery, time.Minute)
	set(&o.FullResyncEvery, 10*o.ResyncEvery)
	set(&o.RetryUnsupported, time.Hour)
	set(&o.MinBackoff, 500*time.Millisecond)
	set(&o.MaxBackoff, 30*time.Second)
	o.MaxBackoff = max(o.MaxBackoff, o.MinBackoff)
	set(&o.PingEvery, 20*time.Second)
	set(&o.Timeout, 15*time.Second)
	set(&o.DrainTimeout, 10*time.Second)
	if o.MaxInFlight <= 0 {
		o.MaxInFlight = 64
	}
	if o.MaxMessage <= 0 {
		o.MaxMessage = 64 << 10
	}
	if o.MaxSecrets <= 0 {
		o.MaxSecrets = 100_000
	}
	if o.MaxAttempts <= 0 {
		o.MaxAttempts = 30
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
}

// loopback reports whether host is this machine.
func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// httpClient returns the client of o, or one made for it, that follows a
// standby's redirect to the active node and no other.
func httpClient(o *Options) (*http.Client, error) {
	var hc http.Client
	if o.HTTPClient != nil {
		hc = *o.HTTPClient
	} else {
		config := &tls.Config{MinVersion: tls.VersionTLS12}
		if o.TLS != nil {
			config = o.TLS.Clone()
			config.MinVersion = max(config.MinVersion, tls.VersionTLS12)
		}
		// No HTTP/2: a websocket begins as HTTP/1.1.
		config.NextProtos = []string{"http/1.1"}
		hc.Transport = &http.Transport{
			Proxy: http.ProxyFromEnvironment, TLSClientConfig: config, TLSHandshakeTimeout: o.Timeout,
			MaxIdleConnsPerHost: resyncWorkers + 1, IdleConnTimeout: time.Minute, MaxResponseHeaderBytes: 64 << 10,
		}
	}
	if t, is := hc.Transport.(*http.Transport); is && t.TLSClientConfig != nil && t.TLSClientConfig.InsecureSkipVerify {
		return nil, fault.Newf(fault.Invalid, opNew, "InsecureSkipVerify is set; give the certificate of the authority in RootCAs instead")
	}
	hc.Timeout = 0 // each request has its own, and a websocket has none
	hc.CheckRedirect = func(req *http.Request, via []*http.Request) error {
		// The token goes along.
		plain := req.URL.Scheme != "https"
		if len(via) > 2 || plain && (via[0].URL.Scheme == "https" || !loopback(req.URL.Hostname())) {
			return http.ErrUseLastResponse
		}
		return nil
	}
	return &hc, nil
}
