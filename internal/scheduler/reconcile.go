package scheduler

import (
	"context"
	"fmt"

	"github.com/keyturn/keyturn/events/natsbus"
)

// Schedules returns the recurring schedules that the jobs want.
func (s *Scheduler) Schedules() []natsbus.Schedule {
	var want []natsbus.Schedule
	gated := false
	for _, j := range s.jobs {
		gated = gated || j.Gated
		if j.Spec != (natsbus.Spec{}) {
			want = append(want, natsbus.Schedule{Name: rotateName(j.Ref), Spec: j.Spec, Payload: s.payload()})
		}
	}
	if gated {
		want = append(want, natsbus.Schedule{Name: s.sweepName(), Spec: natsbus.Spec{Every: s.o.SweepEvery}, Payload: s.payload()})
	}
	return want
}

// A Reconciler is the part of a [natsbus.Bus] that Reconcile needs.
type Reconciler interface {
	Reconcile(ctx context.Context, owner string, want []natsbus.Schedule) (natsbus.Reconciled, error)
}

// Reconcile makes the schedules in JetStream those of the jobs. It may be
// repeated, and called by several replicas at once.
func (s *Scheduler) Reconcile(ctx context.Context, bus Reconciler) (natsbus.Reconciled, error) {
	done, err := bus.Reconcile(ctx, s.owner, s.Schedules())
	if err != nil {
		return done, fmt.Errorf("reconcile schedules: %w", err)
	}
	return done, nil
}
