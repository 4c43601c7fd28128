package eventbridge

import (
	"encoding/json"
	"regexp"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/ref"
)

// Source is the EventBridge source under which our rotators announce. Who may
// put events of this source on the bus is for the bus's policy to say.
const Source = "keyturn.rotator"

const opEntry = "eventbridge: entry"

// detail is the detail of an announcement: an event's data, its id and time.
type detail struct {
	ID   string    `json:"id"`
	Time time.Time `json:"time"`
	events.Data
}

// Entry returns what PutEvents needs to announce e: the source, the detail
// type, which is the event's type, and the detail. [Decode] gives back the same
// event with the same id. The error is of kind Invalid and says which field
// could not be read back.
func Entry(e events.Event) (source, detailType string, body []byte, err error) {
	if err := check(opEntry, e); err != nil {
		return "", "", nil, err
	}
	e = own(e)
	body, jerr := json.Marshal(detail{ID: e.ID, Time: e.Time, Data: e.Data})
	if jerr != nil {
		return "", "", nil, fault.Newf(fault.Invalid, opEntry, "the event cannot be written as JSON; this is a defect, please report it")
	}
	return Source, string(e.Type), body, nil
}

// announcement reads what [Entry] wrote. Every field is checked, unknown ones
// are left out, and the id is taken as it is: it names what happened, whose
// key may not be in the data.
func (m *message) announcement(detailType string) ([]events.Event, error) {
	var d detail
	if err := json.Unmarshal(m.envelope["detail"], &d); err != nil {
		// The parser's text quotes the input.
		return nil, fault.Newf(fault.Invalid, opDecode, "the detail of an announcement has a field of the wrong type, a bad time or a bad ref; expected what a rotator of this version writes")
	}
	e := own(events.Event{ID: d.ID, Type: events.Type(detailType), Time: d.Time, Data: d.Data})
	if err := check(opDecode, e); err != nil {
		return nil, err
	}
	// The envelope's account is EventBridge's own word, the detail only the
	// sender's: an account that may put events on our bus announces its own
	// secrets and no others.
	if account := m.envelope.Text("account"); e.Data.Ref.Provider != ref.AWS || e.Data.Ref.ScopePart(0) != account {
		return nil, fault.Newf(fault.Invalid, opDecode, "the announcement is about a secret of another account than the one that sent it; expected an AWS secret of the envelope's account")
	}
	return []events.Event{e}, nil
}

// own leaves out what the notifier will say, and puts times in UTC.
func own(e events.Event) events.Event {
	e.Time, e.Data.Provider.Time = e.Time.UTC(), e.Data.Provider.Time.UTC()
	e.Data.Received, e.Data.Published = time.Time{}, time.Time{}
	return e
}

var (
	eventIDForm = regexp.MustCompile(`^[0-9A-V]{32}$`) // events.SemanticID
	plainForm   = regexp.MustCompile(`^[!-~]{0,512}$`)
)

// prose reports whether s is short text that a terminal and JSON can take.
func prose(s string) bool {
	if len(s) > 256 || !utf8.ValidString(s) {
		return false
	}
	for _, r := range s {
		if !unicode.IsPrint(r) {
			return false
		}
	}
	return true
}

// inJSON reports whether JSON can carry t in any zone.
func inJSON(t time.Time) bool { return t.Year() >= 1 && t.Year() <= 9998 }

// check reports the first field of e that an announcement may not have.
func check(op string, e events.Event) error {
	bad := func(field, want string) error {
		return fault.Newf(fault.Invalid, op, "%s of the announcement is not usable; expected %s", field, want)
	}
	p := e.Data.Provider
	switch {
	case !e.Type.Valid():
		return bad("the type", "one of Keyturn's event types")
	case !eventIDForm.MatchString(e.ID):
		return bad("the id", "32 letters and digits, as events.SemanticID makes them")
	case e.Time.IsZero() || !inJSON(e.Time) || !inJSON(p.Time):
		return bad("a time", "one between the years 1 and 9998")
	case e.Data.Ref.Validate() != nil || len(e.Data.Ref.String()) > 2048 || !canonical(e.Data.Ref):
		return bad("the ref", "the canonical name of a secret")
	case !prose(e.Data.Tenant):
		return bad("the tenant", "at most 256 printable characters")
	case !plainForm.MatchString(e.Data.Version) || !plainForm.MatchString(e.Data.PreviousVersion):
		return bad("a version", "at most 512 printable characters without spaces")
	case !prose(e.Data.Cause) || !prose(e.Data.Reason) || !prose(e.Data.Label):
		return bad("cause, reason or label", "at most 256 printable characters")
	case !plainForm.MatchString(e.Data.TraceParent):
		return bad("the trace parent", "at most 512 printable characters without spaces")
	case !plainForm.MatchString(p.EventID) || !prose(p.Type) || !plainForm.MatchString(p.ID):
		return bad("a provider field", "at most 512 printable characters")
	}
	return nil
}

// canonical reports whether r survives its text form, by which it travels.
func canonical(r ref.Ref) bool {
	back, err := ref.Parse(r.String())
	return err == nil && back == r
}
