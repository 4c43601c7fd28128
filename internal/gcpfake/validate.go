package gcpfake

import (
	"regexp"
	"time"
	"unicode/utf8"

	"cloud.google.com/go/secretmanager/apiv1/secretmanagerpb"
	"google.golang.org/grpc/codes"
)

// The forms and limits of the service's own definition.
// https://github.com/googleapis/googleapis/blob/master/google/cloud/secretmanager/v1/resources.proto
var (
	secretIDForm   = regexp.MustCompile(`^[A-Za-z0-9_-]{1,255}$`)
	labelKeyForm   = regexp.MustCompile(`^[\p{Ll}\p{Lo}][\p{Ll}\p{Lo}\p{N}_-]{0,62}$`)
	labelValueForm = regexp.MustCompile(`^[\p{Ll}\p{Lo}\p{N}_-]{0,63}$`)
	annotationForm = regexp.MustCompile(`^[a-zA-Z0-9]([a-zA-Z0-9._-]{0,61}[a-zA-Z0-9])?$`)
	aliasForm      = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_-]{0,62}$`)
	topicForm      = regexp.MustCompile(`^projects/[^/]+/topics/[^/]+$`)
	keyForm        = regexp.MustCompile(`^projects/[^/]+/locations/([^/]+)/keyRings/[^/]+/cryptoKeys/[^/]+$`)
)

const (
	maxLabels      = 64
	maxAliases     = 50
	maxAnnotations = 16 << 10 // keys and values together
	maxTopics      = 10
)

// validate reports what is wrong with a secret as it would be stored.
func validate(sec *secret, location string, now time.Time) error {
	for _, check := range []func() error{
		func() error { return checkLabels(sec.pb) },
		func() error { return checkAnnotations(sec.pb) },
		func() error { return checkAliases(sec) },
		func() error { return checkReplication(sec.pb, location) },
		func() error { return checkRotation(sec.pb, now) },
	} {
		if err := check(); err != nil {
			return err
		}
	}
	return nil
}

func checkLabels(pb *secretmanagerpb.Secret) error {
	if len(pb.GetLabels()) > maxLabels {
		return fail(codes.InvalidArgument, "No more than %d labels can be assigned to a secret.", maxLabels)
	}
	for k, v := range pb.GetLabels() {
		if !labelKeyForm.MatchString(k) || !labelValueForm.MatchString(v) || len(k) > 128 || len(v) > 128 {
			return fail(codes.InvalidArgument, "The label [%s] is not valid.", k)
		}
	}
	return nil
}

func checkAnnotations(pb *secretmanagerpb.Secret) error {
	size := 0
	for k, v := range pb.GetAnnotations() {
		if !annotationForm.MatchString(k) || !utf8.ValidString(v) {
			return fail(codes.InvalidArgument, "The annotation key [%s] is not valid.", k)
		}
		size += len(k) + len(v)
	}
	if size >= maxAnnotations {
		return fail(codes.InvalidArgument, "The total size of annotations must be less than 16KiB.")
	}
	return nil
}

// checkAliases holds aliases to versions that exist; that one to another is
// refused is this package's choice.
func checkAliases(sec *secret) error {
	if len(sec.pb.GetVersionAliases()) > maxAliases {
		return fail(codes.InvalidArgument, "No more than %d version aliases can be assigned to a secret.", maxAliases)
	}
	for alias, n := range sec.pb.GetVersionAliases() {
		if !aliasForm.MatchString(alias) || alias == "latest" || alias == "NEW" {
			return fail(codes.InvalidArgument, "The version alias [%s] is not valid.", alias)
		}
		if n < 1 || n > int64(len(sec.versions)) {
			return fail(codes.InvalidArgument, "The version alias [%s] names version %d, which does not exist.", alias, n)
		}
	}
	return nil
}

func checkReplication(pb *secretmanagerpb.Secret, location string) error {
	if location != "" {
		if pb.GetReplication() != nil {
			return fail(codes.InvalidArgument, "A regional secret cannot have a replication policy.")
		}
		return checkKey(pb.GetCustomerManagedEncryption(), location)
	}
	if pb.GetCustomerManagedEncryption() != nil {
		return fail(codes.InvalidArgument, "Only a regional secret can have customer_managed_encryption of its own.")
	}
	switch r := pb.GetReplication().GetReplication().(type) {
	case *secretmanagerpb.Replication_Automatic_:
		return checkKey(r.Automatic.GetCustomerManagedEncryption(), "global")
	case *secretmanagerpb.Replication_UserManaged_:
		if len(r.UserManaged.GetReplicas()) == 0 {
			return fail(codes.InvalidArgument, "At least one replica is required.")
		}
		seen := map[string]bool{}
		keys := 0
		for _, replica := range r.UserManaged.GetReplicas() {
			if replica.GetLocation() == "" || seen[replica.GetLocation()] {
				return fail(codes.InvalidArgument, "The replica location [%s] is missing or repeated.", replica.GetLocation())
			}
			seen[replica.GetLocation()] = true
			if replica.GetCustomerManagedEncryption() != nil {
				keys++
			}
			if err := checkKey(replica.GetCustomerManagedEncryption(), replica.GetLocation()); err != nil {
				return err
			}
		}
		if keys != 0 && keys != len(seen) {
			return fail(codes.InvalidArgument, "Either all replicas or none have customer_managed_encryption.")
		}
		return nil
	}
	return fail(codes.InvalidArgument, "The replication policy is required.")
}

// checkKey wants a key in the place where the payload is.
func checkKey(c *secretmanagerpb.CustomerManagedEncryption, location string) error {
	if c == nil {
		return nil
	}
	m := keyForm.FindStringSubmatch(c.GetKmsKeyName())
	if m == nil || m[1] != location {
		return fail(codes.InvalidArgument, "The KMS key [%s] is not one in location [%s].", c.GetKmsKeyName(), location)
	}
	return nil
}

func checkRotation(pb *secretmanagerpb.Secret, now time.Time) error {
	if len(pb.GetTopics()) > maxTopics {
		return fail(codes.InvalidArgument, "No more than %d topics can be configured.", maxTopics)
	}
	for _, t := range pb.GetTopics() {
		if !topicForm.MatchString(t.GetName()) {
			return fail(codes.InvalidArgument, "The topic [%s] is not valid.", t.GetName())
		}
	}
	r := pb.GetRotation()
	if r == nil {
		return nil
	}
	if len(pb.GetTopics()) == 0 {
		return fail(codes.InvalidArgument, "A secret with rotation must have at least one topic.")
	}
	if period := r.GetRotationPeriod(); period != nil && (r.GetNextRotationTime() == nil || period.AsDuration() < time.Hour) {
		return fail(codes.InvalidArgument, "A rotation_period needs next_rotation_time and at least 3600s.")
	}
	if next := r.GetNextRotationTime(); next != nil && next.AsTime().Before(now) {
		return fail(codes.InvalidArgument, "The next_rotation_time must be at least 300s in the future.")
	}
	return nil
}
