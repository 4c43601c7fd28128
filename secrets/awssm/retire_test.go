package awssm_test

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/secretsmanager"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/awsfake"
	"github.com/keyturn/keyturn/internal/crashtest"
	"github.com/keyturn/keyturn/internal/leaktest"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/secrets"
	"github.com/keyturn/keyturn/secrets/awssm"
)

// rotate runs one rotation of our own and returns its token.
func rotate(t *testing.T, s *awssm.Store, r ref.Ref, value string) string {
	t.Helper()
	token := awsfake.Token()
	if _, err := s.PutPending(t.Context(), r, token, str(value)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Promote(t.Context(), r, token); err != nil {
		t.Fatal(err)
	}
	return token
}

// wantPrevious checks who is previous, and that it can be read unless it is
// disabled. An empty id is nobody.
func wantPrevious(t *testing.T, s *awssm.Store, r ref.Ref, id string, disabled bool) {
	t.Helper()
	d, err := s.Describe(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	h := d.Holder(secrets.Previous)
	switch {
	case h == nil && id != "":
		t.Errorf("nobody is previous; want %s", id)
	case h != nil && (h.ID != id || h.Disabled != disabled || h.Token != id):
		t.Errorf("previous is %+v; want %s, disabled %t", h, id, disabled)
	}
	v, err := s.Get(t.Context(), r, secrets.Previous)
	if id == "" || disabled {
		wantKind(t, "get previous", err, fault.NotFound, "")
	} else if err != nil || v.ID != id {
		t.Errorf("get previous: %v; want %s", err, id)
	}
}

func TestRequestsOfRetiring(t *testing.T) {
	f, s, r, first := open(t, nil)
	ctx, token := t.Context(), rotate(t, s, r, "new")
	f.ForgetCalls()

	for range 2 {
		if err := s.Disable(ctx, r, first); err != nil {
			t.Fatal(err)
		}
		wantPrevious(t, s, r, first, true)
	}
	wantWrites(t, f,
		"UpdateSecretVersionStage VersionStage=KEYTURNRETIRED MoveToVersionId="+first,
		"UpdateSecretVersionStage VersionStage=AWSPREVIOUS RemoveFromVersionId="+first)
	wantLabels(t, f, map[string][]string{token: {"AWSCURRENT"}, first: {"KEYTURNRETIRED"}})
	for range 2 {
		if err := s.Enable(ctx, r, first); err != nil {
			t.Fatal(err)
		}
		wantPrevious(t, s, r, first, false)
	}
	wantWrites(t, f,
		"UpdateSecretVersionStage VersionStage=KEYTURNHELD MoveToVersionId="+first,
		"UpdateSecretVersionStage VersionStage=AWSPREVIOUS MoveToVersionId="+first)
	wantKind(t, "destroy of what is enabled", s.Destroy(ctx, r, first), fault.Conflict, "")
	if err := s.Disable(ctx, r, first); err != nil {
		t.Fatal(err)
	}
	wantWrites(t, f, "UpdateSecretVersionStage VersionStage=AWSPREVIOUS RemoveFromVersionId="+first)
	// The service never deletes what has a label.
	f.DeleteDeprecated(name)
	if _, _, ok := f.Value(name, first); !ok {
		t.Fatal("the service deleted a disabled version")
	}
	for range 2 {
		if err := s.Destroy(ctx, r, first); err != nil {
			t.Fatal(err)
		}
		wantPrevious(t, s, r, "", false)
		wantKind(t, "enable of what is destroyed", s.Enable(ctx, r, first), fault.NotFound, "")
		wantKind(t, "disable of what is destroyed", s.Disable(ctx, r, first), fault.NotFound, "")
	}
	wantWrites(t, f,
		"UpdateSecretVersionStage VersionStage=KEYTURNHELD RemoveFromVersionId="+first,
		"UpdateSecretVersionStage VersionStage=KEYTURNRETIRED RemoveFromVersionId="+first)
	f.DeleteDeprecated(name)
	if _, _, ok := f.Value(name, first); ok {
		t.Error("the service kept a destroyed version")
	}
	if err := s.Destroy(ctx, r, first); err != nil {
		t.Errorf("destroy of what the service deleted: %v", err)
	}
}

func TestOnlySupersededVersionsAreDisabled(t *testing.T) {
	f, s, r, first := open(t, nil)
	ctx, pending := t.Context(), awsfake.Token()
	if _, err := s.PutPending(ctx, r, pending, str("new")); err != nil {
		t.Fatal(err)
	}
	f.ForgetCalls()
	for what, id := range map[string]string{"current": first, "pending": pending} {
		wantKind(t, "disable of "+what, s.Disable(ctx, r, id), fault.Conflict, "")
		wantKind(t, "destroy of "+what, s.Destroy(ctx, r, id), fault.Conflict, "")
		if err := s.Enable(ctx, r, id); err != nil {
			t.Errorf("enable of %s: %v; want nothing to do", what, err)
		}
	}
	for _, id := range []string{awsfake.Token(), "", "short"} {
		wantKind(t, "disable of an unknown version", s.Disable(ctx, r, id), fault.NotFound, "")
		wantKind(t, "enable of an unknown version", s.Enable(ctx, r, id), fault.NotFound, "")
		if err := s.Destroy(ctx, r, id); err != nil {
			t.Errorf("destroy of an unknown version: %v; want success", err)
		}
	}
	unknown := f.Ref("unknown")
	for _, err := range []error{s.Disable(ctx, unknown, first), s.Enable(ctx, unknown, first), s.Destroy(ctx, unknown, first)} {
		wantKind(t, "an unknown secret", err, fault.NotFound, "")
	}
	wantWrites(t, f)
}

// An interrupted Disable is no reason to keep a version, an Enable is.
func TestHeld(t *testing.T) {
	f, s, r, first := open(t, nil)
	ctx, second := t.Context(), rotate(t, s, r, "second")
	held := func() bool {
		t.Helper()
		d, err := s.Describe(ctx, r)
		if err != nil {
			t.Fatal(err)
		}
		return d.Holder(secrets.Previous).Held
	}
	f.FailNext("UpdateSecretVersionStage", "", "InternalServiceError")
	if err := s.Disable(ctx, r, first); !fault.Is(err, fault.Unavailable) || len(f.Labels(name)[first]) != 2 {
		t.Fatalf("disable that was interrupted: %v, labels %v", err, f.Labels(name))
	}
	if held() {
		t.Error("a version is held by its interrupted disable")
	}
	wantPrevious(t, s, r, first, false)
	if err := s.Enable(ctx, r, first); err != nil || held() {
		t.Errorf("enable of what is not disabled: %v; want no change", err)
	}
	for range 2 {
		if err := s.Disable(ctx, r, first); err != nil {
			t.Fatal(err)
		}
		if held() {
			t.Error("a disabled version is held")
		}
		if err := s.Enable(ctx, r, first); err != nil || !held() {
			t.Errorf("enable: %v, held %t; want it held", err, held())
		}
	}
	third := rotate(t, s, r, "third")
	if held() {
		t.Error("the next generation is held")
	}
	if err := s.Disable(ctx, r, second); err != nil {
		t.Fatal(err)
	}
	wantLabels(t, f, map[string][]string{third: {"AWSCURRENT"}, second: {"KEYTURNRETIRED"}})
}

// Generations: what is disabled is superseded once more, and the next Disable
// takes the label over.
func TestDisabledVersionSuperseded(t *testing.T) {
	f, s, r, first := open(t, nil)
	ctx, second := t.Context(), rotate(t, s, r, "second")
	if err := s.Disable(ctx, r, first); err != nil {
		t.Fatal(err)
	}
	// Its token stays a promoted one.
	_, err := s.PutPending(ctx, r, first, str("again"))
	wantKind(t, "put pending under a disabled version's token", err, fault.Conflict, "")
	_, err = s.Promote(ctx, r, first)
	wantKind(t, "promote of a disabled version", err, fault.Conflict, "")

	third := rotate(t, s, r, "third")
	wantLabels(t, f, map[string][]string{third: {"AWSCURRENT"}, second: {"AWSPREVIOUS"}, first: {"KEYTURNRETIRED"}})
	wantPrevious(t, s, r, second, false)
	wantKind(t, "disable of what was superseded since", s.Disable(ctx, r, first), fault.NotFound, "")
	wantKind(t, "enable of what was superseded since", s.Enable(ctx, r, first), fault.NotFound, "")
	wantPrevious(t, s, r, second, false)
	if err := s.Disable(ctx, r, second); err != nil {
		t.Fatal(err)
	}
	wantLabels(t, f, map[string][]string{third: {"AWSCURRENT"}, second: {"KEYTURNRETIRED"}})
	wantPrevious(t, s, r, second, true)
	wantKind(t, "enable of an old generation", s.Enable(ctx, r, first), fault.NotFound, "")
	if err := s.Destroy(ctx, r, first); err != nil {
		t.Error(err)
	}
	wantPrevious(t, s, r, second, true)

	// A rollback by hand makes a disabled version current.
	f.SetLabel(name, "AWSCURRENT", second)
	f.SetLabel(name, "AWSPREVIOUS", "")
	wantPrevious(t, s, r, "", false)
	wantKind(t, "disable of current", s.Disable(ctx, r, second), fault.Conflict, "")
	wantKind(t, "destroy of current", s.Destroy(ctx, r, second), fault.Conflict, "")
}

// A rotation that could not take its labels away, and a version disabled since:
// what is left is no interrupted put.
func TestDisableTakesTheClaim(t *testing.T) {
	f, s, r, _ := open(t, nil)
	ctx, second := t.Context(), rotate(t, s, r, "second")
	f.SetLabel(name, awssm.Claim, second)
	token := awsfake.Token() // driven by the service, which knows no Claim
	f.StartRotation(name, token)
	if _, err := s.PutPending(ctx, r, token, str("third")); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Promote(ctx, r, token); err != nil {
		t.Fatal(err)
	}
	f.SetLabel(name, "AWSPENDING", "")
	if err := s.Disable(ctx, r, second); err != nil {
		t.Fatal(err)
	}
	wantLabels(t, f, map[string][]string{token: {"AWSCURRENT"}, second: {"KEYTURNRETIRED"}})
	f.SetLabel(name, awssm.Claim, second)
	_, err := s.Get(ctx, r, secrets.Pending)
	wantKind(t, "get pending", err, fault.NotFound, "")
	if f.Holder(name, "AWSPENDING") != "" {
		t.Error("a disabled version became pending")
	}
}

// Somebody acts between the look and the move.
func TestRetireIsACompareAndSwap(t *testing.T) {
	type world struct {
		f             *awsfake.Server
		s             *awssm.Store
		r             ref.Ref
		first, second string
	}
	for what, c := range map[string]struct {
		disabled bool
		between  func(w world) error
		act      func(w world, s *awssm.Store) error
		want     fault.Kind // Unknown: no error
		state    string     // of first: what holds AWSPREVIOUS or is disabled
	}{
		"disable, promoted meanwhile": {
			between: func(w world) error { rotate(t, w.s, w.r, "third"); return nil },
			act:     func(w world, s *awssm.Store) error { return s.Disable(t.Context(), w.r, w.first) },
			want:    fault.NotFound, state: "superseded",
		},
		"disable, disabled meanwhile": {
			between: func(w world) error { return w.s.Disable(t.Context(), w.r, w.first) },
			act:     func(w world, s *awssm.Store) error { return s.Disable(t.Context(), w.r, w.first) },
			state:   "disabled",
		},
		"disable, rolled back by hand meanwhile": {
			between: func(w world) error {
				w.f.SetLabel(name, "AWSCURRENT", w.first)
				w.f.SetLabel(name, "AWSPREVIOUS", w.second)
				return nil
			},
			act:  func(w world, s *awssm.Store) error { return s.Disable(t.Context(), w.r, w.first) },
			want: fault.Conflict, state: "superseded",
		},
		"enable, promoted meanwhile": {
			disabled: true,
			between:  func(w world) error { rotate(t, w.s, w.r, "third"); return nil },
			act:      func(w world, s *awssm.Store) error { return s.Enable(t.Context(), w.r, w.first) },
			want:     fault.NotFound, state: "superseded",
		},
		"enable, enabled meanwhile": {
			disabled: true,
			between:  func(w world) error { return w.s.Enable(t.Context(), w.r, w.first) },
			act:      func(w world, s *awssm.Store) error { return s.Enable(t.Context(), w.r, w.first) },
			state:    "enabled",
		},
		"destroy, enabled meanwhile": {
			disabled: true,
			between:  func(w world) error { return w.s.Enable(t.Context(), w.r, w.first) },
			act:      func(w world, s *awssm.Store) error { return s.Destroy(t.Context(), w.r, w.first) },
			want:     fault.Conflict, state: "enabled",
		},
		"destroy, destroyed meanwhile": {
			disabled: true,
			between:  func(w world) error { return w.s.Destroy(t.Context(), w.r, w.first) },
			act:      func(w world, s *awssm.Store) error { return s.Destroy(t.Context(), w.r, w.first) },
			state:    "gone",
		},
	} {
		f, s, r, first := open(t, nil)
		w := world{f, s, r, first, rotate(t, s, r, "second")}
		if c.disabled {
			if err := s.Disable(t.Context(), r, first); err != nil {
				t.Fatal(err)
			}
		}
		client := &interloper{Client: f.SecretsManager(), beforeMove: func() {
			if err := c.between(w); err != nil {
				t.Errorf("%s: in between: %v", what, err)
			}
		}}
		if err := c.act(w, awssm.New(client, nil)); err != nil && c.want == fault.Unknown || c.want != fault.Unknown && !fault.Is(err, c.want) {
			t.Errorf("%s: %v of kind %s; want %s", what, err, fault.KindOf(err), c.want)
		}
		switch c.state {
		case "disabled", "enabled":
			wantPrevious(t, s, r, first, c.state == "disabled")
		case "superseded":
			wantPrevious(t, s, r, w.second, false)
		case "gone":
			wantPrevious(t, s, r, "", false)
		}
	}
}

// Disable and Enable at once, with a rotation in between: no version that may
// have to come back is ever without a label.
func TestDisableBesideEnable(t *testing.T) {
	f, s, r, first := open(t, nil)
	second := rotate(t, s, r, "second")
	var wg sync.WaitGroup
	for i := range 6 {
		wg.Go(func() {
			for range 15 {
				act := s.Disable
				if i%2 == 0 {
					act = s.Enable
				}
				if err := act(t.Context(), r, first); err != nil && fault.ClassOf(err) != fault.ClassConcurrency {
					t.Error(err)
				}
				if len(f.Labels(name)[first]) == 0 {
					t.Error("a version that can be enabled has no label")
				}
			}
		})
	}
	wg.Wait()
	if err := s.Enable(t.Context(), r, first); err != nil {
		t.Fatal(err)
	}
	wantPrevious(t, s, r, first, false)
	third := rotate(t, s, r, "third")
	wantPrevious(t, s, r, second, false)
	if f.Holder(name, "AWSCURRENT") != third {
		t.Errorf("labels %v", f.Labels(name))
	}
}

// With all twenty labels in use nothing is taken away.
func TestNoLabelLeft(t *testing.T) {
	f, s, r, first := open(t, nil)
	second := rotate(t, s, r, "second")
	for i := range 18 { // with AWSCURRENT and AWSPREVIOUS twenty
		f.SetLabel(name, fmt.Sprintf("mine-%d", i), second)
	}
	wantKind(t, "disable", s.Disable(t.Context(), r, first), fault.Unavailable, fault.ClassQuota)
	wantPrevious(t, s, r, first, false)
	f.SetLabel(name, "mine-0", "")
	if err := s.Disable(t.Context(), r, first); err != nil {
		t.Error(err)
	}
	wantPrevious(t, s, r, first, true)
}

func TestActivated(t *testing.T) {
	f, s, r, first := open(t, nil)
	ctx := t.Context()
	at := func() time.Time {
		t.Helper()
		d, err := s.Describe(ctx, r)
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range d.Versions {
			if v.ID != d.Holder(secrets.Current).ID && !v.Activated.IsZero() {
				t.Errorf("%+v is not current and was activated", v)
			}
		}
		return d.Holder(secrets.Current).Activated
	}
	token := awsfake.Token()
	if _, err := s.PutPending(ctx, r, token, str("new")); err != nil {
		t.Fatal(err)
	}
	begun := time.Now().Truncate(time.Millisecond) // the wire's resolution
	if _, err := s.Promote(ctx, r, token); err != nil {
		t.Fatal(err)
	}
	promoted := at()
	if promoted.Before(begun) || promoted.After(time.Now()) {
		t.Errorf("activated at %s; want between %s and now", promoted, begun)
	}
	if later := at(); !later.Equal(at()) {
		t.Error("looking changed when the version was activated")
	}

	// A rotation of the service: what is changed afterwards does not count.
	const lambda = "arn:aws:lambda:us-east-1:111122223333:function:rotate"
	f.RegisterLambda(lambda, func(ctx context.Context, payload []byte) error {
		var e struct{ Step, ClientRequestToken string }
		if err := json.Unmarshal(payload, &e); err != nil {
			return err
		}
		var err error
		switch e.Step {
		case "createSecret":
			_, err = s.PutPending(ctx, r, e.ClientRequestToken, str(e.ClientRequestToken))
		case "finishSecret":
			_, err = s.Promote(ctx, r, e.ClientRequestToken)
		}
		return err
	})
	begun = time.Now().Truncate(time.Millisecond)
	if _, err := f.SecretsManager().RotateSecret(ctx, &secretsmanager.RotateSecretInput{SecretId: aws.String(name), RotationLambdaARN: aws.String(lambda)}); err != nil {
		t.Fatal(err)
	}
	if got := f.Wait(); got[0].Err != nil {
		t.Fatal(got[0].Err)
	}
	driven := at()
	if driven.Before(begun) || driven.After(time.Now()) {
		t.Errorf("activated at %s; want between %s and now", driven, begun)
	}
	next := awsfake.Token()
	f.StartRotation(name, next) // its label is a change
	f.SetTags(name, map[string]string{"a": "b"})
	if got := at(); !got.Equal(driven) {
		t.Errorf("activated at %s, and at %s after a tag", driven, got)
	}
	// Without the permission it is the last change.
	f.FailNext("ListSecretVersionIds", "AccessDeniedException")
	if got := at(); got.Before(f.LastChanged(name).Truncate(time.Millisecond)) {
		t.Errorf("activated at %s; want the last change", got)
	}
	// Whatever else makes a version current, it is never too early.
	current := f.Holder(name, "AWSCURRENT")
	for what, change := range map[string]func(){
		"moved back by hand": func() { f.SetLabel(name, "AWSCURRENT", token); f.SetLabel(name, "AWSPREVIOUS", current) },
		"previous removed":   func() { f.SetLabel(name, "AWSPREVIOUS", "") },
		"moved far back":     func() { f.SetLabel(name, "AWSCURRENT", first); f.SetLabel(name, "AWSPREVIOUS", current) },
		"written by hand": func() {
			if _, err := f.SecretsManager().PutSecretValue(ctx, &secretsmanager.PutSecretValueInput{SecretId: aws.String(name), SecretString: aws.String("x")}); err != nil {
				t.Fatal(err)
			}
		},
		"a rotation of ours": func() { f.SetLabel(name, "AWSPENDING", ""); rotate(t, s, r, "ours") },
	} {
		begun := time.Now().Truncate(time.Millisecond)
		change()
		if got := at(); got.Before(begun) {
			t.Errorf("%s: activated at %s; want not before %s", what, got, begun)
		}
	}
}

// Each move of a label of ours is told on the bus, and none that an agent acts on.
func TestEventsOfRetiring(t *testing.T) {
	f, s, r, first := open(t, nil)
	ctx := t.Context()
	rotate(t, s, r, "new")
	before := len(f.Events("default"))
	for _, act := range []func() error{
		func() error { return s.Disable(ctx, r, first) },
		func() error { return s.Enable(ctx, r, first) },
		func() error { return s.Disable(ctx, r, first) },
		func() error { return s.Destroy(ctx, r, first) },
	} {
		if err := act(); err != nil {
			t.Fatal(err)
		}
	}
	got := f.Events("default")[before:]
	want := []string{awssm.Retired, awssm.Held}
	if len(got) != len(want) {
		t.Fatalf("events %+v; want %v", got, want)
	}
	for i, e := range got {
		var detail map[string]string
		if err := json.Unmarshal(e.Detail, &detail); err != nil || detail["labelUpdated"] != want[i] || detail["versionId"] != first || e.DetailType != "Secret Label Updated" {
			t.Errorf("event %+v, %s, %v; want %s", e, e.Detail, err, want[i])
		}
	}
}

func TestRetireCrashes(t *testing.T) {
	b := newBackend(1, false)(t).(*backend)
	points := crashtest.Run(t, func(t *testing.T, in *crashtest.Injector) {
		r := b.Create(t, str("old"))
		seeds := b.Open(t, nil).(*awssm.Store)
		old := b.fake.Holder(r.Name, "AWSCURRENT")
		token := rotate(t, seeds, r, "new")
		s := b.Open(t, in).(*awssm.Store)
		for i, step := range []func() error{
			func() error { return s.Disable(t.Context(), r, old) },
			func() error { return s.Enable(t.Context(), r, old) },
			func() error { return s.Disable(t.Context(), r, old) },
			func() error { return s.Destroy(t.Context(), r, old) },
		} {
			if err := step(); err != nil {
				if len(b.fake.Labels(r.Name)[old]) == 0 && i < 3 {
					t.Error("a failure left a version that must come back without a label")
				}
				in.Restart()
				if err := step(); err != nil {
					t.Fatalf("retry after a failure at %q: %v", in.Fired(), err)
				}
			}
			switch i {
			case 1:
				wantPrevious(t, seeds, r, old, false)
			case 3:
				wantPrevious(t, seeds, r, "", false)
			default:
				wantPrevious(t, seeds, r, old, true)
			}
		}
		if b.fake.Holder(r.Name, "AWSCURRENT") != token {
			t.Error("retiring moved AWSCURRENT")
		}
	})
	t.Logf("crash points of retiring: %d", points)
}

func TestRetireErrorsHoldNoValue(t *testing.T) {
	f, s, _, _ := open(t, nil)
	canary := leaktest.Canary()
	f.Create("leak", canary)
	r, old := f.Ref("leak"), f.Holder("leak", "AWSCURRENT")
	rotate(t, s, r, canary+"1")
	rec := &leaktest.Recorder{}
	for _, op := range []string{"DescribeSecret", "UpdateSecretVersionStage"} {
		for _, code := range []string{"AccessDeniedException", "ThrottlingException", "InternalServiceError", "InvalidParameterException", "InvalidRequestException"} {
			for _, act := range []func() error{
				func() error { return s.Disable(t.Context(), r, old) },
				func() error { return s.Enable(t.Context(), r, old) },
				func() error { return s.Destroy(t.Context(), r, old) },
			} {
				f.FailNext(op, code)
				rec.Record(act())
			}
		}
	}
	rec.Check(t, canary)
}
