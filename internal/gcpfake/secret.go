package gcpfake

import (
	"context"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"

	"cloud.google.com/go/secretmanager/apiv1/secretmanagerpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// A secret and its versions, the version numbered n at n-1. The Server's lock
// guards it.
type secret struct {
	pb       *secretmanagerpb.Secret
	regional bool
	versions []*version
}

func (v *service) CreateSecret(_ context.Context, r *secretmanagerpb.CreateSecretRequest) (*secretmanagerpb.Secret, error) {
	n, err := v.parse(r.GetParent(), "secretmanager.secrets.create")
	if err != nil {
		return nil, err
	}
	if n.secret != "" {
		return nil, fail(codes.InvalidArgument, "The parent [%s] is not a project or location.", r.GetParent())
	}
	if !secretIDForm.MatchString(r.GetSecretId()) {
		return nil, fail(codes.InvalidArgument, "The provided Secret ID [%s] does not match the expected format [[a-zA-Z_0-9]+]", r.GetSecretId())
	}
	n.secret = r.GetSecretId()
	if r.GetSecret() == nil {
		return nil, fail(codes.InvalidArgument, "The Secret is required.")
	}
	sec := &secret{pb: proto.CloneOf(r.GetSecret()), regional: v.location != ""}
	sec.pb.Name, sec.pb.CreateTime = n.secretName(), timestamppb.New(v.s.now())
	if err := v.s.settle(sec); err != nil {
		return nil, err
	}
	if err := validate(sec, v.location, v.s.now()); err != nil {
		return nil, err
	}
	if v.s.secrets[n.secretName()] != nil {
		return nil, fail(codes.AlreadyExists, "Secret [%s] already exists.", n.secretName())
	}
	sec.pb.Etag = v.s.etag()
	v.s.secrets[n.secretName()] = sec
	v.s.configured(sec)
	v.s.notify(sec, nil, "SECRET_CREATE")
	return proto.CloneOf(sec.pb), nil
}

func (v *service) GetSecret(_ context.Context, r *secretmanagerpb.GetSecretRequest) (*secretmanagerpb.Secret, error) {
	sec, _, err := v.secret(r.GetName(), "secretmanager.secrets.get")
	if err != nil {
		return nil, err
	}
	return proto.CloneOf(sec.pb), nil
}

// UpdateSecret replaces the fields of the mask, maps as a whole. Even one that
// changes nothing moves the etag.
func (v *service) UpdateSecret(_ context.Context, r *secretmanagerpb.UpdateSecretRequest) (*secretmanagerpb.Secret, error) {
	sec, _, err := v.secret(r.GetSecret().GetName(), "secretmanager.secrets.update")
	if err != nil {
		return nil, err
	}
	if err := checkEtag(r.GetSecret().GetEtag(), sec.pb.GetEtag(), sec.pb.GetName()); err != nil {
		return nil, err
	}
	if len(r.GetUpdateMask().GetPaths()) == 0 {
		return nil, fail(codes.InvalidArgument, "The update mask is required.")
	}
	next, in := &secret{pb: proto.CloneOf(sec.pb), regional: sec.regional, versions: sec.versions}, proto.CloneOf(r.GetSecret())
	topics := false
	for _, path := range r.GetUpdateMask().GetPaths() {
		switch path {
		case "labels":
			next.pb.Labels = in.GetLabels()
		case "annotations":
			next.pb.Annotations = in.GetAnnotations()
		case "version_aliases":
			next.pb.VersionAliases = in.GetVersionAliases()
		case "topics":
			next.pb.Topics, topics = in.GetTopics(), true
		case "rotation":
			next.pb.Rotation = in.GetRotation()
		case "version_destroy_ttl":
			next.pb.VersionDestroyTtl = in.GetVersionDestroyTtl()
		case "ttl", "expire_time":
			next.pb.Expiration = in.GetExpiration()
		default:
			return nil, fail(codes.InvalidArgument, "The field [%s] cannot be updated.", path)
		}
	}
	if err := v.s.settle(next); err != nil {
		return nil, err
	}
	if err := validate(next, v.location, v.s.now()); err != nil {
		return nil, err
	}
	next.pb.Etag = v.s.etag()
	sec.pb = next.pb
	if topics {
		v.s.configured(sec)
	}
	v.s.notify(sec, nil, "SECRET_UPDATE")
	return proto.CloneOf(sec.pb), nil
}

func (v *service) DeleteSecret(_ context.Context, r *secretmanagerpb.DeleteSecretRequest) (*emptypb.Empty, error) {
	sec, n, err := v.secret(r.GetName(), "secretmanager.secrets.delete")
	if err != nil {
		return nil, err
	}
	if err := checkEtag(r.GetEtag(), sec.pb.GetEtag(), sec.pb.GetName()); err != nil {
		return nil, err
	}
	delete(v.s.secrets, n.secretName())
	v.s.notify(sec, nil, "SECRET_DELETE", "deleteType", "REQUESTED")
	return &emptypb.Empty{}, nil
}

func (v *service) ListSecrets(_ context.Context, r *secretmanagerpb.ListSecretsRequest) (*secretmanagerpb.ListSecretsResponse, error) {
	n, err := v.parse(r.GetParent(), "secretmanager.secrets.list")
	if err != nil {
		return nil, err
	}
	match, err := parseFilter(r.GetFilter())
	if err != nil {
		return nil, err
	}
	var all []*secretmanagerpb.Secret
	for name, sec := range v.s.secrets {
		if strings.HasPrefix(name, n.parent()+"/secrets/") && match(sec.pb) {
			all = append(all, proto.CloneOf(sec.pb))
		}
	}
	sort.Slice(all, func(i, j int) bool { return all[i].GetName() < all[j].GetName() })
	from, to, next, err := page(r.GetPageToken(), int(r.GetPageSize()), len(all))
	if err != nil {
		return nil, err
	}
	return &secretmanagerpb.ListSecretsResponse{Secrets: all[from:to], NextPageToken: next, TotalSize: int32(len(all))}, nil
}

// page cuts a list. A token is how many were told before.
func page(token string, size, n int) (from, to int, next string, err error) {
	if token != "" {
		if from, err = strconv.Atoi(token); err != nil || from < 0 || from > n {
			return 0, 0, "", fail(codes.InvalidArgument, "The page token is not valid.")
		}
	}
	if size < 0 {
		return 0, 0, "", fail(codes.InvalidArgument, "The page size must not be negative.")
	}
	if size == 0 || size > 25000 {
		size = 25000
	}
	to = min(from+size, n)
	if to < n {
		next = strconv.Itoa(to)
	}
	return from, to, next, nil
}

// checkEtag refuses a precondition that does not hold. None is no condition.
// https://cloud.google.com/secret-manager/docs/etags
func checkEtag(given, stored, what string) error {
	if given != "" && given != stored {
		return fail(codes.FailedPrecondition, "The etag provided for [%s] does not match the currently stored etag.", what)
	}
	return nil
}

// settle gives the fields that the service works out of others.
func (s *Server) settle(sec *secret) error {
	defer func() { s.await(sec.pb.GetExpireTime()) }()
	if ttl := sec.pb.GetTtl(); ttl != nil {
		if ttl.AsDuration() <= 0 {
			return fail(codes.InvalidArgument, "The ttl must be positive.")
		}
		sec.pb.Expiration = &secretmanagerpb.Secret_ExpireTime{ExpireTime: timestamppb.New(s.now().Add(ttl.AsDuration()))}
	}
	return nil
}

// sweep does what time brings: versions whose destruction was delayed are
// destroyed, expired secrets are deleted. The caller holds the lock.
func (s *Server) sweep() {
	now := s.now()
	if s.due.IsZero() || now.Before(s.due) {
		return
	}
	s.due = time.Time{}
	defer func() {
		for _, sec := range s.secrets {
			s.await(sec.pb.GetExpireTime())
			for _, v := range sec.versions {
				s.await(v.pb.GetScheduledDestroyTime())
			}
		}
	}()
	for name, sec := range s.secrets {
		for _, v := range sec.versions {
			if at := v.pb.GetScheduledDestroyTime(); at != nil && !now.Before(at.AsTime()) {
				s.destroy(sec, v)
			}
		}
		if at := sec.pb.GetExpireTime(); at != nil && !now.Before(at.AsTime()) {
			delete(s.secrets, name)
			s.notify(sec, nil, "SECRET_DELETE", "deleteType", "EXPIRATION")
		}
	}
}

// await notes the next time at which there is something to sweep.
func (s *Server) await(at *timestamppb.Timestamp) {
	if at != nil && (s.due.IsZero() || at.AsTime().Before(s.due)) {
		s.due = at.AsTime()
	}
}

// configured tells every topic of a secret that it is one.
func (s *Server) configured(sec *secret) {
	for _, topic := range sec.pb.GetTopics() {
		s.publish(topic.GetName(), map[string]string{"eventType": "TOPIC_CONFIGURED"}, nil)
	}
}

// names returns the names of all secrets, sorted.
func (s *Server) names() []string {
	var out []string
	for name := range s.secrets {
		out = append(out, name)
	}
	slices.Sort(out)
	return out
}
