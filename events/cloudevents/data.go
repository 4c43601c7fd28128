package cloudevents

import (
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/notice"
	"github.com/keyturn/keyturn/ref"
)

// readData reads what is believed of an event's data. Every field is checked,
// so that neither an event nor an error holds text that names nothing.
func readData(raw []byte) (d events.Data, err error) {
	if len(raw) == 0 {
		return d, fault.Newf(fault.Invalid, opDecode, "data is missing; expected %s", inData)
	}
	in, err := notice.Parse(raw, opDecode, inData)
	if err != nil {
		return d, err
	}
	if d.Ref, err = readRef(in.Text("ref")); err != nil {
		return d, err
	}
	for _, field := range []struct {
		key string
		to  *string
	}{{"version", &d.Version}, {"previous_version", &d.PreviousVersion}} {
		// What numbers its versions may write a number.
		s := in.Text(field.key)
		if s == "" {
			s = in.Number(field.key)
		}
		if *field.to = notice.Token(s); *field.to == "" && in.Has(field.key) && string(in[field.key]) != `""` {
			return d, fault.Newf(fault.Invalid, opDecode, "data.%s is no version; expected 1 to 64 letters, digits and _.:/+=@-", field.key)
		}
	}
	if s := in.Text("label"); labelForm.MatchString(s) {
		d.Label = s
	} else if in.Has("label") && s != "" {
		return d, fault.Newf(fault.Invalid, opDecode, "data.label is no label; expected 1 to 256 letters, digits and _.:/+=@-")
	}
	d.Reason = readReason(in.Text("reason"))
	return d, nil
}

var labelForm = regexp.MustCompile(`^[A-Za-z0-9_.:/+=@-]{1,256}$`)

// maxRef keeps an event of a ref that JSON must escape within what a bus takes.
const maxRef = 1024 // bytes

// readRef reads a ref. Its own parser's errors quote what they read.
func readRef(s string) (ref.Ref, error) {
	r, err := ref.Parse(s)
	if err == nil && r.Provider == ref.Azure {
		// Names are case-insensitive there, and one secret is one ref.
		r.Scope, r.Name = strings.ToLower(r.Scope), strings.ToLower(r.Name)
	}
	text := r.String()
	if err != nil || len(text) > maxRef || !utf8.ValidString(r.Name) || strings.ContainsFunc(r.Name, unicode.IsControl) || !survives(r) {
		return ref.Ref{}, fault.Newf(fault.Invalid, opDecode, "data.ref is missing or no ref that can be used; expected at most %d bytes such as aws://ACCOUNT/REGION/NAME, gcp://PROJECT/NAME, azure://VAULT/NAME, vault://CLUSTER/NAMESPACE/MOUNT/PATH or nats://BUCKET/NAME", maxRef)
	}
	return r, nil
}

// survives reports whether r is read back from its text, by which it travels.
func survives(r ref.Ref) bool {
	back, err := ref.Parse(r.String())
	return err == nil && back == r
}

// reasons are the words of which a classified reason is made, as rotators write
// it: "PHASE: KIND/CLASS". Free text may quote anything, and stays out.
var reasons = func() map[string]bool {
	words := map[string]bool{"overdue": true, "rollback": true}
	for _, phase := range []string{"create", "set", "test", "finish", "retire"} {
		words[phase] = true
	}
	for kind := fault.Unknown; kind <= fault.Unavailable; kind++ {
		words[kind.String()] = true
	}
	for _, class := range []fault.Class{
		fault.ClassAuth, fault.ClassPermission, fault.ClassNetwork, fault.ClassTLS,
		fault.ClassTimeout, fault.ClassPolicy, fault.ClassQuota, fault.ClassConcurrency,
	} {
		words[string(class)] = true
	}
	return words
}()

// readReason returns s if it is a classified reason, and "unknown" for another.
func readReason(s string) string {
	if s == "" {
		return ""
	}
	phase, rest, found := strings.Cut(s, ": ")
	if !found {
		phase, rest = "", s
	}
	kind, class, classed := strings.Cut(rest, "/")
	if found && !reasons[phase] || !reasons[kind] || classed && !reasons[class] {
		return fault.Unknown.String()
	}
	return s
}
