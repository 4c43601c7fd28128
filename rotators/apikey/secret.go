package apikey

import (
	"bytes"
	"encoding/json"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/rotators"
	"github.com/keyturn/keyturn/secrets"
)

// A secret is a value of the secret that is rotated.
type secret struct {
	key, id, admin string
	members        map[string]json.RawMessage
}

// parse reads a value. Its errors say nothing of what the value holds: a
// parser's would quote it.
func parse(op, what string, v secrets.Value) (*secret, error) {
	op = "apikey: " + op
	s := &secret{}
	if json.Unmarshal(v.Reveal(), &s.members) != nil || s.members == nil {
		return nil, fault.Newf(fault.Invalid, op, "%s is not a JSON object; expected members key and id", what)
	}
	for name, p := range map[string]*string{"key": &s.key, "id": &s.id, "adminarn": &s.admin} {
		raw, ok := s.members[name]
		if ok && json.Unmarshal(raw, p) != nil {
			return nil, fault.Newf(fault.Invalid, op, "%s: the member %s is not a string", what, name)
		}
		if *p == "" && name != "adminarn" {
			return nil, fault.Newf(fault.Invalid, op, "%s has no member %s; put in what the issuer shows as the key and its id", what, name)
		}
	}
	return s, nil
}

// with returns the value with another key in it, every other member as it is.
func (s *secret) with(key, id string) (secrets.Value, error) {
	m := make(map[string]json.RawMessage, len(s.members))
	for k, raw := range s.members {
		m[k] = raw
	}
	for name, text := range map[string]string{"key": key, "id": id} {
		quoted, err := escapeJSON(text)
		if err != nil {
			return secrets.Value{}, fault.Newf(fault.Invalid, "apikey: create", "the new %s cannot be written as JSON", name)
		}
		m[name] = json.RawMessage(quoted)
	}
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if e.Encode(m) != nil {
		return secrets.Value{}, fault.Newf(fault.Invalid, "apikey: create", "the secret cannot be written as JSON")
	}
	defer clear(b.Bytes())
	return secrets.NewValue(bytes.TrimSpace(b.Bytes())), nil
}

// is reports whether both name one key.
func (s *secret) is(o *secret) bool { return s.id == o.id || s.key == o.key }

// pair reads current and pending and refuses, before anything is called, a
// pending value that is not a new key of the same issuer.
func pair(op string, c rotators.Change) (cur, pend *secret, err error) {
	if cur, err = parse(op, "current", c.Current); err != nil {
		return nil, nil, err
	}
	if pend, err = parse(op, "pending", c.Pending); err != nil {
		return nil, nil, err
	}
	if pend.admin != cur.admin {
		return nil, nil, fault.Newf(fault.Invalid, "apikey: "+op, "pending names another adminarn than current; discard pending and rotate again")
	}
	if pend.is(cur) {
		return nil, nil, fault.Newf(fault.Invalid, "apikey: "+op, "pending has the key or the id of current; discard pending and rotate again")
	}
	return cur, pend, nil
}

func decode(v secrets.Value) (doc any, ok bool) {
	return doc, json.Unmarshal(v.Reveal(), &doc) == nil
}
