// Package vault decodes what HashiCorp Vault and OpenBao say about secrets:
// entries of their audit logs, and the event notifications of Vault
// Enterprise. The two tell of one change in different words, so what an event
// is, and its id, is made from what happened wherever both name it: the secret
// and its version. A write of the key-value engine, version 2, has the id of
// the rotator's own announcement of that version, by either way.
//
// # What neither says
//
// The scheduled rotation of a static role is in no audit log, and the expiry
// of a lease is nowhere. The versions that a request deletes are hashed in
// Vault's audit log, so those events come without a version. Audit entries do
// not tell version 1 of the key-value engine from version 2: a secret of
// version 1 whose path begins with data/, metadata/, delete/, undelete/ or
// destroy/ is told by what the request holds, and its deletion is taken for
// one of version 2.
//
// Everything here is pure. Facts about the formats are from
// https://developer.hashicorp.com/vault/docs/audit,
// https://developer.hashicorp.com/vault/docs/concepts/events, and captured
// entries of Vault 1.21 and OpenBao.
package vault

import (
	"bytes"
	"encoding/json"
	"errors"
	"time"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/notice"
)

const (
	opDecode = "vault: decode"
	expected = "an entry of an audit log, an event notification, or lines of either"
)

// The causes of events.
const (
	causeAudit = "vault-audit"
	causeEvent = "vault-event"
)

// A Decoder turns notices into events. It may be used concurrently.
type Decoder struct {
	// Cluster is the first part of every ref, as in vault://main//secret/db:
	// what the cluster is called where the refs are configured. Notices do not
	// name their cluster.
	Cluster string
}

// Decode turns one notice into events: an audit entry, an event notification,
// or several of them, one a line. They are told apart by what they hold.
// received stands in for the time of one that has none. What changed nothing,
// failed, or concerns no secret that anybody reads by a ref gives no events
// and no error: reads, requests that were not answered yet, leases, the
// siblings in which rotations keep their pending versions.
//
// The error is of kind Invalid and quotes nothing of the notice. Beside it are
// the events of the lines that could be read.
func (d Decoder) Decode(body []byte, received time.Time) ([]events.Event, error) {
	if bytes.IndexByte(body, '\n') < 0 {
		return d.one(body, received)
	}
	if json.Valid(body) { // one that is written over several lines
		return d.one(body, received)
	}
	var out []events.Event
	var first error
	n, bad, firstBad := 0, 0, 0
	for line := range bytes.Lines(body) {
		line = bytes.TrimSpace(line)
		n++
		if len(line) == 0 {
			continue
		}
		es, err := d.one(line, received)
		out = append(out, es...)
		if err != nil {
			if bad++; bad == 1 {
				first, firstBad = err, n
			}
		}
	}
	switch {
	case len(bytes.TrimSpace(body)) == 0:
		return nil, fault.Newf(fault.Invalid, opDecode, "the body is empty; expected %s", expected)
	case bad == 0:
		return out, nil
	}
	// Every error made here is of this type, with a message and no cause.
	var e *fault.Error
	errors.As(first, &e)
	return out, fault.Newf(fault.Invalid, opDecode, "%d of %d lines cannot be read; line %d: %s", bad, n, firstBad, e.Msg)
}

// one decodes one object.
func (d Decoder) one(body []byte, received time.Time) ([]events.Event, error) {
	body = bytes.TrimSpace(body)
	if irrelevant(body) {
		return nil, nil
	}
	o, err := notice.Parse(body, opDecode, expected)
	if err != nil {
		return nil, err
	}
	data := o.Object("data")
	switch {
	case data.Has("event_type"):
		return d.notification(o, data, received)
	case o.Text("type") == "response":
		return d.audit(o, received)
	case o.Text("type") == "request" && o.Object("request") != nil:
		return nil, nil // not answered yet: its response is an entry of its own
	}
	return nil, fault.Newf(fault.Invalid, opDecode, "neither data.event_type nor a type of request or response is there; expected %s", expected)
}

// irrelevant reports whether an audit entry, as servers write it, is of no
// interest: a request, or the answer to a read. Nearly all are, and finding that
// out costs a look at the bytes and no parse. It errs on the safe side only:
// what has a word in it that another entry would have is read in full.
func irrelevant(b []byte) bool {
	if len(b) < 2 || b[0] != '{' || b[len(b)-1] != '}' || bytes.IndexByte(b, '\n') >= 0 {
		return false
	}
	// A word may be spelt with escapes, and a notification has other words.
	if bytes.Contains(b, escape) || bytes.Contains(b, wordEvent) {
		return false
	}
	if bytes.Contains(b, typeRequest) && !bytes.Contains(b, wordResponse) {
		return true
	}
	if !bytes.Contains(b, opRead) && !bytes.Contains(b, opList) {
		return false
	}
	for _, w := range writes {
		if bytes.Contains(b, w) {
			return false
		}
	}
	return true
}

var (
	escape      = []byte(`\u00`)
	wordEvent   = []byte(`"event_type"`)
	typeRequest = []byte(`"type":"request"`)
	// wordResponse is a value: as a key it is followed by a colon and so found
	// as well, which costs a parse.
	wordResponse = []byte(`"response"`)
	opRead       = []byte(`"operation":"read"`)
	opList       = []byte(`"operation":"list"`)
	writes       = [][]byte{[]byte(`"create"`), []byte(`"update"`), []byte(`"patch"`), []byte(`"delete"`)}
)
