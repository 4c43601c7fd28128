package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/rotators"
)

// devCmd is the main job on embedded defaults: what "make run" runs.
type devCmd struct {
	State     string        `help:"Directory for everything that outlives a run." default:".keyturn" type:"path"`
	Postgres  string        `help:"Use this PostgreSQL, as a superuser or a role with CREATEROLE, instead of starting one: postgres://user:password@host/db." placeholder:"DSN" env:"KEYTURN_DEV_POSTGRES"`
	Every     time.Duration `help:"Time between rotations of one secret; whole seconds." default:"10s"`
	Rotations int64         `help:"Stop after so many rotations, and fail if any request failed." placeholder:"N"`
	Listen    string        `help:"Address of the notifier; a free port if it is taken." default:"127.0.0.1:8480"`
}

// stats is what the running line shows.
type stats struct {
	rotations, failedRotations atomic.Int64
	requests, failed           atomic.Int64
	lag                        lags
}

func (s *stats) line() string {
	line := fmt.Sprintf("rotations %s · requests %s · failed requests %s", grouped(s.rotations.Load()), grouped(s.requests.Load()), grouped(s.failed.Load()))
	if n := s.failedRotations.Load(); n > 0 {
		line += fmt.Sprintf(" · failed rotations %s", grouped(n))
	}
	if p50, p99, ok := s.lag.percentiles(); ok {
		line += fmt.Sprintf(" · lag p50 %s p99 %s", short(p50), short(p99))
	}
	return line
}

// Run starts the world in order, and takes it down in the reverse order.
func (c *devCmd) Run(e *env) (err error) {
	if c.Every < time.Second || c.Every%time.Second != 0 {
		return errors.New("--every takes whole seconds, 1s or more: JetStream schedules have that grain")
	}
	start := time.Now()
	var st stats
	scr := newScreen(e.stdout, st.line)
	ctx, cancel := context.WithCancel(e.ctx)
	defer cancel()

	w, err := openWorld(ctx, c, e.log, scr)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.close()) }()

	d := &dev{cmd: c, scr: scr, st: &st, world: w, start: start, first: map[ref.Ref]string{}, done: cancel}
	p, err := openPipeline(ctx, w.cfg, e.log, d.observe, nil)
	if err != nil {
		return err
	}
	defer p.close()
	if err := w.seed(ctx, p); err != nil {
		return err
	}

	// Three groups end one after the other: first what starts work, then the
	// agents, which must see the last rotation through, then the printers.
	printing, stopPrinting := context.WithCancel(context.WithoutCancel(ctx))
	defer stopPrinting()
	agentsCtx, stopAgents := context.WithCancel(context.WithoutCancel(ctx))
	defer stopAgents()
	var printers, fleet, firsts sync.WaitGroup
	printers.Go(func() { scr.run(printing) })
	printers.Go(func() {
		_ = p.bus.Subscribe(printing, events.Filter{}, once(func(_ context.Context, ev events.Event) { d.event(ev) }), nil)
	})
	agents, err := startAgents(agentsCtx, w, e.log, d, &fleet)
	if err != nil {
		stopAgents()
		stopPrinting()
		fleet.Wait()
		printers.Wait()
		return err
	}
	d.agents = len(agents)

	serveErr := p.serve(ctx, func(addr string) {
		scr.text(w.banner(addr))
		// The first rotations do not wait for the schedule. Rotate also rolls
		// forward what a killed run left pending.
		for i := range w.cfg.Secrets {
			r := w.cfg.Secrets[i].ref
			firsts.Go(func() {
				rctx, cancel := outlast(ctx, stopGrace)
				defer cancel()
				_, _ = p.rotate(rctx, r, "") // observe tells of a failure
			})
		}
	})
	firsts.Wait()
	stopAgents()
	fleet.Wait()
	stopPrinting()
	printers.Wait()
	scr.text(fmt.Sprintf("stopped after %s: %s", time.Since(start).Round(100*time.Millisecond), st.line()))
	if serveErr != nil {
		return serveErr
	}
	if c.Rotations > 0 && (st.failed.Load() > 0 || st.failedRotations.Load() > 0) {
		return fmt.Errorf("%d requests and %d rotations failed; expected none", st.failed.Load(), st.failedRotations.Load())
	}
	return nil
}

// dev prints what happens and counts it.
type dev struct {
	cmd    *devCmd
	scr    *screen
	st     *stats
	world  *world
	start  time.Time
	done   context.CancelFunc
	agents int

	mu      sync.Mutex
	first   map[ref.Ref]string // version that the first rotation made, per secret
	adopted map[string]bool    // agents that moved to it
	told    bool
}

func (d *dev) observe(p rotators.Progress) {
	name := d.world.short(p.Ref)
	if p.Err != nil {
		if errors.Is(p.Err, context.Canceled) {
			return // the run is ending; the next one rolls this rotation forward
		}
		d.st.failedRotations.Add(1)
		d.scr.line("rotate", "%-18s %-7s failed: %v", name, p.Phase, p.Err)
		return
	}
	d.scr.line("rotate", "%-18s %-7s %s", name, p.Phase, short(p.Took))
	if p.Phase == rotators.Finish && d.st.rotations.Add(1) == d.cmd.Rotations {
		// The agents get a moment to move to the last one.
		time.AfterFunc(time.Second, d.done)
	}
}

func (d *dev) event(e events.Event) {
	if e.Data.Published.Before(d.start) {
		return // stored by an earlier run
	}
	noun, verb := e.Type.Parts()
	line := fmt.Sprintf("%-18s %s.%s", d.world.short(e.Data.Ref), noun, verb)
	if e.Data.Version != "" {
		line += " version " + shortID(e.Data.Version)
	}
	if e.Data.Reason != "" {
		line += " (" + e.Data.Reason + ")"
	}
	d.scr.line("event", "%s", line)
}

// moved is called when an agent has adopted a version.
func (d *dev) moved(agent string, r ref.Ref, version string, lag time.Duration, byPush bool) {
	if !byPush {
		d.scr.line("agent", "%-18s reads %s version %s", agent, d.world.short(r), shortID(version))
		return
	}
	d.st.lag.add(lag)
	d.scr.line("agent", "%-18s moved to %s version %s, %s after the event", agent, d.world.short(r), shortID(version), short(lag))
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.adopted == nil {
		d.adopted = map[string]bool{}
	}
	d.adopted[agent] = true
	if len(d.adopted) == d.agents && !d.told {
		d.told = true
		go d.scr.line("fleet", "every agent has adopted a rotated credential, %s after the start", short(time.Since(d.start)))
	}
}
