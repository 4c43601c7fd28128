package vault

import (
	"encoding/json"
	"strconv"
	"strings"
	"time"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/notice"
)

// maxVersions bounds the versions of one request. The engine keeps ten of a
// secret where nobody says otherwise.
const maxVersions = 256

// A kind is what one type of notification means.
type kind struct {
	endpoint string // the first part of the path below the mount
	typ      events.Type
	unique   bool
	version  string // the member of the metadata that names the version
	versions string // or the versions
}

// kinds are the types of notifications of the key-value engines that mean
// something. All else is a setting, a lease or a failure.
// https://developer.hashicorp.com/vault/docs/concepts/events#events
var kinds = map[string]kind{
	"kv-v2/data-write":      {endpoint: "data/", typ: events.VersionActivated, unique: true, version: "current_version"},
	"kv-v2/data-patch":      {endpoint: "data/", typ: events.VersionActivated, unique: true, version: "current_version"},
	"kv-v2/data-delete":     {endpoint: "data/", typ: events.VersionDisabled, version: "current_version"},
	"kv-v2/delete":          {endpoint: "delete/", typ: events.VersionDisabled, versions: "deleted_versions"},
	"kv-v2/undelete":        {endpoint: "undelete/", typ: events.VersionEnabled, versions: "undeleted_versions"},
	"kv-v2/destroy":         {endpoint: "destroy/", typ: events.VersionDestroyed, unique: true, versions: "destroyed_versions"},
	"kv-v2/metadata-write":  {endpoint: "metadata/", typ: events.SecretChanged},
	"kv-v2/metadata-patch":  {endpoint: "metadata/", typ: events.SecretChanged},
	"kv-v2/metadata-delete": {endpoint: "metadata/", typ: events.SecretDeleted},
	"kv-v1/write":           {typ: events.VersionActivated},
	"kv-v1/delete":          {typ: events.SecretDeleted},
}

// rotate is the one notification of a static role's new password. A rotation
// by schedule has a twin, static-creds-create, a moment before.
const rotate = "database/rotate"

// notification decodes an event notification. Its own type is always "*", and
// all of its metadata are strings.
func (d Decoder) notification(o, data notice.Object, received time.Time) ([]events.Event, error) {
	what := data.Text("event_type")
	k, known := kinds[what]
	if !known && what != rotate {
		return nil, nil
	}
	event := data.Object("event")
	meta := event.Object("metadata")
	if meta.Text("modified") != "true" {
		return nil, nil
	}
	c := change{cause: causeEvent, ns: namespace(data.Text("namespace")), mount: strings.Trim(exact(data.Object("plugin_info"), "mount_path"), "/")}
	path := exact(meta, "path")
	rest, inside := below(path, c.mount)
	if what == rotate {
		role := meta.Text("name")
		// The path of a rotation by schedule is that of the mount.
		if c.mount == "" || !inside && path != c.mount || !roleForm.MatchString(role) {
			return nil, fault.Newf(fault.Invalid, opDecode, "plugin_info.mount_path, metadata.path and metadata.name do not name a static role; expected a path at or below the mount, and the name of the role")
		}
		c.name, c.typ, c.rotated = staticCreds+role, events.VersionActivated, true
	} else {
		name, at := strings.CutPrefix(rest, k.endpoint)
		if !inside || !at || name == "" {
			return nil, fault.Newf(fault.Invalid, opDecode, "metadata.path is not that of a secret below plugin_info.mount_path; expected MOUNT/%sPATH", k.endpoint)
		}
		c.name, c.typ, c.unique = name, k.typ, k.unique
		if k.version != "" {
			c.versions = number(meta.Number(k.version))
		}
		if k.versions != "" {
			c.versions = numbers(meta.Text(k.versions))
		}
	}
	at, timed := notice.Time(o.Text("time"))
	id := event.Text("id")
	if notice.Token(id) == "" {
		id = o.Text("id")
	}
	c.occurrence = occurrence("event", id, at, timed, o)
	if c.at = at; !timed {
		c.at = received.UTC()
	}
	c.provider = events.Provider{EventID: notice.Token(id), Type: what, Time: c.at}
	return d.events(c)
}

// numbers reads a list of versions, which is a text of JSON. One that cannot
// be read gives none: the event then says so.
func numbers(s string) []string {
	var list []int64
	if json.Unmarshal([]byte(s), &list) != nil || len(list) > maxVersions {
		return nil
	}
	var out []string
	seen := map[int64]bool{}
	for _, n := range list {
		if n < 1 {
			return nil
		}
		if !seen[n] {
			seen[n] = true
			out = append(out, strconv.FormatInt(n, 10))
		}
	}
	return out
}
