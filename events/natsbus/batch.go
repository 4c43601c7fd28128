package natsbus

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	// maxBatch and maxBatchBytes bound one atomic batch. The server takes 1000
	// messages.
	maxBatch      = 256
	maxBatchBytes = 4 << 20
	// minBatch is from where on a batch is cheaper: the server stages it in a
	// store of its own, which costs about as much as 13 single commits.
	minBatch = 32

	// nats.go has no names for these.
	// https://github.com/nats-io/nats-architecture-and-design/blob/main/adr/ADR-50.md
	headerBatchID       = "Nats-Batch-Id"
	headerBatchSequence = "Nats-Batch-Sequence"
	headerBatchCommit   = "Nats-Batch-Commit"

	errCodeDuplicateInProcess jetstream.ErrorCode = 10158
	errCodeAtomicDisabled     jetstream.ErrorCode = 10174
)

// A Commit is what [Options.Observe] is told.
type Commit struct {
	Stream string
	// Events is how many were committed together.
	Events int
	// Refused reports that the server refused the batch, after which its
	// events were sent one by one.
	Refused bool
	Err     error
	Took    time.Duration
}

// A committer sends the messages of one stream. With [Options.GroupCommit]
// others gather while a commit is under way, and go together: as an atomic
// batch if they are many, for which a server that syncs each commit to its disk
// syncs once. Nothing waits when nothing is under way.
//
// No two messages of a batch have the same subject, since who sends one holds
// its subject.
type committer struct {
	b      *Bus
	stream string
	// atomic says that the stream takes atomic batches, as far as is known.
	atomic atomic.Bool
	least  int // minBatch, except in tests

	mu    sync.Mutex
	busy  bool
	queue []*commitment
}

// A commitment is a message that waits for its commit.
type commitment struct {
	ctx  context.Context
	msg  *nats.Msg
	done chan outcome // has room for one
}

// commit stores m and says what became of it. With alone it is in no batch: it
// would be refused, with all others.
func (c *committer) commit(ctx context.Context, m *nats.Msg, alone bool) outcome {
	it := &commitment{ctx: ctx, msg: m, done: make(chan outcome, 1)}
	if alone || !c.atomic.Load() {
		c.singles(ctx, []*commitment{it})
		return <-it.done
	}
	c.mu.Lock()
	if !c.busy {
		c.busy = true
		c.mu.Unlock()
		c.singles(ctx, []*commitment{it})
		c.mu.Lock()
		if len(c.queue) > 0 {
			go c.drain() //nolint:gosec // it works for many callers, not for this one
		} else {
			c.busy = false
		}
		c.mu.Unlock()
		return <-it.done
	}
	c.queue = append(c.queue, it)
	c.mu.Unlock()
	select {
	case r := <-it.done:
		return r
	case <-ctx.Done():
	}
	c.mu.Lock()
	if i := slices.Index(c.queue, it); i >= 0 {
		c.queue = slices.Delete(c.queue, i, i+1)
	}
	c.mu.Unlock()
	return outcome{err: ctx.Err()}
}

// drain commits what has gathered until nothing has.
func (c *committer) drain() {
	for {
		c.mu.Lock()
		n, size := 0, 0
		for n < len(c.queue) && n < maxBatch && (n == 0 || size+c.queue[n].msg.Size() <= maxBatchBytes) {
			size += c.queue[n].msg.Size()
			n++
		}
		if n == 0 {
			c.busy, c.queue = false, nil
			c.mu.Unlock()
			return
		}
		its := slices.Clone(c.queue[:n])
		c.queue = slices.Delete(c.queue, 0, n)
		c.mu.Unlock()
		its = slices.DeleteFunc(its, func(it *commitment) bool {
			if it.ctx.Err() != nil {
				it.done <- outcome{err: it.ctx.Err()}
				return true
			}
			return false
		})
		ctx, cancel := context.WithTimeout(context.Background(), c.b.opts.PublishTimeout)
		if len(its) < c.least || !c.atomic.Load() {
			c.singles(ctx, its)
		} else {
			c.batch(ctx, its)
		}
		cancel()
	}
}

// singles sends each message by itself.
func (c *committer) singles(ctx context.Context, its []*commitment) {
	start := time.Now()
	msgs := make([]*nats.Msg, len(its))
	for i, it := range its {
		msgs[i] = it.msg
	}
	c.b.send(ctx, msgs, func(i int, r outcome) {
		its[i].done <- r
		c.b.opts.Observe(Commit{Stream: c.stream, Events: 1, Err: r.err, Took: time.Since(start)})
	})
}

// batch sends the messages as one atomic batch, and one by one if the server
// refuses it: for one duplicate, one subject on which another process was
// faster, limits, a leader that is new, or a server that knows no batches.
//
// Only the server's word that all of them are stored is taken for it. Without
// an answer nobody knows, and each caller is told so.
func (c *committer) batch(ctx context.Context, its []*commitment) {
	start := time.Now()
	last, err := c.atomically(ctx, its)
	refused := err != nil && !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, nats.ErrTimeout)
	c.b.opts.Observe(Commit{Stream: c.stream, Events: len(its), Refused: refused, Err: err, Took: time.Since(start)})
	switch {
	case err == nil:
		for i, it := range its {
			it.done <- outcome{seq: last - uint64(len(its)-1-i)}
		}
	case refused:
		for _, it := range its {
			delete(it.msg.Header, headerBatchID)
			delete(it.msg.Header, headerBatchSequence)
			delete(it.msg.Header, headerBatchCommit)
		}
		c.singles(ctx, its)
	default:
		for _, it := range its {
			it.done <- outcome{err: err}
		}
	}
}

// errNoBatch means that the server stored messages, but not as a batch.
var errNoBatch = errors.New("natsbus: the server knows no atomic batches")

// atomically sends one batch and returns the sequence of its last message.
func (c *committer) atomically(ctx context.Context, its []*commitment) (uint64, error) {
	nc, id := c.b.nc, rand.Text()
	if err := connected(ctx, nc); err != nil {
		return 0, err
	}
	subjects := make([]string, len(its))
	for i, it := range its {
		subjects[i] = it.msg.Subject
		it.msg.Header[headerBatchID] = []string{id}
		it.msg.Header[headerBatchSequence] = []string{strconv.Itoa(i + 1)}
	}
	end := its[len(its)-1].msg
	end.Header[headerBatchCommit] = []string{"1"}
	for _, it := range its[:len(its)-1] {
		if err := nc.PublishMsg(it.msg); err != nil {
			return 0, err
		}
	}
	var answer *nats.Msg
	err := guarded(ctx, nc, subjects, func(ctx context.Context) (err error) {
		answer, err = nc.RequestMsgWithContext(ctx, end)
		return err
	})
	if err != nil {
		return 0, err
	}
	var ack struct {
		Error  *jetstream.APIError `json:"error"`
		Stream string              `json:"stream"`
		Seq    uint64              `json:"seq"`
		Batch  string              `json:"batch"`
		Count  int                 `json:"count"`
	}
	if err := json.Unmarshal(answer.Data, &ack); err != nil {
		return 0, jetstream.ErrInvalidJSAck
	}
	switch {
	case ack.Error != nil:
		if ack.Error.ErrorCode == errCodeAtomicDisabled {
			c.off(ctx, ack.Error)
		}
		return 0, ack.Error
	case ack.Stream != c.stream || ack.Batch != id || ack.Count != len(its):
		c.off(ctx, errNoBatch)
		return 0, errNoBatch
	}
	return ack.Seq, nil
}

// off ends batches until the Bus is opened again.
func (c *committer) off(ctx context.Context, why error) {
	if c.atomic.Swap(false) {
		c.b.opts.Logger.WarnContext(ctx, "events are committed one by one: the stream takes no atomic batches", "stream", c.stream, "error", why)
	}
}

// allowAtomic switches atomic batches on where the server can and where they
// pay, and reports whether they are on. It is no error if it cannot be done.
func (b *Bus) allowAtomic(ctx context.Context, stream string) bool {
	ctx, cancel := context.WithTimeout(ctx, openAttempt)
	defer cancel()
	api := b.opts.api() + "STREAM."
	on := false
	err := guarded(ctx, b.nc, []string{api + "INFO." + stream, api + "UPDATE." + stream}, func(ctx context.Context) error {
		s, err := b.js.Stream(ctx, stream)
		if err != nil {
			return err
		}
		have := s.CachedInfo().Config
		// Each of several replicas syncs in its own time: nothing to share.
		if on = have.AllowAtomicPublish && have.Replicas == 1; on || have.Replicas != 1 {
			return nil
		}
		have.AllowAtomicPublish = true
		if s, err = b.js.UpdateStream(ctx, have); err == nil {
			on = s.CachedInfo().Config.AllowAtomicPublish // an old server drops what it does not know
		}
		return err
	})
	if !on {
		b.opts.Logger.InfoContext(ctx, "events are committed one by one: it takes one replica, nats-server 2.14 or later, and the right to change the stream to commit them in batches", "stream", stream, "error", err)
	}
	return on
}
