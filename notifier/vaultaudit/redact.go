package vaultaudit

import (
	"bytes"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/keyturn/keyturn/fault"
)

// maxLeaf bounds a string that is kept of an entry, in bytes. Vault's longest
// path is far below it.
const maxLeaf = 16 << 10

// What is kept of an entry: what tells which secret changed, when and how, and
// nothing of who did it or with what. "" is the entry itself.
var kept = map[string][]string{
	"":          {"type", "time", "forwarded"},
	"request":   {"id", "operation", "path", "mount_point", "mount_type", "mount_class", "mount_accessor", "mount_running_version"},
	"namespace": {"id", "path"},
	"response":  {"mount_point", "mount_type", "mount_class", "mount_accessor", "mount_running_version", "mount_running_plugin_version"},
}

// shapes are the members of request.data that tell one call of the key-value
// engine from another. That they are there is kept, not what they say.
// https://developer.hashicorp.com/vault/api-docs/secret/kv/kv-v2
var shapes = []string{"data", "options", "versions", "max_versions", "cas_required", "delete_version_after", "custom_metadata"}

type object = map[string]json.RawMessage

// Redact returns of line, an audit entry, a new JSON object on one line with
// what a decoder may need: type and time, the request's id, operation, path,
// mount and namespace, and of the data only the number response.data.version,
// the numbers request.data.versions of a call that deletes, undeletes or
// destroys versions, and which members of the engine's own request.data has.
// Everything else is left out, not masked: OpenBao writes numbers and times of
// payloads in clear (trap 39), and log_raw writes everything so. An error is
// kept as a fact without its text. What Redact returns is redacted to itself.
// An error is of kind Invalid and quotes nothing.
func Redact(line []byte) ([]byte, error) {
	var in object
	if err := json.Unmarshal(line, &in); err != nil || in == nil {
		return nil, fault.Newf(fault.Invalid, "vaultaudit: redact", "the line of %d bytes is not a JSON object; expected an audit entry in format json", len(line))
	}
	out := pick(in, "")
	if e := bytes.TrimSpace(in["error"]); len(e) > 0 && string(e) != `""` && string(e) != "null" {
		out["error"] = json.RawMessage(`"redacted"`)
	}
	if req, ok := members(in["request"]); ok {
		r := pick(req, "request")
		if ns, ok := members(req["namespace"]); ok {
			r["namespace"] = pack(pick(ns, "namespace"))
		}
		if data, ok := members(req["data"]); ok {
			r["data"] = pack(shape(data, byVersions(r)))
		}
		out["request"] = pack(r)
	}
	if resp, ok := members(in["response"]); ok {
		r := pick(resp, "response")
		if data, ok := members(resp["data"]); ok {
			if v := bytes.TrimSpace(data["version"]); small.Match(v) {
				r["data"] = pack(object{"version": v})
			}
		}
		out["response"] = pack(r)
	}
	return pack(out), nil
}

// pick returns the scalars of in that are kept of it.
func pick(in object, what string) object {
	out := object{}
	for _, k := range kept[what] {
		v := bytes.TrimSpace(in[k])
		if len(v) > 0 && len(v) <= maxLeaf && v[0] != '{' && v[0] != '[' {
			out[k] = v
		}
	}
	return out
}

// shape returns which members data has. One that the key-value engine does not
// know is part of a secret, and even its name is not kept.
func shape(data object, versions bool) object {
	out := object{}
	for k, v := range data {
		switch {
		case len(v) == 0 || string(v) == "null":
			continue
		case !slices.Contains(shapes, k):
			k = "redacted"
		case k == "versions" && versions:
			if list, ok := numbers(v); ok {
				out[k] = list
				continue
			}
		}
		out[k] = json.RawMessage("true")
	}
	return out
}

// members reads an object. Of another type it is none.
func members(raw json.RawMessage) (object, bool) {
	var o object
	return o, json.Unmarshal(raw, &o) == nil && o != nil
}

// pack writes o, with its keys in order.
func pack(o object) json.RawMessage {
	b, err := json.Marshal(o)
	if err != nil {
		return json.RawMessage("{}") // its values were read from JSON
	}
	return b
}

// small is a version: no payload is worth hiding that is so short, and none
// that is longer is a version.
var small = regexp.MustCompile(`^[1-9][0-9]{0,8}$`)

// numbers returns a list of versions as it is. On Vault they are HMACs, which
// tell nothing (trap 38).
func numbers(raw json.RawMessage) (json.RawMessage, bool) {
	var list []json.RawMessage
	if json.Unmarshal(raw, &list) != nil || len(list) == 0 || len(list) > 1000 {
		return nil, false
	}
	for _, n := range list {
		if !small.Match(n) {
			return nil, false
		}
	}
	b, err := json.Marshal(list)
	return b, err == nil
}

// byVersions reports whether r, a request that was picked, is one of KV v2 that
// names versions. Anywhere else the key could be a part of a secret.
func byVersions(r object) bool {
	var path, mount string
	if json.Unmarshal(r["path"], &path) != nil || json.Unmarshal(r["mount_point"], &mount) != nil || mount == "" {
		return false
	}
	rel, ok := strings.CutPrefix(path, mount)
	if !ok {
		return false
	}
	for _, infix := range []string{"delete/", "undelete/", "destroy/"} {
		if strings.HasPrefix(rel, infix) {
			return true
		}
	}
	return false
}

// stub stands for a line that is no audit entry. It is text, so that every
// decoder refuses it and the notifier parks it, and tells the shape of the line
// but nothing that is in it, since that may be anything.
func stub(line []byte) []byte {
	begins := "a byte that is not ASCII"
	switch c := line[0]; {
	case c == '{':
		begins = "a brace"
	case c == '<':
		begins = "an angle bracket, as format jsonx"
	case c < ' ' || c == 0x7f:
		begins = "a control character"
	case c >= '0' && c <= '9':
		begins = "a digit"
	case c < 0x7f:
		begins = "a letter or sign"
	}
	return fmt.Appendf(nil, "an audit entry that is not a JSON object: about %d bytes, begins with %s", roundUp(len(line)), begins)
}

// roundUp hides exact lengths, and makes stubs of like lines alike.
func roundUp(n int) int {
	p := 64
	for p < n {
		p *= 2
	}
	return p
}
