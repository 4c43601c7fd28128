package lambdarotate

import (
	"strings"
	"testing"

	"github.com/keyturn/keyturn/fault"
)

func TestEvents(t *testing.T) {
	const arn = "arn:aws:secretsmanager:us-east-1:111122223333:secret:team/db-ABCD1E"
	e, id, err := parseEvent([]byte(`{"Step":"createSecret","SecretId":"` + arn + `","ClientRequestToken":"t","RotationToken":"r","Later":{"x":1}}`))
	if err != nil {
		t.Fatal(err)
	}
	if e.Step != "createSecret" || e.ClientRequestToken != "t" || e.RotationToken != "r" || id.String() != "aws://111122223333/us-east-1/team/db" {
		t.Errorf("event %+v, ref %s", e, id)
	}
	for _, c := range []struct{ name, payload, want string }{
		{"empty", ``, "not a JSON object"},
		{"array", `[]`, "not a JSON object"},
		{"number", `{"Step":1,"RotationToken":"sensitive"}`, "not a JSON object"},
		{"cut", `{"RotationToken":"sensitive`, "not a JSON object"},
		{"none", `{"RotationToken":"sensitive"}`, "Step and SecretId and ClientRequestToken missing"},
		{"no token", `{"Step":"createSecret","SecretId":"` + arn + `"}`, "ClientRequestToken missing"},
		{"name", `{"Step":"createSecret","SecretId":"team/db","ClientRequestToken":"t"}`, "expected arn:aws:secretsmanager"},
		{"huge", `{"Step":"` + strings.Repeat("x", maxPayload) + `"}`, "at most 65536"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, _, err := parseEvent([]byte(c.payload))
			if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("err %v; want Invalid with %q", err, c.want)
			}
			if strings.Contains(err.Error(), "sensitive") {
				t.Error("the error quotes the RotationToken")
			}
		})
	}
}
