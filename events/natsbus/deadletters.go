package natsbus

import (
	"context"
	"encoding/json"
	"errors"
	"iter"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/notifier"
)

// The headers of a dead letter, for people with the nats command; the payload
// is the letter as JSON and holds all of it. Values are percent-encoded.
const (
	headerReason  = "Keyturn-Reason"
	headerKind    = "Keyturn-Kind"
	headerSource  = "Keyturn-Source"
	headerID      = "Keyturn-Id"
	headerAttempt = "Keyturn-Attempt"
)

// maxHeader bounds each of those headers in bytes before escaping.
const maxHeader = 512

// Park implements [notifier.DeadLetters]. A letter that is too large for the
// server is kept without the end of its body, and without its attributes if
// that is not enough; Size still tells how long the body was.
func (b *Bus) Park(ctx context.Context, l notifier.DeadLetter) error {
	if l.Parked.IsZero() {
		l.Parked = time.Now().UTC()
	}
	if l.Size == 0 {
		l.Size = len(l.Body)
	}
	key := l.Key() // before the body is cut
	limit := b.nc.MaxPayload()
	if limit <= 0 {
		limit = 1 << 20
	}
	for {
		m, err := letter(l, key)
		if err != nil {
			return err
		}
		over := int64(m.Size()) + 256 - limit // 256 for what publish adds
		switch {
		case over <= 0:
			return b.publish(ctx, "park", DeadLetterStream, []*nats.Msg{m})
		case len(l.Body) > 0:
			// In base64 four bytes hold three.
			l.Body = l.Body[:max(0, int64(len(l.Body))-over*3/4-3)]
		case len(l.Attributes) > 0:
			l.Attributes = nil
		default:
			return fault.Newf(fault.Invalid, "natsbus: park", "a letter without body and attributes still has %d bytes; the server takes %d", m.Size(), limit)
		}
	}
}

func letter(l notifier.DeadLetter, key string) (*nats.Msg, error) {
	data, err := json.Marshal(l)
	if err != nil {
		return nil, fault.New(fault.Invalid, "natsbus: park", err)
	}
	cut := func(s string) []string {
		if len(s) > maxHeader {
			s = s[:maxHeader]
		}
		return []string{escape(s)}
	}
	return &nats.Msg{
		Subject: deadLetterPrefix + events.Token(l.Source) + "." + l.Kind.String(),
		Data:    data,
		Header: nats.Header{
			jetstream.MsgIDHeader: {key},
			headerReason:          cut(l.Reason),
			headerKind:            {l.Kind.String()},
			headerSource:          cut(l.Source),
			headerID:              cut(l.ID),
			headerAttempt:         {strconv.Itoa(l.Attempt)},
		},
	}, nil
}

// A StoredLetter is a dead letter with its place in the stream.
type StoredLetter struct {
	notifier.DeadLetter
	Seq uint64
}

// DeadLetters yields dead letters, oldest first, from sequence from on (0 for
// all), and at most limit of them. It reads them page by page as the caller
// goes on. An error ends it. What is no letter is passed over with a log line.
func (b *Bus) DeadLetters(ctx context.Context, from uint64, limit int) iter.Seq2[StoredLetter, error] {
	const page = 16 // a letter may have the size of max_payload
	return func(yield func(StoredLetter, error) bool) {
		rd := reader{nc: b.nc, opts: b.opts, stream: DeadLetterStream}
		q := getRequest{Seq: max(from, 1), NextFor: deadLetterPrefix + ">", Batch: page}
		for left := limit; left > 0; {
			q.Batch = min(page, left)
			var got []stored
			end, err := rd.page(ctx, q, func(st stored) error {
				got = append(got, st)
				return nil
			})
			if err != nil {
				yield(StoredLetter{}, classify("read dead letters", err))
				return
			}
			for _, st := range got {
				q.Seq = st.seq + 1
				left--
				out := StoredLetter{Seq: st.seq}
				if err := json.Unmarshal(st.msg.Data, &out.DeadLetter); err != nil {
					b.opts.Logger.WarnContext(ctx, "a message in the dead-letter stream is no letter", "sequence", st.seq)
					continue
				}
				if !yield(out, nil) {
					return
				}
			}
			if len(got) == 0 || end.pending == 0 {
				return
			}
		}
	}
}

// DeleteDeadLetter removes the letter, as after it was sent again. That there
// is none is no error.
func (b *Bus) DeleteDeadLetter(ctx context.Context, seq uint64) error {
	ctx, cancel := context.WithTimeout(ctx, b.opts.PublishTimeout)
	defer cancel()
	s, err := b.js.Stream(ctx, DeadLetterStream)
	if err == nil {
		err = s.DeleteMsg(ctx, seq)
		if errors.Is(err, jetstream.ErrMsgDeleteUnsuccessful) {
			// The client drops the server's reason; look whether it was there.
			if _, gone := s.GetMsg(ctx, seq); errors.Is(gone, jetstream.ErrMsgNotFound) {
				return nil
			}
		}
	}
	return classify("delete dead letter", err)
}
