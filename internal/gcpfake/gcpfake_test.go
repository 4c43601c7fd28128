package gcpfake_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"slices"
	"strings"
	"testing"
	"time"

	"cloud.google.com/go/iam/apiv1/iampb"
	secretmanager "cloud.google.com/go/secretmanager/apiv1"
	"cloud.google.com/go/secretmanager/apiv1/secretmanagerpb"
	"go.uber.org/goleak"
	"google.golang.org/api/iterator"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/keyturn/keyturn/internal/gcpfake"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	parent   = "projects/" + gcpfake.Project
	name     = parent + "/secrets/db"
	numbered = "projects/" + gcpfake.ProjectNumber + "/secrets/db"
)

func setup(t *testing.T, values ...string) (*gcpfake.Server, *secretmanager.Client) {
	t.Helper()
	fake := gcpfake.New(t)
	fake.Create(&secretmanagerpb.Secret{Name: name}, values...)
	return fake, fake.Client(t, "")
}

func wantCode(t *testing.T, what string, err error, code codes.Code, says string) {
	t.Helper()
	if status.Code(err) != code || err != nil && !strings.Contains(err.Error(), says) {
		t.Errorf("%s: %v; expected %s: %s", what, err, code, says)
	}
}

func access(ctx context.Context, c *secretmanager.Client, version string) (string, error) {
	resp, err := c.AccessSecretVersion(ctx, &secretmanagerpb.AccessSecretVersionRequest{Name: name + "/versions/" + version})
	if err != nil {
		return "", err
	}
	if *resp.GetPayload().DataCrc32C != int64(crc32.Checksum(resp.GetPayload().GetData(), crc32.MakeTable(crc32.Castagnoli))) {
		return "", fmt.Errorf("the checksum does not match")
	}
	return resp.GetName() + "=" + string(resp.GetPayload().GetData()), nil
}

// TestLatest is the newest created version, in whatever state.
func TestLatest(t *testing.T) {
	_, c := setup(t)
	ctx := t.Context()
	_, err := access(ctx, c, "latest")
	wantCode(t, "no version", err, codes.NotFound, "Secret ["+numbered+"] not found or has no versions.")
	for _, v := range []string{"a", "b"} {
		if _, err := c.AddSecretVersion(ctx, &secretmanagerpb.AddSecretVersionRequest{Parent: name, Payload: &secretmanagerpb.SecretPayload{Data: []byte(v)}}); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := access(ctx, c, "latest"); got != numbered+"/versions/2=b" {
		t.Errorf("latest is %s, %v", got, err)
	}
	if _, err := c.DisableSecretVersion(ctx, &secretmanagerpb.DisableSecretVersionRequest{Name: name + "/versions/2"}); err != nil {
		t.Fatal(err)
	}
	_, err = access(ctx, c, "latest")
	wantCode(t, "newest disabled", err, codes.FailedPrecondition, "Secret Version ["+numbered+"/versions/2] is in DISABLED state.")
	if got, err := access(ctx, c, "1"); got != numbered+"/versions/1=a" {
		t.Errorf("version 1 is %s, %v", got, err)
	}
	_, err = access(ctx, c, "9")
	wantCode(t, "no such version", err, codes.NotFound, "Secret Version ["+numbered+"/versions/9] not found.")
	_, err = c.DisableSecretVersion(ctx, &secretmanagerpb.DisableSecretVersionRequest{Name: name + "/versions/latest"})
	wantCode(t, "disable by alias", err, codes.InvalidArgument, "must be a number")
}

func TestEtags(t *testing.T) {
	fake, c := setup(t, "a")
	ctx := t.Context()
	before := fake.Secret(name).GetEtag()
	if !strings.HasPrefix(before, `"`) || !strings.HasSuffix(before, `"`) || len(before) < 5 {
		t.Errorf("the etag is %s; expected quotes in it", before)
	}
	fake.Add(name, "b")
	if fake.Secret(name).GetEtag() != before {
		t.Error("adding a version moved the secret's etag")
	}
	update := func(etag string) error {
		_, err := c.UpdateSecret(ctx, &secretmanagerpb.UpdateSecretRequest{
			Secret: &secretmanagerpb.Secret{Name: name, Etag: etag}, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"labels"}},
		})
		return err
	}
	if err := update(before); err != nil {
		t.Fatal(err)
	}
	wantCode(t, "stale etag", update(before), codes.FailedPrecondition, "etag")
	wantCode(t, "etag without quotes", update(strings.Trim(fake.Secret(name).GetEtag(), `"`)), codes.FailedPrecondition, "etag")
	if err := update(""); err != nil {
		t.Errorf("no etag is no condition: %v", err)
	}
	v := fake.Versions(name)[0].GetEtag()
	enable := &secretmanagerpb.EnableSecretVersionRequest{Name: name + "/versions/1", Etag: v}
	if _, err := c.EnableSecretVersion(ctx, enable); err != nil {
		t.Fatal(err)
	}
	_, err := c.EnableSecretVersion(ctx, enable) // the first changed nothing but the etag
	wantCode(t, "stale etag of a version", err, codes.FailedPrecondition, "etag")
	wantCode(t, "delete with a stale etag", c.DeleteSecret(ctx, &secretmanagerpb.DeleteSecretRequest{Name: name, Etag: before}), codes.FailedPrecondition, "etag")
}

// TestValidation: the rules that the service states.
func TestValidation(t *testing.T) {
	fake, c := setup(t, "a")
	many := func(n int) map[string]int64 {
		out := map[string]int64{}
		for i := range n {
			out[fmt.Sprintf("a%d", i)] = 1
		}
		return out
	}
	for what, ok := range map[string]struct {
		pb   *secretmanagerpb.Secret
		path string
		code codes.Code
	}{
		"alias":               {&secretmanagerpb.Secret{VersionAliases: map[string]int64{"current": 1}}, "version_aliases", codes.OK},
		"50 aliases":          {&secretmanagerpb.Secret{VersionAliases: many(50)}, "version_aliases", codes.OK},
		"51 aliases":          {&secretmanagerpb.Secret{VersionAliases: many(51)}, "version_aliases", codes.InvalidArgument},
		"numeric alias":       {&secretmanagerpb.Secret{VersionAliases: map[string]int64{"7": 1}}, "version_aliases", codes.InvalidArgument},
		"alias latest":        {&secretmanagerpb.Secret{VersionAliases: map[string]int64{"latest": 1}}, "version_aliases", codes.InvalidArgument},
		"alias of no version": {&secretmanagerpb.Secret{VersionAliases: map[string]int64{"x": 2}}, "version_aliases", codes.InvalidArgument},
		"annotation":          {&secretmanagerpb.Secret{Annotations: map[string]string{"a.b-c_d": "any text"}}, "annotations", codes.OK},
		"annotation key":      {&secretmanagerpb.Secret{Annotations: map[string]string{"-a": ""}}, "annotations", codes.InvalidArgument},
		"annotations' size":   {&secretmanagerpb.Secret{Annotations: map[string]string{"a": strings.Repeat("x", 16<<10-1)}}, "annotations", codes.InvalidArgument},
		"label":               {&secretmanagerpb.Secret{Labels: map[string]string{"team": "a-b_c"}}, "labels", codes.OK},
		"upper-case label":    {&secretmanagerpb.Secret{Labels: map[string]string{"Team": "a"}}, "labels", codes.InvalidArgument},
		"rotation, no topic":  {&secretmanagerpb.Secret{Rotation: &secretmanagerpb.Rotation{NextRotationTime: timestamppb.New(time.Now().Add(time.Hour))}}, "rotation", codes.InvalidArgument},
		"replication":         {&secretmanagerpb.Secret{}, "replication", codes.InvalidArgument},
	} {
		ok.pb.Name = name
		_, err := c.UpdateSecret(t.Context(), &secretmanagerpb.UpdateSecretRequest{Secret: ok.pb, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{ok.path}}})
		wantCode(t, what, err, ok.code, "")
	}
	plain := &secretmanagerpb.Secret{Replication: &secretmanagerpb.Replication{Replication: &secretmanagerpb.Replication_Automatic_{
		Automatic: &secretmanagerpb.Replication_Automatic{},
	}}}
	for what, ok := range map[string]struct {
		id   string
		pb   *secretmanagerpb.Secret
		code codes.Code
	}{
		"exists":         {"db", plain, codes.AlreadyExists},
		"bad id":         {"a.b", plain, codes.InvalidArgument},
		"long id":        {strings.Repeat("x", 256), plain, codes.InvalidArgument},
		"no replication": {"x", &secretmanagerpb.Secret{}, codes.InvalidArgument},
		"key in the wrong place": {"x", &secretmanagerpb.Secret{Replication: &secretmanagerpb.Replication{Replication: &secretmanagerpb.Replication_Automatic_{
			Automatic: &secretmanagerpb.Replication_Automatic{CustomerManagedEncryption: &secretmanagerpb.CustomerManagedEncryption{
				KmsKeyName: "projects/p/locations/us-east1/keyRings/r/cryptoKeys/k",
			}},
		}}}, codes.InvalidArgument},
	} {
		_, err := c.CreateSecret(t.Context(), &secretmanagerpb.CreateSecretRequest{Parent: parent, SecretId: ok.id, Secret: ok.pb})
		wantCode(t, what, err, ok.code, "")
	}
	for what, p := range map[string]*secretmanagerpb.SecretPayload{
		"empty": {}, "too long": {Data: make([]byte, 64<<10+1)}, "wrong checksum": {Data: []byte("x"), DataCrc32C: proto.Int64(1)},
	} {
		_, err := c.AddSecretVersion(t.Context(), &secretmanagerpb.AddSecretVersionRequest{Parent: name, Payload: p})
		wantCode(t, what, err, codes.InvalidArgument, "")
	}
	if n := len(fake.Versions(name)); n != 1 {
		t.Errorf("there are %d versions; expected that nothing was added", n)
	}
}

func TestDestroy(t *testing.T) {
	fake, c := setup(t, "a", "b", "c")
	ctx := t.Context()
	destroy := func(n string) (*secretmanagerpb.SecretVersion, error) {
		return c.DestroySecretVersion(ctx, &secretmanagerpb.DestroySecretVersionRequest{Name: name + "/versions/" + n})
	}
	if v, err := destroy("1"); err != nil || v.GetState() != secretmanagerpb.SecretVersion_DESTROYED || v.GetDestroyTime() == nil {
		t.Errorf("destroyed as %v, %v", v, err)
	}
	if fake.Versions(name)[0].Value != nil {
		t.Error("a destroyed value is still there")
	}
	_, err := c.EnableSecretVersion(ctx, &secretmanagerpb.EnableSecretVersionRequest{Name: name + "/versions/1"})
	wantCode(t, "enable a destroyed version", err, codes.FailedPrecondition, "is in DESTROYED state")

	fake.Change(name, func(pb *secretmanagerpb.Secret) { pb.VersionDestroyTtl = durationpb.New(24 * time.Hour) })
	for _, n := range []string{"2", "3"} {
		if v, err := destroy(n); err != nil || v.GetState() != secretmanagerpb.SecretVersion_DISABLED || v.GetScheduledDestroyTime() == nil {
			t.Errorf("scheduled as %v, %v", v, err)
		}
	}
	if v, err := c.EnableSecretVersion(ctx, &secretmanagerpb.EnableSecretVersionRequest{Name: name + "/versions/3"}); err != nil || v.GetScheduledDestroyTime() != nil {
		t.Errorf("enabled as %v, %v; expected no schedule", v, err)
	}
	fake.Advance(25 * time.Hour)
	var states []string
	for _, v := range fake.Versions(name) {
		states = append(states, v.GetState().String())
	}
	if !slices.Equal(states, []string{"DESTROYED", "DESTROYED", "ENABLED"}) {
		t.Errorf("the states are %v", states)
	}
}

func TestLists(t *testing.T) {
	fake, c := setup(t, "1", "2", "3", "4", "5")
	ctx := t.Context()
	var got []string
	it := c.ListSecretVersions(ctx, &secretmanagerpb.ListSecretVersionsRequest{Parent: name, PageSize: 2})
	for {
		v, err := it.Next()
		if errors.Is(err, iterator.Done) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, v.GetName()[strings.LastIndex(v.GetName(), "/")+1:])
	}
	if strings.Join(got, " ") != "5 4 3 2 1" {
		t.Errorf("versions are listed as %v; expected the newest first", got)
	}
	if n := len(fake.Calls("ListSecretVersions")); n != 3 {
		t.Errorf("%d pages; expected 3", n)
	}
	fake.Create(&secretmanagerpb.Secret{Name: parent + "/secrets/db--pending", Labels: map[string]string{"team": "a"}})
	fake.Create(&secretmanagerpb.Secret{Name: "projects/" + gcpfake.Project + "/locations/europe-west3/secrets/regional"})
	for filter, want := range map[string]int{"": 2, "name:--pending": 1, "labels.team=a": 1, "labels.team=b": 0, "labels.team:* AND name:db": 1} {
		n := 0
		for it := c.ListSecrets(ctx, &secretmanagerpb.ListSecretsRequest{Parent: parent, Filter: filter, PageSize: 1}); ; n++ {
			if _, err := it.Next(); errors.Is(err, iterator.Done) {
				break
			} else if err != nil {
				t.Fatal(err)
			}
		}
		if n != want {
			t.Errorf("filter %q lists %d secrets; expected %d", filter, n, want)
		}
	}
	_, err := c.ListSecrets(ctx, &secretmanagerpb.ListSecretsRequest{Parent: parent, Filter: "NOT name:x"}).Next()
	wantCode(t, "a filter beyond the fake", err, codes.InvalidArgument, "")
}

// TestRegional: a location's secrets are served at its endpoint only.
func TestRegional(t *testing.T) {
	fake, global := setup(t, "a")
	ctx, regional := t.Context(), fake.Client(t, "europe-west3")
	in := parent + "/locations/europe-west3"
	if _, err := regional.CreateSecret(ctx, &secretmanagerpb.CreateSecretRequest{Parent: in, SecretId: "db", Secret: &secretmanagerpb.Secret{}}); err != nil {
		t.Fatal(err)
	}
	v, err := regional.AddSecretVersion(ctx, &secretmanagerpb.AddSecretVersionRequest{Parent: in + "/secrets/db", Payload: &secretmanagerpb.SecretPayload{Data: []byte("x")}})
	if err != nil || v.GetReplicationStatus() != nil || !strings.HasPrefix(v.GetName(), "projects/"+gcpfake.ProjectNumber+"/locations/europe-west3/") {
		t.Errorf("added as %v, %v", v, err)
	}
	for _, c := range []struct {
		client *secretmanager.Client
		name   string
	}{{global, in + "/secrets/db"}, {regional, name}} {
		_, err := c.client.GetSecret(ctx, &secretmanagerpb.GetSecretRequest{Name: c.name})
		wantCode(t, "the other's endpoint", err, codes.InvalidArgument, "not served at this endpoint")
	}
}

func TestPermissions(t *testing.T) {
	fake, c := setup(t, "a")
	ctx := t.Context()
	fake.Deny(name, "secretmanager.versions.access")
	_, err := access(ctx, c, "1")
	wantCode(t, "denied", err, codes.PermissionDenied, "Permission 'secretmanager.versions.access' denied for resource")
	test := func(resource string) []string {
		resp, err := c.TestIamPermissions(ctx, &iampb.TestIamPermissionsRequest{
			Resource: resource, Permissions: []string{"secretmanager.secrets.get", "secretmanager.versions.access"},
		})
		if err != nil {
			t.Fatal(err)
		}
		return resp.GetPermissions()
	}
	if got := test(name); !slices.Equal(got, []string{"secretmanager.secrets.get"}) {
		t.Errorf("permissions are %v", got)
	}
	if got := test(name + "-unknown"); len(got) != 0 {
		t.Errorf("an unknown secret grants %v", got)
	}
	_, err = c.GetSecret(ctx, &secretmanagerpb.GetSecretRequest{Name: "projects/unknown/secrets/db"})
	wantCode(t, "unknown project", err, codes.PermissionDenied, "(or it may not exist)")
}

// TestGrants: what was granted on a secret says nothing of one that is not
// there, which is therefore denied, and is lost with the secret.
func TestGrants(t *testing.T) {
	fake, c := setup(t, "a")
	ctx := t.Context()
	get := func(id string) error {
		_, err := c.GetSecret(ctx, &secretmanagerpb.GetSecretRequest{Name: parent + "/secrets/" + id})
		return err
	}
	create := func(id string) error {
		_, err := c.CreateSecret(ctx, &secretmanagerpb.CreateSecretRequest{Parent: parent, SecretId: id, Secret: &secretmanagerpb.Secret{
			Replication: &secretmanagerpb.Replication{Replication: &secretmanagerpb.Replication_Automatic_{Automatic: &secretmanagerpb.Replication_Automatic{}}},
		}})
		return err
	}
	fake.Grant(name, "secretmanager.secrets.get")
	wantCode(t, "granted", get("db"), codes.OK, "")
	wantCode(t, "not there", get("other"), codes.PermissionDenied, "(or it may not exist)")
	wantCode(t, "not granted", create("other"), codes.PermissionDenied, "secretmanager.secrets.create")
	_, err := access(ctx, c, "1")
	wantCode(t, "not granted", err, codes.PermissionDenied, "secretmanager.versions.access")

	fake.Delete(name)
	wantCode(t, "deleted", get("db"), codes.PermissionDenied, "(or it may not exist)")
	fake.Create(&secretmanagerpb.Secret{Name: name}, "b")
	wantCode(t, "made anew", get("db"), codes.PermissionDenied, "(or it may not exist)")

	// A condition is on the full name, which for making a secret is the project's.
	others := func(resource string) bool {
		return strings.HasPrefix(resource, "projects/"+gcpfake.ProjectNumber+"/secrets/other")
	}
	fake.GrantIf(parent, others, "secretmanager.secrets.get", "secretmanager.secrets.create", "secretmanager.versions.access")
	wantCode(t, "not there, granted on the project", get("other"), codes.NotFound, "not found")
	wantCode(t, "beside the condition", get("db"), codes.PermissionDenied, "(or it may not exist)")
	wantCode(t, "made beside the condition", create("other"), codes.PermissionDenied, "secretmanager.secrets.create")
	fake.Grant(parent, "secretmanager.secrets.create")
	wantCode(t, "made", create("other"), codes.OK, "")
	wantCode(t, "made", get("other"), codes.OK, "")
	fake.Allow()
	wantCode(t, "all permitted", get("db"), codes.OK, "")
}

// TestNotices are as the service publishes them: number in the names, Pacific
// time, quotes in the etag, one message a topic.
func TestNotices(t *testing.T) {
	fake := gcpfake.New(t)
	heard := make(chan gcpfake.Notice, 100)
	fake.OnNotice(func(n gcpfake.Notice) { heard <- n })
	next := time.Now().Add(time.Hour).UTC().Truncate(time.Second)
	fake.Create(&secretmanagerpb.Secret{
		Name:     name,
		Topics:   []*secretmanagerpb.Topic{{Name: parent + "/topics/a"}, {Name: parent + "/topics/b"}},
		Rotation: &secretmanagerpb.Rotation{NextRotationTime: timestamppb.New(next), RotationPeriod: durationpb.New(2 * time.Hour)},
	}, "value of the first version")
	fake.Rotate(name)
	c, ctx := fake.Client(t, ""), t.Context()
	if _, err := c.DestroySecretVersion(ctx, &secretmanagerpb.DestroySecretVersionRequest{Name: name + "/versions/1"}); err != nil {
		t.Fatal(err)
	}
	if err := c.DeleteSecret(ctx, &secretmanagerpb.DeleteSecretRequest{Name: name}); err != nil {
		t.Fatal(err)
	}
	close(heard)
	var types []string
	ids := map[string]bool{}
	for n := range heard {
		types = append(types, n.Attributes["eventType"])
		ids[n.MessageID] = true
		if n.Attributes["eventType"] == "TOPIC_CONFIGURED" {
			if len(n.Attributes) != 1 || n.Data != nil {
				t.Errorf("TOPIC_CONFIGURED carries %v and %d bytes", n.Attributes, len(n.Data))
			}
			continue
		}
		if n.Attributes["secretId"] != numbered || n.Attributes["dataFormat"] != "JSON_API_V1" || !strings.HasSuffix(n.Attributes["timestamp"], "-07:00") {
			t.Errorf("attributes are %v", n.Attributes)
		}
		var data struct {
			Name, Etag, State string
			Rotation          struct{ NextRotationTime time.Time }
		}
		if err := json.Unmarshal(n.Data, &data); err != nil || !strings.HasPrefix(data.Etag, `"`) {
			t.Errorf("data is %s, %v", n.Data, err)
		}
		if strings.Contains(string(n.Data), "value of") {
			t.Error("a notice carries the payload")
		}
		switch n.Attributes["eventType"] {
		case "SECRET_VERSION_ADD", "SECRET_VERSION_DESTROY":
			if n.Attributes["versionId"] != numbered+"/versions/1" || data.Name != n.Attributes["versionId"] {
				t.Errorf("the version is %s, in the data %s", n.Attributes["versionId"], data.Name)
			}
		case "SECRET_ROTATE":
			if want := next.Add(2 * time.Hour); !data.Rotation.NextRotationTime.Equal(want) || n.Attributes["versionId"] != "" {
				t.Errorf("SECRET_ROTATE tells %s and version %q; expected the following time %s", data.Rotation.NextRotationTime, n.Attributes["versionId"], want)
			}
		case "SECRET_DELETE":
			if n.Attributes["deleteType"] != "REQUESTED" {
				t.Errorf("attributes are %v", n.Attributes)
			}
		}
	}
	want := []string{"TOPIC_CONFIGURED", "SECRET_CREATE", "SECRET_VERSION_ADD", "SECRET_ROTATE", "SECRET_VERSION_DESTROY", "SECRET_DELETE"}
	var twice []string
	for _, w := range want {
		twice = append(twice, w, w)
	}
	if !slices.Equal(types, twice) || len(ids) != len(twice) {
		t.Errorf("heard %v with %d ids; expected each of %v twice", types, len(ids), want)
	}
	if got := fake.Notices("SECRET_ROTATE"); len(got) != 2 {
		t.Errorf("%d SECRET_ROTATE are remembered", len(got))
	}
}
