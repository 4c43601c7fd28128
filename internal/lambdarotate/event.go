package lambdarotate

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/ref"
)

// maxPayload is far above any event of Secrets Manager, which is below 1 KiB.
const maxPayload = 64 << 10

// An event is what Secrets Manager calls the function with.
// https://docs.aws.amazon.com/secretsmanager/latest/userguide/rotate-secrets_lambda-functions.html
type event struct {
	Step               string
	SecretId           string //nolint:revive // spelled as in the event
	ClientRequestToken string
	// RotationToken proves to PutSecretValue that the call belongs to the
	// rotation. It is as sensitive as a credential, and older rotations have
	// none.
	RotationToken string
}

// parseEvent reads an invocation's payload. The error is of kind Invalid and
// quotes nothing of the payload.
func parseEvent(payload []byte) (event, ref.Ref, error) {
	bad := func(format string, args ...any) (event, ref.Ref, error) {
		return event{}, ref.Ref{}, fault.Newf(fault.Invalid, "rotation event", format, args...)
	}
	if len(payload) > maxPayload {
		return bad("found %d bytes; expected at most %d", len(payload), maxPayload)
	}
	var e event
	if err := json.Unmarshal(payload, &e); err != nil {
		// The parser's text could quote the RotationToken.
		return bad("the payload is not a JSON object of strings; expected Step, SecretId and ClientRequestToken, as Secrets Manager sends them")
	}
	var missing []string
	for _, f := range []struct{ name, value string }{
		{"Step", e.Step}, {"SecretId", e.SecretId}, {"ClientRequestToken", e.ClientRequestToken},
	} {
		if f.value == "" {
			missing = append(missing, f.name)
		}
	}
	if len(missing) > 0 {
		return bad("%s missing; expected an event of Secrets Manager: to try the function, start a rotation with aws secretsmanager rotate-secret", strings.Join(missing, " and "))
	}
	id, err := ref.FromARN(e.SecretId)
	if err != nil {
		return event{}, ref.Ref{}, fmt.Errorf("rotation event: SecretId: %w", err)
	}
	return e, id, nil
}
