package notifier

import (
	"context"
	"fmt"
	"log/slog"
	"regexp"
	"runtime"
	"strings"
	"time"
	"unicode"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/ref"
)

const (
	// maxReason bounds the text of a dead letter's reason, in bytes.
	maxReason = 512
	// maxParkedBody is how much of a body a dead letter keeps. In base64 it
	// still fits a NATS message of the default 1 MiB with room for the rest.
	maxParkedBody = 640 << 10
	// defaultMaxAttempts is how often a notice is tried whose decoding fails
	// for a reason that nobody classified.
	defaultMaxAttempts = 8
)

// Options of a [Notifier]. The zero value of each field means its default.
type Options struct {
	// Tenant names the tenant of an event's secret; by default every secret is
	// of tenant "default". What a notice says of its tenant is overwritten: no
	// sender chooses whose agents hear it. "" means that the secret is
	// nobody's, and its events are dropped with a log line. An error means
	// that it cannot be told at present: the sender comes again. It must be
	// safe for concurrent use.
	Tenant func(context.Context, events.Event) (string, error)
	// Logger gets one line a delivery, without the notice. The default
	// discards.
	Logger *slog.Logger
	// Observe is called after each delivery, for metrics. It must not block.
	Observe func(Outcome)
	// MaxAttempts is after how many attempts a notice is parked whose decoding
	// keeps failing with neither Invalid nor Unavailable. It works only where
	// the transport counts attempts. 8 by default: Event Grid gives an event up
	// after 10 deliveries.
	MaxAttempts int
	// Redact parks the shape of a notice instead of the notice, where those who
	// may read dead letters must not see who called what from where. Such a
	// letter cannot be handed on again.
	Redact bool
	// Now is the clock, for tests.
	Now func() time.Time
}

// An Outcome is what became of one delivery.
type Outcome struct {
	Source string
	// Received is when the delivery arrived.
	Received time.Time
	// Events are those that were handed to the bus, and Receipt says what it
	// did with them. Without a [events.ReceiptPublisher] all count as stored.
	Events  []events.Event
	Receipt events.Receipt
	// Dropped counts the events of no tenant and those of pending siblings.
	Dropped int
	// Parked reports that the delivery became a dead letter.
	Parked bool
	// Err is what the source was told.
	Err  error
	Took time.Duration
}

// A Notifier turns deliveries into published events. It holds no state of its
// own and is safe for concurrent use: one serves every source.
type Notifier struct {
	pub  events.Publisher
	dead DeadLetters
	opts Options
}

// New returns a Notifier. opts may be nil.
func New(pub events.Publisher, dead DeadLetters, opts *Options) *Notifier {
	n := &Notifier{pub: pub, dead: dead}
	if opts != nil {
		n.opts = *opts
	}
	if n.opts.Tenant == nil {
		n.opts.Tenant = func(context.Context, events.Event) (string, error) { return "default", nil }
	}
	if n.opts.Logger == nil {
		n.opts.Logger = slog.New(slog.DiscardHandler)
	}
	if n.opts.Observe == nil {
		n.opts.Observe = func(Outcome) {}
	}
	if n.opts.MaxAttempts == 0 {
		n.opts.MaxAttempts = defaultMaxAttempts
	}
	if n.opts.Now == nil {
		n.opts.Now = time.Now
	}
	return n
}

// Handler returns the handler of a source whose notices dec decodes. It
// returns nil once every event of a delivery is published, or the delivery is
// a dead letter, or concerns nobody. Otherwise its error is of kind
// Unavailable, whatever failed: the sender did nothing wrong and should come
// again. Repeating a delivery is harmless, since events are named by what
// happened.
func (n *Notifier) Handler(dec Decoder) Handler {
	return func(ctx context.Context, d Delivery) error {
		start := time.Now()
		if d.Received.IsZero() {
			d.Received = n.opts.Now()
		}
		o := Outcome{Source: d.Source, Received: d.Received}
		o.Err = n.handle(ctx, dec, d, &o)
		o.Took = time.Since(start)
		n.log(ctx, d, o)
		n.opts.Observe(o)
		return o.Err
	}
}

func (n *Notifier) handle(ctx context.Context, dec Decoder, d Delivery, o *Outcome) error {
	es, bad := decode(dec, d)
	if kind := fault.KindOf(bad); bad != nil && kind != fault.Invalid && (kind == fault.Unavailable || d.Attempt < n.opts.MaxAttempts) {
		return away("decode", bad)
	}
	kept, err := n.stamp(ctx, d, es, o)
	if fault.Is(err, fault.Invalid) {
		return n.park(ctx, d, err, o)
	}
	if err != nil {
		return away("tenant", err)
	}
	if len(kept) > 0 {
		receipt, err := n.publish(ctx, kept)
		if fault.Is(err, fault.Invalid) {
			// The bus can never take this one; again and again would not help.
			return n.park(ctx, d, err, o)
		}
		if err != nil {
			return away("publish", err)
		}
		o.Events, o.Receipt = kept, receipt
	}
	if bad != nil {
		return n.park(ctx, d, bad, o)
	}
	return nil
}

// publish publishes es, and says what became of them as far as the bus tells.
func (n *Notifier) publish(ctx context.Context, es []events.Event) (events.Receipt, error) {
	if p, ok := n.pub.(events.ReceiptPublisher); ok {
		return p.PublishReceipt(ctx, es...)
	}
	return events.Receipt{Stored: len(es)}, n.pub.Publish(ctx, es...)
}

// decode calls dec. A panic is a notice that we cannot understand, and must
// not take down the other deliveries of the process.
func decode(dec Decoder, d Delivery) (es []events.Event, err error) {
	defer func() {
		if p := recover(); p != nil {
			es, err = nil, fault.Newf(fault.Invalid, "decode", "the decoder panicked: %s at %s; this is a defect, please report it", panicText(p), panicSite())
		}
	}()
	return dec(d)
}

// panicText describes p. The runtime's own errors speak of types, indexes and
// lengths only; the text of any other could quote the notice.
func panicText(p any) string {
	if err, ok := p.(runtime.Error); ok {
		return err.Error()
	}
	return fmt.Sprintf("a %T", p)
}

// panicSite returns the function and line that panicked. A full stack would
// show arguments.
func panicSite() string {
	pcs := make([]uintptr, 32)
	frames := runtime.CallersFrames(pcs[:runtime.Callers(0, pcs)])
	for seen := false; ; {
		f, more := frames.Next()
		switch {
		case f.Function == "runtime.gopanic":
			seen = true
		case seen && !strings.HasPrefix(f.Function, "runtime."):
			return fmt.Sprintf("%s:%d", f.Function, f.Line)
		}
		if !more {
			return "an unknown place"
		}
	}
}

// stamp fills in what only the notifier knows, and refuses what no decoder may
// return.
func (n *Notifier) stamp(ctx context.Context, d Delivery, es []events.Event, o *Outcome) ([]events.Event, error) {
	now := n.opts.Now().UTC()
	trace := d.Attributes["traceparent"]
	if !traceForm.MatchString(trace) {
		trace = ""
	}
	kept := make([]events.Event, 0, len(es))
	for _, e := range es {
		if e.ID == "" || !e.Type.Valid() || e.Data.Ref.Validate() != nil {
			return nil, fault.Newf(fault.Invalid, "decode", "the decoder returned an event without an id, a known type or a valid ref; this is a defect, please report it")
		}
		if pendingSibling(e.Data.Ref) || e.Data.Ref.Provider == ref.AWS && events.IsConnection(e.Data.Ref.Name) {
			o.Dropped++
			continue
		}
		var err error
		if e.Data.Tenant, err = n.opts.Tenant(ctx, e); err != nil {
			if fault.Is(err, fault.Invalid) { // not the notice's fault
				err = fault.Newf(fault.Unavailable, "notifier: tenant", "the rules for tenants cannot be applied: %s", reason(err))
			}
			return nil, err
		}
		if e.Data.Tenant == "" {
			o.Dropped++
			n.opts.Logger.WarnContext(ctx, "event dropped: no tenant for the secret", "secret", e.Data.Ref.String(), "event", string(e.Type))
			continue
		}
		e.Data.Received, e.Data.Published = d.Received.UTC(), now
		if e.Data.TraceParent == "" {
			e.Data.TraceParent = trace
		}
		kept = append(kept, e)
	}
	return kept, nil
}

// pendingSibling reports whether r is the secret that keeps the pending version
// of another, where a store has no staging labels. No agent reads it, and what
// becomes of it is the main secret's news when it is promoted. On AWS and NATS
// versions have labels, and a name with this ending is somebody's own.
func pendingSibling(r ref.Ref) bool {
	switch r.Provider {
	case ref.GCP, ref.Azure, ref.Vault:
		return strings.HasSuffix(r.Name, events.SiblingSuffix)
	}
	return false
}

// traceForm is a version 0 trace parent. https://www.w3.org/TR/trace-context/
var traceForm = regexp.MustCompile(`^00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$`)

// park makes d a dead letter.
func (n *Notifier) park(ctx context.Context, d Delivery, why error, o *Outcome) error {
	l := DeadLetter{
		Delivery: d, Reason: reason(why), Kind: fault.KindOf(why),
		Size: len(d.Body), Parked: n.opts.Now().UTC(), Digest: d.Key(),
	}
	if n.opts.Redact {
		l.Body, l.Attributes, l.Redacted = Shape(d.Body), nil, true
	}
	if len(l.Body) > maxParkedBody {
		l.Body = l.Body[:maxParkedBody]
	}
	if err := n.dead.Park(ctx, l); err != nil {
		return away("park", err)
	}
	o.Parked = true
	n.opts.Logger.WarnContext(ctx, "notice parked", "source", d.Source, "key", d.Key(), "kind", l.Kind.String(), "reason", l.Reason, "size", l.Size, "attempt", d.Attempt)
	return nil
}

// away wraps what failed on our side. The kind is ours whatever the cause's
// is: a bus that denies us is still an outage to the sender.
func away(op string, err error) error {
	e := &fault.Error{Kind: fault.Unavailable, Class: fault.ClassOf(err), Op: "notifier: " + op, Err: err}
	if op == "decode" && fault.KindOf(err) == fault.Unknown {
		e.Msg, e.Err = reason(err), nil // its text could quote the notice
	}
	return e
}

// reason is err's text where it is a [fault.Error], which may be stored by
// contract. The text of any other error could quote the notice.
func reason(err error) string {
	var b strings.Builder
	text := fmt.Sprintf("unclassified error of type %T", err)
	if fault.KindOf(err) != fault.Unknown {
		text = err.Error()
	}
	for _, r := range text {
		if !unicode.IsPrint(r) {
			r = '?'
		}
		if b.Len()+len(string(r)) > maxReason {
			break
		}
		_, _ = b.WriteRune(r)
	}
	return b.String()
}

func (n *Notifier) log(ctx context.Context, d Delivery, o Outcome) {
	if o.Err == nil && !n.opts.Logger.Enabled(ctx, slog.LevelDebug) {
		return // the key is a digest of the whole notice
	}
	log := n.opts.Logger.With("source", d.Source, "key", d.Key(), "attempt", d.Attempt, "took", o.Took)
	if o.Err != nil {
		log.ErrorContext(ctx, "notice not handed on; the sender will repeat it", "class", string(fault.ClassOf(o.Err)), "err", reason(o.Err))
		return
	}
	log.DebugContext(ctx, "notice handled", "events", len(o.Events), "duplicates", o.Receipt.Duplicates, "late", o.Receipt.Late, "dropped", o.Dropped, "parked", o.Parked)
}
