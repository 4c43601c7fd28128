package natsbus

import (
	"encoding/json"
	"errors"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/nats-io/nats.go"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/fault"
)

// errUnknownType means that an event is of a type which a newer Keyturn knows.
var errUnknownType = errors.New("natsbus: an event of a type that is not known here")

const (
	contentType = "application/json"
	maxID       = 256 // bytes; ids of package events have 32
)

// encode returns e as a message in the CloudEvents NATS binding, binary mode:
// each attribute is a header ce-<name>, and the payload is the data.
// https://github.com/cloudevents/spec/blob/main/cloudevents/bindings/nats-protocol-binding.md
// The error is of kind Invalid.
func encode(e events.Event) (*nats.Msg, error) {
	const op = "natsbus: encode event"
	switch {
	case e.ID == "" || len(e.ID) > maxID || !utf8.ValidString(e.ID):
		return nil, fault.Newf(fault.Invalid, op, "the id has %d bytes; expected 1 to %d of UTF-8", len(e.ID), maxID)
	case !e.Type.Valid():
		return nil, fault.Newf(fault.Invalid, op, "unknown type %q; expected one of events.Types", string(e.Type))
	case e.Time.UTC().Year() < 0 || e.Time.UTC().Year() > 9999:
		return nil, fault.Newf(fault.Invalid, op, "the time is of the year %d; expected one that RFC 3339 can say", e.Time.UTC().Year())
	}
	if err := e.Data.Ref.Validate(); err != nil {
		return nil, fault.New(fault.Invalid, op, err)
	}
	data, err := json.Marshal(e.Data)
	if err != nil {
		return nil, fault.New(fault.Invalid, op, err)
	}
	m := &nats.Msg{Subject: e.Subject(), Data: data, Header: nats.Header{
		"ce-specversion":     {"1.0"},
		"ce-id":              {escape(e.ID)},
		"ce-type":            {escape(string(e.Type))},
		"ce-source":          {escape(e.Source())},
		"ce-subject":         {escape(e.Data.Ref.String())},
		"ce-datacontenttype": {contentType},
	}}
	if !e.Time.IsZero() {
		m.Header["ce-time"] = []string{e.Time.UTC().Format(time.RFC3339Nano)}
	}
	if tp := e.Data.TraceParent; tp != "" {
		m.Header["ce-traceparent"] = []string{escape(tp)}
	}
	return m, nil
}

// decode reads a message that was received on subject. The error is of kind
// Invalid, or errUnknownType. Its text does not quote the payload.
func decode(subject string, h nats.Header, data []byte) (events.Event, error) {
	var e events.Event
	bad := func(format string, args ...any) (events.Event, error) {
		return events.Event{}, fault.Newf(fault.Invalid, "natsbus: decode event", format, args...)
	}
	attrs, err := attributes(h)
	if err != nil {
		return e, err
	}
	if v := attrs["specversion"]; v != "1.0" {
		return bad("ce-specversion is %.20q; expected 1.0 in binary mode", v)
	}
	for _, name := range []string{"id", "type", "source"} {
		if attrs[name] == "" {
			return bad("ce-%s is missing", name)
		}
	}
	e.ID, e.Type = attrs["id"], events.Type(attrs["type"])
	if len(e.ID) > maxID {
		return bad("ce-id has %d bytes; expected at most %d", len(e.ID), maxID)
	}
	if !e.Type.Valid() {
		return events.Event{}, errUnknownType
	}
	if ct, _, _ := strings.Cut(attrs["datacontenttype"], ";"); ct != "" && !strings.EqualFold(strings.TrimSpace(ct), contentType) {
		return bad("ce-datacontenttype is %.80q; expected %s", ct, contentType)
	}
	if t := attrs["time"]; t != "" {
		at, err := time.Parse(time.RFC3339Nano, t)
		if err != nil {
			return bad("ce-time is not an RFC 3339 time")
		}
		e.Time = at.UTC()
	}
	if err := json.Unmarshal(data, &e.Data); err != nil {
		return bad("the payload is not the JSON of events.Data")
	}
	if err := e.Data.Ref.Validate(); err != nil {
		return bad("the payload has no valid ref")
	}
	if s, ok := attrs["subject"]; ok && s != e.Data.Ref.String() {
		return bad("ce-subject is not the payload's ref")
	}
	if attrs["source"] != e.Source() {
		return bad("ce-source is not that of the payload's ref; expected %q", e.Source())
	}
	// The server's permissions are on subjects. An event that speaks of
	// another tenant or secret than its subject is a forgery.
	if want := e.Subject(); subject != want {
		return bad("received on %q; expected %q for what the payload says", subject, want)
	}
	return e, nil
}

// attributes returns the CloudEvents attributes. NATS keeps the case of header
// names, so writers differ in it; the specification wants it ignored.
func attributes(h nats.Header) (map[string]string, error) {
	bad := func(format string, args ...any) (map[string]string, error) {
		return nil, fault.Newf(fault.Invalid, "natsbus: decode event", format, args...)
	}
	attrs := make(map[string]string, 8)
	for k, vs := range h {
		name := strings.ToLower(k)
		if name == "content-type" && len(vs) > 0 && strings.HasPrefix(strings.ToLower(vs[0]), "application/cloudevents") {
			return bad("the event is in structured mode; expected binary mode with ce- headers")
		}
		name, ok := strings.CutPrefix(name, "ce-")
		if !ok {
			continue
		}
		if _, dup := attrs[name]; dup || len(vs) != 1 {
			return bad("header ce-%.40s is there more than once", name)
		}
		v, ok := unescape(vs[0])
		if !ok {
			return bad("header ce-%.40s is not percent-encoded UTF-8", name)
		}
		attrs[name] = v
	}
	return attrs, nil
}

const upperHex = "0123456789ABCDEF"

// escape encodes a header value: space, quote, percent and everything outside
// of printable ASCII as %XX of its UTF-8 bytes.
func escape(s string) string {
	plain := func(c byte) bool { return c > ' ' && c < 0x7F && c != '"' && c != '%' }
	n := 0
	for i := range len(s) {
		if !plain(s[i]) {
			n++
		}
	}
	if n == 0 {
		return s
	}
	b := make([]byte, 0, len(s)+2*n)
	for i := range len(s) {
		if c := s[i]; plain(c) {
			b = append(b, c)
		} else {
			b = append(b, '%', upperHex[c>>4], upperHex[c&15])
		}
	}
	return string(b)
}

// unescape decodes one round of percent-encoding. As the specification asks,
// it tolerates a value in double quotes with backslash escapes, and reports
// false for a broken escape or what is not UTF-8.
func unescape(s string) (string, bool) {
	if len(s) >= 2 && s[0] == '"' && s[len(s)-1] == '"' {
		in := s[1 : len(s)-1]
		var b strings.Builder
		for i := 0; i < len(in); i++ {
			if in[i] == '\\' {
				if i++; i == len(in) {
					return "", false
				}
			}
			b.WriteByte(in[i])
		}
		s = b.String()
	}
	if !strings.Contains(s, "%") {
		return s, utf8.ValidString(s)
	}
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] != '%' {
			b = append(b, s[i])
			continue
		}
		if i+2 >= len(s) {
			return "", false
		}
		hi, lo := unhex(s[i+1]), unhex(s[i+2])
		if hi > 15 || lo > 15 {
			return "", false
		}
		b = append(b, hi<<4|lo)
		i += 2
	}
	return string(b), utf8.Valid(b)
}

func unhex(c byte) byte {
	switch {
	case c >= '0' && c <= '9':
		return c - '0'
	case c >= 'a' && c <= 'f':
		return c - 'a' + 10
	case c >= 'A' && c <= 'F':
		return c - 'A' + 10
	}
	return 255
}
