package eventgrid

import (
	"github.com/keyturn/keyturn/internal/notice"
)

// validationType is the event with which Event Grid asks, in its own schema,
// whether a webhook wants a subscription. In the schema of CloudEvents it asks
// by the OPTIONS method instead.
const validationType = "Microsoft.EventGrid.SubscriptionValidationEvent"

// Validation returns the code of a subscription's handshake, if body is one.
// Whoever receives it answers 200 with {"validationResponse": code}, after the
// caller was authenticated as for any other delivery. The code has the form of
// an identifier, so it may be echoed. The URL beside it, by which a person may
// confirm instead, is not returned: it is not ours to open.
// https://learn.microsoft.com/azure/event-grid/end-point-validation-event-grid-events-schema
func Validation(body []byte) (code string, ok bool) {
	batch, err := split(body)
	if err != nil || len(batch) != 1 {
		return "", false
	}
	env, err := notice.Parse(batch[0], opDecode, expected)
	if err != nil || env.Text("eventType") != validationType {
		return "", false
	}
	code = notice.Token(env.Object("data").Text("validationCode"))
	return code, code != ""
}
