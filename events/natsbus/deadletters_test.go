package natsbus

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/testenv"
	"github.com/keyturn/keyturn/notifier"
)

func parked(id string) notifier.DeadLetter {
	return notifier.DeadLetter{
		Delivery: notifier.Delivery{Source: "web.hook", ID: id, Body: []byte("\x00body of " + id), Attributes: map[string]string{"k": "v"}, Attempt: 2, Received: time.Unix(1700000000, 0).UTC()},
		Reason:   "not JSON: é\r\n", Kind: fault.Invalid, Size: 999, Parked: time.Unix(1700000001, 0).UTC(),
	}
}

func letters(t testing.TB, b *Bus, from uint64, limit int) []StoredLetter {
	t.Helper()
	var out []StoredLetter
	for l, err := range b.DeadLetters(t.Context(), from, limit) {
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, l)
	}
	return out
}

func TestParkAndRead(t *testing.T) {
	srv := testenv.NATS(t)
	b := open(t, srv.Conn(t), nil)
	if got := letters(t, b, 0, 10); len(got) != 0 {
		t.Errorf("%d letters in an empty stream", len(got))
	}
	const n = 40
	for i := range n {
		for range 2 { // the second is the same notice again
			if err := b.Park(t.Context(), parked(fmt.Sprint(i))); err != nil {
				t.Fatal(err)
			}
		}
	}
	got := letters(t, b, 0, 1000)
	if len(got) != n {
		t.Fatalf("%d letters; expected %d", len(got), n)
	}
	for i, l := range got {
		if want := parked(fmt.Sprint(i)); !reflect.DeepEqual(l.DeadLetter, want) {
			t.Errorf("letter %d is\n%+v\nexpected\n%+v", i, l.DeadLetter, want)
		}
	}
	if some := letters(t, b, 0, 17); len(some) != 17 || some[16].Seq != got[16].Seq {
		t.Errorf("%d letters; expected the first 17", len(some))
	}
	if err := b.DeleteDeadLetter(t.Context(), got[20].Seq); err != nil {
		t.Fatal(err)
	}
	if err := b.DeleteDeadLetter(t.Context(), got[20].Seq); err != nil {
		t.Errorf("to delete it again: %v; expected nil", err)
	}
	if rest := letters(t, b, got[20].Seq, 100); len(rest) != 19 || rest[0].Seq != got[21].Seq {
		t.Errorf("%d letters after the deleted one; expected 19", len(rest))
	}
	for _, err := range b.DeadLetters(t.Context(), 0, 100) {
		if err != nil {
			t.Error(err)
		}
		break // a caller may stop
	}
	// People read the headers.
	st, err := b.js.Stream(t.Context(), DeadLetterStream)
	if err != nil {
		t.Fatal(err)
	}
	m, err := st.GetMsg(t.Context(), got[0].Seq)
	if err != nil {
		t.Fatal(err)
	}
	for k, want := range map[string]string{headerReason: "not%20JSON:%20%C3%A9%0D%0A", headerKind: "invalid", headerSource: "web.hook", headerID: "0", headerAttempt: "2"} {
		if got := m.Header.Get(k); got != want {
			t.Errorf("%s is %q; expected %q", k, got, want)
		}
	}
	if l := parked("0"); m.Subject != "keyturn.deadletter.web%2Ehook.invalid."+l.Key() {
		t.Errorf("subject %s", m.Subject)
	}
}

// TestParkLarge: a letter is never refused for its size.
func TestParkLarge(t *testing.T) {
	srv := testenv.NATS(t)
	b := open(t, srv.Conn(t), nil)
	big := parked("big")
	big.Body, big.Size = []byte(strings.Repeat("b", 2<<20)), 0
	if err := b.Park(t.Context(), big); err != nil {
		t.Fatal(err)
	}
	wide := parked("wide")
	wide.Attributes["k"] = strings.Repeat("a", 2<<20)
	wide.Reason = strings.Repeat("r", 2000)
	if err := b.Park(t.Context(), wide); err != nil {
		t.Fatal(err)
	}
	got := letters(t, b, 0, 10)
	if len(got) != 2 || got[0].Size != 2<<20 || len(got[0].Body) < 600<<10 || !strings.HasPrefix(string(big.Body), string(got[0].Body)) {
		t.Fatalf("%d letters; expected two, the first with the start of its body", len(got))
	}
	if got[1].Attributes != nil || got[1].ID != "wide" {
		t.Errorf("the second has %d attributes; expected none", len(got[1].Attributes))
	}
	huge := parked("huge")
	huge.Reason = strings.Repeat("r", 2<<20)
	if err := b.Park(t.Context(), huge); !fault.Is(err, fault.Invalid) {
		t.Errorf("a reason of 2 MiB: %v; expected an error of kind invalid", err)
	}
}

// TestParkOnce: the same notice is kept once, however often and whenever it is
// parked; after it was deleted it is kept again, also within the duplicate
// window.
func TestParkOnce(t *testing.T) {
	srv := testenv.NATS(t)
	b := open(t, srv.Conn(t), &Options{Duplicates: 100 * time.Millisecond})
	other := open(t, srv.Conn(t), &Options{Duplicates: 100 * time.Millisecond})
	park := func(b *Bus, id string) {
		t.Helper()
		l := parked(id)
		l.Parked = time.Now()
		if err := b.Park(t.Context(), l); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 5 {
		park(b, "x")
		park(other, "x")
		if i == 2 {
			pause(t.Context(), 250*time.Millisecond) // beyond the window
		}
	}
	got := letters(t, b, 0, 10)
	if len(got) != 1 {
		t.Fatalf("%d letters; expected one", len(got))
	}
	if err := b.DeleteDeadLetter(t.Context(), got[0].Seq); err != nil {
		t.Fatal(err)
	}
	park(b, "x")
	if n := len(letters(t, b, 0, 10)); n != 1 {
		t.Errorf("%d letters after it was deleted and parked again; expected one", n)
	}
}

func TestQueryDeadLetters(t *testing.T) {
	srv := testenv.NATS(t)
	b := open(t, srv.Conn(t), nil)
	for i := range 40 {
		l := parked(fmt.Sprint(i))
		if i%4 == 0 {
			l.Source = "sqs"
		}
		if i%5 == 0 {
			l.Kind = fault.Unavailable
		}
		if err := b.Park(t.Context(), l); err != nil {
			t.Fatal(err)
		}
	}
	for name, c := range map[string]struct {
		q           LetterQuery
		want, count int
	}{
		"all":             {LetterQuery{}, 40, 40},
		"source":          {LetterQuery{Source: "web.hook"}, 30, 30},
		"kind":            {LetterQuery{Kind: "unavailable"}, 8, 8},
		"source and kind": {LetterQuery{Source: "sqs", Kind: "invalid"}, 8, 8},
		"limit":           {LetterQuery{Source: "sqs", Limit: 3}, 3, 10},
		"from":            {LetterQuery{Source: "web.hook", From: 21}, 15, 30},
		"none":            {LetterQuery{Source: "*"}, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			n := 0
			for l, err := range b.QueryDeadLetters(t.Context(), c.q) {
				if err != nil {
					t.Fatal(err)
				}
				if c.q.Source != "" && l.Source != c.q.Source || c.q.Kind != "" && l.Kind.String() != c.q.Kind {
					t.Errorf("%+v", l)
				}
				n++
			}
			count, err := b.CountDeadLetters(t.Context(), c.q)
			if err != nil || n != c.want || int(count) != c.count {
				t.Errorf("%d letters, %d counted, %v; expected %d and %d", n, count, err, c.want, c.count)
			}
		})
	}
	l, err := b.DeadLetter(t.Context(), 7)
	if err != nil || l.Seq != 7 || l.ID != "6" {
		t.Errorf("%+v, %v; expected letter 7", l, err)
	}
	if err := b.DeleteDeadLetter(t.Context(), 7); err != nil {
		t.Fatal(err)
	}
	if _, err := b.DeadLetter(t.Context(), 7); !fault.Is(err, fault.NotFound) {
		t.Errorf("%v; expected not found", err)
	}
}

// TestLimitCountsLetters: what is no letter takes no letter's place.
func TestLimitCountsLetters(t *testing.T) {
	b := open(t, testenv.NATS(t).Conn(t), nil)
	if _, err := b.js.Publish(t.Context(), deadLetterPrefix+"x.invalid.y", []byte("no letter")); err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		if err := b.Park(t.Context(), parked(fmt.Sprint(i))); err != nil {
			t.Fatal(err)
		}
	}
	if got := letters(t, b, 0, 2); len(got) != 2 || got[0].Seq != 2 || got[1].Seq != 3 {
		t.Errorf("%+v; expected the first two", got)
	}
}
