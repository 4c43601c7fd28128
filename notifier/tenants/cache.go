package tenants

import (
	"context"
	"maps"
	"sync"
	"time"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/ref"
)

const (
	// maxCached bounds each cache, in secrets; a name has up to 2 KiB and
	// usually some 50 bytes.
	maxCached = 16384
	// tagTimeout bounds one lookup. It is below the five seconds that
	// EventBridge waits for an answer.
	tagTimeout = 4 * time.Second
)

// A cache remembers what was said of secrets. It has two generations: when the
// young one is full it becomes the old one, and what was in the old one and
// not asked for since is forgotten.
type cache struct {
	mu         sync.RWMutex
	young, old map[ref.Ref]verdict
	max        int
}

func (c *cache) get(r ref.Ref) (verdict, bool) {
	c.mu.RLock()
	v, ok := c.young[r]
	if ok {
		c.mu.RUnlock()
		return v, true
	}
	v, ok = c.old[r]
	c.mu.RUnlock()
	if ok {
		c.put(r, v)
	}
	return v, ok
}

func (c *cache) put(r ref.Ref, v verdict) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.young) >= max(c.max/2, 1) {
		c.old, c.young = c.young, nil
	}
	if c.young == nil {
		c.young = map[ref.Ref]verdict{}
	}
	c.young[r] = v
}

// A tagCache remembers tags, and lets one lookup a secret run at a time.
type tagCache struct {
	mu   sync.Mutex
	tags map[ref.Ref]*lookup
}

// A lookup is one question for tags. tags and err are set when done is closed.
type lookup struct {
	done  chan struct{}
	until time.Time // zero while it runs
	tags  map[string]string
	err   error
}

// get returns the tags of r. The lookup goes on when the caller that began it
// gives up: others may wait for it, and the caller comes again.
func (c *tagCache) get(ctx context.Context, o *Options, r ref.Ref) (map[string]string, error) {
	c.mu.Lock()
	l := c.tags[r]
	if l == nil || !l.until.IsZero() && !o.Now().Before(l.until) {
		l = c.start(ctx, o, r)
	}
	c.mu.Unlock()
	select {
	case <-l.done:
		return l.tags, l.err
	case <-ctx.Done():
		return nil, fault.New(fault.Unavailable, "tenants: tags of "+r.String(), ctx.Err())
	}
}

// start begins a lookup. The caller holds the lock.
func (c *tagCache) start(ctx context.Context, o *Options, r ref.Ref) *lookup {
	l, was := &lookup{done: make(chan struct{})}, c.tags[r]
	if c.tags == nil {
		c.tags = map[ref.Ref]*lookup{}
	}
	if len(c.tags) >= maxCached {
		c.forget(o.Now())
	}
	c.tags[r] = l
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), tagTimeout)
	go func() {
		defer cancel()
		tags, err := o.Tags(ctx, r)
		if fault.Is(err, fault.NotFound) {
			tags, err = nil, nil // no secret, no tags
			if was != nil {
				tags = was.tags // the news that it is gone is for who had it
			}
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		l.tags, l.until = maps.Clone(tags), o.Now().Add(o.TagTTL)
		if err != nil {
			l.err = fault.New(fault.Unavailable, "tenants: tags of "+r.String(), err)
			if c.tags[r] == l {
				delete(c.tags, r) // the next caller asks again
			}
		}
		close(l.done)
	}()
	return l
}

// forget makes room for many, so that it is seldom called: what is out of date
// goes, and then whatever comes first. What runs stays, so that nobody asks a
// second time meanwhile.
func (c *tagCache) forget(now time.Time) {
	maps.DeleteFunc(c.tags, func(_ ref.Ref, l *lookup) bool { return !l.until.IsZero() && !now.Before(l.until) })
	for r, l := range c.tags {
		if len(c.tags) <= maxCached-maxCached/8 {
			return
		}
		if !l.until.IsZero() {
			delete(c.tags, r)
		}
	}
}
