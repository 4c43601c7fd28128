package vaultkv

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/secrets"
	"github.com/keyturn/keyturn/secrets/sibling"
)

// A driver implements [sibling.Driver]. The ids of versions are Vault's
// numbers, and a rev is the number of the newest version, which is what
// check-and-set compares.
type driver struct {
	*conn
	cluster, field string
}

var _ sibling.Driver = (*driver)(nil)

// Main implements [sibling.Driver]. A current version that was deleted or
// destroyed is told with Disabled: a plain read finds nothing, and [driver.Read]
// says what to do.
func (d *driver) Main(ctx context.Context, r ref.Ref) (*sibling.Main, error) {
	const op = "vaultkv: describe"
	p, err := d.place(op, r)
	if err != nil {
		return nil, err
	}
	m, err := d.metadata(ctx, op, p)
	if err != nil {
		return nil, err
	}
	if m == nil {
		return nil, fault.Newf(fault.NotFound, op, "there is no secret %s; create it, or correct the ref", r)
	}
	id := p.mount + "/" + p.path
	if p.ns != "" {
		id = p.ns + "/" + id
	}
	out := &sibling.Main{ID: id, Rev: strconv.Itoa(m.CurrentVersion), Noted: m.knows}
	if out.Current, err = d.tell(ctx, op, p, m, m.CurrentVersion); err != nil || out.Current == nil {
		return out, err
	}
	out.Previous, err = d.tell(ctx, op, p, m, m.previous())
	return out, err
}

// Read implements [sibling.Driver].
func (d *driver) Read(ctx context.Context, r ref.Ref, id string) (secrets.Value, error) {
	const op = "vaultkv: get"
	p, err := d.place(op, r)
	if err != nil {
		return secrets.Value{}, err
	}
	n, err := number(op, r, id)
	if err != nil {
		return secrets.Value{}, err
	}
	v, err := d.version(ctx, op, p, n)
	if err != nil {
		return secrets.Value{}, err
	}
	switch {
	case v == nil:
		return secrets.Value{}, fault.Newf(fault.NotFound, op, "there is no version %s of %s", id, r)
	case v.Metadata.Destroyed:
		return secrets.Value{}, fault.Newf(fault.NotFound, op, "version %s of %s was destroyed; if it is the newest, write a new one", id, r)
	case v.gone():
		return secrets.Value{}, fault.Newf(fault.NotFound, op, "version %s of %s was deleted at %s; to restore it run vault kv undelete -mount=%s -versions=%s %s",
			id, r, v.Metadata.Deletion.Format(time.RFC3339), p.mount, id, p.path)
	}
	defer clear(v.Data)
	return decode(op, v.Data, d.field)
}

// Append implements [sibling.Driver].
func (d *driver) Append(ctx context.Context, r ref.Ref, m *sibling.Main, pending sibling.Pending) (string, error) {
	const op = "vaultkv: promote"
	p, err := d.place(op, r)
	if err != nil {
		return "", err
	}
	cas, err := strconv.Atoi(m.Rev)
	if err != nil {
		return "", fault.Newf(fault.Invalid, op, "%q is no state of a secret of Vault; expected the number of its newest version", m.Rev)
	}
	data, err := encode(op, pending.Value, d.field)
	if err != nil {
		return "", err
	}
	v, err := d.write(ctx, op, p, cas, data)
	if err != nil {
		return "", err
	}
	return strconv.Itoa(v.Version), nil
}

// Create implements [sibling.Driver]. A secret whose versions are all deleted
// exists.
func (d *driver) Create(ctx context.Context, r ref.Ref, v secrets.Value) (*sibling.Version, error) {
	const op = "vaultkv: create secret"
	p, err := d.place(op, r)
	if err != nil {
		return nil, err
	}
	data, err := encode(op, v, d.field)
	if err != nil {
		return nil, err
	}
	// An engine of version 1 would take the request for a secret named data/...
	// and keep the value there.
	if _, err := d.config(ctx, op, p); err != nil {
		return nil, err
	}
	made, err := d.write(ctx, op, p, 0, data)
	if err != nil {
		return nil, err
	}
	return &sibling.Version{ID: strconv.Itoa(made.Version), Created: made.Created.Time}, nil
}

// SetDisabled implements [sibling.Driver]: a disabled version is one that is
// deleted, which Vault can undo. That one is held is noted in custom metadata
// before it is restored. Of a secret with delete_version_after, enabling begins
// that time anew.
func (d *driver) SetDisabled(ctx context.Context, r ref.Ref, id string, disabled bool) error {
	op, endpoint := "vaultkv: enable", "undelete"
	if disabled {
		op, endpoint = "vaultkv: disable", "delete"
	}
	p, n, m, err := d.old(ctx, op, r, id)
	if err != nil {
		return err
	}
	v, ok := m.Versions[id]
	if !ok || v.Destroyed {
		return fault.Newf(fault.NotFound, op, "there is no version %s of %s, or it was destroyed", id, r)
	}
	gone := false
	if !v.Deletion.IsZero() {
		// No clock is asked: what cannot be read is disabled.
		if gone, err = d.unreadable(ctx, op, p, n); err != nil {
			return err
		}
	}
	if gone == disabled {
		return nil
	}
	if disabled && n == m.CurrentVersion {
		return fault.Newf(fault.Conflict, op, "version %s of %s is the newest, which everybody reads", id, r)
	}
	if !disabled && !m.held(n) {
		if err := d.patch(ctx, op, p.ns, p.api("metadata"), map[string]any{"custom_metadata": map[string]string{heldKey(n): "yes"}}); err != nil {
			return err
		}
	}
	_, err = d.put(ctx, op, p.ns, p.api(endpoint), map[string]any{"versions": []int{n}})
	return err
}

// Destroy implements [sibling.Driver]. Vault compares nothing here: a version
// that is restored between the look and the request is destroyed.
func (d *driver) Destroy(ctx context.Context, r ref.Ref, id string) error {
	const op = "vaultkv: destroy"
	p, n, m, err := d.old(ctx, op, r, id)
	if err != nil {
		return err
	}
	if v, ok := m.Versions[id]; !ok || v.Destroyed {
		return nil
	}
	if n == m.CurrentVersion {
		return fault.Newf(fault.Conflict, op, "version %s of %s is the newest, which everybody reads", id, r)
	}
	gone, err := d.deleted(ctx, op, p, m, n)
	if err != nil {
		return err
	}
	if !gone {
		return fault.Newf(fault.Conflict, op, "version %s of %s is not deleted; disable it first", id, r)
	}
	_, err = d.put(ctx, op, p.ns, p.api("destroy"), map[string]any{"versions": []int{n}})
	return err
}

// old finds a version that is to be taken out of use. Vault answers such a
// request with success whatever is there, so its metadata is asked first; the
// newest version can only become an older one meanwhile.
func (d *driver) old(ctx context.Context, op string, r ref.Ref, id string) (p place, n int, m *metadata, err error) {
	if p, err = d.place(op, r); err != nil {
		return p, 0, nil, err
	}
	if n, err = number(op, r, id); err != nil {
		return p, 0, nil, err
	}
	if m, err = d.metadata(ctx, op, p); err == nil && m == nil {
		err = fault.Newf(fault.NotFound, op, "there is no secret %s", r)
	}
	return p, n, m, err
}

// number reads the id of a version. One that is no number is not there.
func number(op string, r ref.Ref, id string) (int, error) {
	n, err := strconv.Atoi(id)
	if err != nil || n < 1 || strconv.Itoa(n) != id {
		return 0, fault.Newf(fault.NotFound, op, "there is no version %q of %s; versions are numbers from 1", id, r)
	}
	return n, nil
}

// A dataVersion is one version as the data endpoint tells it.
type dataVersion struct {
	Data     json.RawMessage `json:"data"`
	Metadata versionInfo     `json:"metadata"`
}

// gone reports that the version has no data that could be read.
func (v *dataVersion) gone() bool { return len(v.Data) == 0 || string(v.Data) == "null" }

// version reads a version, the newest one if n is 0, and nil if there is
// none. One without data is told with what is known of it.
func (d *driver) version(ctx context.Context, op string, p place, n int) (*dataVersion, error) {
	var query url.Values
	if n > 0 {
		query = url.Values{"version": {strconv.Itoa(n)}}
	}
	got, err := d.get(ctx, op, p.ns, p.api("data"), query)
	if err != nil {
		return nil, err
	}
	v := &dataVersion{}
	if err := got.data(op, v); err != nil || v.Metadata.Version == 0 {
		if got.status == http.StatusNotFound {
			return nil, nil //nolint:nilerr,nilnil // an empty answer
		}
		return nil, fault.Newf(fault.Invalid, op, "%s answers without a version; expected a key-value engine of version 2: run vault kv enable-versioning %s", p.mount, p.mount)
	}
	return v, nil
}

// write writes a version, if the newest one still is number cas.
func (d *driver) write(ctx context.Context, op string, p place, cas int, data fields) (*versionInfo, error) {
	defer wipe(data)
	got, err := d.put(ctx, op, p.ns, p.api("data"), map[string]any{"options": map[string]int{"cas": cas}, "data": data})
	if err != nil {
		return nil, err
	}
	v := &versionInfo{}
	if err := got.data(op, v); err != nil || v.Version == 0 {
		return nil, fault.Newf(fault.Invalid, op, "%s answers without a version; expected a key-value engine of version 2: run vault kv enable-versioning %s", p.mount, p.mount)
	}
	return v, nil
}

func wipe(data fields) {
	for _, b := range data {
		clear(b)
	}
}
