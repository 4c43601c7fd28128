package integration

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/leaktest"
	"github.com/keyturn/keyturn/rotators"
)

// The tests TestC01 to TestC32, here and in aws_database_test.go, are the
// contract of a rotation function of AWS Secrets Manager, taken from what the
// samples of AWS do and stricter where they are weak. They run the whole
// function, from the event to the database, with the real SDK.

// C01: a secret whose rotation was turned off is refused.
func TestC01_RotationDisabled(t *testing.T) {
	w := newWorld(t)
	token := w.begin()
	w.tap.rewrite = func(c awsCall, answer map[string]any) {
		if c.Op == "DescribeSecret" {
			answer["RotationEnabled"] = false
		}
	}
	w.untouched(func() {
		for _, s := range allSteps {
			if err := w.refused(s, token, fault.Invalid); !strings.Contains(err.Error(), "not enabled for rotation") {
				t.Errorf("%s: %v; want it to say that rotation is not enabled", s, err)
			}
		}
	})
}

// C02: a service that does not say whether rotation is on is taken at its
// word that there is one.
func TestC02_RotationEnabledAbsent(t *testing.T) {
	w := newWorld(t)
	token := w.begin()
	seen := false
	w.tap.rewrite = func(c awsCall, answer map[string]any) {
		if c.Op == "DescribeSecret" {
			delete(answer, "RotationEnabled")
			seen = true
		}
	}
	w.must(token, createStep)
	if !seen {
		t.Fatal("DescribeSecret was not called, so nothing was tested")
	}
}

// C03: a token that no version has is refused.
func TestC03_UnknownToken(t *testing.T) {
	w := newWorld(t)
	w.untouched(func() {
		for _, s := range allSteps {
			if err := w.refused(s, rotators.NewToken(), fault.Invalid); !strings.Contains(err.Error(), "no stage for rotation") {
				t.Errorf("%s: %v; want it to say that the token has no stage", s, err)
			}
		}
	})
}

// C04: a token that is current is a finished rotation, for every step.
func TestC04_AlreadyCurrent(t *testing.T) {
	w := newWorld(t)
	token := w.holder(current)
	w.untouched(func() {
		// The step's name is looked at last, as in the samples.
		w.must(token, append(slices.Clone(allSteps), "noSuchStep")...)
	})
}

// C05: a token that is not pending is refused, whatever else it was.
func TestC05_NotPending(t *testing.T) {
	w := newWorld(t)
	old := w.holder(current)
	w.replace(w.json(nil))
	if w.holder(previous) != old {
		t.Fatal("the old version is not AWSPREVIOUS, so nothing is tested")
	}
	other := w.put(rotators.NewToken(), w.json(nil), "custom-label")
	w.untouched(func() {
		for _, token := range []string{old, other} {
			for _, s := range allSteps {
				_ = w.refused(s, token, fault.Invalid)
			}
		}
	})
}

// C06: an unknown step is refused, after the labels were looked at.
func TestC06_UnknownStep(t *testing.T) {
	w := newWorld(t)
	token := w.begin()
	w.untouched(func() {
		for _, s := range []string{"rotateSecret", "CREATESECRET", "createSecretSecret "} {
			if err := w.refused(s, token, fault.Invalid); !strings.Contains(err.Error(), "not a step") {
				t.Errorf("%q: %v; want it to list the steps", s, err)
			}
		}
		if err := w.refused("rotateSecret", rotators.NewToken(), fault.Invalid); !strings.Contains(err.Error(), "no stage for rotation") {
			t.Errorf("%v; want the token to be found wanting first", err)
		}
	})
}

// C07: create stores one pending value, a copy of the current one with
// another password.
func TestC07_CreateKeepsWhatItDoesNotKnow(t *testing.T) {
	for _, spelling := range []string{"createSecret", "create_secret"} {
		t.Run(spelling, func(t *testing.T) {
			w := newWorld(t)
			extra := `,"ratio":1.50,"big":12345678901234567890,"exp":1e2,"nested":{"b":[1,null,true],"a":"\u00e9"},"nothing":null}`
			before := strings.TrimSuffix(w.json(nil), "}") + extra
			was := w.replace(before)
			token := w.begin()
			w.must(token, spelling)
			puts := w.tap.of("PutSecretValue")
			if len(puts) != 1 || w.tap.written() != 1 {
				t.Fatalf("%d puts, %d writes; want exactly one put", len(puts), w.tap.written())
			}
			in := puts[0].In
			if in["ClientRequestToken"] != token || fmt.Sprint(in["VersionStages"]) != "[AWSPENDING]" || in["RotationToken"] != w.rotationToken {
				t.Errorf("put with token %v, stages %v; want the rotation's, its RotationToken, and AWSPENDING only", in["ClientRequestToken"], in["VersionStages"])
			}
			after := w.value(token)
			if raw := strings.ReplaceAll(extra, `\u00e9`, "é"); !strings.HasSuffix(strings.ReplaceAll(after, `\u00e9`, "é"), raw) {
				t.Error("an unknown key, or how a number is written, was not kept")
			}
			a, b := w.fields(before), w.fields(after)
			pw, _ := b["password"].(string)
			if len(pw) != 32 || strings.ContainsAny(pw, `:/@"'\`) || pw == w.password {
				t.Errorf("a password of %d characters; want a new one of 32 without the excluded", len(pw))
			}
			delete(a, "password")
			delete(b, "password")
			if fmt.Sprint(a) != fmt.Sprint(b) {
				t.Errorf("pending has %v; want %v", b, a)
			}
			if w.holder(current) != was || w.value(current) != before {
				t.Error("the current value changed")
			}
			if w.gate.n.Load() != 0 {
				t.Error("create connected to the database")
			}
		})
	}
}

// C08: create repeated changes nothing.
func TestC08_CreateRepeated(t *testing.T) {
	w := newWorld(t)
	token := w.begin()
	w.must(token, createStep)
	first := w.value(token)
	w.untouched(func() { w.must(token, createStep, createStep) })
	if w.value(token) != first {
		t.Error("pending was overwritten")
	}
}

// C09: only "there is none" leads to a new pending value; a read that was
// refused may hide one.
func TestC09_PendingCannotBeRead(t *testing.T) {
	for _, c := range []struct {
		refusal
		want  fault.Kind
		tries int // of the SDK, for one call
	}{
		{refusal{http.StatusBadRequest, "AccessDeniedException"}, fault.Denied, 1},
		{refusal{http.StatusBadRequest, "DecryptionFailure"}, fault.Denied, 1},
		{refusal{http.StatusBadRequest, "ThrottlingException"}, fault.Unavailable, 2},
		{refusal{http.StatusInternalServerError, "InternalServiceError"}, fault.Unavailable, 2},
		{refusal{http.StatusServiceUnavailable, "ServiceUnavailable"}, fault.Unavailable, 2},
	} {
		t.Run(c.code, func(t *testing.T) {
			w := newWorld(t)
			token := w.begin()
			hits := 0
			w.tap.before = func(call awsCall) *refusal {
				// The pending version, asked for by its label, its id or both;
				// the first call only, so that nothing later can stop create.
				if call.Op == "GetSecretValue" && call.In["VersionStage"] != current && call.In["VersionStage"] != previous {
					if hits++; hits <= c.tries {
						return &c.refusal
					}
				}
				return nil
			}
			w.silent(func() { _ = w.refused(createStep, token, c.want) })
			if hits != c.tries {
				t.Errorf("pending was asked for %d times; want %d, and no further look", hits, c.tries)
			}
		})
	}
}

// C10: when a twin stores pending first, its value is the truth.
func TestC10_CreateRaced(t *testing.T) {
	w := newWorld(t)
	token := w.begin()
	twin := w.json(map[string]any{"password": "of-the-twin-" + w.password})
	raced := false
	w.tap.before = func(c awsCall) *refusal {
		if c.Op == "PutSecretValue" && !raced {
			raced = true
			w.put(token, twin, pending)
		}
		return nil
	}
	w.must(token, createStep)
	if !raced {
		t.Fatal("nothing was put, so nothing was tested")
	}
	if w.value(token) != twin {
		t.Error("what the twin stored was replaced")
	}
	w.silent(func() { w.must(token, createStep) })
}

// C11: a current value that cannot be used is an error that shows nothing of
// it.
func TestC11_CurrentUnusable(t *testing.T) {
	secret := leaktest.Canary()
	for _, c := range []struct{ name, value, want string }{
		{"not JSON", secret, "not one JSON object"},
		{"cut", `{"engine":"postgres","password":"` + secret, "not one JSON object"},
		{"array", `["` + secret + `"]`, "not one JSON object"},
		{"no host", `{"engine":"postgres","username":"app","password":"` + secret + `"}`, `"host" is missing`},
		{"no username", `{"engine":"postgres","host":"h","password":"` + secret + `"}`, `"username" is missing`},
		{"no password", `{"engine":"postgres","host":"h","username":"app","x":"` + secret + `"}`, `"password" is missing`},
		{"no engine", `{"host":"h","username":"app","password":"` + secret + `"}`, `"engine" is missing`},
		{"wrong engine", `{"engine":"` + secret + `","host":"h","username":"app","password":"` + secret + `"}`, `"engine"`},
		{"number", `{"engine":"postgres","host":"h","username":"app","password":` + strings.Repeat("7", 40) + `}`, `"password"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			w.canaries = append(w.canaries, secret)
			w.replace(c.value)
			token := w.begin()
			w.untouched(func() {
				if err := w.refused(createStep, token, fault.Invalid); !strings.Contains(err.Error(), c.want) {
					t.Errorf("%v; want it to contain %s", err, c.want)
				}
			})
		})
	}
	t.Run("missing", func(t *testing.T) {
		w := newWorld(t)
		token := w.begin()
		w.tap.before = func(c awsCall) *refusal {
			if c.Op == "GetSecretValue" && c.In["VersionStage"] == current {
				return &refusal{http.StatusBadRequest, "ResourceNotFoundException"}
			}
			return nil
		}
		w.untouched(func() { _ = w.refused(createStep, token, fault.NotFound) })
	})
}

// C22: finish moves AWSCURRENT once, and only from the version that it saw.
func TestC22_Finish(t *testing.T) {
	for _, spelling := range []string{"finishSecret", "finish_secret"} {
		t.Run(spelling, func(t *testing.T) {
			w := newWorld(t)
			old := w.holder(current)
			token := w.begin()
			w.must(token, createStep)
			n := w.gate.n.Load()
			w.must(token, spelling)
			moves := w.moves()
			if len(moves) != 1 {
				t.Fatalf("AWSCURRENT was moved %d times; want once", len(moves))
			}
			if in := moves[0].In; in["MoveToVersionId"] != token || in["RemoveFromVersionId"] != old {
				t.Errorf("moved from %v to %v; want from %s to %s", in["RemoveFromVersionId"], in["MoveToVersionId"], old, token)
			}
			if w.holder(current) != token || w.holder(previous) != old {
				t.Errorf("current %s, previous %s; want %s and %s", w.holder(current), w.holder(previous), token, old)
			}
			if w.gate.n.Load() != n {
				t.Error("finish connected to the database")
			}
		})
	}
}

// moves are the requests that would move AWSCURRENT.
func (w *world) moves() []awsCall {
	var out []awsCall
	for _, c := range w.tap.of("UpdateSecretVersionStage") {
		if c.In["VersionStage"] == current {
			out = append(out, c)
		}
	}
	return out
}

// C23: finish repeated changes nothing, and what comes after the move is
// done again: the announcement may have been what failed.
func TestC23_FinishRepeated(t *testing.T) {
	w := newWorld(t, "KEYTURN_EVENT_BUS=fleet")
	token := w.begin()
	w.must(token, createStep)
	failed := false
	w.tap.before = func(c awsCall) *refusal {
		if c.Op == "PutEvents" && len(w.moves()) > 0 && !failed {
			failed = true
			return &refusal{http.StatusBadRequest, "AccessDeniedException"}
		}
		return nil
	}
	_ = w.refused(finishStep, token, fault.Denied)
	if !failed || w.holder(current) != token {
		t.Fatal("the announcement did not fail after the move, so nothing is tested")
	}
	w.silent(func() { w.must(token, finishStep) })
	w.silent(func() { w.must(token, finishStep) })
	ids := map[string]int{}
	for _, c := range w.tap.of("PutEvents") {
		for _, e := range entries(c) {
			if e["DetailType"] == "dev.keyturn.version.activated.v1" {
				ids[fmt.Sprint(e["id"])]++
			}
		}
	}
	if len(ids) != 1 || slices.Collect(maps.Values(ids))[0] != 3 {
		t.Errorf("activations by id: %v; want one id, announced by each of three", ids)
	}
	if len(w.moves()) != 1 {
		t.Errorf("AWSCURRENT was moved %d times; want once", len(w.moves()))
	}
}

// entries are those of a PutEvents call, each with the id from its detail.
func entries(c awsCall) []map[string]any {
	var out []map[string]any
	list, _ := c.In["Entries"].([]any)
	for _, e := range list {
		m, _ := e.(map[string]any)
		var d struct {
			ID string `json:"id"`
		}
		s, _ := m["Detail"].(string)
		_ = json.Unmarshal([]byte(s), &d)
		m["id"] = d.ID
		out = append(out, m)
	}
	return out
}

// C24: somebody moves AWSCURRENT between the look and the move. The move is
// refused by the service, and finish looks again.
func TestC24_FinishRaced(t *testing.T) {
	w := newWorld(t)
	old := w.holder(current)
	token := w.begin()
	w.must(token, createStep)
	intruder := w.put(rotators.NewToken(), w.json(nil), "custom-label")
	raced := false
	w.tap.before = func(c awsCall) *refusal {
		if c.Op == "UpdateSecretVersionStage" && !raced {
			raced = true
			w.move(current, old, intruder)
		}
		return nil
	}
	err := w.step(finishStep, token)
	if !raced {
		t.Fatal("no label was moved, so nothing was tested")
	}
	moves := w.moves()
	if len(moves) == 0 || moves[0].In["RemoveFromVersionId"] != old {
		t.Fatalf("first move %v; want one from %s", moves, old)
	}
	if err != nil {
		// Handed back to Secrets Manager, which repeats the step.
		if !fault.Is(err, fault.Conflict) || w.holder(current) != intruder {
			t.Fatalf("err %v, current %s; want a Conflict that leaves %s", err, w.holder(current), intruder)
		}
		w.must(token, finishStep)
		moves = w.moves()
	}
	if last := moves[len(moves)-1].In; last["RemoveFromVersionId"] != intruder || last["MoveToVersionId"] != token {
		t.Errorf("last move %v; want from %s, as seen anew, to %s", last, intruder, token)
	}
	if w.holder(current) != token || w.holder(previous) != intruder {
		t.Errorf("current %s, previous %s; want %s and %s", w.holder(current), w.holder(previous), token, intruder)
	}
}

// C25: AWSPENDING may stay on a version that became current: the rotation is
// complete, and the next one begins.
func TestC25_PendingLeftOnCurrent(t *testing.T) {
	w := newWorld(t)
	token := w.begin()
	w.must(token, createStep, finishStep)
	if w.holder(pending) == "" {
		w.move(pending, "", token)
	}
	if w.holder(pending) != token || w.holder(current) != token {
		t.Fatalf("pending %s, current %s; want both on %s", w.holder(pending), w.holder(current), token)
	}
	w.untouched(func() { w.must(token, allSteps...) })
	next := w.begin()
	w.must(next, createStep, finishStep)
	if w.holder(current) != next || w.holder(previous) != token {
		t.Errorf("current %s, previous %s; want %s and %s", w.holder(current), w.holder(previous), next, token)
	}
}

// C28: a name that the database would cut is refused before anything is
// stored.
func TestC28_NameTooLongForAClone(t *testing.T) {
	for _, n := range []int{57, 58} { // _clone has 6 bytes, PostgreSQL keeps 63
		w := newWorld(t)
		w.replace(w.json(map[string]any{"username": strings.Repeat("u", n), "masterarn": w.arn}))
		token := w.begin()
		if n == 57 {
			w.must(token, createStep)
			if got := w.field(token, "username"); got != strings.Repeat("u", n)+"_clone" {
				t.Errorf("username %q", got)
			}
			continue
		}
		w.untouched(func() {
			if err := w.refused(createStep, token, fault.Invalid); !strings.Contains(err.Error(), "63") {
				t.Errorf("%v; want it to name the limit", err)
			}
		})
	}
}

// C29: a step is not begun with less time than one attempt takes.
func TestC29_TooLittleTime(t *testing.T) {
	w := newWorld(t)
	token := w.begin()
	w.must(token, createStep)
	stored := w.value(token)
	fresh := newWorld(t)
	freshToken := fresh.begin()
	for _, c := range []struct {
		w     *world
		token string
		steps []string
	}{{fresh, freshToken, []string{createStep}}, {w, token, []string{setStep, testStep, finishStep}}} {
		c.w.untouched(func() {
			for _, s := range c.steps {
				err := c.w.stepOn(c.w.h, s, c.token, 4*time.Second)
				if !fault.Is(err, fault.Unavailable) || fault.ClassOf(err) != fault.ClassTimeout {
					t.Errorf("%s: err %v of kind %s and class %q; want Unavailable of class timeout", s, err, fault.KindOf(err), fault.ClassOf(err))
				}
			}
		})
	}
	if w.value(token) != stored || w.holder(current) == token {
		t.Error("half a step was made")
	}
}

// C31: a rotation that is stuck holds AWSPENDING. Another is told so, and
// does not take it away.
func TestC31_ForeignPending(t *testing.T) {
	w := newWorld(t)
	old := w.holder(current)
	w.replace(w.json(nil))
	stuck := w.begin()
	w.must(stuck, createStep)
	value := w.value(stuck)
	w.untouched(func() {
		for _, s := range allSteps {
			if err := w.step(s, old); err == nil || !strings.Contains(err.Error(), stuck) {
				t.Errorf("%s: err %v; want one that names the version that is pending", s, err)
			}
		}
	})
	w.untouched(func() {
		// One that Secrets Manager does not know of, and one whose label was
		// taken away.
		for _, token := range []string{rotators.NewToken(), w.put(rotators.NewToken(), w.json(nil), "custom-label")} {
			for _, s := range allSteps {
				err := w.step(s, token)
				if !fault.Is(err, fault.Conflict) && !fault.Is(err, fault.Invalid) {
					t.Errorf("%s: err %v; want a refusal", s, err)
				}
			}
		}
	})
	if w.holder(pending) != stuck || w.value(stuck) != value {
		t.Error("the stuck rotation's version was touched")
	}
	// The label may move after the look at the labels, too: before pending is
	// read, or between that and the Put.
	for _, stage := range []string{current, pending} {
		w := newWorld(t)
		token := w.begin()
		foreign := rotators.NewToken()
		raced := false
		w.tap.after = func(c awsCall) {
			if c.Op == "GetSecretValue" && c.In["VersionStage"] == stage && !raced {
				raced = true
				w.put(foreign, w.json(map[string]any{"password": "of-the-other-" + w.password}), pending)
			}
		}
		w.silent(func() {
			if err := w.refused(createStep, token, fault.Conflict); !strings.Contains(err.Error(), foreign) {
				t.Errorf("%v; want it to name the other rotation", err)
			}
		})
		if !raced || w.holder(pending) != foreign {
			t.Errorf("after the read of %s: the other rotation lost its label", stage)
		}
	}
}

// The environment variables of the samples decide what passwords look like.
func TestPasswordsFollowTheEnvironment(t *testing.T) {
	const digits, lower, upper = "0123456789", "abcdefghijklmnopqrstuvwxyz", "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
	for _, c := range []struct {
		env    []string
		length int
		only   string // all characters are of these; "" means printable ASCII
	}{
		{nil, 32, ""},
		{[]string{"PASSWORD_LENGTH=64", "EXCLUDE_PUNCTUATION=true"}, 64, digits + lower + upper},
		{[]string{"PASSWORD_LENGTH=8", "EXCLUDE_PUNCTUATION=YES", "EXCLUDE_LOWERCASE=1", "EXCLUDE_UPPERCASE=y"}, 8, digits},
		{[]string{"EXCLUDE_NUMBERS=true", "EXCLUDE_PUNCTUATION=true", "EXCLUDE_CHARACTERS=abcXYZ"}, 32, strings.Trim(lower, "abc") + strings.Trim(upper, "XYZ")},
	} {
		w := newWorld(t, c.env...)
		token := w.begin()
		w.must(token, createStep)
		got := w.field(token, "password")
		if len(got) != c.length || c.only != "" && strings.Trim(got, c.only) != "" {
			t.Errorf("%v: a password of %d characters, or with others than meant; want %d of %q", c.env, len(got), c.length, c.only)
		}
	}
}

// Every request for the secret names it by the ARN of the event: by its name
// nobody finds the secret of another account.
func TestSecretIsAskedForByARN(t *testing.T) {
	w := newWorld(t)
	w.must(w.begin(), createStep, finishStep)
	seen := 0
	for _, op := range []string{"DescribeSecret", "GetSecretValue", "PutSecretValue", "UpdateSecretVersionStage"} {
		for _, c := range w.tap.of(op) {
			if seen++; c.In["SecretId"] != w.arn {
				t.Errorf("%s for %v; want %s", op, c.In["SecretId"], w.arn)
			}
		}
	}
	if seen < 6 || w.tap.written() != 2 {
		t.Errorf("%d requests, %d writes; want several and two", seen, w.tap.written())
	}
}
