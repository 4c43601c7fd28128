package integration_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/events/natsbus"
	"github.com/keyturn/keyturn/internal/natsaccounts"
	"github.com/keyturn/keyturn/ref"
)

// A fortress is a real server with the accounts of two tenants, acme and
// victim, each with two agents.
type fortress struct {
	form     natsaccounts.Form
	store    *natsaccounts.Store
	url      string
	platform *nats.Conn
	bus      *natsbus.Bus
	n        int // events so far
}

const tenantLimit = 10 * time.Second

func newFortress(t *testing.T, form natsaccounts.Form) *fortress {
	t.Helper()
	st, err := natsaccounts.Init(filepath.Join(t.TempDir(), "accounts"), "test", form)
	must(t, err)
	f := &fortress{form: form, store: st}
	for _, tenant := range []string{"acme", "victim"} {
		must(t, st.AddTenant(tenant, "quarantine", natsaccounts.Limits{}))
		for i, user := range []string{tenant + "-1", tenant + "-2"} {
			// Passwords, so that all kinds of users are tried.
			o := natsaccounts.CredsOptions{}
			if form == natsaccounts.Config && i == 1 {
				o.Kind = natsaccounts.Password
			}
			_, err := st.Creds(tenant, user, o)
			must(t, err)
		}
	}
	_, err = st.Creds(natsaccounts.Platform, "notifier", natsaccounts.CredsOptions{})
	must(t, err)
	s, err := st.State()
	must(t, err)
	var fragment string
	if form == natsaccounts.Config {
		fragment, err = s.PlainConfig()
	} else {
		var b natsaccounts.Bundle
		b, err = s.Bundle(st.Key)
		fragment = b.ServerConfig(t.TempDir())
	}
	must(t, err)
	conf := filepath.Join(t.TempDir(), "nats-server.conf")
	must(t, os.WriteFile(conf, []byte(fmt.Sprintf("listen: \"127.0.0.1:-1\"\nserver_name: s\njetstream: {store_dir: %q}\n%s", t.TempDir(), fragment)), 0o600))
	opts, err := server.ProcessConfigFile(conf)
	must(t, err)
	opts.NoSigs, opts.NoLog = true, true
	srv, err := server.NewServer(opts)
	must(t, err)
	srv.Start()
	t.Cleanup(func() { srv.Shutdown(); srv.WaitForShutdown() })
	if !srv.ReadyForConnections(tenantLimit) {
		t.Fatal("the server did not start")
	}
	f.url = srv.ClientURL()
	f.platform = f.connect(t, natsaccounts.Platform, "notifier")
	f.bus, err = natsbus.Open(t.Context(), f.platform, nil)
	must(t, err)
	return f
}

// connect signs in with the credentials that the store made.
func (f *fortress) connect(t *testing.T, tenant, user string) *nats.Conn {
	t.Helper()
	opts := []nats.Option{nats.MaxReconnects(-1), nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {})}
	if tenant != natsaccounts.Platform {
		opts = append(opts, nats.CustomInboxPrefix(natsaccounts.InboxPrefix(user)))
	}
	s, err := f.store.State()
	must(t, err)
	a := &s.Platform
	if tenant != natsaccounts.Platform {
		a, err = s.Tenant(tenant)
		must(t, err)
	}
	file := ""
	for _, u := range a.Users {
		if u.Name == user {
			file = f.store.CredsFile(tenant, &u)
		}
	}
	switch filepath.Ext(file) {
	case ".creds":
		opts = append(opts, nats.UserCredentials(file))
	case ".nk":
		o, err := nats.NkeyOptionFromSeed(file)
		must(t, err)
		opts = append(opts, o)
	case ".password":
		b, err := os.ReadFile(file)
		must(t, err)
		name, password, _ := strings.Cut(strings.TrimSpace(string(b)), ":")
		opts = append(opts, nats.UserInfo(name, password))
	default:
		t.Fatalf("no credentials of %s", user)
	}
	nc, err := nats.Connect(f.url, opts...)
	must(t, err)
	t.Cleanup(nc.Close)
	return nc
}

func secretOf(name string) ref.Ref {
	return ref.Ref{Provider: ref.AWS, Scope: "1/eu", Name: name}
}

// publish stores one event of a tenant and returns its subject.
func (f *fortress) publish(t *testing.T, tenant, name string) string {
	t.Helper()
	f.n++
	e := events.New(events.VersionActivated, secretOf(name), time.Now(), fmt.Sprint(f.n))
	e.Data.Tenant, e.Data.Version = tenant, fmt.Sprint("of-", tenant, "-", f.n)
	must(t, f.bus.Publish(t.Context(), e))
	return e.Subject()
}

// An attempt is one try of one user at the news of one tenant.
type attempt struct {
	*fortress
	nc     *nats.Conn
	tenant string // whose user nc is; "" for the platform
	target string
	last   string // subject of the target's last event
}

// mark says what only messages of the target hold.
func (a *attempt) mark() string { return "of-" + a.target + "-" }

// got reports whether m is news of the target.
func (a *attempt) got(m *nats.Msg) bool {
	return m != nil && (strings.Contains(string(m.Data), a.mark()) || strings.Contains(m.Header.Get("Nats-Subject"), "."+a.target+"."))
}

// hears subscribes and reports whether an event of the target arrives. Both
// the event and a mark behind it are published by one connection, and arrive
// by one: when the mark is there, so is all that came before it.
func (a *attempt) hears(t *testing.T, subject, queue string) bool {
	t.Helper()
	ch := make(chan *nats.Msg, 64)
	var sub *nats.Subscription
	var err error
	if queue == "" {
		sub, err = a.nc.ChanSubscribe(subject, ch)
	} else {
		sub, err = a.nc.ChanQueueSubscribe(subject, queue, ch)
	}
	must(t, err)
	defer func() { _ = sub.Unsubscribe() }()
	return a.arrives(t, ch, func() { a.publish(t, a.target, "db") })
}

// arrives calls act and reports whether news of the target are in ch by the
// time that a mark behind them has arrived.
func (a *attempt) arrives(t *testing.T, ch chan *nats.Msg, act func()) bool {
	t.Helper()
	own := a.tenant
	if own == "" {
		own = "acme"
	}
	marks, err := a.nc.SubscribeSync("keyturn.v1." + own + ".aws.1/eu.mark.version.activated")
	must(t, err)
	defer func() { _ = marks.Unsubscribe() }()
	must(t, a.nc.Flush())
	act()
	must(t, a.nc.Flush())
	a.publish(t, own, "mark")
	if _, err := marks.NextMsg(tenantLimit); err != nil {
		t.Fatalf("the mark does not arrive, so nothing is proven: %v", err)
	}
	must(t, a.nc.Flush())
	for {
		select {
		case m := <-ch:
			if a.got(m) {
				return true
			}
		default:
			return false
		}
	}
}

// answered sends a request and reports whether news of the target come back,
// or with anything set, whatever answer.
func (a *attempt) answered(t *testing.T, subject, body string, anything bool) bool {
	t.Helper()
	ch := make(chan *nats.Msg, 64)
	inbox := a.nc.NewInbox()
	sub, err := a.nc.ChanSubscribe(inbox, ch)
	must(t, err)
	defer func() { _ = sub.Unsubscribe() }()
	before := a.nc.LastError()
	must(t, a.nc.PublishRequest(subject, inbox, []byte(body)))
	must(t, a.nc.Flush())
	if a.refused(before) {
		return false
	}
	for timeout := time.After(300 * time.Millisecond); ; {
		select {
		case m := <-ch:
			if m.Header.Get("Status") == "503" {
				return false
			}
			if a.got(m) || anything {
				return true
			}
		case <-timeout:
			return false
		}
	}
}

// refused reports whether the server has refused something since before was
// the last error. It says so before it answers a flush.
func (a *attempt) refused(before error) bool {
	err := a.nc.LastError()
	return err != nil && err != before && errors.Is(err, nats.ErrPermissionViolation) //nolint:errorlint // the same error value, not the same kind
}

// witness listens as somebody else, and reports whether act makes text arrive.
func (a *attempt) witness(t *testing.T, nc *nats.Conn, subject, text string, act func()) bool {
	t.Helper()
	sub, err := nc.SubscribeSync(subject)
	must(t, err)
	defer func() { _ = sub.Unsubscribe() }()
	must(t, nc.Flush())
	before := a.nc.LastError()
	act()
	must(t, a.nc.Flush())
	must(t, nc.Flush())
	wait := 200 * time.Millisecond
	if a.refused(before) {
		wait = time.Millisecond // whatever came, came with the flush
	}
	for deadline := time.Now().Add(wait); ; {
		m, err := sub.NextMsg(time.Until(deadline))
		if err != nil {
			return false
		}
		if strings.Contains(string(m.Data), text) || strings.Contains(fmt.Sprint(m.Header), text) {
			return true
		}
	}
}

// fill puts the subject and sequence of the target's last event into a body.
func (a *attempt) fill(t *testing.T, body string) string {
	t.Helper()
	m, err := a.platform.Request("$JS.API.DIRECT.GET.KEYTURN_EVENTS."+a.last, nil, tenantLimit)
	must(t, err)
	return strings.NewReplacer("%s", a.last, "%d", m.Header.Get("Nats-Sequence")).Replace(body)
}

func (a *attempt) js(t *testing.T) jetstream.JetStream {
	t.Helper()
	js, err := jetstream.New(a.nc, jetstream.WithDefaultTimeout(300*time.Millisecond))
	must(t, err)
	return js
}

// consumes reads with a JetStream consumer.
func (a *attempt) consumes(t *testing.T, c jetstream.Consumer, err error) bool {
	t.Helper()
	if err != nil {
		return false
	}
	ms, err := c.Fetch(64, jetstream.FetchMaxWait(300*time.Millisecond))
	if err != nil {
		return false
	}
	for m := range ms.Messages() {
		if strings.Contains(string(m.Data()), a.mark()) {
			return true
		}
	}
	return false
}

// Who proves that a probe works at all: the tenant's own user, or where a
// tenant may not do it to itself, the platform.
const (
	byItself   = "the target's own user"
	byPlatform = "the platform"
)

// A probe is one way to reach another tenant. It reports whether it did.
type probe struct {
	control string
	try     func(*testing.T, *attempt) bool
}

func probes() map[string]probe {
	ps := map[string]probe{}
	// Subscriptions.
	for name, s := range map[string]struct{ subject, control string }{
		"prefix":               {"keyturn.v1.%s.>", byItself},
		"literal":              {"keyturn.v1.%s.aws.1/eu.db.version.activated", byItself},
		"stars in the prefix":  {"keyturn.v1.%s.*.*.*.*.*", byItself},
		"everything":           {">", byPlatform},
		"one token and all":    {"*.>", byPlatform},
		"keyturn":              {"keyturn.>", byPlatform},
		"any tenant":           {"keyturn.v1.*.>", byPlatform},
		"any tenant, literal":  {"keyturn.v1.*.aws.1/eu.db.version.activated", byPlatform},
		"any version":          {"keyturn.*.%s.>", byPlatform},
		"all tokens are stars": {"*.*.*.*.*.*.*.*", byPlatform},
	} {
		subject := func(a *attempt) string { return strings.ReplaceAll(s.subject, "%s", a.target) }
		ps["subscribe "+name] = probe{s.control, func(t *testing.T, a *attempt) bool { return a.hears(t, subject(a), "") }}
		ps["queue "+name] = probe{s.control, func(t *testing.T, a *attempt) bool { return a.hears(t, subject(a), "q") }}
	}
	// Direct get.
	const get = "$JS.API.DIRECT.GET.KEYTURN_EVENTS"
	ps["last, subject in the subject"] = probe{byItself, func(t *testing.T, a *attempt) bool { return a.answered(t, get+"."+a.last, "", false) }}
	ps["last, with an empty body"] = probe{byItself, func(t *testing.T, a *attempt) bool { return a.answered(t, get+"."+a.last, "{}", false) }}
	for name, body := range map[string]string{
		"last_by_subj": `{"last_by_subj":"%s"}`, "next_by_subj": `{"seq":1,"next_by_subj":"%s"}`, "seq": `{"seq":%d}`,
		"batch": `{"seq":1,"batch":100}`, "multi_last": `{"multi_last":["%s"],"batch":100}`, "multi_last of all": `{"multi_last":[">"],"batch":100}`,
		"start_time": `{"start_time":"2000-01-01T00:00:00Z","batch":100}`,
	} {
		ps["direct get "+name] = probe{byPlatform, func(t *testing.T, a *attempt) bool {
			return a.answered(t, get, a.fill(t, body), false)
		}}
		ps["direct get, own subject and "+name] = probe{"", func(t *testing.T, a *attempt) bool {
			return a.answered(t, get+".keyturn.v1.acme.aws.1/eu.db.version.activated", a.fill(t, body), false)
		}}
	}
	for _, s := range []string{".keyturn.v1.*.>", ".>", ".keyturn.v1.acme.>", ".keyturn.v1.acme.*.*.*.*.*", ".keyturn.v1.acme.$TARGET", ".keyturn.v1.acme.aws..keyturn.v1.$TARGET"} {
		ps["last of "+s] = probe{"", func(t *testing.T, a *attempt) bool {
			return a.answered(t, get+strings.ReplaceAll(s, "$TARGET", a.target), "", false)
		}}
	}
	// The JetStream API.
	for name, c := range map[string]struct{ subject, body string }{
		"info": {"INFO", ""}, "stream info": {"STREAM.INFO.KEYTURN_EVENTS", `{"subjects_filter":">"}`}, "stream list": {"STREAM.LIST", ""}, "stream names": {"STREAM.NAMES", ""},
		"message": {"STREAM.MSG.GET.KEYTURN_EVENTS", `{"seq":1}`}, "consumers": {"CONSUMER.LIST.KEYTURN_EVENTS", ""}, "consumer names": {"CONSUMER.NAMES.KEYTURN_EVENTS", ""},
		"delete message": {"STREAM.MSG.DELETE.KEYTURN_EVENTS", `{"seq":9999}`}, "purge": {"STREAM.PURGE.KEYTURN_EVENTS", `{"filter":"keyturn.v1.nobody.>"}`},
		"next message": {"CONSUMER.MSG.NEXT.KEYTURN_EVENTS.none", ""}, "delete consumer": {"CONSUMER.DELETE.KEYTURN_EVENTS.none", ""}, "snapshot": {"STREAM.SNAPSHOT.KEYTURN_EVENTS", "{"},
	} {
		control := byPlatform
		if name == "next message" {
			control = "" // nobody answers for a consumer that is not there
		}
		ps["API "+name] = probe{control, func(t *testing.T, a *attempt) bool { return a.answered(t, "$JS.API."+c.subject, c.body, true) }}
		ps["API in the domain, "+name] = probe{"", func(t *testing.T, a *attempt) bool {
			return a.answered(t, "$JS.x.API."+c.subject, c.body, true)
		}}
	}
	ps["consumer, ephemeral"] = probe{byPlatform, func(t *testing.T, a *attempt) bool {
		c, err := a.js(t).CreateConsumer(t.Context(), "KEYTURN_EVENTS", jetstream.ConsumerConfig{AckPolicy: jetstream.AckNonePolicy})
		return a.consumes(t, c, err)
	}}
	ps["consumer, of the prefix"] = probe{byPlatform, func(t *testing.T, a *attempt) bool {
		c, err := a.js(t).CreateConsumer(t.Context(), "KEYTURN_EVENTS", jetstream.ConsumerConfig{Name: "x", FilterSubject: "keyturn.v1." + a.target + ".>", AckPolicy: jetstream.AckNonePolicy})
		return a.consumes(t, c, err)
	}}
	ps["consumer, ordered"] = probe{byPlatform, func(t *testing.T, a *attempt) bool {
		c, err := a.js(t).OrderedConsumer(t.Context(), "KEYTURN_EVENTS", jetstream.OrderedConsumerConfig{MaxResetAttempts: 1})
		return a.consumes(t, c, err)
	}}
	ps["consumer, push to the own inbox"] = probe{byPlatform, func(t *testing.T, a *attempt) bool {
		ch := make(chan *nats.Msg, 256)
		inbox := a.nc.NewInbox()
		sub, err := a.nc.ChanSubscribe(inbox, ch)
		must(t, err)
		defer func() { _ = sub.Unsubscribe() }()
		return a.arrives(t, ch, func() {
			body := fmt.Sprintf(`{"stream_name":"KEYTURN_EVENTS","config":{"deliver_subject":%q,"ack_policy":"none","deliver_policy":"all"}}`, inbox)
			_ = a.answered(t, "$JS.API.CONSUMER.CREATE.KEYTURN_EVENTS", body, true)
		})
	}}
	for name, cfg := range map[string]jetstream.StreamConfig{
		"mirror": {Name: "COPY", Mirror: &jetstream.StreamSource{Name: "KEYTURN_EVENTS"}},
		"source": {Name: "COPY", Sources: []*jetstream.StreamSource{{Name: "KEYTURN_EVENTS"}}},
		"stream": {Name: "COPY", Subjects: []string{"copy.>"}},
	} {
		ps["stream, "+name] = probe{byPlatform, func(t *testing.T, a *attempt) bool {
			_, err := a.js(t).CreateStream(t.Context(), cfg)
			if err == nil {
				must(t, a.js(t).DeleteStream(t.Context(), "COPY"))
			}
			return err == nil
		}}
	}
	ps["watch a key-value bucket"] = probe{byPlatform, func(t *testing.T, a *attempt) bool {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		js := a.js(t)
		kv, err := js.CreateOrUpdateKeyValue(ctx, jetstream.KeyValueConfig{Bucket: "b"})
		if err != nil {
			kv, err = js.KeyValue(ctx, "b")
		}
		if err != nil {
			return false
		}
		w, err := kv.WatchAll(ctx)
		if err != nil {
			return false
		}
		return w.Stop() == nil
	}}
	ps["hear a key-value bucket"] = probe{"", func(t *testing.T, a *attempt) bool { return a.hears(t, "$KV.>", "") }}
	ps["hear the API"] = probe{"", func(t *testing.T, a *attempt) bool { return a.hears(t, "$JS.>", "") }}
	// Publishing.
	ps["publish as the target"] = probe{byPlatform, func(t *testing.T, a *attempt) bool {
		to := a.connect(t, a.target, a.target+"-1")
		return a.witness(t, to, "keyturn.v1."+a.target+".>", "forged", func() { must(t, a.nc.Publish(a.last, []byte("forged"))) })
	}}
	ps["publish a dead letter"] = probe{byPlatform, func(t *testing.T, a *attempt) bool {
		return a.witness(t, a.platform, "keyturn.deadletter.>", "forged", func() { must(t, a.nc.Publish("keyturn.deadletter.x", []byte("forged"))) })
	}}
	ps["adoption as the target"] = probe{byItself, func(t *testing.T, a *attempt) bool {
		return a.witness(t, a.platform, "keyturn.adoption.>", "forged", func() { must(t, a.nc.Publish("keyturn.adoption.v1."+a.target+".x", []byte("forged"))) })
	}}
	for _, s := range []string{"keyturn.adoption.v1.*.x", "keyturn.adoption.v1.>", "keyturn.adoption.x", "keyturn.adoption.v1"} {
		ps["adoption on "+s] = probe{"", func(t *testing.T, a *attempt) bool {
			return a.witness(t, a.platform, "keyturn.adoption.>", "forged", func() { must(t, a.nc.Publish(s, []byte("forged"))) })
		}}
	}
	ps["hear adoption"] = probe{byPlatform, func(t *testing.T, a *attempt) bool {
		ch := make(chan *nats.Msg, 8)
		sub, err := a.nc.ChanSubscribe("keyturn.adoption.>", ch)
		must(t, err)
		defer func() { _ = sub.Unsubscribe() }()
		to := a.connect(t, a.target, a.target+"-1")
		return a.arrives(t, ch, func() {
			must(t, to.Publish("keyturn.adoption.v1."+a.target+".x", []byte(a.mark())))
			must(t, to.Flush())
		})
	}}
	// Inboxes: what the target's agent, or the platform, is answered.
	inbox := func(subject func(*attempt) string) func(*testing.T, *attempt) bool {
		return func(t *testing.T, a *attempt) bool {
			ch := make(chan *nats.Msg, 8)
			sub, err := a.nc.ChanSubscribe(subject(a), ch)
			must(t, err)
			defer func() { _ = sub.Unsubscribe() }()
			// The control is the same user: it reads what it is answered itself.
			to := a.connect(t, a.target, a.target+"-1")
			return a.arrives(t, ch, func() {
				if _, err := to.Request(get+"."+a.last, nil, tenantLimit); err != nil {
					t.Fatalf("the target is not answered: %v", err)
				}
			})
		}
	}
	ps["listen at the target's inboxes"] = probe{byItself, inbox(func(a *attempt) string { return natsaccounts.InboxPrefix(a.target+"-1") + ".>" })}
	for _, s := range []string{"_INBOX.>", "_INBOX_*.>", "*.*", "_R_.>", "_R_.*.*"} {
		ps["listen at "+s] = probe{"", inbox(func(*attempt) string { return s })}
	}
	ps["listen at the platform's inboxes"] = probe{byPlatform, func(t *testing.T, a *attempt) bool {
		ch := make(chan *nats.Msg, 8)
		sub, err := a.nc.ChanSubscribe("_INBOX.>", ch)
		must(t, err)
		defer func() { _ = sub.Unsubscribe() }()
		return a.arrives(t, ch, func() {
			_, err := a.platform.Request(get+"."+a.last, nil, tenantLimit)
			must(t, err)
		})
	}}
	ps["write into the platform's inboxes"] = probe{byPlatform, func(t *testing.T, a *attempt) bool {
		return a.witness(t, a.platform, "_INBOX.>", "forged", func() { must(t, a.nc.Publish("_INBOX.guess.x", []byte("forged"))) })
	}}
	for _, s := range []string{"_INBOX_$TARGET-1.x", "_R_.x.y", "_R_.>"} {
		ps["write into "+s] = probe{"", func(t *testing.T, a *attempt) bool {
			to := a.connect(t, a.target, a.target+"-1")
			return a.witness(t, to, natsaccounts.InboxPrefix(a.target+"-1")+".>", "forged", func() {
				must(t, a.nc.Publish(strings.ReplaceAll(s, "$TARGET", a.target), []byte("forged")))
			})
		}}
	}
	// Answers that are sent elsewhere: the own last event, with a reply subject
	// of somebody else.
	const own = get + ".keyturn.v1.acme.aws.1/eu.db.version.activated"
	ps["have the answer sent to the target"] = probe{"", func(t *testing.T, a *attempt) bool {
		to := a.connect(t, a.target, a.target+"-1")
		return a.witness(t, to, "keyturn.v1."+a.target+".>", "of-acme-", func() { must(t, a.nc.PublishRequest(own, a.last, nil)) })
	}}
	ps["have the answer sent to the target's inbox"] = probe{"", func(t *testing.T, a *attempt) bool {
		to := a.connect(t, a.target, a.target+"-1")
		return a.witness(t, to, natsaccounts.InboxPrefix(a.target+"-1")+".>", "of-acme-", func() {
			must(t, a.nc.PublishRequest(own, natsaccounts.InboxPrefix(a.target+"-1")+".x", nil))
		})
	}}
	for _, s := range []string{"keyturn.deadletter.x", "keyturn.schedule.due.x", "$JS.API.STREAM.PURGE.KEYTURN_EVENTS", "_INBOX.x", "keyturn.adoption.v1.$TARGET.x"} {
		ps["have the answer sent to the platform at "+s] = probe{"", func(t *testing.T, a *attempt) bool {
			s := strings.ReplaceAll(s, "$TARGET", a.target)
			return a.witness(t, a.platform, s, "of-acme-", func() { must(t, a.nc.PublishRequest(own, s, nil)) })
		}}
	}
	// An adoption with a reply subject: a stream that acknowledges it does so on
	// that subject, inside the platform's account. Hence no_ack.
	for name, ack := range map[string]bool{"a stream with no_ack": false, "a plain stream": true} {
		ps["have an adoption acknowledged to the target by "+name] = probe{"", func(t *testing.T, a *attempt) bool {
			js, err := jetstream.New(a.platform)
			must(t, err)
			_, err = js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "ADOPTION", Subjects: []string{natsaccounts.AdoptionPrefix + ">"}, NoAck: !ack})
			must(t, err)
			defer func() { must(t, js.DeleteStream(t.Context(), "ADOPTION")) }()
			to := a.connect(t, a.target, a.target+"-1")
			reached := a.witness(t, to, "keyturn.v1."+a.target+".>", `"stream"`, func() {
				must(t, a.nc.PublishRequest("keyturn.adoption.v1.acme.x", a.last, []byte("{}")))
			})
			return reached != ack // with acknowledgements the attack works
		}}
	}
	// The system.
	for _, s := range []string{"$SYS.REQ.SERVER.PING", "$SYS.REQ.SERVER.PING.CONNZ", "$SYS.REQ.ACCOUNT.PING.CONNZ", "$SYS.REQ.USER.INFO", "$SYS.REQ.CLAIMS.LIST", "$SYS.REQ.CLAIMS.UPDATE", "$SYS.REQ.CLAIMS.PACK"} {
		control := ""
		if s == "$SYS.REQ.USER.INFO" {
			control = byPlatform
		}
		ps["ask "+s] = probe{control, func(t *testing.T, a *attempt) bool { return a.answered(t, s, "", true) }}
	}
	ps["hear $SYS.>"] = probe{"", func(t *testing.T, a *attempt) bool {
		return a.witness(t, a.nc, "$SYS.>", "", func() { a.connect(t, a.target, a.target+"-1").Close() })
	}}
	// Headers.
	for _, h := range []string{"Nats-Trace-Dest", "Nats-Subject", "Nats-Schedule-Target", "Nats-Rollup", "Nats-Request-Info"} {
		ps["header "+h] = probe{"", func(t *testing.T, a *attempt) bool {
			to := a.connect(t, a.target, a.target+"-1")
			return a.witness(t, to, "keyturn.v1."+a.target+".>", "", func() {
				m := nats.NewMsg("keyturn.adoption.v1.acme.x")
				m.Header.Set(h, a.last)
				must(t, a.nc.PublishMsg(m))
				m = nats.NewMsg(own)
				m.Header.Set(h, a.last)
				m.Reply = a.nc.NewInbox()
				must(t, a.nc.PublishMsg(m))
			})
		}}
	}
	return ps
}

// TestTenantAccounts: a tenant's user reaches nothing of another tenant, in
// any way that NATS offers, on a real server with accounts of either form; and
// each way works for who has the right to it.
func TestTenantAccounts(t *testing.T) {
	for _, form := range []natsaccounts.Form{natsaccounts.Operator, natsaccounts.Config} {
		t.Run(string(form), func(t *testing.T) {
			t.Parallel()
			f := newFortress(t, form)
			f.publish(t, "acme", "db")
			last := f.publish(t, "victim", "db")
			attacker := f.connect(t, "acme", "acme-2")
			controls := map[string]*attempt{
				byPlatform: {f, f.platform, "", "victim", last},
				byItself:   {f, f.connect(t, "victim", "victim-1"), "victim", "victim", last},
			}
			for name, p := range probes() {
				t.Run(name, func(t *testing.T) {
					if p.try(t, &attempt{f, attacker, "acme", "victim", last}) {
						t.Error("reached another tenant")
					}
					if attacker.IsClosed() {
						t.Fatal("the connection is closed")
					}
					if p.control != "" && !p.try(t, controls[p.control]) {
						t.Errorf("%s cannot do it either, so the probe proves nothing", p.control)
					}
				})
			}
			t.Run("users of one tenant", func(t *testing.T) {
				a := &attempt{f, attacker, "acme", "acme", f.publish(t, "acme", "db")}
				ch := make(chan *nats.Msg, 8)
				sub, err := a.nc.ChanSubscribe(natsaccounts.InboxPrefix("acme-1")+".>", ch)
				must(t, err)
				defer func() { _ = sub.Unsubscribe() }()
				other := f.connect(t, "acme", "acme-1")
				if a.arrives(t, ch, func() {
					_, err := other.Request("$JS.API.DIRECT.GET.KEYTURN_EVENTS."+a.last, nil, tenantLimit)
					must(t, err)
				}) {
					t.Error("one user reads what another is answered")
				}
			})
			// After all that, an agent of either tenant works as ever.
			for _, tenant := range []string{"acme", "victim"} {
				f.publish(t, tenant, "after")
				heardAs(t, f.connect(t, tenant, tenant+"-1"), tenant)
			}
		})
	}
}

// heardAs subscribes as agents do, and hears the stored event and a live one.
func heardAs(t *testing.T, nc *nats.Conn, tenant string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), tenantLimit)
	defer cancel()
	var mu sync.Mutex
	var got []string
	err := natsbus.NewSubscriber(nc, nil).Subscribe(ctx, events.Filter{Tenant: tenant, Refs: []ref.Ref{secretOf("after")}}, func(_ context.Context, e events.Event) {
		mu.Lock()
		defer mu.Unlock()
		got = append(got, e.Data.Version)
	}, cancel)
	must(t, err)
	mu.Lock()
	defer mu.Unlock()
	if len(got) != 1 || !strings.HasPrefix(got[0], "of-"+tenant+"-") {
		b, _ := json.Marshal(got)
		t.Errorf("the agent of %s hears %s; expected its own last event", tenant, b)
	}
}
