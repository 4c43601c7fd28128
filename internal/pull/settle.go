package pull

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// A request asks for one lease to be settled. Its answer is buffered.
type request struct {
	Return
	answer chan answer
}

type answer int

const (
	settled answer = iota
	lost           // the lease is over
	again          // may work later
)

// A batcher puts requests about single leases together.
type batcher struct {
	size   int
	outage *Outage
	do     func(context.Context, []Return) ([]Refusal, error)
	in     chan request

	refused *atomic.Int64
}

func newBatcher(size int, o *Outage, refused *atomic.Int64, do func(context.Context, []Return) ([]Refusal, error)) *batcher {
	return &batcher{size: size, outage: o, refused: refused, do: do, in: make(chan request)}
}

// run works until ctx is done, and waits for the requests that it began.
func (b *batcher) run(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	slots := make(chan struct{}, concurrent)
	for {
		var batch []request
		select {
		case q := <-b.in:
			batch = append(batch, q)
		case <-ctx.Done():
			return
		}
		t := time.NewTimer(linger)
		for full := false; !full && len(batch) < b.size; {
			select {
			case q := <-b.in:
				batch = append(batch, q)
			case <-t.C:
				full = true
			}
		}
		t.Stop()
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			b.send(ctx, batch)
		})
	}
}

// send makes one request for batch and answers each.
func (b *batcher) send(ctx context.Context, batch []request) {
	rs := make([]Return, len(batch))
	for i, q := range batch {
		rs[i] = q.Return
	}
	refused, err := b.do(ctx, rs)
	if err != nil {
		if ctx.Err() == nil {
			b.outage.Failed(ctx, err)
		}
		for _, q := range batch {
			q.answer <- again
		}
		return
	}
	b.outage.Worked(ctx)
	if len(refused) > 0 {
		b.refused.Add(int64(len(refused)))
		b.outage.log.WarnContext(ctx, "the cloud did not settle every message of a batch", "doing", b.outage.what, "refused", len(refused), "of", len(batch), "code", refused[0].Code)
	}
	answers := make(map[string]answer, len(refused))
	for _, r := range refused {
		answers[r.Token] = again
		if r.Lost {
			answers[r.Token] = lost
		}
	}
	for _, q := range batch {
		q.answer <- answers[q.Token]
	}
}

// ask has one lease settled. Without a working batcher the answer is again.
func (b *batcher) ask(ctx context.Context, r Return) answer {
	q := request{r, make(chan answer, 1)}
	select {
	case b.in <- q:
	case <-ctx.Done():
		return again
	}
	select {
	case a := <-q.answer:
		return a
	case <-ctx.Done():
		return again
	}
}

// acknowledge tries to acknowledge l for as long as its lease lasts, and once
// at least. It reports whether it did.
func (p *Puller) acknowledge(ctx context.Context, l *lease) bool {
	for n := 1; ; n++ {
		a := p.acks.ask(ctx, Return{Token: l.Token})
		if a == settled {
			return true
		}
		p.mu.Lock()
		over := l.settled || l.lost || a == lost || time.Now().After(l.ends)
		p.mu.Unlock()
		if over || !Sleep(ctx, p.c.Retry.Delay(n)) {
			p.lose(ctx, l, "acknowledged too late, or not at all")
			return false
		}
	}
}

// giveBack releases l. If that cannot be done soon, the lease runs out.
func (p *Puller) giveBack(ctx context.Context, l *lease, delay time.Duration) {
	for n := 1; n <= 3; n++ {
		switch p.returns.ask(ctx, Return{l.Token, delay}) {
		case settled:
			p.n.released.Add(1)
			return
		case lost:
			return
		}
		if !Sleep(ctx, p.c.Retry.Delay(n)) {
			return
		}
	}
}

// lose records that the lease of l is over.
func (p *Puller) lose(ctx context.Context, l *lease, why string) {
	p.mu.Lock()
	was, cancel := l.lost, l.cancel
	l.lost = true
	p.mu.Unlock()
	if was {
		return
	}
	p.n.lost.Add(1)
	p.c.Log.WarnContext(ctx, "the lease of a message is lost; it comes again", "source", l.Delivery.Source, "key", l.Delivery.Key(), "attempt", l.Delivery.Attempt, "why", why)
	if cancel != nil {
		cancel()
	}
}

// keep extends leases that need it until ctx is done.
func (p *Puller) keep(ctx context.Context) {
	tick := time.NewTicker(max(p.c.Lease/12, time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		due := p.due(ctx)
		var wg sync.WaitGroup
		slots := make(chan struct{}, concurrent)
		for len(due) > 0 {
			n := min(len(due), p.c.Batch)
			batch := due[:n]
			due = due[n:]
			slots <- struct{}{}
			wg.Go(func() {
				defer func() { <-slots }()
				p.extend(ctx, batch)
			})
		}
		wg.Wait()
	}
}

// due returns the leases of which a third is over.
func (p *Puller) due(ctx context.Context) []*lease {
	p.mu.Lock()
	defer p.mu.Unlock()
	var due []*lease
	now := time.Now()
	for l := range p.live {
		switch {
		case l.settled || l.lost || l.ends.Sub(now) > p.c.Lease*2/3:
		case l.started && now.After(l.keep):
			p.c.Log.ErrorContext(ctx, "a handler does not obey its context; its message comes again when its lease ends", "source", l.Delivery.Source, "key", l.Delivery.Key())
			l.keep = now.Add(365 * 24 * time.Hour) // said once
			l.settled = true
		default:
			due = append(due, l)
		}
	}
	return due
}

func (p *Puller) extend(ctx context.Context, batch []*lease) {
	tokens := make([]string, len(batch))
	for i, l := range batch {
		tokens[i] = l.Token
	}
	start := time.Now()
	ctx, cancel := context.WithTimeout(ctx, p.c.Lease)
	defer cancel()
	refused, err := p.q.Extend(ctx, tokens)
	if err != nil {
		if ctx.Err() == nil {
			p.extending.Failed(ctx, err)
		}
		return
	}
	p.extending.Worked(ctx)
	not := make(map[string]Refusal, len(refused))
	for _, r := range refused {
		not[r.Token] = r
	}
	for _, l := range batch {
		r, bad := not[l.Token]
		p.mu.Lock()
		over := l.settled // it was settled while we asked
		if !bad {
			l.ends = start.Add(p.c.Lease)
		}
		p.mu.Unlock()
		switch {
		case !bad:
			p.n.extended.Add(1)
		case r.Lost && !over:
			p.lose(ctx, l, "the cloud does not extend it")
		}
	}
}
