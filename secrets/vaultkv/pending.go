package vaultkv

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/secrets"
	"github.com/keyturn/keyturn/secrets/sibling"
)

// A sibling is marked in its custom metadata, so that a user's secret whose
// name happens to end alike is never taken for one.
const (
	markKey   = "keyturn"
	markValue = "pending"
)

// A record is the data of a version of the sibling. Text is stored as it is,
// for people; anything else as base64.
type record struct {
	Token string  `json:"token"`
	After string  `json:"after"`
	Text  *string `json:"value,omitempty"`
	Bytes []byte  `json:"value_base64,omitempty"`
}

// Pending implements [sibling.Driver]. The rev is the number of the newest
// version, or "" where no sibling is known to be.
//
// A pending version that was deleted, by delete_version_after or by hand, is
// a Conflict: it may be the only copy of a credential that is live already,
// so nobody may be told that there is none.
func (d *driver) Pending(ctx context.Context, r ref.Ref) (*sibling.Pending, string, error) {
	const op = "vaultkv: read pending"
	p, err := d.place(op, r)
	if err != nil {
		return nil, "", err
	}
	p = p.sibling()
	v, err := d.version(ctx, op, p, 0)
	if err != nil || v == nil {
		return nil, "", err
	}
	rev := strconv.Itoa(v.Metadata.Version)
	switch {
	case v.Metadata.Destroyed:
		return nil, rev, nil
	case v.gone():
		return nil, "", fault.Newf(fault.Conflict, op, "the pending version of %s was deleted at %s, though it may be in use; run vault kv undelete -mount=%s -versions=%s %s, or vault kv destroy with the same arguments if you know that it is not",
			r, v.Metadata.Deletion.Format(time.RFC3339), p.mount, rev, p.path)
	}
	defer clear(v.Data)
	var rec record
	// The decoder's error is dropped: it may quote the value.
	if err := json.Unmarshal(v.Data, &rec); err != nil || rec.Token == "" || (rec.Text == nil) == (rec.Bytes == nil) {
		return nil, "", fault.Newf(fault.Conflict, op, "%s in %s is no pending version of Keyturn's, and was left alone; take it away, or rename it", p.path, p.mount)
	}
	defer clear(rec.Bytes)
	value := secrets.NewValue(rec.Bytes)
	if rec.Text != nil {
		value = secrets.NewString(*rec.Text)
	}
	return &sibling.Pending{ID: rev, Token: rec.Token, After: rec.After, Created: v.Metadata.Created.Time, Value: value}, rev, nil
}

// PutPending implements [sibling.Driver]. The sibling gets no setting of the
// main secret: it holds one version at a time, for as long as a rotation
// lasts, and its mount's own are in force.
func (d *driver) PutPending(ctx context.Context, r ref.Ref, rev string, pending sibling.Pending) error {
	const op = "vaultkv: put pending"
	p, err := d.place(op, r)
	if err != nil {
		return err
	}
	if err := checkToken(op, pending.Token); err != nil {
		return err
	}
	// What cannot be promoted must not become pending.
	main, err := encode(op, pending.Value, d.field)
	if err != nil {
		return err
	}
	wipe(main)
	if err := d.keepsPrevious(ctx, op, r, p); err != nil {
		return err
	}
	cas := 0
	if rev != "" {
		if cas, err = strconv.Atoi(rev); err != nil {
			return fault.Newf(fault.Invalid, op, "%q is no state of a sibling in Vault; expected the number of its newest version", rev)
		}
	}
	p = p.sibling()
	if cas == 0 {
		// Writing the mark makes a secret without a version. A twin writes the
		// same.
		if _, err := d.put(ctx, op, p.ns, p.api("metadata"), map[string]any{
			"cas_required": true, "custom_metadata": map[string]string{markKey: markValue},
		}); err != nil {
			return err
		}
	}
	raw := pending.Value.Reveal()
	defer clear(raw)
	data := fields{"token": quote(pending.Token), "after": quote(pending.After)}
	if utf8.Valid(raw) {
		data["value"] = quote(string(raw))
	} else {
		data["value"+binarySuffix] = quote(base64.StdEncoding.EncodeToString(raw))
	}
	_, err = d.write(ctx, op, p, cas, data)
	return err
}

// Clear implements [sibling.Driver]: the version is destroyed, so that no
// value stays where nobody looks. Its number stays, and with it the rev.
func (d *driver) Clear(ctx context.Context, r ref.Ref, rev string) error {
	const op = "vaultkv: clear pending"
	p, err := d.place(op, r)
	if err != nil {
		return err
	}
	if rev == "" {
		return nil
	}
	n, err := number(op, r, rev)
	if err != nil {
		return err
	}
	p = p.sibling()
	_, err = d.put(ctx, op, p.ns, p.api("destroy"), map[string]any{"versions": []int{n}})
	return err
}
