package webhook

import (
	"context"
	"net/http"
	"time"
)

const (
	// readyFor is how long an answer of /readyz is good for: probes of many
	// load balancers shall not load what stands behind us.
	readyFor = time.Second
	// readyLimit bounds one question.
	readyLimit = 2 * time.Second
)

// A readiness asks f at most once a second, and never twice at a time.
type readiness struct {
	f    func(context.Context) error
	turn chan struct{}
	// at and err are those of the last answer, for whoever has the turn.
	at  time.Time
	err error
}

func newReadiness(f func(context.Context) error) *readiness {
	return &readiness{f: f, turn: make(chan struct{}, 1)}
}

// ask returns f's answer, at most a second old. A probe that hangs up does not
// count as an answer.
func (r *readiness) ask(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), readyLimit)
	defer cancel()
	select {
	case r.turn <- struct{}{}:
		defer func() { <-r.turn }()
	case <-ctx.Done():
		return ctx.Err()
	}
	if r.at.IsZero() || time.Since(r.at) >= readyFor {
		r.err = r.f(ctx)
		r.at = time.Now()
	}
	return r.err
}

// probe serves /readyz. Why we are not ready is for the log, not for strangers.
func (s *server) probe(w http.ResponseWriter, r *http.Request) {
	if s.draining.Load() {
		answer(w, http.StatusServiceUnavailable, "draining")
		return
	}
	if err := s.ready.ask(r.Context()); err != nil {
		s.o.Logger.DebugContext(r.Context(), "not ready", "err", errText(err))
		answer(w, http.StatusServiceUnavailable, "not ready")
		return
	}
	answer(w, http.StatusOK, "ready")
}
