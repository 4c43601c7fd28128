package gcpsm

import (
	"context"
	"fmt"

	"google.golang.org/grpc/codes"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/secrets"
)

// A Reader reads as plain readers do, in one call: `latest` for the current
// version, the alias `previous` for the previous one. It is what an agent
// needs: no permission but secretmanager.versions.access. What it returns has
// neither token nor time, which that permission does not tell.
type Reader struct{ d *driver }

var _ secrets.Reader = (*Reader)(nil)

// NewReader returns a Reader. opts may be nil.
func NewReader(clients Clients, opts *Options) *Reader {
	return &Reader{&driver{clients: clients, opts: opts.defaults()}}
}

// Get implements [secrets.Reader]. Pending is Denied: it is for a [Store]. So
// is a current version that was disabled or destroyed.
func (s *Reader) Get(ctx context.Context, r ref.Ref, stage secrets.Stage) (*secrets.Version, error) {
	const op = "gcpsm: get"
	p, err := s.d.place(ctx, op, r)
	if err != nil {
		return nil, err
	}
	version := "latest"
	switch stage {
	case secrets.Current:
	case secrets.Previous:
		version = aliasPrevious
	case secrets.Pending:
		return nil, fault.Newf(fault.Denied, op, "a pending version of %s is not for readers; use a Store", r)
	default:
		return nil, fault.Newf(fault.Invalid, op, "%q is not a stage; expected current or previous", stage)
	}
	got, err := p.open(ctx, "gcpsm: access "+p.version(version), version)
	if isCode(err, codes.FailedPrecondition) {
		kind := fault.Denied
		if stage == secrets.Previous {
			kind = fault.NotFound
		}
		return nil, &fault.Error{
			Kind: kind, Op: op, Err: err,
			Msg: fmt.Sprintf("the %s version of %s is disabled or destroyed, or its key is; enable it, or add a version", stage, r),
		}
	}
	if err != nil {
		return nil, err
	}
	return &secrets.Version{ID: got.id, Value: got.value}, nil
}
