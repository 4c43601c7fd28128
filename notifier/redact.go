package notifier

import (
	"bytes"
	"encoding/json"
	"fmt"
	"regexp"
)

// maxShapeDepth bounds how deep a notice is described.
const maxShapeDepth = 32

// keyForm is what a member's name may look like to be kept.
var keyForm = regexp.MustCompile(`^[A-Za-z0-9_.:/ -]{1,64}$`)

// Shape describes body without its values: the JSON with each text replaced by
// its length and each number by 0, which is mostly enough to see why a decoder
// did not understand it. What is not JSON is described by its length alone. A
// shape cannot be handed on again.
func Shape(body []byte) []byte {
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.UseNumber()
	var v any
	if dec.Decode(&v) != nil || dec.More() {
		return fmt.Appendf(nil, `"%d bytes that are not JSON"`, len(body))
	}
	out, err := json.Marshal(shape(v, 0))
	if err != nil {
		return fmt.Appendf(nil, `"%d bytes"`, len(body))
	}
	return out
}

func shape(v any, depth int) any {
	if depth == maxShapeDepth {
		return "deeper"
	}
	switch v := v.(type) {
	case map[string]any:
		out := make(map[string]any, len(v))
		for k, in := range v {
			if !keyForm.MatchString(k) {
				k = fmt.Sprintf("(a name of %d bytes)", len(k))
			}
			out[k] = shape(in, depth+1)
		}
		return out
	case []any:
		out := make([]any, len(v))
		for i, in := range v {
			out[i] = shape(in, depth+1)
		}
		return out
	case string:
		return fmt.Sprintf("(%d bytes)", len(v))
	case json.Number:
		return 0
	}
	return v // true, false, null
}
