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

// Park implements [notifier.DeadLetters]. The same notice is kept once,
// however often it is parked: its key is part of its subject, which takes one
// letter. After [Bus.DeleteDeadLetter] it can be parked again. A letter that is
// too large for the server is kept without the end of its body, and without its
// attributes if that is not enough; Size still tells how long the body was.
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
			return b.parkOnce(ctx, m)
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

// parkOnce stores m if its subject has no message yet.
func (b *Bus) parkOnce(ctx context.Context, m *nats.Msg) error {
	for try := 0; ; try++ {
		err := b.publish(ctx, "park", DeadLetterStream, []*nats.Msg{m})
		switch api := apiError(err); {
		case api == nil:
			return err
		case api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequence:
			return nil // it is there
		case api.ErrorCode != jetstream.JSErrCodeStreamWrongLastSequenceConstant || try >= maxDecisions:
			if undecided(err) {
				return &fault.Error{Kind: fault.Unavailable, Class: fault.ClassConcurrency, Op: "natsbus: park", Err: err}
			}
			return err
		}
		// Another process is about to store it, which may still fail.
		if !pause(ctx, min(2*time.Millisecond<<try, 200*time.Millisecond)) {
			return classify("park", ctx.Err())
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
		Subject: deadLetterPrefix + events.Token(l.Source) + "." + l.Kind.String() + "." + key,
		Data:    data,
		Header: nats.Header{
			// No message id: within the duplicate window the server would take
			// a notice that was parked, deleted and parked again for stored.
			jetstream.ExpectedLastSubjSeqHeader: {"0"},
			headerReason:                        cut(l.Reason),
			headerKind:                          {l.Kind.String()},
			headerSource:                        cut(l.Source),
			headerID:                            cut(l.ID),
			headerAttempt:                       {strconv.Itoa(l.Attempt)},
		},
	}, nil
}

// A StoredLetter is a dead letter with its place in the stream.
type StoredLetter struct {
	notifier.DeadLetter
	Seq uint64
}

// A LetterQuery selects dead letters. Zero fields match everything.
type LetterQuery struct {
	Source string
	// Kind selects by the kind's name, such as "invalid".
	Kind string
	// From is the sequence to begin with.
	From uint64
	// Limit is how many are yielded at most; 0 for all.
	Limit int
}

// subject selects those letters. Letters of before the key was part of the
// subject have one token less, and are found only without a source and kind.
func (q LetterQuery) subject() string {
	source, kind := "*", "*"
	if q.Source != "" {
		source = events.Token(q.Source)
	}
	if q.Kind != "" {
		kind = events.Token(q.Kind)
	}
	if source == "*" && kind == "*" {
		return deadLetterPrefix + ">"
	}
	return deadLetterPrefix + source + "." + kind + ".>"
}

// DeadLetters yields dead letters, oldest first, from sequence from on (0 for
// all), and at most limit of them; see [Bus.QueryDeadLetters].
func (b *Bus) DeadLetters(ctx context.Context, from uint64, limit int) iter.Seq2[StoredLetter, error] {
	if limit <= 0 {
		return func(func(StoredLetter, error) bool) {}
	}
	return b.QueryDeadLetters(ctx, LetterQuery{From: from, Limit: limit})
}

// QueryDeadLetters yields the dead letters that q selects, oldest first. It
// reads them page by page as the caller goes on. An error ends it. What is no
// letter is passed over with a log line.
func (b *Bus) QueryDeadLetters(ctx context.Context, q LetterQuery) iter.Seq2[StoredLetter, error] {
	const page = 16 // a letter may have the size of max_payload
	return func(yield func(StoredLetter, error) bool) {
		c := cursor{rd: reader{nc: b.nc, opts: b.opts, stream: DeadLetterStream}}
		c.q = getRequest{Seq: max(q.From, 1), NextFor: q.subject(), Batch: page}
		if q.Limit > 0 {
			c.q.Batch = min(page, q.Limit)
		}
		for n := 0; q.Limit <= 0 || n < q.Limit; {
			st, ok, err := c.next(ctx)
			if err != nil {
				yield(StoredLetter{}, classify("read dead letters", err))
				return
			}
			if !ok {
				return
			}
			out := StoredLetter{Seq: st.seq}
			if err := json.Unmarshal(st.msg.Data, &out.DeadLetter); err != nil {
				b.opts.Logger.WarnContext(ctx, "a message in the dead-letter stream is no letter", "sequence", st.seq)
				continue
			}
			if n++; !yield(out, nil) {
				return
			}
		}
	}
}

// DeadLetter returns the letter with that sequence. The error is of kind
// NotFound if there is none.
func (b *Bus) DeadLetter(ctx context.Context, seq uint64) (StoredLetter, error) {
	for l, err := range b.DeadLetters(ctx, seq, 1) {
		if err != nil {
			return l, err
		}
		if l.Seq == seq {
			return l, nil
		}
	}
	return StoredLetter{}, fault.Newf(fault.NotFound, "natsbus: read dead letter", "there is no letter %d; it was deleted, or is older than %s", seq, deadLetterMaxAge)
}

// CountDeadLetters counts the letters that q's source and kind select. It
// needs the right to read the stream's state.
func (b *Bus) CountDeadLetters(ctx context.Context, q LetterQuery) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, b.opts.PublishTimeout)
	defer cancel()
	var n uint64
	err := guarded(ctx, b.nc, []string{b.opts.api() + "STREAM.INFO." + DeadLetterStream}, func(ctx context.Context) error {
		s, err := b.js.Stream(ctx, DeadLetterStream)
		if err != nil {
			return err
		}
		if q.Source == "" && q.Kind == "" {
			n = s.CachedInfo().State.Msgs
			return nil
		}
		info, err := s.Info(ctx, jetstream.WithSubjectFilter(q.subject()))
		if err != nil {
			return err
		}
		for _, of := range info.State.Subjects {
			n += of
		}
		return nil
	})
	return n, classify("count dead letters", err)
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
