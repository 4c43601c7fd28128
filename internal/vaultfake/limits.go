package vaultfake

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
)

// What a listener allows in a request's JSON where it is not configured.
// https://developer.hashicorp.com/vault/docs/configuration/listener/tcp
const (
	maxDepth   = 300
	maxEntries = 10000 // of an object, and of an array
)

// halfPair finds a string that ends in the first half of a surrogate pair.
var halfPair = regexp.MustCompile(`[^\\](\\\\)*\\u[dD][89abAB][0-9a-fA-F]{2}"`)

// A container is an object or an array that is being read.
type container struct {
	keys    map[string]bool // nil for an array
	inKey   bool            // a key is next
	entries int
}

// checkJSON is what a listener does with a body before anybody sees it. What
// is neither object nor array is let through.
func checkJSON(raw []byte) error {
	raw = bytes.TrimSpace(raw)
	if len(raw) == 0 || raw[0] != '{' && raw[0] != '[' {
		return nil
	}
	if halfPair.Match(raw) {
		return errors.New("malformed JSON, unterminated surrogate pair in string")
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	var open []*container
	for {
		tok, err := dec.Token()
		switch {
		case errors.Is(err, io.EOF) && len(open) == 0:
			return nil
		case err != nil:
			return errors.New("malformed JSON, unclosed containers")
		}
		if tok == json.Delim('}') || tok == json.Delim(']') {
			open = open[:len(open)-1]
			continue
		}
		if len(open) > 0 {
			if err := open[len(open)-1].add(tok); err != nil {
				return err
			}
		}
		switch x := tok.(type) {
		case json.Delim:
			c := &container{}
			if x == '{' {
				c.keys, c.inKey = map[string]bool{}, true
			}
			if open = append(open, c); len(open) > maxDepth {
				return errors.New("JSON input exceeds allowed nesting depth")
			}
		case json.Number:
			if _, err := strconv.ParseFloat(x.String(), 64); err != nil {
				return fmt.Errorf("malformed JSON, invalid number syntax for '%s'", x)
			}
		}
	}
}

// add counts a key or a value.
func (c *container) add(tok json.Token) error {
	if c.keys == nil {
		if c.entries++; c.entries > maxEntries {
			return errors.New("JSON array exceeds allowed element count")
		}
		return nil
	}
	if c.inKey {
		key, _ := tok.(string)
		if c.keys[key] {
			return fmt.Errorf("duplicate key '%s' in object", key)
		}
		c.keys[key] = true
		if c.entries++; c.entries > maxEntries {
			return errors.New("JSON object exceeds allowed entry count")
		}
	}
	c.inKey = !c.inKey
	return nil
}
