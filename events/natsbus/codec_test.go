package natsbus

import (
	"errors"
	"net/url"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/nats-io/nats.go"
	"pgregory.net/rapid"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/ref"
)

var nasty = rapid.StringOfN(rapid.OneOf(rapid.Rune(), rapid.SampledFrom([]rune(` "%\.*>~$/`+"\r\n\t\x00é漢"))), 1, 40, -1)

func drawRef(rt *rapid.T) ref.Ref {
	name := nasty.Draw(rt, "name")
	p := rapid.SampledFrom([]ref.Provider{ref.AWS, ref.GCP, ref.Azure, ref.Vault, ref.NATS}).Draw(rt, "provider")
	var scope []string
	switch p {
	case ref.AWS:
		scope = []string{nasty.Draw(rt, "account"), nasty.Draw(rt, "region")}
	case ref.Vault:
		scope = []string{nasty.Draw(rt, "cluster"), rapid.OneOf(rapid.Just(""), nasty).Draw(rt, "namespace"), nasty.Draw(rt, "mount")}
	default:
		scope = []string{nasty.Draw(rt, "scope")}
		if p != ref.NATS {
			name = strings.ReplaceAll(name, "/", "-")
		}
	}
	r, err := ref.New(p, name, scope...)
	if err != nil {
		rt.Fatal(err)
	}
	return r
}

func drawEvent(rt *rapid.T) events.Event {
	at := func(label string) time.Time {
		if rapid.Bool().Draw(rt, label+" zero") {
			return time.Time{}
		}
		return time.Unix(rapid.Int64Range(0, 4e9).Draw(rt, label), rapid.Int64Range(0, 999999999).Draw(rt, label+" ns")).UTC()
	}
	text := rapid.OneOf(rapid.Just(""), nasty)
	e := events.Event{ID: nasty.Draw(rt, "id"), Type: rapid.SampledFrom(events.Types()).Draw(rt, "type"), Time: at("time")}
	e.Data = events.Data{
		Ref: drawRef(rt), Tenant: text.Draw(rt, "tenant"), Version: text.Draw(rt, "version"), PreviousVersion: text.Draw(rt, "previous"),
		Cause: text.Draw(rt, "cause"), Reason: text.Draw(rt, "reason"), Label: text.Draw(rt, "label"), TraceParent: text.Draw(rt, "trace"),
		Provider: events.Provider{EventID: text.Draw(rt, "event id"), Type: text.Draw(rt, "ptype"), ID: text.Draw(rt, "pid"), Time: at("ptime")},
		Received: at("received"), Published: at("published"),
	}
	return e
}

// TestRoundTrip: every valid event survives the wire, whoever wrote the header
// names in whatever case, and the wire holds nothing that NATS or the
// specification forbids.
func TestRoundTrip(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		e := drawEvent(rt)
		m, err := encode(e)
		if err != nil {
			rt.Fatal(err)
		}
		h := nats.Header{}
		for k, vs := range m.Header {
			if k != strings.ToLower(k) || len(vs) != 1 {
				rt.Fatalf("header %q = %q; expected lower case and one value", k, vs)
			}
			for i := range len(vs[0]) {
				if c := vs[0][i]; c <= ' ' || c > '~' || c == '"' {
					rt.Fatalf("header %s holds byte %#x", k, c)
				}
			}
			if plain, err := url.PathUnescape(vs[0]); err != nil || !utf8.ValidString(plain) {
				rt.Fatalf("another reader cannot decode %s: %q, %v", k, vs[0], err)
			}
			switch rapid.IntRange(0, 2).Draw(rt, "case") {
			case 1:
				k = strings.ToUpper(k)
			case 2:
				k = strings.ToUpper(k[:1]) + k[1:]
			}
			h[k] = vs
		}
		back, err := decode(m.Subject, h, m.Data)
		if err != nil {
			rt.Fatalf("%+v does not come back: %v", e, err)
		}
		if back != e {
			rt.Fatalf("came back as\n%+v\nexpected\n%+v", back, e)
		}
	})
}

// TestWireForm pins the wire: programs in other languages read it.
func TestWireForm(t *testing.T) {
	e := events.New(events.VersionActivated, ref.Ref{Provider: ref.Vault, Scope: "c//kv", Name: `a b/"é%`}, time.Unix(1700000000, 5e8), "7")
	e.Data.Tenant, e.Data.Version = "acme.x", "7"
	m, err := encode(e)
	if err != nil {
		t.Fatal(err)
	}
	if want := `keyturn.v1.acme%2Ex.vault.c//kv.a%20b/"%C3%A9%25.version.activated`; m.Subject != want {
		t.Errorf("subject %s", m.Subject)
	}
	for k, want := range map[string]string{
		"ce-specversion": "1.0", "ce-id": e.ID, "ce-type": "dev.keyturn.version.activated.v1", "ce-source": "vault://c//kv",
		"ce-subject": "vault://c//kv/a%2520b/%2522%25C3%25A9%2525", "ce-time": "2023-11-14T22:13:20.5Z", "ce-datacontenttype": "application/json",
	} {
		if got := m.Header[k]; len(got) != 1 || got[0] != want {
			t.Errorf("%s is %q; expected %q", k, got, want)
		}
	}
	if len(m.Header) != 7 {
		t.Errorf("headers %v; expected 7", m.Header)
	}
}

func TestDecodeRefuses(t *testing.T) {
	good, err := encode(activated("a", "1"))
	if err != nil {
		t.Fatal(err)
	}
	for what, change := range map[string]func(m *nats.Msg){
		"no headers":         func(m *nats.Msg) { m.Header = nil },
		"no specversion":     func(m *nats.Msg) { delete(m.Header, "ce-specversion") },
		"other specversion":  func(m *nats.Msg) { m.Header["ce-specversion"] = []string{"0.3"} },
		"no id":              func(m *nats.Msg) { delete(m.Header, "ce-id") },
		"empty id":           func(m *nats.Msg) { m.Header["ce-id"] = []string{""} },
		"long id":            func(m *nats.Msg) { m.Header["ce-id"] = []string{strings.Repeat("x", maxID+1)} },
		"no type":            func(m *nats.Msg) { delete(m.Header, "ce-type") },
		"no source":          func(m *nats.Msg) { delete(m.Header, "ce-source") },
		"other source":       func(m *nats.Msg) { m.Header["ce-source"] = []string{"aws://other/eu-west-1"} },
		"other subject":      func(m *nats.Msg) { m.Header["ce-subject"] = []string{"aws://111122223333/eu-west-1/b"} },
		"two ids":            func(m *nats.Msg) { m.Header["ce-id"] = []string{"a", "b"} },
		"two spellings":      func(m *nats.Msg) { m.Header["CE-ID"] = []string{"b"} },
		"broken escape":      func(m *nats.Msg) { m.Header["ce-id"] = []string{"%zz"} },
		"cut escape":         func(m *nats.Msg) { m.Header["ce-id"] = []string{"a%2"} },
		"not UTF-8":          func(m *nats.Msg) { m.Header["ce-id"] = []string{"%ff"} },
		"bad time":           func(m *nats.Msg) { m.Header["ce-time"] = []string{"yesterday"} },
		"XML":                func(m *nats.Msg) { m.Header["ce-datacontenttype"] = []string{"text/xml"} },
		"structured":         func(m *nats.Msg) { m.Header["Content-Type"] = []string{"Application/CloudEvents+json"} },
		"no data":            func(m *nats.Msg) { m.Data = nil },
		"no ref":             func(m *nats.Msg) { m.Data = []byte(`{}`) },
		"bad ref":            func(m *nats.Msg) { m.Data = []byte(`{"ref":"ftp://x"}`) },
		"other tenant":       func(m *nats.Msg) { m.Subject = strings.Replace(m.Subject, ".acme.", ".victim.", 1) },
		"other verb":         func(m *nats.Msg) { m.Subject = strings.Replace(m.Subject, ".activated", ".created", 1) },
		"no event's subject": func(m *nats.Msg) { m.Subject = "keyturn.v1.x" },
	} {
		m := nats.NewMsg(good.Subject)
		m.Data = good.Data
		for k, v := range good.Header {
			m.Header[k] = v
		}
		if _, err := decode(m.Subject, m.Header, m.Data); err != nil {
			t.Fatalf("the unchanged event: %v", err)
		}
		change(m)
		if _, err := decode(m.Subject, m.Header, m.Data); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v; expected an error of kind invalid", what, err)
		}
	}
	m := *good
	m.Header["ce-type"] = []string{"dev.keyturn.version.polished.v1"}
	if _, err := decode(m.Subject, m.Header, m.Data); !errors.Is(err, errUnknownType) {
		t.Errorf("unknown type: %v", err)
	}
	m.Header["ce-type"] = []string{string(events.VersionActivated)}
	m.Header["ce-datacontenttype"] = []string{"application/json; charset=utf-8"}
	m.Header["ce-id"] = []string{`"quoted\"%20id"`}
	m.Header["ce-extension"] = []string{"x"}
	if e, err := decode(m.Subject, m.Header, m.Data); err != nil || e.ID != `quoted" id` {
		t.Errorf("a quoted id is %q, %v", e.ID, err)
	}
}

func TestDecodeNeverPanics(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		h := nats.Header{}
		for range rapid.IntRange(0, 8).Draw(rt, "n") {
			k := rapid.SampledFrom([]string{"ce-id", "ce-type", "CE-source", "ce-specversion", "ce-time", "ce-subject", "Content-Type", "ce-"}).Draw(rt, "k")
			h[k] = rapid.SliceOfN(rapid.OneOf(rapid.Just("1.0"), rapid.Just(string(events.SecretChanged)), rapid.String()), 0, 2).Draw(rt, "v")
		}
		_, _ = decode(rapid.String().Draw(rt, "subject"), h, rapid.SliceOf(rapid.Byte()).Draw(rt, "data"))
	})
}

// TestYears: a time that RFC 3339 cannot say would be an event that nobody reads.
func TestYears(t *testing.T) {
	for year, want := range map[int]bool{-1: false, 0: true, 1: true, 1938: true, 9999: true, 10000: false} {
		e := activated("a", "1")
		e.Time = time.Date(year, 6, 1, 0, 0, 0, 0, time.UTC)
		m, err := encode(e)
		if (err == nil) != want || err != nil && !fault.Is(err, fault.Invalid) {
			t.Errorf("year %d: %v", year, err)
		}
		if err == nil {
			if _, err := decode(m.Subject, m.Header, m.Data); err != nil {
				t.Errorf("year %d is not read back: %v", year, err)
			}
		}
	}
}
