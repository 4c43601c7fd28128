package vaultkv

import (
	"encoding/json"

	"github.com/keyturn/keyturn/fault"
)

// What a listener of Vault's lets through where it is not configured
// (max_json_depth, max_json_array_element_count). It refuses more with status
// 500, at the promotion: a value must not become pending before. Its other
// limits cannot be reached with [MaxValue] bytes.
// https://developer.hashicorp.com/vault/docs/configuration/listener/tcp
const (
	maxDepth    = 300
	maxElements = 10000
)

// checkLimits refuses fields that Vault would. The error is of kind Invalid.
func checkLimits(op string, served json.RawMessage) error {
	var v any
	if err := json.Unmarshal(served, &v); err != nil {
		return fault.Newf(fault.Invalid, op, "the value's fields cannot be written as JSON")
	}
	// The fields are within the request.
	depth, longest := measure(v)
	if limit := maxDepth - 1; depth > limit {
		return fault.Newf(fault.Invalid, op, "the value is nested %d deep; expected at most %d, which is what Vault takes", depth, limit)
	}
	if longest > maxElements {
		return fault.Newf(fault.Invalid, op, "the value has an array of %d elements; expected at most %d, which is what Vault takes", longest, maxElements)
	}
	return nil
}

// measure returns how deep v is nested, and the length of its longest array.
func measure(v any) (depth, longest int) {
	within := func(x any) {
		d, l := measure(x)
		depth, longest = max(depth, d), max(longest, l)
	}
	switch x := v.(type) {
	case map[string]any:
		for _, m := range x {
			within(m)
		}
	case []any:
		longest = len(x)
		for _, m := range x {
			within(m)
		}
	default:
		return 0, 0
	}
	return depth + 1, longest
}
