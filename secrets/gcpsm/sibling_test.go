package gcpsm_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"cloud.google.com/go/secretmanager/apiv1/secretmanagerpb"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/gcpfake"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/secrets"
	"github.com/keyturn/keyturn/secrets/gcpsm"
	"github.com/keyturn/keyturn/secrets/sibling"
)

func key(location string) *secretmanagerpb.CustomerManagedEncryption {
	return &secretmanagerpb.CustomerManagedEncryption{KmsKeyName: "projects/p/locations/" + location + "/keyRings/r/cryptoKeys/k"}
}

// TestSiblingIsMadeAlike: a pending version is replicated and encrypted as the
// main secret's versions are, and what would announce or delete it is left out.
func TestSiblingIsMadeAlike(t *testing.T) {
	replica := func(location string, key *secretmanagerpb.CustomerManagedEncryption) *secretmanagerpb.Replication_UserManaged_Replica {
		return &secretmanagerpb.Replication_UserManaged_Replica{Location: location, CustomerManagedEncryption: key}
	}
	automatic := func(key *secretmanagerpb.CustomerManagedEncryption) *secretmanagerpb.Replication {
		return &secretmanagerpb.Replication{Replication: &secretmanagerpb.Replication_Automatic_{
			Automatic: &secretmanagerpb.Replication_Automatic{CustomerManagedEncryption: key},
		}}
	}
	userManaged := func(replicas ...*secretmanagerpb.Replication_UserManaged_Replica) *secretmanagerpb.Replication {
		return &secretmanagerpb.Replication{Replication: &secretmanagerpb.Replication_UserManaged_{
			UserManaged: &secretmanagerpb.Replication_UserManaged{Replicas: replicas},
		}}
	}
	for name, main := range map[string]*secretmanagerpb.Secret{
		"automatic":                 {Replication: automatic(nil)},
		"automatic with a key":      {Replication: automatic(key("global"))},
		"user-managed":              {Replication: userManaged(replica("europe-west3", nil), replica("europe-west4", nil))},
		"user-managed, a key each":  {Replication: userManaged(replica("europe-west3", key("europe-west3")), replica("us-east1", key("us-east1")))},
		"regional":                  {Name: "europe-west3"},
		"regional with a key":       {Name: "europe-west3", CustomerManagedEncryption: key("europe-west3")},
		"with all that is left out": {Replication: automatic(nil), VersionDestroyTtl: durationpb.New(48 * time.Hour)},
	} {
		t.Run(name, func(t *testing.T) {
			fake := gcpfake.New(t)
			r, name := db, mainName
			if location := main.GetName(); location != "" {
				r.Scope += "/" + location
				name = "projects/" + gcpfake.Project + "/locations/" + location + "/secrets/db"
			}
			main = proto.CloneOf(main)
			main.Name, main.Labels, main.Annotations = name, map[string]string{"team": "a"}, map[string]string{"tool": "state"}
			main.Topics = []*secretmanagerpb.Topic{{Name: "projects/p/topics/t"}}
			main.Rotation = &secretmanagerpb.Rotation{NextRotationTime: timestamppb.New(time.Now().Add(time.Hour))}
			main.Expiration = &secretmanagerpb.Secret_ExpireTime{ExpireTime: timestamppb.New(time.Now().Add(time.Hour))}
			fake.Create(main, "v1")
			s := gcpsm.New(fake.Clients(t), nil)
			if _, err := s.PutPending(t.Context(), r, "one", secrets.NewString("v2")); err != nil {
				t.Fatal(err)
			}
			side := fake.Secret(name + sibling.Suffix)
			if !proto.Equal(side.GetReplication(), main.GetReplication()) || !proto.Equal(side.GetCustomerManagedEncryption(), main.GetCustomerManagedEncryption()) {
				t.Errorf("the sibling is kept as %v %v; expected as the main secret", side.GetReplication(), side.GetCustomerManagedEncryption())
			}
			if side.GetLabels()["team"] != "a" || side.GetAnnotations()["keyturn-secret"] != "db" || side.GetAnnotations()["tool"] != "" {
				t.Errorf("the sibling has labels %v and annotations %v", side.GetLabels(), side.GetAnnotations())
			}
			if len(side.GetTopics()) != 0 || side.GetRotation() != nil || side.GetExpiration() != nil || side.GetVersionDestroyTtl() != nil {
				t.Errorf("the sibling has what it must not: %v", side)
			}
			if _, err := s.Promote(t.Context(), r, "one"); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// TestSiblingMadeBefore: one that somebody made, with delayed destruction and
// settings of its own, works and keeps them. A version that is scheduled for
// destruction counts as cleared, even if somebody enables it.
func TestSiblingMadeBefore(t *testing.T) {
	fake, s := setup(t, nil, "v1")
	fake.Create(&secretmanagerpb.Secret{
		Name: siblingName, Annotations: map[string]string{"tool": "state"}, VersionDestroyTtl: durationpb.New(48 * time.Hour),
	})
	fake.Deny("", "secretmanager.secrets.create")
	rotate(t, s, db, "one", "v2")
	rotate(t, s, db, "two", "v3")
	if _, err := s.PutPending(t.Context(), db, "three", secrets.NewString("v4")); err != nil {
		t.Fatal(err)
	}
	if err := s.Discard(t.Context(), db, "three"); err != nil {
		t.Fatal(err)
	}
	for i, v := range fake.Versions(siblingName) {
		if v.GetState() != secretmanagerpb.SecretVersion_DISABLED || v.GetScheduledDestroyTime() == nil {
			t.Errorf("version %d is %v; expected it to be scheduled for destruction", i+1, v.SecretVersion)
		}
		fake.SetState(siblingName, i+1, secretmanagerpb.SecretVersion_ENABLED)
	}
	if fake.Secret(siblingName).GetAnnotations()["tool"] != "state" {
		t.Error("another's annotation is gone")
	}
	_, err := s.Get(t.Context(), db, secrets.Pending)
	wantKind(t, err, fault.NotFound)
	rotate(t, s, db, "four", "v5")
	fake.Advance(49 * time.Hour)
	for i, v := range fake.Versions(siblingName) {
		if v.GetState() != secretmanagerpb.SecretVersion_DESTROYED {
			t.Errorf("version %d is %s after its time", i+1, v.GetState())
		}
	}
}

// TestStrayVersions: what was added to the sibling and never became pending is
// nobody's pending version, however late it comes, and goes with the next
// Clear.
func TestStrayVersions(t *testing.T) {
	fake, s := setup(t, nil, "v1")
	if _, err := s.PutPending(t.Context(), db, "one", secrets.NewString("v2")); err != nil {
		t.Fatal(err)
	}
	fake.Add(siblingName, "late value of another rotation")
	wantValue(t, s, secrets.Pending, "v2")
	if err := s.Discard(t.Context(), db, "one"); err != nil {
		t.Fatal(err)
	}
	_, err := s.Get(t.Context(), db, secrets.Pending)
	wantKind(t, err, fault.NotFound)

	rotate(t, s, db, "two", "v3")
	for i, v := range fake.Versions(siblingName) {
		if v.GetState() != secretmanagerpb.SecretVersion_DESTROYED {
			t.Errorf("version %d of the sibling is %s; expected it to be destroyed", i+1, v.GetState())
		}
	}
}

// TestLoserCleansUp: who adds its value and finds another rotation pending
// takes its own away.
func TestLoserCleansUp(t *testing.T) {
	fake, winner := setup(t, nil, "v1")
	rotate(t, winner, db, "zero", "v2") // the sibling is there
	first := true
	loser := gcpsm.New(fake.Clients(t, on("AddSecretVersion", func(ctx context.Context) {
		if first {
			first = false
			if _, err := winner.PutPending(ctx, db, "winner", secrets.NewString("w")); err != nil {
				t.Error(err)
			}
		}
	})), nil)
	_, err := loser.PutPending(t.Context(), db, "loser", secrets.NewString("l"))
	wantKind(t, err, fault.Conflict, "rotation winner")
	wantValue(t, loser, secrets.Pending, "w")
	enabled := 0
	for _, v := range fake.Versions(siblingName) {
		if v.GetState() == secretmanagerpb.SecretVersion_ENABLED {
			enabled++
		}
	}
	if enabled != 1 {
		t.Errorf("%d versions of the sibling can be read; expected the pending one", enabled)
	}
}

func TestNames(t *testing.T) {
	fake, s := setup(t, nil, "v1")
	long := strings.Repeat("x", 255-len(sibling.Suffix))
	fake.Create(&secretmanagerpb.Secret{Name: "projects/" + gcpfake.Project + "/secrets/" + long}, "v1")
	rotate(t, s, ref.Ref{Provider: ref.GCP, Scope: gcpfake.Project, Name: long}, "one", "v2")
	for bad, says := range map[ref.Ref]string{
		{Provider: ref.GCP, Scope: gcpfake.Project, Name: long + "x"}: "fits behind it",
		{Provider: ref.GCP, Scope: gcpfake.Project, Name: "a.b"}:      "not the id of a secret",
		{Provider: ref.GCP, Scope: gcpfake.Project, Name: "a b"}:      "not the id of a secret",
		{Provider: ref.GCP, Scope: "Project", Name: "a"}:              "not a project",
		{Provider: ref.GCP, Scope: "a%2Fb", Name: "a"}:                "not a project",
		{Provider: ref.GCP, Scope: "p/evil.example%2F", Name: "a"}:    "not a location",
		{Provider: ref.GCP, Scope: "p/evil.example", Name: "a"}:       "not a location",
		{Provider: ref.Azure, Scope: "vault", Name: "a"}:              "not in this store",
	} {
		fake.ForgetCalls()
		_, err := s.Get(t.Context(), bad, secrets.Current)
		wantKind(t, err, fault.Invalid, says)
		_, err = gcpsm.NewReader(fake.Clients(t), nil).Get(t.Context(), bad, secrets.Current)
		wantKind(t, err, fault.Invalid, says)
		if n := len(fake.Calls()); n != 0 {
			t.Errorf("%s made %d calls", bad, n)
		}
	}
	if got := gcpsm.Endpoint("europe-west3"); got != "secretmanager.europe-west3.rep.googleapis.com:443" {
		t.Errorf("the regional endpoint is %s", got)
	}
	_, err := s.PutPending(t.Context(), db, strings.Repeat("t", 257), secrets.NewString("v2"))
	wantKind(t, err, fault.Invalid, "token")
	wantKind(t, s.Disable(t.Context(), db, "current"), fault.NotFound)
	wantKind(t, s.Disable(t.Context(), db, "latest"), fault.NotFound)
	wantKind(t, s.Enable(t.Context(), db, "1/../2"), fault.NotFound)
}

// TestDelayedDestruction: with it, Destroy schedules, and Enable takes that
// back.
func TestDelayedDestruction(t *testing.T) {
	fake, s := setup(t, nil, "v1")
	fake.Change(mainName, func(pb *secretmanagerpb.Secret) { pb.VersionDestroyTtl = durationpb.New(48 * time.Hour) })
	rotate(t, s, db, "one", "v2")
	for _, do := range []func(context.Context, ref.Ref, string) error{s.Disable, s.Destroy, s.Destroy, s.Enable} {
		if err := do(t.Context(), db, "1"); err != nil {
			t.Fatal(err)
		}
	}
	fake.Advance(49 * time.Hour)
	wantValue(t, s, secrets.Previous, "v1")
	d, err := s.Describe(t.Context(), db)
	if err != nil || !d.Holder(secrets.Previous).Held {
		t.Errorf("described as %+v, %v; expected the previous version to be held", d, err)
	}
	for _, do := range []func(context.Context, ref.Ref, string) error{s.Disable, s.Destroy} {
		if err := do(t.Context(), db, "1"); err != nil {
			t.Fatal(err)
		}
	}
	fake.Advance(49 * time.Hour)
	wantKind(t, s.Enable(t.Context(), db, "1"), fault.NotFound, "destroyed")
	if err := s.Destroy(t.Context(), db, "1"); err != nil {
		t.Errorf("destroying again: %v", err)
	}
}

// TestOrphans finds siblings of ours whose secret is gone, over several pages.
func TestOrphans(t *testing.T) {
	fake, s := setup(t, nil, "v1")
	const gone = 260 // more than a page
	for i := range gone {
		id := "gone-" + strings.Repeat("x", i%7) + time.Unix(int64(i), 0).UTC().Format("150405")
		fake.Create(&secretmanagerpb.Secret{
			Name: "projects/" + gcpfake.Project + "/secrets/" + id + sibling.Suffix, Annotations: map[string]string{"keyturn-secret": id},
		}, "pending")
	}
	fake.Create(&secretmanagerpb.Secret{Name: "projects/" + gcpfake.Project + "/secrets/theirs" + sibling.Suffix}, "x")
	fake.Create(&secretmanagerpb.Secret{Name: "projects/" + gcpfake.Project + "/secrets/a--pending-b", Annotations: map[string]string{"keyturn-secret": "a"}}, "x")
	if _, err := s.PutPending(t.Context(), db, "one", secrets.NewString("v2")); err != nil {
		t.Fatal(err)
	}
	found, err := s.Orphans(t.Context(), db)
	if err != nil || len(found) != gone {
		t.Fatalf("found %d, %v; expected %d", len(found), err, gone)
	}
	for range 2 {
		if err := s.RemoveOrphan(t.Context(), found[0]); err != nil {
			t.Errorf("remove: %v", err)
		}
	}
	fake.Create(&secretmanagerpb.Secret{Name: "projects/" + gcpfake.Project + "/secrets/" + found[1].Ref.Name}, "back")
	wantKind(t, s.RemoveOrphan(t.Context(), found[1]), fault.Conflict, "is back")
	theirs := ref.Ref{Provider: ref.GCP, Scope: gcpfake.Project, Name: "theirs"}
	wantKind(t, s.RemoveOrphan(t.Context(), secrets.Orphan{Ref: theirs, ID: "theirs" + sibling.Suffix}), fault.Conflict, "somebody else's")
	wantKind(t, s.RemoveOrphan(t.Context(), secrets.Orphan{Ref: theirs, ID: mainName}), fault.Invalid)
	if found, err = s.Orphans(t.Context(), db); err != nil || len(found) != gone-2 {
		t.Errorf("found %d, %v; expected %d", len(found), err, gone-2)
	}
}

func TestCheck(t *testing.T) {
	fake, s := setup(t, nil, "v1")
	before := len(fake.Names())
	if err := s.Check(t.Context(), db); err != nil {
		t.Errorf("with all permissions: %v", err)
	}
	if len(fake.Names()) != before || len(fake.Versions(mainName)) != 1 {
		t.Error("the check changed something")
	}
	unknown := db
	unknown.Name = "unknown"
	wantKind(t, s.Check(t.Context(), unknown), fault.NotFound)

	rotate(t, s, db, "one", "v2")
	fake.Deny(mainName, "secretmanager.versions.add", "secretmanager.versions.disable")
	fake.Deny(siblingName, "secretmanager.versions.destroy")
	err := s.Check(t.Context(), db)
	wantKind(t, err, fault.Denied,
		"secretmanager.versions.add on "+mainName, "secretmanager.versions.disable on "+mainName, "secretmanager.versions.destroy on "+siblingName)
	if strings.Contains(err.Error(), "versions.access") || fault.ClassOf(err) != fault.ClassPermission {
		t.Errorf("the error is %v of class %s", err, fault.ClassOf(err))
	}
	fake.Deny("", "secretmanager.secrets.get")
	wantKind(t, s.Check(t.Context(), db), fault.Denied, "secretmanager.secrets.get on "+mainName)
	var e *fault.Error
	if !errors.As(s.Check(t.Context(), db), &e) {
		t.Error("the error is not of package fault")
	}
}
