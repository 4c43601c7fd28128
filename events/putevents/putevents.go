// Package putevents hands events to an Amazon EventBridge bus, for a rotator
// that announces its own work. The other way, from the bus to events, is
// package events/eventbridge, which also says what an entry looks like.
package putevents

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/eventbridge"
	"github.com/aws/aws-sdk-go-v2/service/eventbridge/types"
	"github.com/aws/smithy-go"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/fault"
)

// Limits of one PutEvents call. The size is the smaller of those that AWS has
// had; an entry of ours is below 8 KiB.
// https://docs.aws.amazon.com/eventbridge/latest/APIReference/API_PutEvents.html
const (
	maxEntries = 10
	maxSize    = 256 << 10
)

const op = "putevents"

// client is what is called of an [eventbridge.Client].
type client interface {
	PutEvents(ctx context.Context, in *eventbridge.PutEventsInput, opts ...func(*eventbridge.Options)) (*eventbridge.PutEventsOutput, error)
}

var _ client = (*eventbridge.Client)(nil)

// An Encoder writes an event as the source, detail type and detail of an
// entry. Its error is of kind Invalid.
type Encoder func(e events.Event) (source, detailType string, detail []byte, err error)

// A Publisher is an [events.Publisher] on one bus. It is safe for concurrent
// use. EventBridge does not know an event again: what is published twice
// arrives twice, and the receiver goes by the event's ID.
type Publisher struct {
	client client
	bus    string
	encode Encoder
}

var _ events.Publisher = (*Publisher)(nil)

// New returns a Publisher on the bus with the given name or ARN.
func New(c client, bus string, encode Encoder) *Publisher {
	return &Publisher{client: c, bus: bus, encode: encode}
}

// Publish puts es on the bus, in calls of up to ten. It returns nil once
// EventBridge has taken every one. Otherwise the error is that of the first
// entry that was not taken, and others may have been: publish all again.
// Kinds: Invalid, an event or the bus's name cannot work; Denied; Unavailable.
func (p *Publisher) Publish(ctx context.Context, es ...events.Event) error {
	// Encoded first, so that a bad event is found before any is sent.
	entries := make([]types.PutEventsRequestEntry, 0, len(es))
	sizes := make([]int, 0, len(es))
	for _, e := range es {
		source, detailType, detail, err := p.encode(e)
		if err != nil {
			return fmt.Errorf("%s: %w", op, err)
		}
		// What counts is the text of source, detail type, detail and 14 bytes
		// for the time.
		size := len(source) + len(detailType) + len(detail) + 14
		if size > maxSize {
			return fault.Newf(fault.Invalid, op, "event %s takes %d bytes; expected at most %d", e.ID, size, maxSize)
		}
		entries = append(entries, types.PutEventsRequestEntry{
			EventBusName: aws.String(p.bus), Source: aws.String(source), DetailType: aws.String(detailType),
			Detail: aws.String(string(detail)), Time: aws.Time(e.Time),
		})
		sizes = append(sizes, size)
	}
	for len(entries) > 0 {
		n, size := 0, 0
		for n < len(entries) && n < maxEntries && size+sizes[n] <= maxSize {
			size += sizes[n]
			n++
		}
		if err := p.put(ctx, entries[:n]); err != nil {
			return err
		}
		entries, sizes = entries[n:], sizes[n:]
	}
	return nil
}

// put makes one call.
func (p *Publisher) put(ctx context.Context, entries []types.PutEventsRequestEntry) error {
	out, err := p.client.PutEvents(ctx, &eventbridge.PutEventsInput{Entries: entries})
	if err != nil {
		return p.classify(ctx, err)
	}
	if len(out.Entries) != len(entries) {
		return fault.Newf(fault.Unavailable, op, "bus %s answered for %d of %d events; publish them again", p.bus, len(out.Entries), len(entries))
	}
	for i, r := range out.Entries {
		if r.ErrorCode == nil && aws.ToString(r.EventId) != "" {
			continue
		}
		// The service's message repeats what was sent, so the code must do.
		code := aws.ToString(r.ErrorCode)
		kind, class := kindOf(code)
		return &fault.Error{Kind: kind, Class: class, Op: op, Msg: fmt.Sprintf(
			"bus %s did not take %s (%d of %d were refused): %q%s", p.bus, aws.ToString(entries[i].DetailType), out.FailedEntryCount, len(entries), code, advice(kind),
		)}
	}
	return nil
}

// kindOf is the one table of EventBridge's codes, of a call and of an entry.
func kindOf(code string) (fault.Kind, fault.Class) {
	switch code {
	case "ThrottlingException", "TooManyRequestsException":
		return fault.Unavailable, fault.ClassQuota
	case "InternalFailure", "InternalException", "InternalServerError", "ServiceUnavailable", "ServiceUnavailableException", "RequestTimeout":
		return fault.Unavailable, fault.ClassNetwork
	case "AccessDeniedException", "AccessDenied", "NotAuthorizedForSourceException", "NotAuthorizedForDetailTypeException":
		return fault.Denied, fault.ClassPermission
	case "ExpiredTokenException", "ExpiredToken", "InvalidClientTokenId", "UnrecognizedClientException", "InvalidSignatureException",
		"SignatureDoesNotMatch", "IncompleteSignature", "MissingAuthenticationToken", "InvalidAccountIdException":
		return fault.Denied, fault.ClassAuth
	case "InvalidArgument", "MalformedDetail", "ValidationException", "ResourceNotFoundException", "RedactionFailure":
		return fault.Invalid, ""
	}
	return fault.Unknown, ""
}

func advice(k fault.Kind) string {
	switch k {
	case fault.Denied:
		return "; allow events:PutEvents on the bus, in the role and in the bus's own policy"
	case fault.Invalid:
		return "; check the bus's name and region"
	}
	return ""
}

// classify turns a failed call into an error of package fault.
func (p *Publisher) classify(ctx context.Context, err error) error {
	e := &fault.Error{Kind: fault.Unknown, Op: op, Msg: "bus " + p.bus, Err: err}
	var api smithy.APIError
	var status interface{ HTTPStatusCode() int }
	var network net.Error
	switch {
	case ctx.Err() != nil:
		e.Kind, e.Class = fault.Unavailable, fault.ClassTimeout
	case errors.As(err, &api):
		if e.Kind, e.Class = kindOf(api.ErrorCode()); e.Kind == fault.Unknown && errors.As(err, &status) && status.HTTPStatusCode() >= http.StatusInternalServerError {
			e.Kind, e.Class = fault.Unavailable, fault.ClassNetwork
		}
		// The message of a refusal names the role and the bus, which helps,
		// but it may repeat an entry; the code and our advice must do.
		e.Err = nil
		e.Msg += fmt.Sprintf(": %q%s", api.ErrorCode(), advice(e.Kind))
	case errors.As(err, &status) && status.HTTPStatusCode() >= http.StatusInternalServerError:
		e.Kind, e.Class = fault.Unavailable, fault.ClassNetwork
	case errors.As(err, &network):
		e.Kind, e.Class = fault.Unavailable, fault.ClassNetwork
	}
	return e
}
