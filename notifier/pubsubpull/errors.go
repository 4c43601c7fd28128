package pubsubpull

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/keyturn/keyturn/fault"
)

// kindOf is the one table of the service's codes.
// https://cloud.google.com/pubsub/docs/reference/error-codes
func kindOf(c codes.Code) (fault.Kind, fault.Class, string) {
	switch c {
	case codes.NotFound:
		return fault.NotFound, "", "there is no such subscription; check project and subscription, or create it"
	case codes.PermissionDenied:
		return fault.Denied, fault.ClassPermission, "give the caller roles/pubsub.subscriber on the subscription"
	case codes.Unauthenticated:
		return fault.Denied, fault.ClassAuth, "give this machine a service account, or set GOOGLE_APPLICATION_CREDENTIALS"
	case codes.InvalidArgument, codes.FailedPrecondition, codes.Unimplemented:
		return fault.Invalid, "", "is it a subscription for pull, and enabled?"
	case codes.ResourceExhausted:
		return fault.Unavailable, fault.ClassQuota, ""
	case codes.DeadlineExceeded:
		return fault.Unavailable, fault.ClassTimeout, ""
	}
	return fault.Unavailable, fault.ClassNetwork, ""
}

// classify turns a client's error into one of package fault, without its text:
// an answer that cannot be decoded is quoted there.
func classify(what string, err error) error {
	e := &fault.Error{Kind: fault.Unavailable, Class: fault.ClassNetwork, Op: op + ": " + what}
	st, isStatus := status.FromError(err)
	switch {
	case err == nil:
		e.Msg = "the stream ended"
	case isStatus:
		var advice string
		e.Kind, e.Class, advice = kindOf(st.Code())
		e.Msg = "the service answered " + st.Code().String()
		if advice != "" {
			e.Msg += "; " + advice
		}
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		e.Class, e.Msg = fault.ClassTimeout, "no answer in time"
	case strings.Contains(err.Error(), "credentials"):
		// The client has no type for it.
		e.Kind, e.Class = fault.Denied, fault.ClassAuth
		e.Msg = "no Google credentials could be had; give this machine a service account, or set GOOGLE_APPLICATION_CREDENTIALS"
	default:
		e.Msg = fmt.Sprintf("the client failed with a %T", fault.Root(err))
	}
	return e
}

// shortLived is the life of a stream whose end is a failure. The service ends
// every stream some day, always with an error, and the client opens another.
// https://cloud.google.com/pubsub/docs/pull#streamingpull_has_a_100_error_rate_this_is_to_be_expected
const shortLived = 10 * time.Second

// watch tells outages: the client itself opens failed streams again without a
// word. The service answers a client's pings every half minute, so an idle
// subscription is known to work too.
func (s *Source) watch(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, streamer grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	if s.ending.Load() {
		// The client would go on trying for a stream that it needs only to
		// close it, for as long as the network is away.
		return nil, status.Error(codes.Canceled, "the source ends")
	}
	cs, err := streamer(ctx, desc, cc, method, opts...)
	if err != nil {
		s.streamFailed(ctx, err)
		return nil, err
	}
	return &watched{ClientStream: cs, s: s, opened: time.Now()}, nil
}

type watched struct {
	grpc.ClientStream
	s      *Source
	opened time.Time
	used   bool
}

// RecvMsg is called by one goroutine at a time.
func (w *watched) RecvMsg(m any) error {
	err := w.ClientStream.RecvMsg(m)
	if err == nil {
		if !w.used {
			w.used = true
			w.s.streams.Add(1)
		}
		w.s.outage.Worked(w.Context())
		return nil
	}
	if w.used {
		w.used = false
		w.s.streams.Add(-1)
	} else if !errors.Is(err, io.EOF) && time.Since(w.opened) < shortLived {
		w.s.streamFailed(w.Context(), err)
	}
	return err
}

// streamFailed records that a stream could not be had. While another works that
// is no outage: connections come back one after the other.
func (s *Source) streamFailed(ctx context.Context, err error) {
	if ctx.Err() == nil && status.Code(err) != codes.Canceled && s.streams.Load() == 0 {
		s.outage.Failed(ctx, classify("receive", err))
	}
}
