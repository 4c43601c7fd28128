package events

import "context"

// A Receipt says what became of events that were published.
type Receipt struct {
	// Stored counts the events that are new on the bus, Duplicates those whose
	// ID it had before, however long ago.
	Stored, Duplicates int
	// Late counts those that are older than what the bus already tells of the
	// same secret and type. They are kept for who looks back, apart from the
	// rest, so that the last event of a subject stays the newest.
	Late int
}

// Add adds o to r.
func (r *Receipt) Add(o Receipt) {
	r.Stored += o.Stored
	r.Duplicates += o.Duplicates
	r.Late += o.Late
}

// A ReceiptPublisher is a [Publisher] that tells what became of the events.
type ReceiptPublisher interface {
	Publisher
	// PublishReceipt is Publish, with a receipt that counts every one of es
	// once if the error is nil.
	PublishReceipt(ctx context.Context, es ...Event) (Receipt, error)
}
