package scheduler

import (
	"strings"

	"github.com/keyturn/keyturn/ref"
)

// What a firing is for, told by its name: "retire <ref>" is a gate's
// deadline, "sweep" asks every gate, and a ref alone is a rotation. "later
// <ref>" is only a schedule's name: what it fires is named by the ref.
type what int

const (
	rotateOne what = iota
	retireOne
	sweepAll
)

const (
	retirePrefix = "retire "
	laterPrefix  = "later "
	sweepPrefix  = "sweep "
)

func rotateName(r ref.Ref) string      { return r.String() }
func retireName(r ref.Ref) string      { return retirePrefix + r.String() }
func laterName(r ref.Ref) string       { return laterPrefix + r.String() }
func (s *Scheduler) sweepName() string { return sweepPrefix + s.owner }
func (s *Scheduler) payload() []byte   { return []byte(s.owner) }

func parseName(name string) (what, ref.Ref, error) {
	if strings.HasPrefix(name, sweepPrefix) {
		return sweepAll, ref.Ref{}, nil
	}
	w := rotateOne
	if rest, ok := strings.CutPrefix(name, retirePrefix); ok {
		w, name = retireOne, rest
	}
	r, err := ref.Parse(name)
	return w, r, err
}
