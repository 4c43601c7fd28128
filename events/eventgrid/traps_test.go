package eventgrid

import (
	"strings"
	"testing"

	"github.com/keyturn/keyturn/events"
)

// TestTraps has the ways in which readers of Key Vault's events go wrong. Those
// that are missing concern who receives (17, 21) and who subscribes (22).
func TestTraps(t *testing.T) {
	all := notices(t)
	one := func(t *testing.T, body string) events.Event {
		t.Helper()
		es, err := DecodeAny([]byte(body), received)
		if err != nil || len(es) != 1 {
			t.Fatalf("%d events, %v; expected one", len(es), err)
		}
		return es[0]
	}
	created := events.New(events.VersionActivated, stripe, received, version).ID

	t.Run("trap 14: the errors of the documents' sample, and times that are no float32", func(t *testing.T) {
		if e := one(t, documented); e.ID != created || e.Data.Version != version {
			t.Errorf("%+v", e)
		}
		near := func(exp string) string { return one(t, grid("SecretNearExpiry", of(url, `,"EXP":`+exp))).ID }
		// As float32 both are 1559082112.
		if near(`1559082102`) == near(`1559082110`) {
			t.Error("two expiries within 64 seconds are one")
		}
		if near(`1559082102`) != near(`"1559082102"`) || near(`1559082102`) != near(`1559082102.0`) {
			t.Error("one expiry in three spellings is several")
		}
		if near("null") != one(t, grid("SecretNearExpiry", of(url, ""))).ID {
			t.Error("null is not as good as absent")
		}
	})
	t.Run("trap 15: an array or an object, by the first byte", func(t *testing.T) {
		c := cloud("SecretNewVersionCreated", of(url, ""))
		g := grid("SecretNewVersionCreated", of(url, ""))
		for _, body := range []string{c, "[" + c + "]", g, g[1 : len(g)-1], " \n" + c} {
			if e := one(t, body); e.ID != created {
				t.Errorf("%+v", e)
			}
		}
	})
	t.Run("trap 16: a handshake is no event", func(t *testing.T) {
		if es, err := DecodeAny([]byte(handshake), received); len(es) != 0 || err != nil {
			t.Errorf("%v, %v", es, err)
		}
	})
	t.Run("trap 18: there is no event about disabling or deleting, and a new type is none", func(t *testing.T) {
		for _, what := range []string{"SecretDisabled", "SecretDeleted", "SecretRecovered", "VaultAccessPolicyChanged", "KeyNewVersionCreated", "CertificateExpired"} {
			for _, body := range []string{grid(what, of(url, "")), cloud(what, of(url, ""))} {
				if es, err := DecodeAny([]byte(body), received); len(es) != 0 || err != nil {
					t.Errorf("%s: %v, %v", what, es, err)
				}
			}
		}
	})
	t.Run("trap 19: the near expiry of each new version is another event", func(t *testing.T) {
		other := strings.Repeat("ab", 16)
		first := grid("SecretNearExpiry", of(url, `,"EXP":1782900000`))
		second := strings.ReplaceAll(first, version, other)
		if a, b := one(t, first), one(t, second); a.ID == b.ID || a.Type != events.SecretNearExpiry || b.Data.Version != other {
			t.Errorf("%+v, %+v", a, b)
		}
	})
	t.Run("trap 20: a new version names itself, so that it can be read exactly", func(t *testing.T) {
		// Nothing in the event tells whether it is disabled or valid already.
		future := grid("SecretNewVersionCreated", of(url, `,"NBF":4070908800,"EXP":null`))
		if e := one(t, future); e.Type != events.VersionActivated || e.Data.Version != version || e.ID != created {
			t.Errorf("%+v", e)
		}
	})
	t.Run("trap 22: that a subscription is gone, as with its vault, is no event", func(t *testing.T) {
		gone := strings.NewReplacer("SubscriptionValidationEvent", "SubscriptionDeletedEvent", "validationCode", "eventSubscriptionId").Replace(handshake)
		for _, body := range []string{gone, gone[1 : len(gone)-1]} {
			if es, err := DecodeAny([]byte(body), received); len(es) != 0 || err != nil {
				t.Errorf("%v, %v", es, err)
			}
		}
	})
	t.Run("trap 23: a pull is an answer with many events, and a settle is none", func(t *testing.T) {
		c := cloud("SecretNewVersionCreated", of(url, ""))
		es, err := DecodeAny([]byte(`{"value":[`+inPull(c)+`,`+inPull(cloud("SecretNearExpiry", of(url, `,"EXP":1`)))+`]}`), received)
		if err != nil || len(es) != 2 || es[0].ID != created {
			t.Errorf("%v, %v", es, err)
		}
		// Taken again, it has another lock and count.
		again := strings.Replace(inPull(c), `"deliveryCount":2`, `"deliveryCount":3`, 1)
		if e := one(t, again); e.ID != created {
			t.Errorf("%+v", e)
		}
	})
	for name, body := range all {
		if strings.HasPrefix(name, "sibling/") {
			if es, err := DecodeAny(body, received); len(es) != 0 || err != nil {
				t.Errorf("%s: %v, %v", name, es, err)
			}
		}
	}
}
