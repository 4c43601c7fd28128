package natsbus

import (
	"context"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/fault"
)

const (
	minRetry = 100 * time.Millisecond
	maxRetry = 10 * time.Second
	// replayGap is the least time between two replays: a handler that is too
	// slow for the live events must not be given an endless replay on top.
	replayGap = 500 * time.Millisecond
	// defaultSettle is about how long a cluster needs to agree.
	defaultSettle = 2 * time.Second
)

// replay reads the last event of each subject at the start and whenever it is
// triggered, until ctx is done. Only a refusal for good ends it.
//
// In a cluster one reading is not enough. The interest of a new subscription
// takes a moment to reach the other servers, and a follower that answers a
// direct get may be behind its leader: an event between the two is neither
// live nor read. So there is a second reading a little later, which hands on
// only what is new.
func (sn *session) replay(ctx context.Context) {
	subjects := storedSubjects(sn.f, sn.s.opts)
	had := map[string]uint64{} // the sequence handed on, by subject
	for second := false; ; {
		if !second {
			clear(had)
		}
		if !sn.read(ctx, subjects, had, second) || !pause(ctx, replayGap) {
			return
		}
		var settle <-chan time.Time
		if d := sn.s.settleAfter(); d > 0 && !second {
			settle = time.After(d/2 + rand.N(d))
		}
		select {
		case <-settle:
			second = true
		case <-sn.again:
			second = false
		case <-ctx.Done():
			return
		}
	}
}

// settleAfter is how long after a reading the second one follows, about; 0
// for a single server.
func (s *Subscriber) settleAfter() time.Duration {
	if s.settle > 0 || s.nc.ConnectedClusterName() == "" {
		return s.settle
	}
	return defaultSettle
}

// read is one reading. It reports false if there must not be another one.
func (sn *session) read(ctx context.Context, subjects []string, had map[string]uint64, onlyNew bool) bool {
	if !sn.send(ctx, item{begin: true}) {
		return false
	}
	err := sn.readAll(ctx, subjects, func(m stored) error {
		if seq, is := had[m.subject]; is || len(had) < maxSeen {
			had[m.subject] = max(seq, m.seq)
			if onlyNew && m.seq <= seq {
				return nil
			}
		}
		if !sn.send(ctx, item{subject: m.subject, msg: m.msg}) {
			return ctx.Err()
		}
		return nil
	})
	return ctx.Err() == nil && sn.send(ctx, item{end: err == nil, err: err}) && err == nil
}

// storedSubjects returns what to read for f. Of named secrets of a tenant all
// types are spelled out, so that the subjects are literal and the tenant's own
// rights are enough to read them.
func storedSubjects(f events.Filter, o Options) []string {
	if f.Tenant != "" && len(f.Refs) > 0 && len(f.Types) == 0 && !o.MultiLast {
		f.Types = events.Types()
	}
	out := f.Subjects()
	slices.Sort(out)
	return slices.Compact(out)
}

// readAll emits the last stored event of every subject. What fails for a
// while is tried again until ctx ends; only Denied and Invalid are returned.
func (sn *session) readAll(ctx context.Context, subjects []string, emit func(stored) error) error {
	rd := reader{nc: sn.s.nc, opts: sn.s.opts, stream: EventStream}
	var todo [][]string
	if !slices.ContainsFunc(subjects, hasWildcard) && !sn.s.opts.MultiLast {
		todo = slices.Collect(slices.Chunk(subjects, maxOutstanding))
	} else {
		todo = slices.Collect(slices.Chunk(subjects, maxFilters))
	}
	for wait := minRetry; len(todo) > 0; {
		err := connected(ctx, sn.s.nc)
		if err == nil {
			err = rd.last(ctx, todo[0], emit)
		}
		switch {
		case err == nil:
			todo, wait = todo[1:], minRetry
			continue
		case ctx.Err() != nil:
			return ctx.Err()
		case sn.s.nc.IsClosed():
			return classify("replay", err)
		case fault.Is(err, fault.Denied), fault.Is(err, fault.Invalid):
			return err
		case wait == 8*minRetry: // not at once: a leader election takes a moment
			sn.s.opts.Logger.WarnContext(ctx, "stored events cannot be read; trying on", "error", err)
		}
		if !pause(ctx, wait/2+rand.N(wait)) {
			return ctx.Err()
		}
		wait = min(2*wait, maxRetry)
	}
	return nil
}

// send hands it to the session, and reports false if ctx ended first.
func (sn *session) send(ctx context.Context, it item) bool {
	select {
	case sn.replayed <- it:
		return true
	case <-ctx.Done():
		return false
	}
}

// pause waits, and reports false if ctx ended first.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// hasWildcard reports whether a subject stands for many. The tokens of an
// event's subject hold neither character; see events.Token.
func hasWildcard(subject string) bool { return strings.ContainsAny(subject, "*>") }
