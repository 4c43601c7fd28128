package lambdanotify

import (
	"context"
	"fmt"
	"sync"
)

// maxInFlight is how many groups or messages of one batch are handled at a time.
// A batch has up to 10,000 messages in 6 MB.
const maxInFlight = 64

// batch handles messages, those of one group in their order and all others
// together, and answers which are not stored.
//
// Where none is, the answer is an error: that is the same to SQS, it is counted
// as an error, and it is heard by a mapping that was made without
// ReportBatchItemFailures.
func (h *Handler) batch(ctx context.Context, ms []message) ([]byte, error) {
	errs := make([]error, len(ms))
	places := make(chan struct{}, maxInFlight)
	var wg sync.WaitGroup
	for _, run := range runs(ms) {
		places <- struct{}{}
		wg.Go(func() {
			defer func() { <-places }()
			h.inOrder(ctx, ms, run, errs)
		})
	}
	wg.Wait()
	var failed []string
	var first error
	for i, err := range errs {
		if err == nil {
			continue
		}
		failed = append(failed, ms[i].ID)
		if first == nil {
			first = err
		}
	}
	if len(ms) > 0 && len(failed) == len(ms) {
		return nil, fmt.Errorf("none of %d messages was handed on: %w", len(ms), first)
	}
	return encode(failed)
}

// runs returns the indexes of messages that must go one after the other.
func runs(ms []message) [][]int {
	var out [][]int
	at := map[string]int{}
	for i, m := range ms {
		if j, ok := at[m.group]; ok && m.group != "" {
			out[j] = append(out[j], i)
			continue
		}
		at[m.group] = len(out)
		out = append(out, []int{i})
	}
	return out
}

// inOrder handles the messages at run. After one that failed the rest fail too:
// SQS gives them again, and in their order only if none was taken out of turn.
// https://docs.aws.amazon.com/lambda/latest/dg/services-sqs-errorhandling.html
func (h *Handler) inOrder(ctx context.Context, ms []message, run []int, errs []error) {
	defer func() {
		if recover() != nil { // in a goroutine it would end the process
			for _, i := range run {
				errs[i] = errPanic
			}
		}
	}()
	for n, i := range run {
		if errs[i] = h.one(ctx, ms[i].Delivery); errs[i] == nil {
			continue
		}
		for _, j := range run[n+1:] {
			errs[j] = errs[i]
		}
		return
	}
}
