package natsbus

import (
	"context"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/fault"
)

// eventSubject is the subject that an event in the stream of late events would
// have in the events stream, and lateSubject the other way round.
func eventSubject(s string) string {
	if rest, is := strings.CutPrefix(s, latePrefix); is {
		return events.SubjectPrefix + rest
	}
	return s
}

func lateSubject(s string) string {
	return latePrefix + strings.TrimPrefix(s, events.SubjectPrefix)
}

// look reads the last message of a subject of stream into p.
func (b *Bus) look(ctx context.Context, stream, subject string, p *place) error {
	p.forget()
	api := b.opts.api() + "DIRECT.GET." + stream + "." + subject
	var m *nats.Msg
	err := guarded(ctx, b.nc, []string{api}, func(ctx context.Context) (err error) {
		m, err = b.nc.RequestMsgWithContext(ctx, &nats.Msg{Subject: api})
		return err
	})
	if err != nil {
		return classify("read the last event", err)
	}
	status := header(m, "Status")
	if status != "" && header(m, jetstream.SequenceHeader) == "" {
		p.known, p.read = status == "404", time.Now()
		return statusError(status, header(m, "Description"))
	}
	st, err := toStored(m)
	if err != nil {
		return err
	}
	if !p.take(st) { // somebody else's message: what was newest before it?
		return b.scan(ctx, stream, subject, p)
	}
	return nil
}

// scan reads the ids of all messages of a subject of stream into p, and its
// last message. What is expected of one event is a page of at most
// [Options.MaxPerSubject] messages.
func (b *Bus) scan(ctx context.Context, stream, subject string, p *place) error {
	var fresh place
	fresh.known, fresh.read, fresh.ids = true, time.Now(), map[string]struct{}{}
	rd := reader{nc: b.nc, opts: b.opts, stream: stream}
	q := getRequest{Seq: 1, NextFor: subject, Batch: maxOutstanding, MaxBytes: maxPageBytes}
	for {
		got := 0
		end, err := rd.page(ctx, q, func(st stored) error {
			got++
			q.Seq = st.seq + 1
			fresh.take(st)
			return nil
		})
		if err != nil {
			return classify("read the history of a subject", err)
		}
		if got == 0 || end.pending == 0 {
			break
		}
	}
	if p.known && fresh.seq < p.seq {
		// The answer is of a replica that is behind.
		return fault.Newf(fault.Conflict, "natsbus: read the history of a subject", "a replica is behind")
	}
	*p = fresh
	return nil
}

// take makes st the last message of p. It reports false if st is no event,
// which changes nothing about what is newest.
func (p *place) take(st stored) bool {
	p.known, p.read, p.seq = true, time.Now(), st.seq
	p.id = messageID(st.msg.Header)
	if p.ids != nil && p.id != "" {
		p.ids[p.id] = struct{}{}
	}
	e, err := decode(eventSubject(st.subject), st.msg.Header, st.msg.Data)
	if err != nil {
		return false
	}
	p.newest = readNewest(st.msg.Header, &e, st.at)
	return true
}

// stored notes that e is the last message of p now.
func (p *place) stored(seq uint64, id string, n newest) {
	p.known, p.read, p.seq, p.id, p.newest = true, time.Now(), seq, id, n
	if p.ids != nil {
		p.ids[id] = struct{}{}
	}
}

// messageID is the id of a stored event in the escaped form.
func messageID(h nats.Header) string {
	for k, vs := range h {
		if strings.EqualFold(k, "ce-id") && len(vs) > 0 {
			return vs[0]
		}
	}
	return lastValue(h, jetstream.MsgIDHeader)
}
