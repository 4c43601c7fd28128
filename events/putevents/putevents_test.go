package putevents

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/eventbridge"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/ref"
)

// bus answers PutEvents over the real wire protocol.
type bus struct {
	mu    sync.Mutex
	calls [][]map[string]any
	// refuse gives an entry's error code, by its place among all entries.
	refuse map[int]string
	status int    // of every answer; 200 when zero
	code   string // of an answer that is not 200
	n      int
}

func (b *bus) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	b.mu.Lock()
	defer b.mu.Unlock()
	w.Header().Set("Content-Type", "application/x-amz-json-1.1")
	if b.status != 0 {
		w.WriteHeader(b.status)
		_, _ = fmt.Fprintf(w, `{"__type":%q,"message":"quoting what was sent"}`, b.code)
		return
	}
	var in struct{ Entries []map[string]any }
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil || r.Header.Get("X-Amz-Target") != "AWSEvents.PutEvents" {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	b.calls = append(b.calls, in.Entries)
	failed := 0
	var out []map[string]string
	for range in.Entries {
		if code := b.refuse[b.n]; code != "" {
			failed++
			out = append(out, map[string]string{"ErrorCode": code, "ErrorMessage": "quoting what was sent"})
		} else {
			out = append(out, map[string]string{"EventId": fmt.Sprint("id-", b.n)})
		}
		b.n++
	}
	_ = json.NewEncoder(w).Encode(map[string]any{"FailedEntryCount": failed, "Entries": out})
}

func publisher(t *testing.T, b *bus) *Publisher {
	t.Helper()
	srv := httptest.NewServer(b)
	t.Cleanup(srv.Close)
	c := eventbridge.New(eventbridge.Options{
		Region: "us-east-1", BaseEndpoint: aws.String(srv.URL), RetryMaxAttempts: 1,
		Credentials: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
			return aws.Credentials{AccessKeyID: "AKIDEXAMPLE", SecretAccessKey: "example"}, nil
		}),
	})
	return New(c, "fleet", encode)
}

func encode(e events.Event) (source, detailType string, detail []byte, err error) {
	if e.ID == "" {
		return "", "", nil, fault.Newf(fault.Invalid, "encode", "no id")
	}
	return "keyturn.rotator", string(e.Type), []byte(`{"id":"` + e.ID + `"}`), nil
}

func some(n int) []events.Event {
	r := ref.Ref{Provider: ref.AWS, Scope: "111122223333/us-east-1", Name: "db"}
	var es []events.Event
	for i := range n {
		es = append(es, events.New(events.VersionActivated, r, time.Unix(1_800_000_000, 0), fmt.Sprint(i)))
	}
	return es
}

func TestPublishSplitsIntoCallsOfTen(t *testing.T) {
	b := &bus{}
	es := some(23)
	if err := publisher(t, b).Publish(t.Context(), es...); err != nil {
		t.Fatal(err)
	}
	var ids []string
	for _, c := range b.calls {
		if len(c) > maxEntries {
			t.Errorf("a call has %d entries; want at most %d", len(c), maxEntries)
		}
		for _, e := range c {
			if e["EventBusName"] != "fleet" || e["Source"] != "keyturn.rotator" || e["DetailType"] != string(events.VersionActivated) {
				t.Errorf("entry %v has the wrong bus, source or detail type", e)
			}
			ids = append(ids, e["Detail"].(string))
		}
	}
	if len(b.calls) != 3 || len(ids) != len(es) {
		t.Fatalf("%d calls with %d entries; want 3 with %d", len(b.calls), len(ids), len(es))
	}
	for i, e := range es {
		if !strings.Contains(ids[i], e.ID) {
			t.Errorf("entry %d is not event %s", i, e.ID)
		}
	}
}

func TestNothingToPublish(t *testing.T) {
	b := &bus{}
	if err := publisher(t, b).Publish(t.Context()); err != nil || len(b.calls) != 0 {
		t.Errorf("err %v, %d calls; want none", err, len(b.calls))
	}
}

func TestABadEventIsFoundBeforeAnyIsSent(t *testing.T) {
	b := &bus{}
	es := append(some(12), events.Event{})
	if err := publisher(t, b).Publish(t.Context(), es...); !fault.Is(err, fault.Invalid) {
		t.Errorf("err %v; want Invalid", err)
	}
	if len(b.calls) != 0 {
		t.Errorf("%d calls were made; want none", len(b.calls))
	}
}

func TestHugeEvent(t *testing.T) {
	p := publisher(t, &bus{})
	p.encode = func(events.Event) (string, string, []byte, error) { return "s", "t", make([]byte, maxSize), nil }
	if err := p.Publish(t.Context(), some(1)...); !fault.Is(err, fault.Invalid) {
		t.Errorf("err %v; want Invalid", err)
	}
}

func TestRefusedEntries(t *testing.T) {
	for code, want := range map[string]fault.Kind{
		"ThrottlingException": fault.Unavailable, "InternalFailure": fault.Unavailable, "AccessDeniedException": fault.Denied,
		"NotAuthorizedForSourceException": fault.Denied, "MalformedDetail": fault.Invalid, "ResourceNotFoundException": fault.Invalid,
		"NewInTheService": fault.Unknown,
	} {
		t.Run(code, func(t *testing.T) {
			b := &bus{refuse: map[int]string{1: code}}
			err := publisher(t, b).Publish(t.Context(), some(3)...)
			if err == nil || fault.KindOf(err) != want || !strings.Contains(err.Error(), code) {
				t.Errorf("err %v of kind %s; want %s that names %s", err, fault.KindOf(err), want, code)
			}
			if strings.Contains(fmt.Sprint(err), "quoting") {
				t.Errorf("the error repeats the service's message: %v", err)
			}
		})
	}
}

func TestFailedCalls(t *testing.T) {
	for _, c := range []struct {
		status int
		code   string
		want   fault.Kind
	}{
		{http.StatusBadRequest, "AccessDeniedException", fault.Denied},
		{http.StatusBadRequest, "UnrecognizedClientException", fault.Denied},
		{http.StatusBadRequest, "ThrottlingException", fault.Unavailable},
		{http.StatusBadRequest, "ValidationException", fault.Invalid},
		{http.StatusInternalServerError, "InternalException", fault.Unavailable},
		{http.StatusBadGateway, "", fault.Unavailable},
	} {
		err := publisher(t, &bus{status: c.status, code: c.code}).Publish(t.Context(), some(1)...)
		if err == nil || fault.KindOf(err) != c.want {
			t.Errorf("%d %s: err %v of kind %s; want %s", c.status, c.code, err, fault.KindOf(err), c.want)
		}
		if strings.Contains(fmt.Sprint(err), "quoting") {
			t.Errorf("the error repeats the service's message: %v", err)
		}
	}
}

func TestNobodyThere(t *testing.T) {
	srv := httptest.NewServer(http.NotFoundHandler())
	url := srv.URL
	srv.Close()
	p := publisher(t, &bus{})
	p.client = eventbridge.New(eventbridge.Options{Region: "us-east-1", BaseEndpoint: aws.String(url), RetryMaxAttempts: 1,
		Credentials: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
			return aws.Credentials{AccessKeyID: "AKIDEXAMPLE", SecretAccessKey: "example"}, nil
		})})
	if err := p.Publish(t.Context(), some(1)...); !fault.Is(err, fault.Unavailable) || fault.ClassOf(err) != fault.ClassNetwork {
		t.Errorf("err %v; want Unavailable of class network", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := p.Publish(ctx, some(1)...); !fault.Is(err, fault.Unavailable) {
		t.Errorf("err %v; want Unavailable after the context ended", err)
	}
}
