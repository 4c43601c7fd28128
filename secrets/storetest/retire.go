package storetest

import (
	"context"
	"fmt"
	"testing"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/leaktest"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/secrets"
)

// retire is the suite of a [secrets.Disabler].
func retire(t *testing.T, b Backend, _ abilities) {
	for _, c := range []struct {
		name string
		run  func(ctx context.Context, t *testing.T, b Backend, s disabler)
	}{
		{"disable", testDisable},
		{"enable", testEnable},
		{"destroy", testDestroy},
		{"current and pending stay", testInUse},
		{"versions that are not there", testNoVersion},
		{"the next rotation", testAfterDisable},
		{"a version of an older generation", testOldVersion},
		{"a context that ended", testRetireContext},
	} {
		t.Run(c.name, func(t *testing.T) { c.run(tctx(t), t, b, openDisabler(t, b)) })
	}
}

// A disabler is a store that is a [secrets.Disabler] too.
type disabler struct {
	secrets.Store
	secrets.Disabler
}

func openDisabler(t *testing.T, b Backend) disabler {
	t.Helper()
	s := b.Open(t, nil)
	return disabler{s, s.(secrets.Disabler)}
}

// A superseded is a secret that was rotated twice, so that current and previous
// have a token each.
type superseded struct {
	r                           ref.Ref
	current, previous           secrets.Value
	currentToken, previousToken string
	id                          string // of the previous version
}

func supersede(ctx context.Context, t *testing.T, b Backend) superseded {
	t.Helper()
	s := b.Open(t, nil)
	w := superseded{r: b.Create(t, value()), previous: value(), current: value(), previousToken: token(), currentToken: token()}
	for _, c := range []struct {
		tok string
		v   secrets.Value
	}{{w.previousToken, w.previous}, {w.currentToken, w.current}} {
		put(ctx, t, b, s, w.r, c.tok, c.v)
		must[*secrets.Version](t, "promote")(s.Promote(ctx, w.r, c.tok))
	}
	w.id = must[*secrets.Version](t, "get previous")(s.Get(ctx, w.r, secrets.Previous)).ID
	return w
}

// stages is how w looks with its previous version in that standing.
func (w superseded) stages(st standing) stages {
	return stages{current: w.current, currentToken: w.currentToken, previous: w.previous, standing: st}
}

// wantPrevious fails t unless the version that w was made with still is the
// previous one, whether it can be read or not.
func (w superseded) wantPrevious(ctx context.Context, t *testing.T, s secrets.Store, st standing) {
	t.Helper()
	wantStages(ctx, t, s, w.r, w.stages(st))
	d := must[*secrets.Description](t, "describe")(s.Describe(ctx, w.r))
	if h := d.Holder(secrets.Previous); h != nil && (h.ID != w.id || h.Token != w.previousToken) {
		t.Errorf("previous is version %q of rotation %q, expected %q of %q", h.ID, h.Token, w.id, w.previousToken)
	}
}

func wantOK(t *testing.T, what string, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

func testDisable(ctx context.Context, t *testing.T, b Backend, s disabler) {
	w := supersede(ctx, t, b)
	for range 3 { // the first does it, the others change nothing
		wantOK(t, "disable", s.Disable(ctx, w.r, w.id))
		w.wantPrevious(ctx, t, b.Open(t, nil), disabled)
	}
	// The token is not free for that.
	_, err := s.PutPending(ctx, w.r, w.previousToken, value())
	wantKind(t, "put pending under the disabled version's token", err, fault.Conflict)
	_, err = s.Promote(ctx, w.r, w.previousToken)
	wantKind(t, "promote the disabled version's token", err, fault.Conflict)
	must[*secrets.Version](t, "promote current again")(s.Promote(ctx, w.r, w.currentToken))
	wantOK(t, "discard of what is current", s.Discard(ctx, w.r, w.currentToken))
	w.wantPrevious(ctx, t, s, disabled)
}

func testEnable(ctx context.Context, t *testing.T, b Backend, s disabler) {
	w := supersede(ctx, t, b)
	wantOK(t, "enable what was never disabled", s.Enable(ctx, w.r, w.id))
	w.wantPrevious(ctx, t, s, untouched)
	for range 2 { // there and back, and once more
		wantOK(t, "disable", s.Disable(ctx, w.r, w.id))
		for range 2 {
			wantOK(t, "enable", openDisabler(t, b).Enable(ctx, w.r, w.id))
			w.wantPrevious(ctx, t, b.Open(t, nil), held)
			got := must[*secrets.Version](t, "get previous")(s.Get(ctx, w.r, secrets.Previous))
			wantVersion(t, "what was disabled and enabled", got, w.previousToken, w.previous)
		}
	}
}

func testDestroy(ctx context.Context, t *testing.T, b Backend, s disabler) {
	w := supersede(ctx, t, b)
	wantKind(t, "destroy of what is not disabled", s.Destroy(ctx, w.r, w.id), fault.Conflict)
	w.wantPrevious(ctx, t, s, untouched)
	wantOK(t, "disable", s.Disable(ctx, w.r, w.id))
	wantOK(t, "enable", s.Enable(ctx, w.r, w.id))
	wantKind(t, "destroy of what is enabled again", s.Destroy(ctx, w.r, w.id), fault.Conflict)
	w.wantPrevious(ctx, t, s, held)

	wantOK(t, "disable", s.Disable(ctx, w.r, w.id))
	for range 2 {
		wantOK(t, "destroy", openDisabler(t, b).Destroy(ctx, w.r, w.id))
		wantGone(ctx, t, b, w)
	}
	next(ctx, t, b, w.r, w.current)
}

// wantGone fails t unless w's previous version was destroyed and current is as
// it was. A store may still tell that there was one, and that it is disabled.
func wantGone(ctx context.Context, t *testing.T, b Backend, w superseded) {
	t.Helper()
	wantDestroyed(t, b, w.r, w.previous, w.current)
	s := openDisabler(t, b)
	wantKind(t, "enable of what was destroyed", s.Enable(ctx, w.r, w.id), fault.NotFound)
	_, err := s.Get(ctx, w.r, secrets.Previous)
	wantKind(t, "get previous, which was destroyed", err, fault.NotFound)
	got := must[*secrets.Version](t, "get current")(s.Get(ctx, w.r, secrets.Current))
	wantVersion(t, "current beside a destroyed version", got, w.currentToken, w.current)
	d := must[*secrets.Description](t, "describe")(s.Describe(ctx, w.r))
	if h := d.Holder(secrets.Previous); h != nil && (!h.Disabled || h.ID != w.id) {
		t.Errorf("previous is described as %+v after version %s was destroyed", h, w.id)
	}
}

// testInUse: what a reader or a rotation still needs cannot be taken away.
func testInUse(ctx context.Context, t *testing.T, b Backend, s disabler) {
	w := supersede(ctx, t, b)
	v, tok := value(), token()
	put(ctx, t, b, s, w.r, tok, v)
	d := must[*secrets.Description](t, "describe")(s.Describe(ctx, w.r))
	for _, stage := range []secrets.Stage{secrets.Current, secrets.Pending} {
		h := d.Holder(stage)
		if h == nil {
			t.Fatalf("nobody is described as %s", stage)
		}
		wantKind(t, fmt.Sprintf("disable the %s version", stage), s.Disable(ctx, w.r, h.ID), fault.Conflict)
		wantKind(t, fmt.Sprintf("destroy the %s version", stage), s.Destroy(ctx, w.r, h.ID), fault.Conflict)
		wantOK(t, fmt.Sprintf("enable the %s version", stage), s.Enable(ctx, w.r, h.ID))
		if h.ID == w.id {
			t.Errorf("version %s is described as %s and as previous", h.ID, stage)
		}
	}
	want := w.stages(untouched)
	want.pending, want.pendingToken = v, tok
	wantStages(ctx, t, b.Open(t, nil), w.r, want)
	// Beside a pending version the previous one can be.
	wantOK(t, "disable beside a pending version", s.Disable(ctx, w.r, w.id))
	want.standing = disabled
	wantStages(ctx, t, b.Open(t, nil), w.r, want)
}

// unlike returns an id of the form of id that no version has: a provider may
// refuse another form unseen.
func unlike(id string) string {
	last := byte('9')
	if id[len(id)-1] == last {
		last = '8'
	}
	return id[:len(id)-1] + string(last)
}

func testNoVersion(ctx context.Context, t *testing.T, b Backend, s disabler) {
	w := supersede(ctx, t, b)
	none := unlike(w.id)
	wantKind(t, "disable a version that is not there", s.Disable(ctx, w.r, none), fault.NotFound)
	wantKind(t, "enable a version that is not there", s.Enable(ctx, w.r, none), fault.NotFound)
	wantOK(t, "destroy a version that is not there", s.Destroy(ctx, w.r, none))
	for _, id := range []string{"", "no such version", "../" + w.id, w.id + "/x?y=z"} {
		wantKind(t, fmt.Sprintf("disable version %q", id), s.Disable(ctx, w.r, id), fault.NotFound, fault.Invalid)
		wantKind(t, fmt.Sprintf("enable version %q", id), s.Enable(ctx, w.r, id), fault.NotFound, fault.Invalid)
		if err := s.Destroy(ctx, w.r, id); err != nil {
			wantKind(t, fmt.Sprintf("destroy version %q", id), err, fault.NotFound, fault.Invalid)
		}
	}
	w.wantPrevious(ctx, t, s, untouched)

	unknown := w.r
	unknown.Name += "-unknown"
	for _, r := range []ref.Ref{unknown, {}} {
		wantKind(t, fmt.Sprintf("disable a version of %q", r), s.Disable(ctx, r, w.id), fault.NotFound, fault.Invalid)
		wantKind(t, fmt.Sprintf("enable a version of %q", r), s.Enable(ctx, r, w.id), fault.NotFound, fault.Invalid)
		if err := s.Destroy(ctx, r, w.id); err != nil {
			wantKind(t, fmt.Sprintf("destroy a version of %q", r), err, fault.NotFound, fault.Invalid)
		}
	}
}

// testAfterDisable: a disabled previous version is in nobody's way, and what
// supersedes it as previous is not disabled.
func testAfterDisable(ctx context.Context, t *testing.T, b Backend, s disabler) {
	w := supersede(ctx, t, b)
	wantOK(t, "disable", s.Disable(ctx, w.r, w.id))
	v, tok := value(), token()
	put(ctx, t, b, s, w.r, tok, v)
	want := w.stages(disabled)
	want.pending, want.pendingToken = v, tok
	wantStages(ctx, t, b.Open(t, nil), w.r, want)
	for range 2 {
		must[*secrets.Version](t, "promote")(s.Promote(ctx, w.r, tok))
		wantStages(ctx, t, b.Open(t, nil), w.r, stages{current: v, currentToken: tok, previous: w.current})
	}
}

// testOldVersion: a store may have forgotten a version that holds no stage any
// more. If not, it can be retired like another, and no stage moves.
func testOldVersion(ctx context.Context, t *testing.T, b Backend, s disabler) {
	w := supersede(ctx, t, b)
	wantOK(t, "disable", s.Disable(ctx, w.r, w.id))
	v, tok := value(), token()
	put(ctx, t, b, s, w.r, tok, v)
	must[*secrets.Version](t, "promote")(s.Promote(ctx, w.r, tok))
	same := func() {
		t.Helper()
		wantStages(ctx, t, b.Open(t, nil), w.r, stages{current: v, currentToken: tok, previous: w.current})
	}
	if err := s.Enable(ctx, w.r, w.id); err != nil {
		wantKind(t, "enable an old version", err, fault.NotFound)
		wantKind(t, "disable a forgotten version", s.Disable(ctx, w.r, w.id), fault.NotFound)
		wantOK(t, "destroy a forgotten version", s.Destroy(ctx, w.r, w.id))
		same()
		return
	}
	same()
	wantKind(t, "destroy an old version that is not disabled", s.Destroy(ctx, w.r, w.id), fault.Conflict)
	for range 2 {
		wantOK(t, "disable an old version", s.Disable(ctx, w.r, w.id))
		same()
	}
	for range 2 {
		wantOK(t, "destroy an old version", s.Destroy(ctx, w.r, w.id))
		wantKind(t, "enable an old version that was destroyed", s.Enable(ctx, w.r, w.id), fault.NotFound)
		same()
	}
}

func testRetireContext(ctx context.Context, t *testing.T, b Backend, s disabler) {
	w := supersede(ctx, t, b)
	ended, cancel := context.WithCancel(ctx)
	cancel()
	wantKind(t, "disable after the context ended", s.Disable(ended, w.r, w.id), fault.Unavailable)
	w.wantPrevious(ctx, t, s, untouched)
	wantOK(t, "disable", s.Disable(ctx, w.r, w.id))
	wantKind(t, "enable after the context ended", s.Enable(ended, w.r, w.id), fault.Unavailable)
	wantKind(t, "destroy after the context ended", s.Destroy(ended, w.r, w.id), fault.Unavailable)
	w.wantPrevious(ctx, t, s, disabled)
	wantOK(t, "enable", s.Enable(ctx, w.r, w.id))
	w.wantPrevious(ctx, t, s, held)
}

// leakRetire retires what r superseded, wrongly first and in every way, and
// records what comes back. seer is a store that fails nothing. The versions
// that are in use, and those that are not there, are tried where every.
func leakRetire(ctx context.Context, t *testing.T, d secrets.Disabler, rec *leaktest.Recorder, seer secrets.Store, r ref.Ref, every bool) {
	t.Helper()
	desc := must[*secrets.Description](t, "describe")(seer.Describe(ctx, r))
	var ids []string
	if h := desc.Holder(secrets.Previous); h != nil {
		ids = append(ids, h.ID)
	}
	if every {
		ids = append(ids, "", "no such version")
		for _, v := range desc.Versions {
			ids = append(ids, v.ID, unlike(v.ID))
		}
		rec.Record(d.Disable(ctx, ref.Ref{}, "1"), d.Enable(ctx, ref.Ref{}, "1"), d.Destroy(ctx, ref.Ref{}, "1"))
	}
	for _, id := range ids {
		rec.Record(d.Destroy(ctx, r, id), d.Disable(ctx, r, id), d.Enable(ctx, r, id), d.Disable(ctx, r, id), d.Destroy(ctx, r, id))
	}
}
