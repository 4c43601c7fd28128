package gcpfake

import (
	"context"
	"hash/crc32"
	"slices"
	"strconv"
	"strings"
	"time"

	"cloud.google.com/go/secretmanager/apiv1/secretmanagerpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// maxPayload is the longest payload in bytes.
// https://cloud.google.com/secret-manager/quotas
const maxPayload = 64 << 10

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// A version is one payload with its state.
type version struct {
	pb   *secretmanagerpb.SecretVersion
	data []byte
	bare bool // has no checksum stored, as those of 2021 and before
}

func (v *version) enabled() bool { return v.pb.GetState() == secretmanagerpb.SecretVersion_ENABLED }

func (v *service) AddSecretVersion(_ context.Context, r *secretmanagerpb.AddSecretVersionRequest) (*secretmanagerpb.SecretVersion, error) {
	sec, _, err := v.secret(r.GetParent(), "secretmanager.versions.add")
	if err != nil {
		return nil, err
	}
	data := r.GetPayload().GetData()
	if len(data) == 0 {
		return nil, fail(codes.InvalidArgument, "Secret Payload cannot be empty.")
	}
	if len(data) > maxPayload {
		return nil, fail(codes.InvalidArgument, "The secret payload exceeds the maximum of %d bytes.", maxPayload)
	}
	sum := r.GetPayload().DataCrc32C
	if sum != nil && *sum != int64(crc32.Checksum(data, castagnoli)) {
		return nil, fail(codes.InvalidArgument, "The checksum of the payload does not match its data.")
	}
	added := v.s.add(sec, data)
	added.pb.ClientSpecifiedPayloadChecksum = sum != nil
	return proto.CloneOf(added.pb), nil
}

// add makes the newest version. The secret's own etag stays as it is.
func (s *Server) add(sec *secret, data []byte) *version {
	v := &version{data: slices.Clone(data), pb: &secretmanagerpb.SecretVersion{
		Name:       sec.pb.GetName() + "/versions/" + strconv.Itoa(len(sec.versions)+1),
		CreateTime: timestamppb.New(s.now()), State: secretmanagerpb.SecretVersion_ENABLED, Etag: s.etag(),
	}}
	if !sec.regional {
		v.pb.ReplicationStatus = replicationStatus(sec.pb.GetReplication())
	}
	sec.versions = append(sec.versions, v)
	s.notify(sec, v, "SECRET_VERSION_ADD")
	return v
}

func replicationStatus(r *secretmanagerpb.Replication) *secretmanagerpb.ReplicationStatus {
	if r.GetUserManaged() == nil {
		return &secretmanagerpb.ReplicationStatus{ReplicationStatus: &secretmanagerpb.ReplicationStatus_Automatic{
			Automatic: &secretmanagerpb.ReplicationStatus_AutomaticStatus{},
		}}
	}
	user := &secretmanagerpb.ReplicationStatus_UserManagedStatus{}
	for _, replica := range r.GetUserManaged().GetReplicas() {
		user.Replicas = append(user.Replicas, &secretmanagerpb.ReplicationStatus_UserManagedStatus_ReplicaStatus{Location: replica.GetLocation()})
	}
	return &secretmanagerpb.ReplicationStatus{ReplicationStatus: &secretmanagerpb.ReplicationStatus_UserManaged{UserManaged: user}}
}

func (v *service) GetSecretVersion(_ context.Context, r *secretmanagerpb.GetSecretVersionRequest) (*secretmanagerpb.SecretVersion, error) {
	_, ver, err := v.version(r.GetName(), "secretmanager.versions.get", true)
	if err != nil {
		return nil, err
	}
	return proto.CloneOf(ver.pb), nil
}

func (v *service) AccessSecretVersion(_ context.Context, r *secretmanagerpb.AccessSecretVersionRequest) (*secretmanagerpb.AccessSecretVersionResponse, error) {
	_, ver, err := v.version(r.GetName(), "secretmanager.versions.access", true)
	if err != nil {
		return nil, err
	}
	if !ver.enabled() {
		return nil, wrongState(ver)
	}
	data := slices.Clone(ver.data)
	payload := &secretmanagerpb.SecretPayload{Data: data}
	if !ver.bare {
		payload.DataCrc32C = proto.Int64(int64(crc32.Checksum(data, castagnoli)))
	}
	if v.s.corrupt > 0 {
		v.s.corrupt--
		data[0] ^= 1
	}
	return &secretmanagerpb.AccessSecretVersionResponse{Name: ver.pb.GetName(), Payload: payload}, nil
}

func wrongState(v *version) error {
	return fail(codes.FailedPrecondition, "Secret Version [%s] is in %s state.", v.pb.GetName(), v.pb.GetState())
}

// ListSecretVersions tells the newest first.
func (v *service) ListSecretVersions(_ context.Context, r *secretmanagerpb.ListSecretVersionsRequest) (*secretmanagerpb.ListSecretVersionsResponse, error) {
	sec, _, err := v.secret(r.GetParent(), "secretmanager.versions.list")
	if err != nil {
		return nil, err
	}
	want, found := strings.CutPrefix(r.GetFilter(), "state:")
	if r.GetFilter() != "" && !found {
		return nil, fail(codes.InvalidArgument, "gcpfake: the filter %q is not one that it knows", r.GetFilter())
	}
	var all []*secretmanagerpb.SecretVersion
	for _, ver := range slices.Backward(sec.versions) {
		if want == "" || want == ver.pb.GetState().String() {
			all = append(all, proto.CloneOf(ver.pb))
		}
	}
	from, to, next, err := page(r.GetPageToken(), int(r.GetPageSize()), len(all))
	if err != nil {
		return nil, err
	}
	return &secretmanagerpb.ListSecretVersionsResponse{Versions: all[from:to], NextPageToken: next, TotalSize: int32(len(all))}, nil
}

func (v *service) DisableSecretVersion(_ context.Context, r *secretmanagerpb.DisableSecretVersionRequest) (*secretmanagerpb.SecretVersion, error) {
	return v.move(r, "secretmanager.versions.disable", "SECRET_VERSION_DISABLE", secretmanagerpb.SecretVersion_DISABLED)
}

func (v *service) EnableSecretVersion(_ context.Context, r *secretmanagerpb.EnableSecretVersionRequest) (*secretmanagerpb.SecretVersion, error) {
	return v.move(r, "secretmanager.versions.enable", "SECRET_VERSION_ENABLE", secretmanagerpb.SecretVersion_ENABLED)
}

// move sets the state of a version that was not destroyed, which cancels a
// delayed destruction. One that is in the state already gets a new etag.
// https://cloud.google.com/secret-manager/docs/delayed-destruction
func (v *service) move(r interface {
	GetName() string
	GetEtag() string
}, permission, event string, to secretmanagerpb.SecretVersion_State,
) (*secretmanagerpb.SecretVersion, error) {
	sec, ver, err := v.version(r.GetName(), permission, false)
	if err != nil {
		return nil, err
	}
	if err := checkEtag(r.GetEtag(), ver.pb.GetEtag(), ver.pb.GetName()); err != nil {
		return nil, err
	}
	if ver.pb.GetState() == secretmanagerpb.SecretVersion_DESTROYED {
		return nil, wrongState(ver)
	}
	ver.pb.State, ver.pb.Etag, ver.pb.ScheduledDestroyTime = to, v.s.etag(), nil
	v.s.notify(sec, ver, event)
	return proto.CloneOf(ver.pb), nil
}

// DestroySecretVersion destroys at once, or, where the secret delays it,
// disables and schedules. That a second call leaves the schedule as it is, and
// that one on a destroyed version fails, are this package's choices.
func (v *service) DestroySecretVersion(_ context.Context, r *secretmanagerpb.DestroySecretVersionRequest) (*secretmanagerpb.SecretVersion, error) {
	sec, ver, err := v.version(r.GetName(), "secretmanager.versions.destroy", false)
	if err != nil {
		return nil, err
	}
	if err := checkEtag(r.GetEtag(), ver.pb.GetEtag(), ver.pb.GetName()); err != nil {
		return nil, err
	}
	if ver.pb.GetState() == secretmanagerpb.SecretVersion_DESTROYED {
		return nil, wrongState(ver)
	}
	ttl := sec.pb.GetVersionDestroyTtl().AsDuration()
	switch {
	case ttl <= time.Duration(0):
		v.s.destroy(sec, ver)
	case ver.pb.GetScheduledDestroyTime() == nil:
		ver.pb.State, ver.pb.Etag = secretmanagerpb.SecretVersion_DISABLED, v.s.etag()
		ver.pb.ScheduledDestroyTime = timestamppb.New(v.s.now().Add(ttl))
		v.s.await(ver.pb.GetScheduledDestroyTime())
		v.s.notify(sec, ver, "SECRET_VERSION_DESTROY_SCHEDULED")
	}
	return proto.CloneOf(ver.pb), nil
}

// destroy forgets a payload.
func (s *Server) destroy(sec *secret, v *version) {
	clear(v.data)
	v.data = nil
	v.pb.State, v.pb.Etag, v.pb.ScheduledDestroyTime = secretmanagerpb.SecretVersion_DESTROYED, s.etag(), nil
	v.pb.DestroyTime = timestamppb.New(s.now())
	s.notify(sec, v, "SECRET_VERSION_DESTROY")
}
