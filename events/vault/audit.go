package vault

import (
	"encoding/json"
	"strings"
	"time"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/notice"
)

// audit decodes the answer to a request. A request that failed has an answer
// with error in it; one that succeeded without anything to say has no member
// response at all.
func (d Decoder) audit(o notice.Object, received time.Time) ([]events.Event, error) {
	if raw, failed := o["error"]; failed && string(raw) != `""` {
		return nil, nil
	}
	req := o.Object("request")
	op, path := req.Text("operation"), exact(req, "path")
	if op == "" || path == "" {
		return nil, fault.Newf(fault.Invalid, opDecode, "request.operation or request.path is missing; expected an audit entry with both")
	}
	switch op {
	case "create", "update", "patch", "delete":
	default:
		return nil, nil
	}
	kind, mount := req.Text("mount_type"), exact(req, "mount_point")
	switch kind {
	case "kv", "generic", "database":
	case "":
		if mount != "" || strings.HasPrefix(path, "sys/") || strings.HasPrefix(path, "auth/") {
			return nil, nil
		}
	default:
		return nil, nil
	}
	if mount == "" {
		// A mount may have slashes in it, so the path alone does not tell.
		return nil, fault.Newf(fault.Invalid, opDecode, "request.mount_point is missing; expected an audit entry that names the mount; a server that leaves it out is too old")
	}
	c := change{cause: causeAudit}
	var ok bool
	if c.ns, ok = auditNamespace(req.Object("namespace")); !ok {
		return nil, fault.Newf(fault.Invalid, opDecode, "request.namespace has an id and no path; expected both, or the root")
	}
	rest, ok := "", false
	// The mount is told from the root, and the path from the namespace.
	if own, inside := strings.CutPrefix(strings.Trim(mount, "/")+"/", c.ns+"/"); inside && c.ns != "" {
		if rest, ok = below(path, own); ok {
			c.mount = strings.Trim(own, "/")
		}
	}
	if !ok {
		c.mount = strings.Trim(mount, "/")
		if rest, ok = below(path, mount); !ok {
			return nil, fault.Newf(fault.Invalid, opDecode, "request.path is not below request.mount_point; expected a path in that mount")
		}
	}
	switch kind {
	case "database":
		ok, err := c.databaseAudit(op, rest)
		if !ok || err != nil {
			return nil, err
		}
	default:
		if !c.kvAudit(op, rest, req, o) {
			return nil, nil
		}
	}
	at, timed := notice.Time(o.Text("time"))
	id := req.Text("id")
	c.occurrence = occurrence("audit", id, at, timed, o)
	if c.at = at; !timed {
		c.at = received.UTC()
	}
	c.provider = events.Provider{EventID: notice.Token(id), Type: op, Time: c.at}
	return d.events(c)
}

// exact is a text with the blanks around it, which a path may have.
func exact(o notice.Object, key string) string {
	var s string
	if json.Unmarshal(o[key], &s) != nil {
		return ""
	}
	return s
}

// auditNamespace is where a request was made. Only the root has no path.
func auditNamespace(o notice.Object) (string, bool) {
	path := namespace(o.Text("path"))
	id := o.Text("id")
	return path, path != "" || id == "" || id == "root"
}

// databaseAudit says what a request to a database engine changed: whoever
// reads the credentials of a static role gets another password once it was
// rotated.
func (c *change) databaseAudit(op, rest string) (bool, error) {
	role, ok := strings.CutPrefix(rest, "rotate-role/")
	if !ok || op != "update" && op != "create" {
		return false, nil
	}
	if !roleForm.MatchString(role) {
		return false, fault.Newf(fault.Invalid, opDecode, "request.path names no static role; expected rotate-role/NAME below the mount")
	}
	c.name, c.typ, c.rotated = staticCreds+role, events.VersionActivated, true
	return true, nil
}

// kvAudit says what a request to a key-value engine changed. Nothing in an
// entry says which version of the engine it is: the first part of the path
// does, and where a secret of version 1 may be called so, what was sent.
func (c *change) kvAudit(op, rest string, req, o notice.Object) bool {
	endpoint, name, _ := strings.Cut(rest, "/")
	sent := req.Object("data")
	if name == "" && !(endpoint == "config" && has(sent, "max_versions", "cas_required", "delete_version_after")) {
		return c.kv1(op, rest, o)
	}
	c.name = name
	switch endpoint {
	case "config":
		return false
	case "data":
		switch {
		case op == "delete": // of the newest version
			c.typ = events.VersionDisabled
		case o.Has("response") || has(sent, "data") || op == "patch":
			// What the answer says beside the version is not looked at: OpenBao
			// leaves numbers as they are, which may be values.
			c.typ, c.unique = events.VersionActivated, true
			c.versions = number(o.Object("response").Object("data").Number("version"))
		default:
			return c.kv1(op, rest, o)
		}
	case "delete", "undelete", "destroy":
		if op != "update" || sent != nil && !has(sent, "versions") {
			return c.kv1(op, rest, o)
		}
		c.typ = map[string]events.Type{"delete": events.VersionDisabled, "undelete": events.VersionEnabled, "destroy": events.VersionDestroyed}[endpoint]
	case "metadata":
		switch {
		case op == "delete":
			c.typ = events.SecretDeleted
		case len(sent) > 0 && !has(sent, "max_versions", "cas_required", "delete_version_after", "custom_metadata"):
			return c.kv1(op, rest, o)
		default:
			c.typ = events.SecretChanged
		}
	default:
		return c.kv1(op, rest, o)
	}
	return true
}

// kv1 is a request to version 1 of the engine, which answers a change with
// nothing. An answer comes from version 2, which has no such path.
func (c *change) kv1(op, rest string, o notice.Object) bool {
	c.name = rest
	switch {
	case o.Has("response"):
		return false
	case op == "create" || op == "update":
		c.typ = events.VersionActivated
	case op == "delete":
		c.typ = events.SecretDeleted
	default:
		return false
	}
	return true
}

func has(o notice.Object, keys ...string) bool {
	for _, k := range keys {
		if _, found := o[k]; found {
			return true
		}
	}
	return false
}
