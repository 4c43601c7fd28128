package noticetest

import (
	"errors"
	"testing"
)

// fatal counts instead of ending the test.
type fatal int

func (*fatal) Helper()                 {}
func (f *fatal) Fatalf(string, ...any) { *f++ }

// A check that cannot fail is worth nothing.
func TestNoEcho(t *testing.T) {
	words := Words(`"detail.eventName is missing"`)
	for text, want := range map[string]fatal{
		"detail.eventName is missing":      0,
		"cannot read hunter2hunter2":       1,
		"short hunter2":                    0,
		"detail.eventName hunter2hunter2!": 1,
	} {
		var f fatal
		words.NoEcho(&f, []byte(`{"detail.eventName":"hunter2hunter2"}`), errors.New(text))
		if (f > 0) != (want > 0) {
			t.Errorf("%s: %d failures, expected %d", text, f, want)
		}
	}
	var f fatal
	if words.NoEcho(&f, nil, nil); f != 0 {
		t.Error("no error was taken for an echo")
	}
}

func TestVocabulary(t *testing.T) {
	t.Chdir("../../../events/pubsub")
	if w := Vocabulary(t); len(w) < 1000 {
		t.Errorf("only %d bytes of sources were read", len(w))
	}
}
