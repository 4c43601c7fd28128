package sibling_test

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/crashtest"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/secrets"
	"github.com/keyturn/keyturn/secrets/sibling"
)

// A kind is how a backend works.
type kind struct {
	swaps bool // it has compare-and-swap
	notes bool // an append notes token and predecessor in one step
	// forgets: nothing tells of versions that are neither current nor previous.
	forgets bool
}

// service is a backend in memory, whose secrets number their versions from 1.
type service struct {
	kind
	mu    sync.Mutex
	ahead time.Duration // of its clock
	main  map[ref.Ref]*item
	side  map[ref.Ref]*item
}

// An item is one secret of the service.
type item struct {
	rev      int
	versions []*version
}

type version struct {
	id                  int
	value               []byte
	token, after        string
	noted               bool
	previous            string
	created             time.Time
	disabled, destroyed bool
	held                bool
}

func newService(k kind) *service {
	return &service{kind: k, main: map[ref.Ref]*item{}, side: map[ref.Ref]*item{}}
}

func (it *item) newest() *version {
	if it == nil || len(it.versions) == 0 {
		return nil
	}
	return it.versions[len(it.versions)-1]
}

func (b *service) add(it *item, v *version) *version {
	it.rev++
	v.id, v.created = len(it.versions)+1, time.Now().Add(b.ahead).UTC()
	it.versions = append(it.versions, v)
	return v
}

func (it *item) find(id string) *version {
	n, err := strconv.Atoi(id)
	if err != nil || n < 1 || n > len(it.versions) || it.versions[n-1].destroyed {
		return nil
	}
	return it.versions[n-1]
}

func (v *version) String() string { return fmt.Sprint(v.id) }

// newest returns a copy of the newest value that a plain reader gets.
func (b *service) newest(r ref.Ref) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return string(b.main[r].newest().value)
}

// write is somebody's write by hand.
func (b *service) write(r ref.Ref, value string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.main[r] == nil {
		b.main[r] = &item{}
	}
	b.add(b.main[r], &version{value: []byte(value)})
}

// driver is one process's way to the service. Each method is one outward call.
type driver struct {
	b  *service
	in *crashtest.Injector
	// before, where it is set, is called before each call.
	before func(name string)
}

var _ sibling.Driver = (*driver)(nil)

// call runs f under the service's lock.
func (d *driver) call(ctx context.Context, name string, r ref.Ref, f func() error) error {
	op := "mem: " + name
	if r.Provider != ref.NATS {
		return fault.Newf(fault.Invalid, op, "%s is not in this store; expected nats://BUCKET/NAME", r)
	}
	if d.before != nil {
		d.before(name)
	}
	if err := ctx.Err(); err != nil {
		return fault.New(fault.Unavailable, op, err)
	}
	return d.in.Call(name, func() error {
		d.b.mu.Lock()
		defer d.b.mu.Unlock()
		return f()
	})
}

func (d *driver) secret(name string, r ref.Ref) (*item, error) {
	it := d.b.main[r]
	if it == nil {
		return nil, fault.Newf(fault.NotFound, "mem: "+name, "there is no secret %s", r)
	}
	return it, nil
}

func (d *driver) version(name string, r ref.Ref, id string) (*version, error) {
	it, err := d.secret(name, r)
	if err != nil {
		return nil, err
	}
	v := it.find(id)
	if v == nil {
		return nil, fault.Newf(fault.NotFound, "mem: "+name, "%s has no version %s", r, id)
	}
	return v, nil
}

func (d *driver) rev(it *item) string {
	if !d.b.swaps || it == nil {
		return ""
	}
	return fmt.Sprint(it.rev)
}

func tell(v *version) *sibling.Version {
	if v == nil {
		return nil
	}
	return &sibling.Version{ID: v.String(), Token: v.token, Created: v.created, Disabled: v.disabled, Held: v.held}
}

func (d *driver) Main(ctx context.Context, r ref.Ref) (m *sibling.Main, err error) {
	err = d.call(ctx, "Main", r, func() error {
		it, err := d.secret("main", r)
		if err != nil {
			return err
		}
		cur := it.newest()
		m = &sibling.Main{ID: "mem/" + r.Name, Rev: d.rev(it), Current: tell(cur)}
		if !d.b.forgets {
			tokens := map[string]bool{}
			for _, v := range it.versions {
				tokens[v.token] = true
			}
			m.Noted = func(token string) bool { return tokens[token] }
		}
		if cur == nil {
			return nil
		}
		if cur.noted {
			m.Previous = tell(it.find(cur.previous))
			return nil
		}
		for i := len(it.versions) - 2; i >= 0 && m.Previous == nil; i-- {
			if v := it.versions[i]; !v.destroyed {
				m.Previous = tell(v)
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return m, nil
}

func (d *driver) Read(ctx context.Context, r ref.Ref, id string) (out secrets.Value, err error) {
	err = d.call(ctx, "Read", r, func() error {
		v, err := d.version("read", r, id)
		if err != nil {
			return err
		}
		if v.disabled {
			return fault.Newf(fault.NotFound, "mem: read", "version %s of %s is disabled", id, r)
		}
		out = secrets.NewValue(v.value)
		return nil
	})
	if err != nil {
		return secrets.Value{}, err
	}
	return out, nil
}

func (d *driver) Pending(ctx context.Context, r ref.Ref) (p *sibling.Pending, rev string, err error) {
	err = d.call(ctx, "Pending", r, func() error {
		it := d.b.side[r]
		v := it.newest()
		rev = d.rev(it)
		if v == nil || v.destroyed {
			return nil
		}
		if !d.b.swaps {
			rev = v.String() // for Clear
		}
		p = &sibling.Pending{ID: v.String(), Token: v.token, After: v.after, Created: v.created, Value: secrets.NewValue(v.value)}
		return nil
	})
	if err != nil {
		return nil, "", err
	}
	return p, rev, nil
}

func (d *driver) PutPending(ctx context.Context, r ref.Ref, rev string, p sibling.Pending) error {
	return d.call(ctx, "PutPending", r, func() error {
		if p.Value.Len() > 64<<10 {
			return fault.Newf(fault.Invalid, "mem: put pending", "the value has %d bytes; expected at most 65536", p.Value.Len())
		}
		it := d.b.side[r]
		if d.b.swaps && d.rev(it) != rev {
			return fault.Newf(fault.Conflict, "mem: put pending", "the sibling of %s moved", r)
		}
		if it == nil {
			it = &item{}
			d.b.side[r] = it
		}
		d.b.add(it, &version{token: p.Token, after: p.After, value: p.Value.Reveal()})
		return nil
	})
}

func (d *driver) Clear(ctx context.Context, r ref.Ref, rev string) error {
	return d.call(ctx, "Clear", r, func() error {
		it := d.b.side[r]
		v := it.newest()
		if v == nil {
			return nil
		}
		if d.b.swaps && d.rev(it) == rev || !d.b.swaps && v.String() == rev {
			v.destroyed, v.value = true, nil
			it.rev++
		}
		return nil
	})
}

func (d *driver) Append(ctx context.Context, r ref.Ref, m *sibling.Main, p sibling.Pending) (id string, err error) {
	err = d.call(ctx, "Append", r, func() error {
		it, err := d.secret("append", r)
		if err != nil {
			return err
		}
		if d.b.swaps && d.rev(it) != m.Rev {
			return fault.Newf(fault.Conflict, "mem: append", "%s moved", r)
		}
		v := d.b.add(it, &version{value: p.Value.Reveal()})
		if d.b.notes {
			v.noted, v.token = true, p.Token
			if m.Current != nil {
				v.previous = m.Current.ID
			}
		}
		id = v.String()
		return nil
	})
	if err != nil {
		return "", err
	}
	return id, nil
}

func (d *driver) Record(ctx context.Context, r ref.Ref, id, token, previous string) error {
	return d.call(ctx, "Record", r, func() error {
		v, err := d.version("record", r, id)
		if err != nil {
			return err
		}
		if !v.noted {
			v.noted, v.token, v.previous = true, token, previous
			d.b.main[r].rev++
		}
		return nil
	})
}

func (d *driver) SetDisabled(ctx context.Context, r ref.Ref, id string, disabled bool) error {
	return d.call(ctx, "SetDisabled", r, func() error {
		v, err := d.version("set disabled", r, id)
		if err != nil {
			return err
		}
		if disabled && v == d.b.main[r].newest() {
			return fault.Newf(fault.Conflict, "mem: set disabled", "version %s of %s is the newest", id, r)
		}
		if v.disabled != disabled {
			v.disabled, v.held = disabled, !disabled
			d.b.main[r].rev++
		}
		return nil
	})
}

func (d *driver) Destroy(ctx context.Context, r ref.Ref, id string) error {
	return d.call(ctx, "Destroy", r, func() error {
		v, err := d.version("destroy", r, id)
		if fault.Is(err, fault.NotFound) && d.b.main[r] != nil {
			return nil
		}
		if err != nil {
			return err
		}
		if !v.disabled {
			return fault.Newf(fault.Conflict, "mem: destroy", "version %s of %s is in use", id, r)
		}
		v.destroyed, v.value = true, nil
		d.b.main[r].rev++
		return nil
	})
}

func (d *driver) Create(ctx context.Context, r ref.Ref, v secrets.Value) (out *sibling.Version, err error) {
	err = d.call(ctx, "Create", r, func() error {
		if d.b.main[r].newest() != nil {
			return fault.Newf(fault.Conflict, "mem: create", "%s exists already", r)
		}
		it := &item{}
		d.b.main[r] = it
		out = tell(d.b.add(it, &version{value: v.Reveal()}))
		return nil
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}
