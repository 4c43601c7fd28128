package vaultaudit

import (
	"context"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/notice"
	"github.com/keyturn/keyturn/internal/spool"
	"github.com/keyturn/keyturn/notifier"
)

// callTimeout bounds one call of the handler.
const callTimeout = 30 * time.Second

// A deliverer hands the spool's records to the handler: many at a time, those
// of one path one after another. What fails is tried again for ever, since the
// spool remembers it; meanwhile the paths after it go on until the window is
// full.
type deliverer struct {
	s       *Source
	h       notifier.Handler
	run     context.Context //nolint:containedctx // the ends of Run and of its calls, for every goroutine here
	calls   context.Context //nolint:containedctx
	slots   chan struct{}
	window  chan struct{}
	mu      sync.Mutex
	chains  map[string][]*item // what waits behind the one at work
	workers sync.WaitGroup
}

type item struct {
	rec *spool.Record
	d   notifier.Delivery
	key string
}

// deliver delivers until ctx is done, and then for at most the drain time.
func (s *Source) deliver(ctx context.Context, h notifier.Handler) {
	calls, cut := context.WithCancel(context.WithoutCancel(ctx))
	defer cut()
	d := &deliverer{
		s: s, h: h, run: ctx, calls: calls,
		slots: make(chan struct{}, s.o.MaxInFlight), window: make(chan struct{}, 16*s.o.MaxInFlight),
		chains: map[string][]*item{},
	}
	d.feed()
	t := time.AfterFunc(s.o.Drain, cut)
	defer t.Stop()
	d.workers.Wait()
}

// feed reads the spool until the end of Run.
func (d *deliverer) feed() {
	var lost int64
	for failures := 0; ; {
		select {
		case d.window <- struct{}{}:
		case <-d.run.Done():
			return
		}
		rec, err := d.s.sp.Next(d.run)
		if n := d.s.sp.Stats().Lost; n > lost {
			d.s.count("", Dropped, "corrupt", int(n-lost))
			lost = n
		}
		if d.run.Err() != nil || errors.Is(err, spool.ErrClosed) {
			return
		}
		if err != nil {
			failures++
			d.s.o.Logger.Error("the spool cannot be read; trying again", "source", d.s.o.Name, "err", err)
			<-d.window
			if !d.sleep(failures) {
				return
			}
			continue
		}
		failures = 0
		it, err := d.item(rec)
		if err != nil {
			d.s.o.Logger.Error("a record of the spool is not one of ours", "source", d.s.o.Name, "err", err)
			d.s.sp.Done(rec)
			<-d.window
			continue
		}
		d.enqueue(it)
	}
}

// item reads what names a delivery out of its own body.
func (d *deliverer) item(rec *spool.Record) (*item, error) {
	received, body, err := unpack(rec.Data)
	if err != nil {
		return nil, err
	}
	var head struct {
		Type    string `json:"type"`
		Request struct {
			ID        string `json:"id"`
			Path      string `json:"path"`
			Namespace struct {
				ID string `json:"id"`
			} `json:"namespace"`
		} `json:"request"`
	}
	it := &item{rec: rec, d: notifier.Delivery{Source: d.s.o.Name, Body: body, Received: received}}
	if json.Unmarshal(body, &head) == nil {
		if id, kind := notice.Token(head.Request.ID), notice.Token(head.Type); id != "" && kind != "" {
			it.d.ID = id + "-" + kind
		}
		it.key = head.Request.Namespace.ID + "\x00" + head.Request.Path
	}
	return it, nil
}

// enqueue puts it behind those of its path.
func (d *deliverer) enqueue(it *item) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if waiting, busy := d.chains[it.key]; busy {
		d.chains[it.key] = append(waiting, it)
		return
	}
	d.chains[it.key] = nil
	d.workers.Go(func() {
		for it := it; it != nil; it = d.next(it.key) {
			d.one(it)
			<-d.window
		}
	})
}

// next returns what waits longest behind key, or nil, and then key is free.
func (d *deliverer) next(key string) *item {
	d.mu.Lock()
	defer d.mu.Unlock()
	waiting := d.chains[key]
	if len(waiting) == 0 {
		delete(d.chains, key)
		return nil
	}
	d.chains[key] = waiting[1:]
	return waiting[0]
}

// one delivers it until it is done, or Run ends.
func (d *deliverer) one(it *item) {
	for it.d.Attempt = 1; ; it.d.Attempt++ {
		select {
		case d.slots <- struct{}{}:
		case <-d.run.Done():
			return
		}
		if d.run.Err() != nil {
			<-d.slots
			return
		}
		err := d.call(it.d)
		<-d.slots
		switch {
		case err == nil:
			d.s.count("", Delivered, "", 1)
			d.s.sp.Done(it.rec)
			return
		case fault.Is(err, fault.Invalid):
			d.s.count("", Refused, "", 1)
			d.s.o.Logger.Error("an audit entry can never be handled, and is passed over", "source", d.s.o.Name, "key", it.d.Key(), "err", err)
			d.s.sp.Done(it.rec)
			return
		}
		d.s.count("", Retried, "", 1)
		if !d.sleep(it.d.Attempt) {
			return
		}
	}
}

// call calls the handler. Its panic is an outage, and is told without its
// value, which could quote the entry.
func (d *deliverer) call(dl notifier.Delivery) (err error) {
	ctx, cancel := context.WithTimeout(d.calls, callTimeout)
	defer cancel()
	defer func() {
		if p := recover(); p != nil {
			err = fault.Newf(fault.Unknown, op, "the handler panicked with a %T; this is a defect, please report it", p)
			d.s.o.Logger.Error("the handler panicked", "source", d.s.o.Name, "err", err)
		}
	}()
	return d.h(ctx, dl)
}

// sleep waits after the nth failure, half to the whole of a time that doubles,
// and reports whether to go on.
func (d *deliverer) sleep(n int) bool {
	wait := min(d.s.o.Backoff<<min(n-1, 20), d.s.o.MaxBackoff)
	t := time.NewTimer(wait/2 + rand.N(wait/2+1))
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-d.run.Done():
		return false
	}
}
