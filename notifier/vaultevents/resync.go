package vaultevents

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"iter"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/notifier"
)

const (
	opResync = "vaultevents: look at the metadata"
	// resyncWorkers is how many secrets are looked at at a time.
	resyncWorkers = 4
	// pageSize is how many keys of a folder are asked for at a time. OpenBao
	// obeys; Vault tells all of them.
	// https://openbao.org/api-docs/secret/kv/kv-v2/#list-secrets
	pageSize = 1000
	// maxDepth bounds folders in folders.
	maxDepth = 64
)

// resyncLoop looks at all metadata when it is asked for, and from time to time.
func (r *run) resyncLoop(ctx context.Context) {
	b := backoff{o: &r.o}
	var last time.Time   // when all was seen
	var missing []string // mounts that were not there then
	wait := around(r.o.ResyncEvery)
	for {
		asked := false
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-r.resyncs:
			asked = true
		case <-t.C:
		}
		t.Stop()
		wait = around(r.o.ResyncEvery)
		heard := int(r.listening.Load()) == len(r.o.Types)
		mounts := r.o.Mounts
		if !asked && heard && !last.IsZero() && time.Since(last) < r.o.FullResyncEvery {
			if len(missing) == 0 {
				continue
			}
			mounts = missing // one that is wrong is no reason to look at the others
		}
		gone, err := r.look(ctx, mounts)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			last = time.Time{}
			wait = b.next()
			r.o.Logger.WarnContext(ctx, "looking at the metadata failed", "source", r.o.Name, "err", err, "again_in", wait.String())
			continue
		}
		if len(mounts) == len(r.o.Mounts) {
			last = time.Now()
		}
		missing = gone
		b.reset()
	}
}

// look looks at the metadata of all secrets of mounts, and hands on what is
// new. It returns the mounts that are not there, or denied.
func (r *run) look(ctx context.Context, mounts []string) (missing []string, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	r.known.begin()
	secrets := make(chan secret)
	var workers sync.WaitGroup
	for range resyncWorkers {
		workers.Go(func() {
			for s := range secrets {
				if err := r.check(ctx, s); err != nil {
					cancel(err)
				}
			}
		})
	}
	w := walker{run: r, out: secrets}
	for _, m := range mounts {
		err := w.walk(ctx, m)
		if fault.Is(err, fault.NotFound) || denied(err) {
			if missing = append(missing, m); len(missing) == len(r.o.Mounts) {
				cancel(err) // no mount, but Vault or the token
			}
			r.o.Logger.WarnContext(ctx, "the metadata of a mount cannot be looked at", "source", r.o.Name, "mount", m, "err", err)
		} else if err != nil {
			cancel(err)
			break
		}
	}
	close(secrets)
	workers.Wait()
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	if w.denied > 0 || w.cut {
		r.o.Logger.WarnContext(ctx, "not all metadata was looked at", "source", r.o.Name, "folders_denied", w.denied, "limit_reached", w.cut, "limit", r.o.MaxSecrets)
	}
	if len(missing) == 0 && len(mounts) == len(r.o.Mounts) {
		r.known.end()
	}
	return missing, nil
}

// A secret is one whose metadata is to be looked at.
type secret struct{ mount, path string }

// A walker finds the secrets of a mount.
type walker struct {
	*run
	out    chan<- secret
	seen   int
	denied int
	cut    bool // there are more than MaxSecrets
}

// walk finds the secrets of a mount, folder by folder.
func (w *walker) walk(ctx context.Context, mount string) error {
	folders := []string{""}
	for len(folders) > 0 {
		folder := folders[len(folders)-1]
		folders = folders[:len(folders)-1]
		for key, err := range w.keys(ctx, mount, folder) {
			if err != nil {
				if folder != "" && denied(err) {
					w.denied++
					break
				}
				return err
			}
			if key == "" || key[0] == '/' || events.IsSibling(key) {
				continue
			}
			if w.seen++; w.seen > w.o.MaxSecrets {
				w.cut = true
				return nil
			}
			path := folder + key
			if strings.HasSuffix(key, "/") {
				if strings.Count(path, "/") <= maxDepth {
					folders = append(folders, path)
				}
				continue
			}
			select {
			case w.out <- secret{mount, path}:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
	}
	return nil
}

// keys yields the keys of a folder, page by page, or an error at last.
func (w *walker) keys(ctx context.Context, mount, folder string) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		after := ""
		for {
			query := url.Values{"list": {"true"}, "limit": {strconv.Itoa(pageSize)}}
			if after != "" {
				query.Set("after", after)
			}
			raw, err := w.client.get(ctx, opResync, escape(mount)+"/metadata/"+escape(folder), query)
			if err != nil {
				yield("", err)
				return
			}
			var list struct {
				Keys []string `json:"keys"`
			}
			if raw != nil && json.Unmarshal(raw, &list) != nil {
				yield("", fault.Newf(fault.Unavailable, opResync, "a list has no keys; look at whether the mount is a key-value engine of version 2"))
				return
			}
			// Who knows no pages tells the same again.
			if len(list.Keys) == 0 || after != "" && list.Keys[0] <= after {
				return
			}
			for _, key := range list.Keys {
				if !yield(key, nil) {
					return
				}
			}
			if len(list.Keys) != pageSize {
				return
			}
			after = list.Keys[len(list.Keys)-1]
		}
	}
}

// metadata is what is of interest of a secret's.
type metadata struct {
	CurrentVersion int `json:"current_version"`
	OldestVersion  int `json:"oldest_version"`
	Versions       map[string]struct {
		Created   string `json:"created_time"`
		Deletion  string `json:"deletion_time"`
		Destroyed bool   `json:"destroyed"`
	} `json:"versions"`
}

// check looks at one secret, and hands on its current version if that was not
// done yet. A version that was deleted is nobody's current one.
func (r *run) check(ctx context.Context, s secret) error {
	if ctx.Err() != nil {
		return nil //nolint:nilerr // the reason is known
	}
	raw, err := r.client.get(ctx, opResync, escape(s.mount)+"/metadata/"+escape(s.path), nil)
	if err != nil {
		if denied(err) || fault.Is(err, fault.NotFound) {
			r.o.Logger.DebugContext(ctx, "the metadata of a secret cannot be read", "source", r.o.Name, "err", err)
			return nil
		}
		return err
	}
	var m metadata
	if raw == nil || json.Unmarshal(raw, &m) != nil || m.CurrentVersion < 1 {
		return nil //nolint:nilerr // deleted meanwhile, never written, or not of this engine
	}
	v, ok := m.Versions[strconv.Itoa(m.CurrentVersion)]
	if !ok || v.Destroyed || past(v.Deletion) {
		return nil
	}
	if r.known.has(s, m.CurrentVersion, v.Created) {
		return nil
	}
	d, err := r.found(s, &m, v.Created)
	if err == nil {
		err = r.deliver(d)
	}
	if err != nil {
		return err
	}
	r.known.add(s, m.CurrentVersion, v.Created)
	return nil
}

// past reports whether a time was given and has come.
func past(stamp string) bool {
	t, err := time.Parse(time.RFC3339Nano, stamp)
	return err == nil && t.Before(time.Now())
}

// found is the notification of the write of a current version, as Vault would
// have sent it.
func (r *run) found(s secret, m *metadata, created string) (notifier.Delivery, error) {
	version := strconv.Itoa(m.CurrentVersion)
	sum := sha256.Sum256([]byte(strings.Join([]string{r.o.Namespace, s.mount, s.path, version, created}, "\x00")))
	id := "resync-" + hex.EncodeToString(sum[:16])
	path := s.mount + "/data/" + s.path
	data := map[string]any{
		"event": map[string]any{"id": id, "metadata": map[string]string{
			"current_version": version, "oldest_version": strconv.Itoa(m.OldestVersion), "modified": "true",
			"operation": "data-write", "path": path, "data_path": path,
		}},
		"event_type":  "kv-v2/data-write",
		"plugin_info": map[string]string{"mount_class": "secret", "mount_path": s.mount + "/", "plugin": "kv", "version": "2"},
	}
	if r.o.Namespace != "" {
		data["namespace"] = r.o.Namespace + "/"
	}
	body, err := json.Marshal(map[string]any{
		"id": id, "source": "keyturn://resync", "specversion": "1.0", "type": "*", "time": created,
		"datacontentype": "application/cloudevents", "data": data,
	})
	if err != nil {
		return notifier.Delivery{}, fault.Newf(fault.Invalid, opResync, "a notification cannot be written")
	}
	return notifier.Delivery{Source: r.o.Name, ID: id, Body: body, Received: time.Now()}, nil
}
