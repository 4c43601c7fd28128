package sqsfake

import (
	"errors"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"
	"github.com/aws/smithy-go"
)

func receive(t *testing.T, c *sqs.Client, q *Queue, wait int32) []types.Message {
	t.Helper()
	out, err := c.ReceiveMessage(t.Context(), &sqs.ReceiveMessageInput{
		QueueUrl: aws.String(q.URL()), MaxNumberOfMessages: 10, WaitTimeSeconds: wait,
		MessageSystemAttributeNames: []types.MessageSystemAttributeName{types.MessageSystemAttributeNameAll},
	})
	if err != nil {
		t.Fatal(err)
	}
	return out.Messages
}

func code(err error) string {
	var api smithy.APIError
	if errors.As(err, &api) {
		return api.ErrorCode()
	}
	return ""
}

// The real client and the rules that a source leans on.
func TestQueue(t *testing.T) {
	s := New(t, &Options{Second: 50 * time.Millisecond})
	c := s.Client()
	dead := s.Queue("dead", Spec{})
	q := s.Queue("q", Spec{Visibility: 15, DeadLetters: dead, MaxReceiveCount: 2})
	if _, err := c.SendMessage(t.Context(), &sqs.SendMessageInput{QueueUrl: aws.String(q.URL()), MessageBody: aws.String("hello")}); err != nil {
		t.Fatal(err)
	}
	first := receive(t, c, q, 0)
	if len(first) != 1 || *first[0].Body != "hello" || first[0].Attributes["ApproximateReceiveCount"] != "1" {
		t.Fatalf("received %+v", first)
	}
	if again := receive(t, c, q, 0); len(again) != 0 {
		t.Error("a message in flight was received again")
	}
	// A long poll ends when the message becomes visible.
	second := receive(t, c, q, 20)
	if len(second) != 1 || second[0].Attributes["ApproximateReceiveCount"] != "2" || *second[0].ReceiptHandle == *first[0].ReceiptHandle {
		t.Fatalf("received %+v", second)
	}
	// A stale handle deletes nothing, and says nothing of it.
	if _, err := c.DeleteMessage(t.Context(), &sqs.DeleteMessageInput{QueueUrl: aws.String(q.URL()), ReceiptHandle: first[0].ReceiptHandle}); err != nil {
		t.Error(err)
	}
	if visible, inFlight := q.Depth(); visible+inFlight != 1 {
		t.Error("a stale handle deleted the message")
	}
	if _, err := c.ChangeMessageVisibility(t.Context(), &sqs.ChangeMessageVisibilityInput{QueueUrl: aws.String(q.URL()), ReceiptHandle: first[0].ReceiptHandle, VisibilityTimeout: 10}); err == nil {
		t.Error("a stale handle changed the visibility")
	}
	if third := receive(t, c, q, 20); len(third) != 0 || len(dead.Bodies()) != 1 {
		t.Errorf("received %d, %d dead; expected the redrive after two receives", len(third), len(dead.Bodies()))
	}
}

func TestRefusals(t *testing.T) {
	s := New(t, nil)
	q := s.Queue("q", Spec{})
	missing := &sqs.ReceiveMessageInput{QueueUrl: aws.String(q.URL() + "x")}
	if _, err := s.Client().ReceiveMessage(t.Context(), missing); code(err) == "" {
		t.Errorf("a queue that is not there: %v", err)
	}
	forged := s.Client(func(o *sqs.Options) { o.Credentials = credentials.NewStaticCredentialsProvider("AKIAOTHER", "x", "") })
	if _, err := forged.ReceiveMessage(t.Context(), &sqs.ReceiveMessageInput{QueueUrl: aws.String(q.URL())}); code(err) != "InvalidClientTokenId" {
		t.Errorf("another's signature: %v", err)
	}
	entries := make([]types.DeleteMessageBatchRequestEntry, 11)
	for i := range entries {
		entries[i] = types.DeleteMessageBatchRequestEntry{Id: aws.String(string(rune('a' + i))), ReceiptHandle: aws.String("x")}
	}
	if _, err := s.Client().DeleteMessageBatch(t.Context(), &sqs.DeleteMessageBatchInput{QueueUrl: aws.String(q.URL()), Entries: entries}); err == nil {
		t.Error("eleven entries were taken")
	}
}
