package tokenauth

import (
	"encoding/json"
	"math"
	"slices"
	"strings"
	"time"

	josejson "github.com/go-jose/go-jose/v4/json"
)

// maxQuoted bounds what an error quotes of a claim.
const maxQuoted = 120

// claims are the members of a token's payload, by their exact names.
type claims map[string]josejson.RawMessage

// parseClaims reads the payload. A member that is there twice is refused, since
// two readers could take two different ones; go-jose's JSON does that, and the
// standard library's does not.
// https://www.rfc-editor.org/rfc/rfc7519#section-4
func parseClaims(payload []byte) (claims, error) {
	var c claims
	if err := josejson.Unmarshal(payload, &c); err != nil || c == nil {
		return nil, refuse("the token's claims are no JSON object, or one is there twice")
	}
	return c, nil
}

// text reads a claim that is a string; "" if it is not there.
func (c claims) text(name string) (string, error) {
	raw, found := c[name]
	if !found {
		return "", nil
	}
	var s *string
	if err := json.Unmarshal(raw, &s); err != nil || s == nil {
		return "", refuse("the claim %s is no string", name)
	}
	return *s, nil
}

// list reads a claim that is a string or an array of strings; nil if it is not
// there.
func (c claims) list(name string) ([]string, error) {
	raw, found := c[name]
	if !found {
		return nil, nil
	}
	var one *string
	if json.Unmarshal(raw, &one) == nil && one != nil {
		return []string{*one}, nil
	}
	var many []*string
	if err := json.Unmarshal(raw, &many); err != nil || slices.Contains(many, nil) {
		return nil, refuse("the claim %s is neither a string nor an array of strings", name)
	}
	out := make([]string, len(many))
	for i, s := range many {
		out[i] = *s
	}
	return out, nil
}

// time reads a claim that is a number of seconds since 1970, which may have a
// fraction.
func (c claims) time(name string) (t time.Time, found bool, err error) {
	raw, found := c[name]
	if !found {
		return t, false, nil
	}
	var f *float64
	if err := json.Unmarshal(raw, &f); err != nil || f == nil || *f < 0 || *f > 1<<40 {
		return t, false, refuse("the claim %s is no time; expected seconds since 1970", name)
	}
	sec, frac := math.Modf(*f)
	return time.Unix(int64(sec), int64(frac*1e9)), true, nil
}

// is requires a string claim to be one of want. who is what the claim tells of.
func (c claims) is(name string, want ...string) error {
	got, err := c.text(name)
	if err != nil {
		return err
	}
	if got == "" {
		return refuse("the token has no claim %s; expected %s", name, quoted(want))
	}
	if !slices.Contains(want, got) {
		return forbid("the token's %s is %s; expected %s", name, quoted([]string{got}), quoted(want))
	}
	return nil
}

// audience requires one of the token's audiences to be one of want.
func (c claims) audience(want ...string) error {
	got, err := c.list("aud")
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(got, func(a string) bool { return slices.Contains(want, a) }) {
		return forbid("the token is for %s (aud); expected one for %s", quoted(got), quoted(want))
	}
	return nil
}

// quoted shows some claims, shortened: what the issuer signed is no secret, but
// it may be long.
func quoted(vs []string) string {
	const most = 4
	if len(vs) == 0 {
		return "nobody"
	}
	out := make([]string, 0, most+1)
	for i, v := range vs {
		if i == most {
			out = append(out, "...")
			break
		}
		if len(v) > maxQuoted {
			v = strings.ToValidUTF8(v[:maxQuoted], "") + "..."
		}
		b, _ := json.Marshal(v) // a string; control characters are escaped
		out = append(out, string(b))
	}
	return strings.Join(out, " or ")
}
