package eventgrid

import (
	"bytes"
	"encoding/json"
	"time"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/fault"
)

// DecodeTrigger is [Decode] for what the host of Azure Functions hands to a
// custom handler: an object whose member Data has the event by the name of the
// trigger's binding, as JSON or as a string of JSON. Errors are of kind
// Invalid.
// https://learn.microsoft.com/azure/azure-functions/functions-custom-handlers
func DecodeTrigger(body []byte, received time.Time) ([]events.Event, error) {
	var call struct {
		Data map[string]json.RawMessage
	}
	// The error's text could quote the body.
	if json.Unmarshal(body, &call) != nil || len(call.Data) != 1 {
		return nil, fault.Newf(fault.Invalid, opDecode, "the body is not the call of a trigger with one binding; expected {\"Data\": {NAME: EVENT}, \"Metadata\": {}} from the host of Azure Functions")
	}
	for _, raw := range call.Data {
		var text string
		if json.Unmarshal(raw, &text) == nil {
			raw = []byte(text)
		}
		return Decode(bytes.TrimSpace(raw), received)
	}
	return nil, nil
}
