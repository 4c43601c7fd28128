package natsbus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyturn/keyturn/fault"
)

const (
	// maxOutstanding bounds the requests, and a page the messages, that are
	// under way at a time, so that the client's buffer holds them all.
	maxOutstanding = 256
	// maxPage is the largest page, for who reads thousands: the server counts
	// what is left once a page.
	maxPage      = 1000
	maxPageBytes = 8 << 20
	// maxFilters is how many subjects one multi-last request names. The server
	// answers at most 1024 messages to one.
	maxFilters = 1000
	// idle is how long an answer may take.
	idle = 3 * time.Second
)

// errTooMany means that a filter matches more subjects than the server answers
// in one multi-last request.
var errTooMany = errors.New("natsbus: too many subjects for one request")

// A reader reads single messages of a stream by direct get. It keeps nothing.
// https://docs.nats.io/nats-concepts/jetstream/streams#directget, and ADR-31
type reader struct {
	nc     *nats.Conn
	opts   Options
	stream string
}

// A stored message.
type stored struct {
	subject string
	seq     uint64
	at      time.Time
	msg     *nats.Msg
}

// last calls emit with the last message of each subject that matches; a
// subject without a message is left out. It does not retry. An error of emit
// ends it and is returned as it is.
//
// Literal subjects are asked for one by one, on API subjects that end in the
// asked subject, so that the server's permissions decide about each. Where
// there are wildcards (or with Options.MultiLast) the subjects are in the
// request's body, out of the permissions' reach.
func (r reader) last(ctx context.Context, subjects []string, emit func(stored) error) error {
	if !r.opts.MultiLast && !slices.ContainsFunc(subjects, hasWildcard) {
		reqs := make([]request, len(subjects))
		for i, s := range subjects {
			reqs[i] = request{subject: r.opts.api() + "DIRECT.GET." + r.stream + "." + s}
		}
		_, err := r.exchange(ctx, reqs, emit)
		return err
	}
	err := r.multi(ctx, subjects, emit)
	if !errors.Is(err, errTooMany) {
		return err
	}
	names, err := r.list(ctx, subjects)
	if err != nil {
		return err
	}
	for chunk := range slices.Chunk(names, maxFilters) {
		if err := r.multi(ctx, chunk, emit); err != nil {
			return err
		}
	}
	return nil
}

// A getRequest is the body of a direct get.
type getRequest struct {
	Seq       uint64   `json:"seq,omitempty"`
	NextFor   string   `json:"next_by_subj,omitempty"`
	MultiLast []string `json:"multi_last,omitempty"`
	Batch     int      `json:"batch,omitempty"`
	MaxBytes  int      `json:"max_bytes,omitempty"`
	UpToSeq   uint64   `json:"up_to_seq,omitempty"`

	StartTime *time.Time `json:"start_time,omitempty"`
}

// multi reads the last messages page by page, as of one moment.
func (r reader) multi(ctx context.Context, filters []string, emit func(stored) error) error {
	return r.pages(ctx, getRequest{MultiLast: filters, Batch: maxOutstanding}, emit)
}

// pages sends q and follow-ups of it until the server has no more.
func (r reader) pages(ctx context.Context, q getRequest, emit func(stored) error) error {
	for {
		end, err := r.page(ctx, q, emit)
		if err != nil {
			return err
		}
		if end.pending == 0 || end.last < q.Seq {
			return nil
		}
		q.Seq = end.last + 1
		q.UpToSeq = end.upTo
	}
}

// page sends q once.
func (r reader) page(ctx context.Context, q getRequest, emit func(stored) error) (mark, error) {
	body, err := json.Marshal(q)
	if err != nil {
		return mark{}, fault.New(fault.Invalid, "natsbus: read", err)
	}
	return r.exchange(ctx, []request{{subject: r.opts.api() + "DIRECT.GET." + r.stream, body: body, many: max(q.Batch, 1)}}, emit)
}

// list returns the stream's subjects that match filters. It needs the right to
// read the stream's state.
func (r reader) list(ctx context.Context, filters []string) ([]string, error) {
	js, err := newJetStream(r.nc, r.opts)
	if err != nil {
		return nil, classify("list subjects", err)
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	names := map[string]struct{}{}
	err = guarded(ctx, r.nc, []string{r.opts.api() + "STREAM.INFO." + r.stream}, func(ctx context.Context) error {
		s, err := js.Stream(ctx, r.stream)
		if err != nil {
			return err
		}
		for _, f := range filters {
			info, err := s.Info(ctx, jetstream.WithSubjectFilter(f))
			if err != nil {
				return err
			}
			for name := range info.State.Subjects {
				names[name] = struct{}{}
			}
		}
		return nil
	})
	if err != nil {
		return nil, classify("list subjects", err)
	}
	return slices.Sorted(maps.Keys(names)), nil
}

// A request is one direct get; many says that the answer is up to so many
// messages and an end mark. With 0 it is one message.
type request struct {
	subject string
	body    []byte
	many    int
}

// A mark is what the end of an answer tells.
type mark struct{ pending, last, upTo uint64 }

// exchange sends at most maxOutstanding requests at a time and emits the messages
// that are answered.
func (r reader) exchange(ctx context.Context, reqs []request, emit func(stored) error) (mark, error) {
	var end mark
	inbox := r.nc.NewInbox()
	buffer := 2 * maxOutstanding
	for _, q := range reqs {
		buffer = max(buffer, 2*q.many)
	}
	ch := make(chan *nats.Msg, buffer)
	sub, err := r.nc.ChanSubscribe(inbox+".*", ch)
	if err != nil {
		return end, classify("read", err)
	}
	defer func() { _ = sub.Unsubscribe() }()
	before := r.nc.LastError()
	for len(reqs) > 0 {
		n := min(len(reqs), maxOutstanding)
		open := make(map[string]request, n)
		for i, q := range reqs[:n] {
			reply := inbox + "." + strconv.Itoa(i)
			open[reply] = q
			if err := r.nc.PublishRequest(q.subject, reply, q.body); err != nil {
				return end, classify("read", err)
			}
		}
		reqs = reqs[n:]
		// The server reports a refusal before it answers the flush.
		if err := flush(ctx, r.nc); err != nil {
			return end, classify("read", err)
		}
		for _, q := range open {
			if d := denied(r.nc, before, q.subject); d != nil {
				return end, classify("read", d)
			}
		}
		for len(open) > 0 {
			m, err := r.next(ctx, ch)
			if err != nil {
				return end, err
			}
			q, ok := open[m.Subject]
			if !ok {
				continue
			}
			status := header(m, "Status")
			if len(m.Data) > 0 || status == "" || header(m, jetstream.SequenceHeader) != "" {
				st, err := toStored(m)
				if err != nil {
					return end, err
				}
				if q.many == 0 {
					delete(open, m.Subject)
				}
				if err := emit(st); err != nil {
					return end, err
				}
				continue
			}
			delete(open, m.Subject)
			if err := statusError(status, header(m, "Description")); err != nil {
				return end, err
			}
			end.pending, _ = strconv.ParseUint(header(m, "Nats-Num-Pending"), 10, 64)
			end.last, _ = strconv.ParseUint(header(m, "Nats-Last-Sequence"), 10, 64)
			end.upTo, _ = strconv.ParseUint(header(m, "Nats-UpTo-Sequence"), 10, 64)
		}
	}
	return end, nil
}

func (r reader) next(ctx context.Context, ch <-chan *nats.Msg) (*nats.Msg, error) {
	t := time.NewTimer(idle)
	defer t.Stop()
	select {
	case m := <-ch:
		return m, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-t.C:
		return nil, classify("read", fmt.Errorf("stream %s: %w", r.stream, nats.ErrTimeout))
	}
}

// statusError says what an answer without a message means. None stored and the
// end of a page are no errors.
func statusError(status, desc string) error {
	switch status {
	case "204", "404":
		return nil
	case "413":
		return errTooMany
	case "503":
		return classify("read", nats.ErrNoResponders)
	case "408", "412":
		return fault.Newf(fault.Invalid, "natsbus: read", "the server refuses the request: %s %s; expected nats-server 2.12 or later", status, desc)
	}
	return fault.Newf(fault.Unavailable, "natsbus: read", "the server answers %s %s", status, desc)
}

// header returns the last value of a header: the server appends its own to
// those that the publisher wrote.
func header(m *nats.Msg, name string) string {
	vs := m.Header[name]
	if len(vs) == 0 {
		return ""
	}
	return vs[len(vs)-1]
}

// toStored reads what the server says of a stored message.
func toStored(m *nats.Msg) (stored, error) {
	st := stored{subject: header(m, jetstream.SubjectHeader), msg: m}
	var err error
	st.seq, err = strconv.ParseUint(header(m, jetstream.SequenceHeader), 10, 64)
	if err != nil || st.subject == "" {
		return st, fault.Newf(fault.Unavailable, "natsbus: read", "an answer has no subject or sequence; expected a direct get of nats-server 2.12 or later")
	}
	st.at, err = time.Parse(time.RFC3339Nano, header(m, jetstream.TimeStampHeaer))
	if err != nil {
		return st, fault.Newf(fault.Unavailable, "natsbus: read", "an answer has no time")
	}
	return st, nil
}
