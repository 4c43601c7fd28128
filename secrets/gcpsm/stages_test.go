package gcpsm_test

import (
	"context"
	"fmt"
	"maps"
	"strings"
	"sync"
	"testing"
	"time"

	"cloud.google.com/go/secretmanager/apiv1/secretmanagerpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/gcpfake"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/secrets"
	"github.com/keyturn/keyturn/secrets/gcpsm"
)

// TestPlainReaders: who asks for `latest` without knowing of us gets promoted
// values only, in order, and never an error, and so does who asks by alias.
func TestPlainReaders(t *testing.T) {
	const rotations = 50
	fake, s := setup(t, nil, "value-0")
	rotate(t, s, db, "token-0", "value-00") // the alias is there from here on
	allowed := map[string]int{"value-0": 0, "value-00": 0}
	for i := 1; i <= rotations; i++ {
		allowed[fmt.Sprintf("value-%d", i)] = i
	}
	plain := fake.Client(t, "")
	stop := make(chan struct{})
	var mu sync.Mutex
	promoting := 0 // the rotation whose value may be seen from now on
	var readers sync.WaitGroup
	for _, alias := range []string{"latest", "latest", "current"} {
		readers.Go(func() {
			last, reads := 0, 0
			for {
				select {
				case <-stop:
					if reads == 0 {
						t.Error("a reader read nothing")
					}
					return
				default:
				}
				resp, err := plain.AccessSecretVersion(t.Context(), &secretmanagerpb.AccessSecretVersionRequest{Name: mainName + "/versions/" + alias})
				mu.Lock()
				most := promoting
				mu.Unlock()
				if err != nil {
					t.Errorf("a plain reader of %s failed: %v", alias, err)
					return
				}
				i, known := allowed[string(resp.GetPayload().GetData())]
				if !known || i < last || i > most {
					t.Errorf("a plain reader of %s got value %d (known: %t) after %d, while %d were promoted", alias, i, known, last, most)
					return
				}
				last = i
				reads++
			}
		})
	}
	for i := 1; i <= rotations; i++ {
		tok := fmt.Sprintf("token-%d", i)
		if _, err := s.PutPending(t.Context(), db, tok, secrets.NewString(fmt.Sprintf("value-%d", i))); err != nil {
			t.Fatal(err)
		}
		if i%5 == 0 { // a retry, and one that gives up
			if err := s.Discard(t.Context(), db, tok); err != nil {
				t.Fatal(err)
			}
			continue
		}
		mu.Lock()
		promoting = i
		mu.Unlock()
		if _, err := s.Promote(t.Context(), db, tok); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	readers.Wait()
}

// TestNewestDisabled: `latest` is the newest created version. Without it plain
// readers fail, so does Get, and the next rotation repairs it.
func TestNewestDisabled(t *testing.T) {
	for _, state := range []secretmanagerpb.SecretVersion_State{secretmanagerpb.SecretVersion_DISABLED, secretmanagerpb.SecretVersion_DESTROYED} {
		t.Run(state.String(), func(t *testing.T) {
			fake, s := setup(t, nil, "old", "new")
			fake.SetState(mainName, 2, state)
			if _, ok := fake.Newest(mainName); ok {
				t.Fatal("plain readers still get a value")
			}
			_, err := s.Get(t.Context(), db, secrets.Current)
			wantKind(t, err, fault.Denied, "version 2", "enable it, or add a version")
			_, err = gcpsm.NewReader(fake.Clients(t), nil).Get(t.Context(), db, secrets.Current)
			wantKind(t, err, fault.Denied, "enable it, or add a version")
			d, err := s.Describe(t.Context(), db)
			if err != nil {
				t.Fatal(err)
			}
			if c := d.Holder(secrets.Current); c == nil || c.ID != "2" || !c.Disabled {
				t.Errorf("current is described as %+v; expected version 2, disabled", c)
			}
			rotate(t, s, db, "token", "newer")
			wantValue(t, s, secrets.Current, "newer")
		})
	}
}

// TestNotes: aliases and annotations move in one update under the etag, and
// what others keep there stays.
func TestNotes(t *testing.T) {
	fake, s := setup(t, nil, "v1")
	fake.Change(mainName, func(pb *secretmanagerpb.Secret) {
		pb.Annotations = map[string]string{"owner": "team a"}
		pb.VersionAliases = map[string]int64{"stable": 1}
	})
	fake.ForgetCalls()
	rotate(t, s, db, "one", "v2")
	updates := 0
	for _, c := range fake.Calls("UpdateSecret") {
		if !strings.HasSuffix(c.Resource, "--pending") {
			updates++
		}
	}
	if updates != 2 {
		t.Errorf("the main secret was updated %d times; expected a claim and one update for all notes", updates)
	}
	rotate(t, s, db, "two", "v3")
	sec := fake.Secret(mainName)
	if want := map[string]int64{"stable": 1, "current": 3, "previous": 2}; !maps.Equal(sec.GetVersionAliases(), want) {
		t.Errorf("the aliases are %v; expected %v", sec.GetVersionAliases(), want)
	}
	if a := sec.GetAnnotations(); len(a) != 2 || a["owner"] != "team a" || !strings.Contains(a["keyturn-versions"], `"token":"two"`) {
		t.Errorf("the annotations are %v; expected the owner and one of ours", a)
	}
	for alias, want := range map[string]string{"current": "v3", "previous": "v2", "stable": "v1"} {
		resp, err := fake.Client(t, "").AccessSecretVersion(t.Context(), &secretmanagerpb.AccessSecretVersionRequest{Name: mainName + "/versions/" + alias})
		if err != nil || string(resp.GetPayload().GetData()) != want {
			t.Errorf("alias %s reads as %q, %v; expected %q", alias, resp.GetPayload().GetData(), err, want)
		}
	}
}

// TestNotesBesideOthers: who changes the secret between our look and our
// update loses nothing, and neither do we.
func TestNotesBesideOthers(t *testing.T) {
	fake, _ := setup(t, nil, "v1")
	n := 0
	s := gcpsm.New(fake.Clients(t, on("UpdateSecret", func(context.Context) {
		if n++; n%2 == 1 {
			fake.Change(mainName, func(pb *secretmanagerpb.Secret) {
				if pb.Annotations == nil {
					pb.Annotations = map[string]string{}
				}
				pb.Annotations[fmt.Sprintf("other-%d", n)] = "x"
			})
		}
	})), nil)
	rotate(t, s, db, "one", "v2")
	wantValue(t, s, secrets.Current, "v2")
	sec := fake.Secret(mainName)
	if sec.GetVersionAliases()["current"] != 2 || sec.GetAnnotations()["other-1"] != "x" || sec.GetAnnotations()["other-3"] != "x" {
		t.Errorf("aliases %v, annotations %v; expected ours and the other's", sec.GetVersionAliases(), sec.GetAnnotations())
	}
}

func TestNoAliases(t *testing.T) {
	fake, s := setup(t, &gcpsm.Options{NoAliases: true}, "v1")
	rotate(t, s, db, "one", "v2")
	wantValue(t, s, secrets.Previous, "v1")
	if a := fake.Secret(mainName).GetVersionAliases(); len(a) != 0 {
		t.Errorf("the aliases are %v; expected none", a)
	}
}

// TestNoRoom: a rotation that could not be noted is refused before anything is
// stored.
func TestNoRoom(t *testing.T) {
	fill := map[string]func(*secretmanagerpb.Secret){
		"version aliases": func(pb *secretmanagerpb.Secret) {
			pb.VersionAliases = map[string]int64{}
			for i := range 49 {
				pb.VersionAliases[fmt.Sprintf("alias-%d", i)] = 1
			}
		},
		"annotations": func(pb *secretmanagerpb.Secret) {
			pb.Annotations = map[string]string{"big": strings.Repeat("x", 16<<10-200)}
		},
	}
	for what, f := range fill {
		t.Run(what, func(t *testing.T) {
			fake, s := setup(t, nil, "v1")
			fake.Change(mainName, f)
			_, err := s.PutPending(t.Context(), db, "one", secrets.NewString("v2"))
			wantKind(t, err, fault.Invalid, what, "remove some")
			if fake.Secret(siblingName) != nil || len(fake.Versions(mainName)) != 1 {
				t.Error("something was stored")
			}
		})
	}
	// One alias less is room enough.
	fake, s := setup(t, nil, "v1")
	fake.Change(mainName, func(pb *secretmanagerpb.Secret) {
		fill["version aliases"](pb)
		delete(pb.VersionAliases, "alias-0")
	})
	rotate(t, s, db, "one", "v2")
	if n := len(fake.Secret(mainName).GetVersionAliases()); n != 50 {
		t.Errorf("there are %d aliases; expected 50", n)
	}
}

// TestNotesByHand: what somebody made of our annotations is as good as none.
func TestNotesByHand(t *testing.T) {
	fake, s := setup(t, nil, "v1")
	rotate(t, s, db, "one", "v2")
	for _, junk := range []string{"", "{", "[]", `"x"`, `{"current":7}`, "null", strings.Repeat("[", 9000)} {
		for name, key := range map[string]string{mainName: "keyturn-versions", siblingName: "keyturn-pending"} {
			fake.Change(name, func(pb *secretmanagerpb.Secret) { pb.Annotations[key] = junk })
		}
		wantValue(t, s, secrets.Current, "v2")
		wantValue(t, s, secrets.Previous, "v1")
		_, err := s.Get(t.Context(), db, secrets.Pending)
		wantKind(t, err, fault.NotFound)
	}
	fake.Change(mainName, func(pb *secretmanagerpb.Secret) { pb.Annotations["keyturn-claim"] = "rubbish" })
	rotate(t, s, db, "two", "v3")
	wantValue(t, s, secrets.Previous, "v2")
}

// TestChecksum: what was damaged on its way is not taken for a value.
func TestChecksum(t *testing.T) {
	fake, s := setup(t, nil, "v1")
	fake.CorruptNext(1)
	_, err := s.Get(t.Context(), db, secrets.Current)
	wantKind(t, err, fault.Unavailable, "CRC32C")
	wantValue(t, s, secrets.Current, "v1")
	fake.DropChecksum(mainName, 1) // as versions of 2021
	wantValue(t, s, secrets.Current, "v1")

	rotate(t, s, db, "one", "v2")
	for _, name := range []string{mainName, siblingName} {
		all := fake.Versions(name)
		if !all[len(all)-1].GetClientSpecifiedPayloadChecksum() {
			t.Errorf("a version of %s was added without a checksum", name)
		}
	}
	fake.FailNext("AddSecretVersion", status.Error(codes.InvalidArgument, "The checksum of the payload does not match its data."))
	_, err = s.PutPending(t.Context(), db, "two", secrets.NewString("v3"))
	wantKind(t, err, fault.Unavailable, "CRC32C", "try again")
}

// TestKeyDisabled: a key that is disabled looks like a version that is. It
// must not look like nothing pending.
func TestKeyDisabled(t *testing.T) {
	fake, s := setup(t, nil, "v1")
	if _, err := s.PutPending(t.Context(), db, "one", secrets.NewString("v2")); err != nil {
		t.Fatal(err)
	}
	disabled := status.Error(codes.FailedPrecondition, "The KMS key is not enabled.")
	fake.FailNext("AccessSecretVersion", disabled, disabled, disabled, disabled) // twice a read
	_, err := s.PutPending(t.Context(), db, "two", secrets.NewString("v3"))
	wantKind(t, err, fault.Denied, "Cloud KMS key")
	_, err = s.Get(t.Context(), db, secrets.Pending)
	wantKind(t, err, fault.Denied, "Cloud KMS key")
	wantValue(t, s, secrets.Pending, "v2")
}

func TestNextRotation(t *testing.T) {
	fake := gcpfake.New(t)
	next := time.Now().Add(time.Hour).UTC().Truncate(time.Second)
	fake.Create(&secretmanagerpb.Secret{
		Name: mainName, Topics: []*secretmanagerpb.Topic{{Name: "projects/p/topics/t"}},
		Rotation: &secretmanagerpb.Rotation{NextRotationTime: timestamppb.New(next), RotationPeriod: durationpb.New(24 * time.Hour)},
	}, "v1")
	s := gcpsm.New(fake.Clients(t), nil)
	d, err := s.Describe(t.Context(), db)
	if err != nil {
		t.Fatal(err)
	}
	if !d.NextRotation.Equal(next) || d.ID != "projects/"+gcpfake.ProjectNumber+"/secrets/db" {
		t.Errorf("described as %+v; expected the next rotation at %s and the full name", d, next)
	}

	// Of all that a rotation does, listeners hear of the one new version; the
	// sibling is silent.
	rotate(t, s, db, "one", "v2")
	var types []string
	for _, n := range fake.Notices() {
		if strings.Contains(n.Attributes["secretId"], "--pending") {
			t.Errorf("the sibling sent %s", n.Attributes["eventType"])
		}
		if strings.HasPrefix(n.Attributes["eventType"], "SECRET_VERSION_") {
			types = append(types, n.Attributes["eventType"]+" "+n.Attributes["versionId"][strings.LastIndex(n.Attributes["versionId"], "/")+1:])
		}
	}
	if got := strings.Join(types, ", "); got != "SECRET_VERSION_ADD 1, SECRET_VERSION_ADD 2" {
		t.Errorf("version notices are %s", got)
	}
}

// TestProjects: people write ids, the service answers with numbers.
func TestProjects(t *testing.T) {
	fake, s := setup(t, nil, "v1")
	numbered := ref.Ref{Provider: ref.GCP, Scope: gcpfake.ProjectNumber, Name: "db"}
	got, err := s.Canonical(t.Context(), db)
	if err != nil || got != numbered {
		t.Fatalf("the canonical ref is %s, %v; expected %s", got, err, numbered)
	}
	fake.ForgetCalls()
	if got, err = s.Canonical(t.Context(), db); err != nil || got != numbered || len(fake.Calls()) != 0 {
		t.Errorf("asked again: %s, %v, %d calls; expected it to be known", got, err, len(fake.Calls()))
	}
	if back, ok := s.Projects().Named(numbered); !ok || back != db {
		t.Errorf("%s is named %s, %t; expected %s", numbered, back, ok, db)
	}
	// Both spellings are one secret, and each description keeps its own.
	rotate(t, s, numbered, "one", "v2")
	wantValue(t, s, secrets.Current, "v2")
	d, err := s.Describe(t.Context(), numbered)
	if err != nil || d.Ref != numbered || !d.Has("one", secrets.Current) {
		t.Errorf("described by number as %+v, %v", d, err)
	}
	var p gcpsm.Projects
	if got, ok := p.Numbered(db); ok || got != db {
		t.Errorf("an unknown project's number is told as %s", got)
	}
	p.Add("other", "42")
	regional := ref.Ref{Provider: ref.GCP, Scope: "other/europe-west3", Name: "x"}
	if got, ok := p.Numbered(regional); !ok || got.String() != "gcp://42/europe-west3/x" {
		t.Errorf("%s is numbered %s, %t", regional, got, ok)
	}
	if _, err := s.Canonical(t.Context(), ref.Ref{Provider: ref.GCP, Scope: "no-such", Name: "db"}); !fault.Is(err, fault.Denied) {
		t.Errorf("the canonical ref of an unknown project: %v", err)
	}
}

// TestReader needs no permission but access, and one call.
func TestReader(t *testing.T) {
	fake, s := setup(t, nil, "v1")
	if _, err := s.PutPending(t.Context(), db, "one", secrets.NewString("v2")); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{"secrets.get", "versions.get", "versions.list", "secrets.list", "secrets.update", "versions.add"} {
		fake.Deny("", "secretmanager."+p)
	}
	r := gcpsm.NewReader(fake.Clients(t), nil)
	fake.ForgetCalls()
	v, err := r.Get(t.Context(), db, secrets.Current)
	if err != nil || v.ID != "1" || !v.Value.Equal(secrets.NewString("v1")) || len(fake.Calls()) != 1 {
		t.Errorf("got %+v, %v in %d calls; expected version 1 in one", v, err, len(fake.Calls()))
	}
	_, err = r.Get(t.Context(), db, secrets.Pending)
	wantKind(t, err, fault.Denied)
	_, err = r.Get(t.Context(), db, secrets.Previous)
	wantKind(t, err, fault.NotFound)
	_, err = r.Get(t.Context(), db, "latest")
	wantKind(t, err, fault.Invalid)
	fake.Allow()
	if _, err := s.Promote(t.Context(), db, "one"); err != nil {
		t.Fatal(err)
	}
	wantValue(t, r, secrets.Current, "v2")
	wantValue(t, r, secrets.Previous, "v1")
	if err := s.Disable(t.Context(), db, "1"); err != nil {
		t.Fatal(err)
	}
	_, err = r.Get(t.Context(), db, secrets.Previous)
	wantKind(t, err, fault.NotFound, "disabled")
}
