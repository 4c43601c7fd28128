package natsbus

import (
	"context"
	"iter"
	"slices"
	"time"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/fault"
)

// maxQuerySubjects bounds the subjects of one query: each holds a page.
const maxQuerySubjects = 64

// An EventsQuery selects stored events. Zero fields match everything.
type EventsQuery struct {
	// Since and Until bound when an event was stored: from Since on, before
	// Until.
	Since, Until time.Time
	// Subjects are event subjects, which may have wildcards, as of
	// [events.Filter.Subjects]. At most 64.
	Subjects []string
	// From is the sequence to begin with.
	From uint64
	// Late reads the late events instead; see [Bus.PublishReceipt].
	Late bool
}

// A StoredEvent is an event with its place in the stream.
type StoredEvent struct {
	events.Event
	Seq    uint64
	Stored time.Time
	// Subject is the event's own, also where it is among the late ones.
	Subject string
}

// Events yields the stored events that q selects, in the order in which they
// were stored. It reads them page by page as the caller goes on, up to those
// that are stored meanwhile, and holds one page of each subject. An error ends
// it; it is of kind Invalid for too many subjects, else as of [Bus.Ready]. What
// is no event that this version knows is passed over with a log line.
//
// It needs the right to publish on $JS.API.DIRECT.GET.<stream>.
func (b *Bus) Events(ctx context.Context, q EventsQuery) iter.Seq2[StoredEvent, error] {
	return func(yield func(StoredEvent, error) bool) {
		cursors, err := b.cursors(q)
		if err != nil {
			yield(StoredEvent{}, err)
			return
		}
		var last uint64
		for {
			st, ok, err := first(ctx, cursors)
			if err != nil {
				yield(StoredEvent{}, classify("read events", err))
				return
			}
			if !ok || !q.Until.IsZero() && !st.at.Before(q.Until) {
				return
			}
			if st.seq == last || st.at.Before(q.Since) { // selected by two subjects; before Since
				continue
			}
			last = st.seq
			out := StoredEvent{Seq: st.seq, Stored: st.at.UTC(), Subject: st.subject}
			if q.Late {
				out.Subject = eventSubject(st.subject)
			}
			if out.Event, err = decode(out.Subject, st.msg.Header, st.msg.Data); err != nil {
				b.opts.Logger.WarnContext(ctx, "a stored message is no event that is known here", "stream", cursors[0].rd.stream, "sequence", st.seq, "error", err)
				continue
			}
			if !yield(out, nil) {
				return
			}
		}
	}
}

// cursors are one a subject.
func (b *Bus) cursors(q EventsQuery) ([]*cursor, error) {
	if len(q.Subjects) > maxQuerySubjects {
		return nil, fault.Newf(fault.Invalid, "natsbus: read events", "%d subjects; expected at most %d (use wildcards)", len(q.Subjects), maxQuerySubjects)
	}
	subjects, stream := slices.Clone(q.Subjects), EventStream
	if len(subjects) == 0 {
		subjects = []string{eventSubjects}
	}
	if q.Late {
		stream = LateStream
	}
	var out []*cursor
	for _, s := range subjects {
		if q.Late {
			s = lateSubject(s)
		}
		c := &cursor{rd: reader{nc: b.nc, opts: b.opts, stream: stream}}
		c.q = getRequest{NextFor: s, Batch: max(maxOutstanding/len(subjects), 4), MaxBytes: maxPageBytes / len(subjects)}
		if q.From == 0 && !q.Since.IsZero() {
			since := q.Since.UTC()
			c.q.StartTime = &since
		} else {
			c.q.Seq = max(q.From, 1)
		}
		out = append(out, c)
	}
	return out, nil
}

// first takes the message with the least sequence.
func first(ctx context.Context, cs []*cursor) (stored, bool, error) {
	var least *cursor
	for _, c := range cs {
		ok, err := c.fill(ctx)
		if err != nil {
			return stored{}, false, err
		}
		if ok && (least == nil || c.page[0].seq < least.page[0].seq) {
			least = c
		}
	}
	if least == nil {
		return stored{}, false, nil
	}
	return least.next(ctx)
}

// A cursor goes through the messages that a request for a page selects.
type cursor struct {
	rd   reader
	q    getRequest
	page []stored
	end  bool
}

// fill reports whether there is a next message.
func (c *cursor) fill(ctx context.Context) (bool, error) {
	if len(c.page) > 0 || c.end {
		return len(c.page) > 0, nil
	}
	c.page = nil
	end, err := c.rd.page(ctx, c.q, func(st stored) error {
		c.page = append(c.page, st)
		return nil
	})
	if err != nil {
		return false, err
	}
	if n := len(c.page); n > 0 {
		c.q.Seq, c.q.StartTime = c.page[n-1].seq+1, nil
	}
	c.end = len(c.page) == 0 || end.pending == 0
	return len(c.page) > 0, nil
}

// next takes the next message.
func (c *cursor) next(ctx context.Context) (stored, bool, error) {
	ok, err := c.fill(ctx)
	if !ok || err != nil {
		return stored{}, false, err
	}
	st := c.page[0]
	c.page = c.page[1:]
	return st, true, nil
}
