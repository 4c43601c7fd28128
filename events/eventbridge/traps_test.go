package eventbridge

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/internal/leaktest"
)

// TestTraps has the ways in which readers of AWS's notices go wrong. Those that
// are missing concern who receives (8, 13's signature) or rotates (12's steps).
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
	none := func(t *testing.T, body string) {
		t.Helper()
		if es, err := DecodeAny([]byte(body), received); err != nil || len(es) != 0 {
			t.Fatalf("%d events, %v; expected neither", len(es), err)
		}
	}
	activated := events.New(events.VersionActivated, paymentsRef, received, rotation).ID

	t.Run("trap 1: six notices of one rotation are one change, by every route", func(t *testing.T) {
		ids := map[events.Type]map[string]bool{}
		for route, wrap := range routes() {
			for _, name := range []string{
				"ct-rotate-secret", "ct-rotation-started", "ct-put-secret-value-awspending",
				"ct-update-secret-version-stage", "secret-label-updated", "ct-rotation-succeeded",
			} {
				bodies := []string{wrap(string(all["file/"+name]))}
				if strings.HasPrefix(name, "ct-") {
					bodies = append(bodies, wrap(record(t, all["file/"+name])), wrap(`{"Records":[`+record(t, all["file/"+name])+`]}`))
				}
				for _, body := range bodies {
					e := one(t, body)
					if e.Data.Ref != paymentsRef {
						t.Errorf("%s by %s is about %s", name, route, e.Data.Ref)
					}
					if ids[e.Type] == nil {
						ids[e.Type] = map[string]bool{}
					}
					ids[e.Type][e.ID] = true
				}
			}
		}
		for typ, is := range ids {
			if len(is) != 1 {
				t.Errorf("%s has the ids %v", typ, is)
			}
		}
		if !ids[events.VersionActivated][activated] || len(ids) != 5 {
			t.Errorf("ids %v; expected five types, and the version's own id", ids)
		}
	})
	t.Run("trap 2: the native event needs no trail", func(t *testing.T) {
		if e := one(t, string(all["file/secret-label-updated"])); e.ID != activated || e.Data.Version != rotation || e.Data.Cause != causeNative {
			t.Errorf("%+v", e)
		}
	})
	t.Run("trap 3: RotationSucceeded names the secret in additionalEventData, and no version", func(t *testing.T) {
		if e := one(t, string(all["file/ct-rotation-succeeded"])); e.Type != events.RotationSucceeded || e.Data.Ref != paymentsRef || e.Data.Version != "" {
			t.Errorf("%+v", e)
		}
	})
	t.Run("trap 4: a caller names a secret by name, ARN or partial ARN", func(t *testing.T) {
		for _, name := range []string{"put/by name", "put/partial ARN", "put/no stages", "put/aRN", "create/null response"} {
			if e := one(t, string(all[name])); e.ID != activated || e.Data.Ref != paymentsRef {
				t.Errorf("%s: %+v", name, e)
			}
		}
		// Made anew, it has another suffix and is the same secret to its agents.
		again := strings.ReplaceAll(string(all["file/secret-label-updated"]), "-Ab12Cd", "-Zz99Yy")
		if e := one(t, again); e.Data.Ref != paymentsRef || !strings.HasSuffix(e.Data.Provider.ID, "-Zz99Yy") {
			t.Errorf("%+v", e)
		}
	})
	t.Run("trap 5: a call that failed is no change, and a null answer may be a success", func(t *testing.T) {
		none(t, string(all["file/ct-put-secret-value-denied"]))
		none(t, record(t, all["file/ct-put-secret-value-denied"]))
		none(t, string(all["put/error message"]))
		if e := one(t, string(all["put/null response"])); e.ID != activated {
			t.Errorf("%+v", e)
		}
	})
	t.Run("trap 6: aRN is arn", func(t *testing.T) {
		for _, spelling := range []string{"arn", "aRN", "ARN"} {
			if e := one(t, strings.Replace(string(all["put/aRN"]), `"aRN"`, `"`+spelling+`"`, 1)); e.Data.Provider.ID != paymentsARN {
				t.Errorf("%s: %+v", spelling, e)
			}
		}
	})
	t.Run("trap 7: AWSPENDING, a description and a schedule change nothing for readers", func(t *testing.T) {
		for name, typ := range map[string]events.Type{
			"file/ct-put-secret-value-awspending": events.VersionCreated,
			"file/ct-update-secret":               events.SecretChanged,
			"update/no version":                   events.SecretChanged,
			"rotate/schedule only":                events.SecretChanged,
		} {
			if e := one(t, string(all[name])); e.Type != typ {
				t.Errorf("%s is %s, expected %s", name, e.Type, typ)
			}
		}
		none(t, string(all["label/pending"]))
		none(t, string(all["stage/pending removed"]))
	})
	t.Run("trap 9: EventBridge's own credential is nobody's secret", func(t *testing.T) {
		for _, name := range []string{"label/connection", "other/connection"} {
			for _, wrap := range routes() {
				none(t, wrap(string(all[name])))
			}
		}
		if e := one(t, string(all["label/rds"])); e.Type != events.VersionActivated {
			t.Errorf("a service's secret that has readers is %+v", e)
		}
	})
	t.Run("trap 10: the echo of our own rotation has the announcement's id", func(t *testing.T) {
		_, typ, detail, err := Entry(events.New(events.VersionActivated, paymentsRef, received, rotation))
		if err != nil {
			t.Fatal(err)
		}
		for route, wrap := range routes() {
			if e := one(t, wrap(string(put(Source, typ, detail)))); e.ID != one(t, wrap(string(all["file/secret-label-updated"]))).ID {
				t.Errorf("%s: the echo is another event", route)
			}
		}
	})
	t.Run("trap 11: a replay keeps id and time, another region is another secret", func(t *testing.T) {
		native := string(all["file/secret-label-updated"])
		e := one(t, strings.Replace(native, `"account"`, `"replay-name":"again","account"`, 1))
		if e.ID != activated || !e.Time.Equal(time.Date(2026, 6, 1, 10, 0, 5, 0, time.UTC)) {
			t.Errorf("%+v", e)
		}
		if e := one(t, string(all["label/replica"])); e.ID == activated || e.Data.Ref == paymentsRef {
			t.Errorf("%+v", e)
		}
	})
	t.Run("trap 12: a rotation token is copied nowhere", func(t *testing.T) {
		canary := leaktest.Canary()
		var rec leaktest.Recorder
		for _, name := range []string{"put/no stages", "file/ct-rotate-secret", "file/ct-put-secret-value-awspending"} {
			body := strings.Replace(string(all[name]), `"secretId"`, `"rotationToken":"`+canary+`","secretId"`, 1)
			if !strings.Contains(body, canary) || !json.Valid([]byte(body)) {
				t.Fatalf("nothing is planted in %s", name)
			}
			e := one(t, body)
			rec.Record(e, e.Subject())
		}
		rec.Check(t, canary)
	})
	t.Run("trap 13: SNS's question is no event and its addresses are copied nowhere", func(t *testing.T) {
		canary := leaktest.Canary()
		var rec leaktest.Recorder
		for _, typ := range []string{"SubscriptionConfirmation", "UnsubscribeConfirmation", "Notification"} {
			body := strings.Replace(inSNS(string(all["file/secret-label-updated"])), "Notification", typ, 1)
			body = strings.Replace(body, `"Type"`, `"Token":"`+canary+`","SubscribeURL":"https://`+canary+`/","Type"`, 1)
			es, err := DecodeAny([]byte(body), received)
			if err != nil || (len(es) == 1) != (typ == "Notification") {
				t.Errorf("%s: %v, %v", typ, es, err)
			}
			rec.Record(typ, es)
		}
		rec.Check(t, canary)
	})
}
