package notice

import (
	"encoding/json"

	"github.com/keyturn/keyturn/fault"
)

// A Walker goes into the envelopes of one delivery, and gathers what the
// notices in them come to. It is for one delivery and one goroutine.
type Walker struct {
	Batch
	// Op and Expected are for errors, as in [Parse].
	Op, Expected string
	// Open says what an object is: it adds what a notice comes to, or walks on
	// into an envelope with a depth of one more.
	Open func(env Object, depth int)
	// Unwrap returns what raw only encodes, such as a JSON string of JSON. Nil
	// unwraps nothing.
	Unwrap func(raw []byte) (inner []byte, ok bool)
}

// Walk takes raw, which is an array of objects or one, at the given depth.
func (w *Walker) Walk(raw []byte, depth int) {
	if depth > MaxDepth {
		w.Add(nil, TooDeep(w.Op, w.Expected))
		return
	}
	if w.Unwrap != nil {
		if inner, ok := w.Unwrap(raw); ok {
			w.Walk(inner, depth+1)
			return
		}
	}
	members, array, err := Members(raw, w.Op, w.Expected)
	if err != nil {
		w.Add(nil, err)
		return
	}
	if array {
		w.All(members, depth)
		return
	}
	env, err := Parse(raw, w.Op, w.Expected)
	if err != nil {
		w.Add(nil, err)
		return
	}
	w.Open(env, depth)
}

// All walks into each of members.
func (w *Walker) All(members []json.RawMessage, depth int) {
	for _, raw := range members {
		w.Walk(raw, depth+1)
	}
}

// List walks into the members of the array at key.
func (w *Walker) List(env Object, key string, depth int) {
	members := env.Array(key)
	if members == nil {
		w.Add(nil, fault.Newf(fault.Invalid, w.Op, "the member %s is no array; expected %s", key, w.Expected))
		return
	}
	w.All(members, depth)
}

// Unknown adds that env is no envelope that is known.
func (w *Walker) Unknown() {
	w.Add(nil, fault.Newf(fault.Invalid, w.Op, "the object has the members of no envelope that is known; expected %s", w.Expected))
}
