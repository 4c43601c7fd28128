package gcpsm

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"regexp"
	"strconv"
	"strings"

	secretmanager "cloud.google.com/go/secretmanager/apiv1"
	"cloud.google.com/go/secretmanager/apiv1/secretmanagerpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/secrets"
	"github.com/keyturn/keyturn/secrets/sibling"
)

// A place is one secret at the service. Its methods are the service's, each
// one call with a deadline.
type place struct {
	d          *driver
	c          *secretmanager.Client
	parent, id string
}

var (
	// A project's id may begin with a domain and a colon.
	// https://cloud.google.com/resource-manager/docs/creating-managing-projects
	projectForm  = regexp.MustCompile(`^[a-z0-9][a-z0-9.:-]{0,99}$`)
	locationForm = regexp.MustCompile(`^[a-z0-9-]{1,63}$`)
	idForm       = regexp.MustCompile(`^[A-Za-z0-9_-]{1,255}$`)
	versionForm  = regexp.MustCompile(`^[1-9][0-9]{0,17}$`)
)

const maxID = 255 // characters of a secret's id

// place checks r, whose parts become a host and a resource name.
func (d *driver) place(ctx context.Context, op string, r ref.Ref) (place, error) {
	if err := r.Validate(); err != nil {
		return place{}, fault.New(fault.Invalid, op, err)
	}
	project, location := r.ScopePart(0), r.ScopePart(1)
	switch {
	case r.Provider != ref.GCP:
		return place{}, fault.Newf(fault.Invalid, op, "%s is not in this store; expected gcp://PROJECT/NAME or gcp://PROJECT/LOCATION/NAME", r)
	case !projectForm.MatchString(project):
		return place{}, fault.Newf(fault.Invalid, op, "%q in %s is not a project; expected its id or number", project, r)
	case location != "" && !locationForm.MatchString(location):
		return place{}, fault.Newf(fault.Invalid, op, "%q in %s is not a location; expected one such as europe-west3", location, r)
	case !idForm.MatchString(r.Name):
		return place{}, fault.Newf(fault.Invalid, op, "%q in %s is not the id of a secret; expected letters, digits, '_' and '-', at most %d", r.Name, r, maxID)
	case len(r.Name)+len(sibling.Suffix) > maxID:
		return place{}, fault.Newf(fault.Invalid, op, "the id of %s has %d characters; expected at most %d, so that %q fits behind it", r, len(r.Name), maxID-len(sibling.Suffix), sibling.Suffix)
	}
	if err := ctx.Err(); err != nil {
		return place{}, fault.New(fault.Unavailable, op, err)
	}
	c, err := d.clients(ctx, location)
	if err != nil {
		return place{}, err
	}
	p := place{d: d, c: c, parent: "projects/" + project, id: r.Name}
	if location != "" {
		p.parent += "/locations/" + location
	}
	return p, nil
}

func (p place) name() string { return p.parent + "/secrets/" + p.id }

func (p place) version(id string) string { return p.name() + "/versions/" + id }

func (p place) sibling() place {
	p.id += sibling.Suffix
	return p
}

// call bounds one call, and classifies its error.
func call[T any](ctx context.Context, d *driver, op string, quiet bool, f func(context.Context) (T, error)) (T, error) {
	var zero T
	if err := ctx.Err(); err != nil {
		return zero, fault.New(fault.Unavailable, op, err)
	}
	ctx, cancel := context.WithTimeout(ctx, d.opts.Timeout)
	defer cancel()
	out, err := f(ctx)
	var ours *fault.Error
	if errors.As(err, &ours) {
		return zero, err
	}
	if err != nil {
		return zero, classify(ctx, op, quiet, err)
	}
	return out, nil
}

func (p place) get(ctx context.Context) (*secretmanagerpb.Secret, error) {
	sec, err := call(ctx, p.d, "gcpsm: get secret "+p.name(), false, func(ctx context.Context) (*secretmanagerpb.Secret, error) {
		return p.c.GetSecret(ctx, &secretmanagerpb.GetSecretRequest{Name: p.name()})
	})
	if err != nil {
		return nil, err
	}
	p.d.opts.Projects.learn(p.parent, sec.GetName())
	return sec, nil
}

func (p place) create(ctx context.Context, sec *secretmanagerpb.Secret) (*secretmanagerpb.Secret, error) {
	return call(ctx, p.d, "gcpsm: create secret "+p.name(), false, func(ctx context.Context) (*secretmanagerpb.Secret, error) {
		return p.c.CreateSecret(ctx, &secretmanagerpb.CreateSecretRequest{Parent: p.parent, SecretId: p.id, Secret: sec})
	})
}

// update writes fields of a secret as it was read: with the etag of then.
func (p place) update(ctx context.Context, sec *secretmanagerpb.Secret, fields ...string) (*secretmanagerpb.Secret, error) {
	return call(ctx, p.d, "gcpsm: update secret "+p.name(), false, func(ctx context.Context) (*secretmanagerpb.Secret, error) {
		return p.c.UpdateSecret(ctx, &secretmanagerpb.UpdateSecretRequest{
			Secret: &secretmanagerpb.Secret{
				Name: p.name(), Etag: sec.GetEtag(), Annotations: sec.GetAnnotations(), VersionAliases: sec.GetVersionAliases(),
			},
			UpdateMask: &fieldmaskpb.FieldMask{Paths: fields},
		})
	})
}

// info describes a version: its number, or "latest" for the newest created.
func (p place) info(ctx context.Context, id string) (*secretmanagerpb.SecretVersion, error) {
	return call(ctx, p.d, "gcpsm: get version "+p.version(id), false, func(ctx context.Context) (*secretmanagerpb.SecretVersion, error) {
		return p.c.GetSecretVersion(ctx, &secretmanagerpb.GetSecretVersionRequest{Name: p.version(id)})
	})
}

// newest describes the newest version of a secret that exists, nil if it has
// none.
func (p place) newest(ctx context.Context) (*secretmanagerpb.SecretVersion, error) {
	v, err := p.info(ctx, "latest")
	if fault.Is(err, fault.NotFound) {
		return nil, nil //nolint:nilnil // no version is no error
	}
	return v, err
}

// access reads a value. What is disabled, destroyed or not there is NotFound.
func (p place) access(ctx context.Context, id string) (secrets.Value, error) {
	v, state, err := p.enabled(ctx, id)
	if err == nil && state != nil {
		err = fault.Newf(fault.NotFound, "gcpsm: access "+p.version(id), "it is %s; enable it to read it", strings.ToLower(state.GetState().String()))
	}
	return v, err
}

// enabled reads the value of a version, or describes one that is disabled or
// destroyed. One that is not there is NotFound.
func (p place) enabled(ctx context.Context, id string) (secrets.Value, *secretmanagerpb.SecretVersion, error) {
	op := "gcpsm: access " + p.version(id)
	for try := 0; ; try++ {
		got, err := p.open(ctx, op, id)
		if !isCode(err, codes.FailedPrecondition) {
			return got.value, nil, err
		}
		// The version's state, or that of the key which encrypts it: taking
		// the latter for the former would be to lose a pending version.
		v, ierr := p.info(ctx, id)
		switch {
		case ierr != nil:
			return secrets.Value{}, nil, ierr
		case v.GetState() != secretmanagerpb.SecretVersion_ENABLED:
			return secrets.Value{}, v, nil
		case try == 0:
			continue // it may have been enabled in between
		}
		return secrets.Value{}, nil, &fault.Error{
			Kind: fault.Denied, Class: fault.ClassPermission, Op: op, Err: err,
			Msg: "the version is enabled and cannot be read; see that its Cloud KMS key is enabled, and that Secret Manager may use it",
		}
	}
}

// A payload is what was accessed, and the number of the version.
type payload struct {
	value secrets.Value
	id    string
}

// open makes the call and verifies the checksum. Versions that were encrypted
// with a customer's key before 2021-07-16 have none.
// https://cloud.google.com/secret-manager/docs/data-integrity
func (p place) open(ctx context.Context, op, id string) (payload, error) {
	resp, err := call(ctx, p.d, op, true, func(ctx context.Context) (*secretmanagerpb.AccessSecretVersionResponse, error) {
		return p.c.AccessSecretVersion(ctx, &secretmanagerpb.AccessSecretVersionRequest{Name: p.version(id)})
	})
	if err != nil {
		return payload{}, err
	}
	data := resp.GetPayload().GetData()
	defer clear(data)
	if sum := resp.GetPayload().DataCrc32C; sum != nil && *sum != checksum(data) {
		return payload{}, fault.Newf(fault.Unavailable, op, "the payload was damaged on its way: its CRC32C is not the one that was told; try again")
	}
	return payload{secrets.NewValue(data), number(resp.GetName())}, nil
}

// add makes v the newest version. The service verifies the checksum.
func (p place) add(ctx context.Context, v secrets.Value) (*secretmanagerpb.SecretVersion, error) {
	op := "gcpsm: add version to " + p.name()
	data := v.Reveal()
	defer clear(data)
	sum := checksum(data)
	out, err := call(ctx, p.d, op, true, func(ctx context.Context) (*secretmanagerpb.SecretVersion, error) {
		out, err := p.c.AddSecretVersion(ctx, &secretmanagerpb.AddSecretVersionRequest{
			Parent: p.name(), Payload: &secretmanagerpb.SecretPayload{Data: data, DataCrc32C: &sum},
		})
		// The service calls a payload that was damaged an invalid argument, but
		// what was given here is valid and may be sent again.
		if st, ok := statusOf(err); ok && st.Code() == codes.InvalidArgument && strings.Contains(strings.ToLower(st.Message()), "checksum") {
			return nil, fault.Newf(fault.Unavailable, op, "the payload was damaged on its way: the service found another CRC32C; try again")
		}
		return out, err
	})
	if err != nil {
		return nil, err
	}
	if !out.GetClientSpecifiedPayloadChecksum() {
		return nil, fault.Newf(fault.Unavailable, op, "the service did not get the checksum, so something between altered the request; try again")
	}
	return out, nil
}

// ended reports whether a version is destroyed, or will be without anybody's
// doing.
func ended(v *secretmanagerpb.SecretVersion) bool {
	return v.GetState() == secretmanagerpb.SecretVersion_DESTROYED || v.GetScheduledDestroyTime() != nil
}

// destroy makes a version unreadable for good, or schedules that where the
// secret delays it, if allow lets it. Done already, or not there, is success.
func (p place) destroy(ctx context.Context, id string, allow func(*secretmanagerpb.SecretVersion) error) error {
	return p.transition(ctx, "destroy", id, func(v *secretmanagerpb.SecretVersion) (bool, error) {
		if v == nil || ended(v) {
			return true, nil
		}
		return false, allow(v)
	}, func(ctx context.Context, etag string) (*secretmanagerpb.SecretVersion, error) {
		return p.c.DestroySecretVersion(ctx, &secretmanagerpb.DestroySecretVersionRequest{Name: p.version(id), Etag: etag})
	})
}

// transitionTries bounds how often a transition begins again because somebody
// else moved the version's etag.
const transitionTries = 5

// transition moves the state of a version under its etag, unless done says
// that it is where it should be. done gets nil for a version that is not there.
func (p place) transition(ctx context.Context, verb, id string, done func(*secretmanagerpb.SecretVersion) (bool, error), move func(ctx context.Context, etag string) (*secretmanagerpb.SecretVersion, error)) error {
	op := fmt.Sprintf("gcpsm: %s version %s", verb, p.version(id))
	for try := 0; ; try++ {
		v, err := p.info(ctx, id)
		if err != nil && !fault.Is(err, fault.NotFound) {
			return err
		}
		if ok, err := done(v); ok || err != nil {
			return err
		}
		_, err = call(ctx, p.d, op, false, func(ctx context.Context) (*secretmanagerpb.SecretVersion, error) { return move(ctx, v.GetEtag()) })
		if err == nil || !isCode(err, codes.FailedPrecondition) && !isCode(err, codes.Aborted) || try == transitionTries {
			return err
		}
	}
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// checksum is a payload's CRC32C as the service writes it.
func checksum(b []byte) int64 { return int64(crc32.Checksum(b, castagnoli)) }

// number is the last part of a version's name.
func number(name string) string { return name[strings.LastIndexByte(name, '/')+1:] }

// after reports whether version a was created later than b, "" being none.
func after(a, b string) bool { return ordinal(a) > ordinal(b) }

func ordinal(id string) int64 {
	n, err := strconv.ParseInt(id, 10, 64)
	if err != nil {
		return 0
	}
	return n
}
