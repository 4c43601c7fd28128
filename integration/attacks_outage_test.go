package integration_test

import (
	"slices"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/keyturn/keyturn/internal/testenv"
)

// TestAttacksDuringOutages takes away, one after the other, what the program
// needs of others. A sender drops a notice for good on a 4xx, so each outage is
// 503 to whoever may have been let in, and the same request is taken after it.
// Trap 17.
func TestAttacksDuringOutages(t *testing.T) {
	s := besiege(t)
	hasIssuer := []string{byOAuth.kind, byEntra2.kind, byEntra1.kind, byGoogle.kind, bySNS.kind}
	// Keep the requests: senders repeat them as they are.
	shots := func() map[string]*shot {
		out := map[string]*shot{}
		for _, c := range allSenders {
			name := s.name("outage")
			out[c.kind] = c.shot(s, name)
			s.stored = append(s.stored, name)
		}
		return out
	}
	each := func(t *testing.T, what string, xs map[string]*shot, want func(kind string) int) {
		t.Run(what, func(t *testing.T) {
			for kind, x := range xs {
				t.Run(kind, func(t *testing.T) {
					t.Parallel()
					status, answer, h := s.fire(t, x)
					if status != want(kind) {
						t.Errorf("answered %d %s; want %d", status, answer, want(kind))
					}
					if status == 503 && h.Get("Retry-After") == "" {
						t.Error("503 without Retry-After")
					}
				})
			}
		})
	}
	again := func(t *testing.T, xs map[string]*shot) {
		for kind, x := range xs {
			testenv.Eventually(t, 30*time.Second, kind+" to be taken after the outage", func() bool {
				status, _, _ := s.fire(t, x)
				return status == 200
			})
		}
	}
	refused := func(t *testing.T) {
		for _, c := range allSenders {
			x := c.notice(s, "row-"+s.stranger)
			want := 401
			if c.kind == bySNS.kind {
				x, want = jsonShot("/v1/sns", []byte(s.stranger)).set("X-Amz-Sns-Message-Type", "Notification"), 400
			}
			if status, answer, _ := s.fire(t, x); status != want {
				t.Errorf("%s without credentials was answered %d %s; want %d", c.kind, status, answer, want)
			}
		}
	}

	s.clouds.down.Store(true)
	xs := shots()
	each(t, "the issuers are away", xs, func(kind string) int {
		if slices.Contains(hasIssuer, kind) {
			return 503
		}
		return 200
	})
	t.Run("a forged token cannot be told from a good one", func(t *testing.T) {
		x := byGoogle.notice(s, "row-"+s.stranger)
		x.set("Authorization", "Bearer "+mint(t, jose.RS256, forgerKey(), "k1", byGoogle.claims().json()))
		if status, _, _ := s.fire(t, x); status != 503 {
			t.Errorf("answered %d; want 503", status)
		}
	})
	t.Run("no credentials, issuers away", refused)
	s.clouds.down.Store(false)
	again(t, xs)

	s.nats.Stop()
	xs = shots()
	each(t, "NATS is away", xs, func(kind string) int {
		if kind == byAudit.kind { // on the local disk
			return 200
		}
		return 503
	})
	t.Run("a notice that cannot be read", func(t *testing.T) {
		x := jsonShot("/v1/eventbridge", []byte("{"+s.known)).set("X-Api-Key", s.key)
		if status, _, _ := s.fire(t, x); status != 503 {
			t.Errorf("answered %d; want 503, since nothing keeps it", status)
		}
	})
	t.Run("no credentials, NATS away", refused)
	if live, ready := s.probe("/healthz"), s.probe("/readyz"); live != 200 || ready != 503 {
		t.Errorf("/healthz is %d and /readyz %d; want 200 and 503", live, ready)
	}
	s.nats.Start()
	again(t, xs)
	testenv.Eventually(t, 20*time.Second, "the program to be ready again", func() bool { return s.probe("/readyz") == 200 })
	s.holds(t)
}
