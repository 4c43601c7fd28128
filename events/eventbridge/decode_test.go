package eventbridge

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/notice/noticetest"
	"github.com/keyturn/keyturn/ref"
)

var update = flag.Bool("update", false, "write testdata/golden.json anew")

var received = time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)

const (
	payments    = "prod/agents/payments"
	paymentsARN = "arn:aws:secretsmanager:eu-west-1:111122223333:secret:prod/agents/payments-Ab12Cd"
	rotation    = "9b1d7e42-0c5a-4f6b-8e3d-6a7c9f2b1d55"
)

var paymentsRef = ref.Ref{Provider: ref.AWS, Scope: "111122223333/eu-west-1", Name: payments}

// call is the record of an API call with the given members of detail.
func call(name, detail string) string {
	return fmt.Sprintf(`{"version":"0","id":"00000000-0000-4000-a000-0000000000aa","detail-type":"AWS API Call via CloudTrail","source":"aws.secretsmanager",
"account":"111122223333","time":"2026-06-01T10:00:09Z","region":"eu-west-1","resources":[],"detail":{"eventTime":"2026-06-01T10:00:08Z",
"eventSource":"secretsmanager.amazonaws.com","awsRegion":"eu-west-1","recipientAccountId":"111122223333","eventType":"AwsApiCall",
"eventID":"00000000-0000-4000-9000-0000000000aa","eventName":%q%s}}`, name, ","+detail)
}

func label(arn, name, label, version string) string {
	return fmt.Sprintf(`{"id":"6a7e8feb-b491-4cf7-a9f1-bf3703467718","detail-type":"Secret Label Updated","source":"aws.secretsmanager",
"account":"111122223333","time":"2026-06-01T10:00:05Z","region":"eu-west-1","resources":[%q],"detail":{"name":%q,"labelUpdated":%q,"versionId":%q}}`, arn, name, label, version)
}

func service(name, detail string) string {
	return strings.Replace(call(name, detail), "AWS API Call", "AWS Service Event", 1)
}

// notices are the sample files and the variants that they lack.
func notices(t testing.TB) map[string][]byte {
	t.Helper()
	files, err := filepath.Glob("testdata/notices/*.json")
	if err != nil || len(files) < 18 {
		t.Fatalf("found %d sample notices (%v); expected 18", len(files), err)
	}
	out := map[string][]byte{}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		out["file/"+strings.TrimSuffix(filepath.Base(f), ".json")] = b
	}
	id := `"requestParameters":{"secretId":"` + paymentsARN + `"`
	token := `,"clientRequestToken":"` + rotation + `"`
	for name, s := range map[string]string{
		"label/custom":          label(paymentsARN, payments, "BLUE", rotation),
		"label/pending":         label(paymentsARN, payments, "AWSPENDING", rotation),
		"label/previous":        label(paymentsARN, payments, "AWSPREVIOUS", rotation),
		"label/no version":      label(paymentsARN, payments, "AWSCURRENT", ""),
		"label/no label":        label(paymentsARN, payments, "", rotation),
		"label/ARN only":        strings.Replace(label(paymentsARN, payments, "AWSCURRENT", rotation), `"name":"`+payments+`",`, "", 1),
		"label/name only":       label("", payments, "AWSCURRENT", rotation),
		"label/china":           label("arn:aws-cn:secretsmanager:cn-north-1:111122223333:secret:mySecret-a1b2c3", "mySecret", "AWSCURRENT", rotation),
		"label/govcloud":        label("arn:aws-us-gov:secretsmanager:us-gov-west-1:111122223333:secret:mySecret-a1b2c3", "mySecret", "AWSCURRENT", rotation),
		"label/replica":         label("arn:aws:secretsmanager:us-east-1:111122223333:secret:prod/agents/payments-Ab12Cd", payments, "AWSCURRENT", rotation),
		"label/other account":   label("arn:aws:secretsmanager:eu-west-1:444455556666:secret:prod/agents/payments-Ab12Cd", payments, "AWSCURRENT", rotation),
		"label/connection":      label("arn:aws:secretsmanager:eu-west-1:111122223333:secret:events!connection/keyturn/00000000-0000-4000-9000-000000000001/auth-Ab12Cd", "events!connection/keyturn/00000000-0000-4000-9000-000000000001/auth", "AWSCURRENT", rotation),
		"label/rds":             label("arn:aws:secretsmanager:eu-west-1:111122223333:secret:rds!db-00000000-0000-4000-9000-000000000001-Ab12Cd", "rds!db-00000000-0000-4000-9000-000000000001", "AWSCURRENT", rotation),
		"label/name like ARN":   label("arn:aws:secretsmanager:eu-west-1:111122223333:secret:my-secret-a1b2c3", "my-secret", "AWSCURRENT", rotation),
		"label/name misfits":    label(paymentsARN, "another", "AWSCURRENT", rotation),
		"label/wrong shape":     `{"detail-type":"Secret Label Updated","source":"aws.secretsmanager","detail":{"SecretId":"x","AddedLabels":["AWSCURRENT"]}}`,
		"label/odd time":        strings.Replace(label(paymentsARN, payments, "AWSCURRENT", rotation), "2026-06-01T10:00:05Z", "yesterday", 1),
		"label/zoned time":      strings.Replace(label(paymentsARN, payments, "AWSCURRENT", rotation), "2026-06-01T10:00:05Z", "2026-06-01T03:00:05-07:00", 1),
		"put/no stages":         call("PutSecretValue", id+token+`},"responseElements":{"arn":"`+paymentsARN+`"}`),
		"put/null response":     call("PutSecretValue", id+token+`},"responseElements":null`),
		"put/current":           call("PutSecretValue", id+token+`,"versionStages":["BLUE","AWSCURRENT"]}`),
		"put/custom":            call("PutSecretValue", id+token+`,"versionStages":["BLUE"]}`),
		"put/by name":           call("PutSecretValue", `"requestParameters":{"secretId":"`+payments+`"`+token+`},"responseElements":null`),
		"put/partial ARN":       call("PutSecretValue", `"requestParameters":{"secretId":"arn:aws:secretsmanager:eu-west-1:111122223333:secret:`+payments+`"`+token+`}`),
		"put/aRN":               call("PutSecretValue", `"requestParameters":{"secretId":"`+payments+`"`+token+`},"responseElements":{"aRN":"`+paymentsARN+`"}`),
		"put/answered version":  call("PutSecretValue", id+`},"responseElements":{"ARN":"`+paymentsARN+`","versionId":"`+rotation+`"}`),
		"put/cross account":     call("PutSecretValue", `"requestParameters":{"secretId":"arn:aws:secretsmanager:eu-west-1:444455556666:secret:`+payments+`-Ab12Cd"`+token+`}`),
		"put/amazon":            strings.Replace(call("PutSecretValue", id+token+`}`), "AWS API Call", "Amazon API Call", 1),
		"put/error message":     call("PutSecretValue", id+token+`},"errorMessage":"no"`),
		"create/null response":  call("CreateSecret", `"requestParameters":{"name":"`+payments+`"`+token+`},"responseElements":null`),
		"create/no token":       call("CreateSecret", `"requestParameters":{"name":"`+payments+`"}`),
		"update/version":        call("UpdateSecret", id+token+`},"responseElements":{"aRN":"`+paymentsARN+`","name":"`+payments+`","versionId":"`+rotation+`"}`),
		"update/masked value":   call("UpdateSecret", id+token+`,"secretString":"HIDDEN_DUE_TO_SECURITY_REASONS"}`),
		"update/no version":     call("UpdateSecret", id+token+`,"kmsKeyId":"alias/k"},"responseElements":{"arn":"`+paymentsARN+`"}`),
		"stage/pending removed": call("UpdateSecretVersionStage", id+`,"versionStage":"AWSPENDING","removeFromVersionId":"`+rotation+`"}`),
		"stage/custom moved":    call("UpdateSecretVersionStage", id+`,"versionStage":"BLUE","moveToVersionId":"`+rotation+`"}`),
		"stage/custom removed":  call("UpdateSecretVersionStage", id+`,"versionStage":"BLUE","removeFromVersionId":"`+rotation+`"}`),
		"stage/like ARN":        call("UpdateSecretVersionStage", `"requestParameters":{"secretId":"arn:aws:secretsmanager:eu-west-1:111122223333:secret:prod/my-secret","versionStage":"AWSCURRENT","moveToVersionId":"`+rotation+`"},"responseElements":{"arn":"arn:aws:secretsmanager:eu-west-1:111122223333:secret:prod/my-secret-Ab12Cd","name":"prod/my-secret"}`),
		"stage/partial ARN":     call("UpdateSecretVersionStage", `"requestParameters":{"secretId":"arn:aws:secretsmanager:eu-west-1:111122223333:secret:prod/my-secret","versionStage":"AWSCURRENT","moveToVersionId":"`+rotation+`"},"responseElements":{"name":"prod/my-secret"}`),
		"label/far time":        strings.Replace(label(paymentsARN, payments, "AWSCURRENT", rotation), "2026-06-01T10:00:05Z", "9999-12-31T23:59:59-12:00", 1),
		"stage/no stage":        call("UpdateSecretVersionStage", id+`}`),
		"rotate/schedule only":  call("RotateSecret", id+token+`,"rotateImmediately":false}`),
		"rotate/by name":        call("RotateSecret", `"requestParameters":{"secretId":"`+payments+`"}`),
		"other/cancel rotate":   call("CancelRotateSecret", id+`}`),
		"other/replicate":       call("ReplicateSecretToRegions", id+`,"addReplicaRegions":[{"region":"us-east-1"}]}`),
		"other/unreplicate":     call("RemoveRegionsFromReplication", id+`}`),
		"other/stop replica":    call("StopReplicationToReplica", id+`}`),
		"other/tag":             call("TagResource", id+`,"tags":[{"key":"k","value":"v"}]}`),
		"other/untag":           call("UntagResource", id+`}`),
		"other/put policy":      call("PutResourcePolicy", id+`}`),
		"other/delete policy":   call("DeleteResourcePolicy", id+`}`),
		"other/no secret":       call("TagResource", `"requestParameters":null`),
		"other/no name":         `{"detail-type":"AWS API Call via CloudTrail","source":"aws.secretsmanager","detail":{}}`,
		"other/connection":      call("PutSecretValue", `"requestParameters":{"secretId":"events!connection/keyturn/x/auth"`+token+`}`),
		"read/get":              call("GetSecretValue", id+`},"readOnly":true`),
		"read/batch":            call("BatchGetSecretValue", `"requestParameters":{"filters":[]},"readOnly":true`),
		"read/describe":         call("DescribeSecret", id+`},"readOnly":true`),
		"read/list":             call("ListSecrets", `"requestParameters":null`),
		"service/bare event":    service("RotationSucceeded", `"serviceEventDetails":{"secretId":"`+paymentsARN+`"}`),
		"service/version end":   service("EndSecretVersionDelete", `"additionalEventData":{"ARN":"`+paymentsARN+`","Name":"`+payments+`"}`),
		"service/no identity":   service("RotationSucceeded", `"additionalEventData":null`),
		"service/replication":   service("SomethingAboutReplication", `"additionalEventData":{"SecretId":"`+paymentsARN+`"}`),
		"service/no name":       `{"detail-type":"AWS Service Event via CloudTrail","source":"aws.secretsmanager","detail":null}`,
		"foreign/s3":            `{"detail-type":"Object Created","source":"aws.s3","detail":{"bucket":{"name":"b"}}}`,
		"foreign/detail-type":   `{"detail-type":"Something New","source":"aws.secretsmanager","detail":7}`,
		"foreign/shape":         `{"detail-type":"X","source":"com.example","detail":[1,2],"resources":"none","time":4}`,
		"broken/empty":          "",
		"broken/space":          " \n",
		"broken/null":           "null",
		"broken/number":         "17",
		"broken/string":         `"Secret Label Updated"`,
		"broken/cut":            `{"source":"aws.secretsmanager","detail-type":"Secr`,
		"broken/object":         "{}",
		"broken/form":           "source=aws.secretsmanager",
		"array/empty":           "[]",
		"array/two":             "[" + label(paymentsARN, payments, "AWSCURRENT", rotation) + "," + call("GetSecretValue", id+"}") + "]",
		"array/one bad":         "[" + label(paymentsARN, payments, "AWSCURRENT", rotation) + ",{},[]]",
		"array/cut":             "[{},",
	} {
		out[name] = []byte(s)
	}
	return out
}

// outcome is what Decode made of one notice, as the golden file holds it.
type outcome struct {
	Events []goldenEvent `json:"events,omitempty"`
	Error  string        `json:"error,omitempty"`
}

type goldenEvent struct {
	ID      string      `json:"id"`
	Type    events.Type `json:"type"`
	Time    time.Time   `json:"time"`
	Subject string      `json:"subject"`
	Data    events.Data `json:"data"`
}

func decoded(t testing.TB, body []byte) outcome {
	t.Helper()
	es, err := Decode(body, received)
	var o outcome
	if err != nil {
		if !fault.Is(err, fault.Invalid) {
			t.Errorf("error of kind %s; expected invalid: %v", fault.KindOf(err), err)
		}
		o.Error = err.Error()
	}
	for _, e := range es {
		o.Events = append(o.Events, goldenEvent{e.ID, e.Type, e.Time, e.Subject(), e.Data})
	}
	return o
}

func TestDecodeGolden(t *testing.T) {
	const file = "testdata/golden.json"
	got := map[string]outcome{}
	for name, body := range notices(t) {
		got[name] = decoded(t, body)
	}
	noticetest.Golden(t, file, *update, got)
}

// TestDecodeTypes says what each notice must come to, in a form that a reviewer can check
// against the AWS documents without reading the golden file.
func TestDecodeTypes(t *testing.T) {
	all := notices(t)
	for name, want := range map[string]string{
		"file/secret-label-updated":                   "version.activated " + rotation,
		"file/ct-update-secret-version-stage":         "version.activated " + rotation,
		"file/ct-create-secret":                       "version.activated 5f0c2d1e-7a3b-4c9e-9d1f-2b6a8c4e0f11",
		"file/ct-put-secret-value-awspending":         "version.created " + rotation,
		"file/ct-put-secret-value-denied":             "",
		"file/ct-update-secret":                       "secret.changed ",
		"file/ct-delete-secret":                       "secret.deleted ",
		"file/ct-restore-secret":                      "secret.restored ",
		"file/ct-rotate-secret":                       "rotation.requested ",
		"file/ct-rotation-started":                    "rotation.started ",
		"file/ct-rotation-succeeded":                  "rotation.succeeded ",
		"file/ct-rotation-failed":                     "rotation.failed ",
		"file/ct-rotation-abandoned":                  "rotation.abandoned ",
		"file/ct-start-secret-version-delete":         "secret.changed ",
		"file/ct-cancel-secret-version-delete":        "secret.changed ",
		"file/ct-end-secret-version-delete":           "version.destroyed ",
		"file/sns-http-notification":                  "error",
		"file/sqs-receive-message-eventbridge-target": "error",
		"label/custom":                                "secret.changed " + rotation,
		"label/pending":                               "",
		"label/previous":                              "",
		"label/no version":                            "version.activated ",
		"label/no label":                              "error",
		"label/connection":                            "",
		"label/rds":                                   "version.activated " + rotation,
		"put/no stages":                               "version.activated " + rotation,
		"put/null response":                           "version.activated " + rotation,
		"put/current":                                 "version.activated " + rotation,
		"put/custom":                                  "version.created " + rotation,
		"put/error message":                           "",
		"create/no token":                             "secret.changed ",
		"update/version":                              "version.activated " + rotation,
		"update/masked value":                         "version.activated " + rotation,
		"update/no version":                           "secret.changed ",
		"stage/pending removed":                       "",
		"stage/custom moved":                          "secret.changed " + rotation,
		"rotate/schedule only":                        "secret.changed ",
		"other/connection":                            "",
		"other/tag":                                   "secret.changed ",
		"read/get":                                    "",
		"read/batch":                                  "",
		"foreign/shape":                               "",
		"array/empty":                                 "",
		"array/two":                                   "version.activated " + rotation,
		"array/one bad":                               "version.activated " + rotation + ";error",
	} {
		body, ok := all[name]
		if !ok {
			t.Errorf("no notice is called %s", name)
			continue
		}
		es, err := Decode(body, received)
		var got []string
		for _, e := range es {
			noun, verb := e.Type.Parts()
			got = append(got, noun+"."+verb+" "+e.Data.Version)
		}
		if err != nil {
			got = append(got, "error")
		}
		if s := strings.Join(got, ";"); s != want {
			t.Errorf("%s: got %q, expected %q (%v)", name, s, want, err)
		}
	}
}

// TestOneRotationIsOneEvent: whatever of a rotation's six notices arrive, and
// the rotator's own announcement, AWSCURRENT moved once and the rotation
// succeeded once. The ids of the rotator are made as rotators.Runner makes them.
func TestOneRotationIsOneEvent(t *testing.T) {
	all := notices(t)
	count := map[events.Type]map[string]int{}
	see := func(es []events.Event) {
		for _, e := range es {
			if e.Data.Ref != paymentsRef {
				t.Errorf("%s is about %s; expected %s", e.Type, e.Data.Ref, paymentsRef)
			}
			if count[e.Type] == nil {
				count[e.Type] = map[string]int{}
			}
			count[e.Type][e.ID]++
		}
	}
	for _, name := range []string{
		"ct-rotate-secret", "ct-rotation-started", "ct-put-secret-value-awspending",
		"ct-update-secret-version-stage", "secret-label-updated", "ct-rotation-succeeded",
	} {
		es, err := Decode(all["file/"+name], received)
		if err != nil || len(es) != 1 {
			t.Fatalf("%s: %d events, %v; expected one", name, len(es), err)
		}
		see(es)
	}
	activated := events.New(events.VersionActivated, paymentsRef, received, rotation)
	activated.Data.Version = rotation
	for _, e := range []events.Event{
		activated,
		events.New(events.RotationStarted, paymentsRef, received, rotation),
		events.New(events.RotationSucceeded, paymentsRef, received, rotation),
	} {
		see(announced(t, e))
	}
	for typ, want := range map[events.Type]int{events.VersionActivated: 3, events.RotationStarted: 2, events.RotationSucceeded: 2} {
		if len(count[typ]) != 1 {
			t.Errorf("%s has ids %v; expected one", typ, count[typ])
		}
		for id, n := range count[typ] {
			if n != want {
				t.Errorf("%s %s came %d times; expected %d", typ, id, n, want)
			}
		}
	}
	if n := len(count); n != 5 {
		t.Errorf("%d types of event; expected requested, started, created, activated, succeeded", n)
	}
}

func TestIdentity(t *testing.T) {
	all := notices(t)
	for name, want := range map[string]string{
		"put/by name":          "aws://111122223333/eu-west-1/prod/agents/payments",
		"put/partial ARN":      "aws://111122223333/eu-west-1/prod/agents/payments",
		"put/aRN":              "aws://111122223333/eu-west-1/prod/agents/payments " + paymentsARN,
		"put/cross account":    "aws://444455556666/eu-west-1/prod/agents/payments arn:aws:secretsmanager:eu-west-1:444455556666:secret:prod/agents/payments-Ab12Cd",
		"create/null response": "aws://111122223333/eu-west-1/prod/agents/payments",
		"stage/like ARN":       "aws://111122223333/eu-west-1/prod/my-secret arn:aws:secretsmanager:eu-west-1:111122223333:secret:prod/my-secret-Ab12Cd",
		"stage/partial ARN":    "aws://111122223333/eu-west-1/prod/my-secret",
		"label/name like ARN":  "aws://111122223333/eu-west-1/my-secret arn:aws:secretsmanager:eu-west-1:111122223333:secret:my-secret-a1b2c3",
		"label/name misfits":   "aws://111122223333/eu-west-1/prod/agents/payments " + paymentsARN,
		"label/ARN only":       "aws://111122223333/eu-west-1/prod/agents/payments " + paymentsARN,
		"label/name only":      "aws://111122223333/eu-west-1/prod/agents/payments",
		"label/china":          "aws://111122223333/cn-north-1/mySecret arn:aws-cn:secretsmanager:cn-north-1:111122223333:secret:mySecret-a1b2c3",
		"label/replica":        "aws://111122223333/us-east-1/prod/agents/payments arn:aws:secretsmanager:us-east-1:111122223333:secret:prod/agents/payments-Ab12Cd",
		"service/bare event":   "aws://111122223333/eu-west-1/prod/agents/payments " + paymentsARN,
		"service/version end":  "aws://111122223333/eu-west-1/prod/agents/payments " + paymentsARN,
	} {
		es, err := Decode(all[name], received)
		if err != nil || len(es) != 1 {
			t.Errorf("%s: %d events, %v; expected one", name, len(es), err)
			continue
		}
		if got := strings.TrimSpace(es[0].Data.Ref.String() + " " + es[0].Data.Provider.ID); got != want {
			t.Errorf("%s is about %s; expected %s", name, got, want)
		}
	}
}

// TestRedeliveryKeepsIDs: the same bytes give the same events, whenever they
// come; and a notice's order of keys does not matter.
func TestRedeliveryKeepsIDs(t *testing.T) {
	for name, body := range notices(t) {
		a, errA := Decode(body, received)
		b, errB := Decode(slices.Clone(body), received.Add(time.Hour))
		if (errA == nil) != (errB == nil) || len(a) != len(b) {
			t.Errorf("%s: decoded to %d and %d events", name, len(a), len(b))
			continue
		}
		for i := range a {
			if a[i].ID != b[i].ID {
				t.Errorf("%s: ids %s and %s", name, a[i].ID, b[i].ID)
			}
		}
	}
	one, _ := Decode([]byte(call("PutSecretValue", `"responseElements":{"arn":"`+paymentsARN+`","aRN":"x"},"requestParameters":{"clientRequestToken":"`+rotation+`"}`)), received)
	two, _ := Decode([]byte(call("PutSecretValue", `"requestParameters":{"clientRequestToken":"`+rotation+`"},"responseElements":{"aRN":"x","arn":"`+paymentsARN+`"}`)), received)
	if d := cmp.Diff(one, two); d != "" || len(one) != 1 {
		t.Errorf("the order of keys matters: %s", d)
	}
}
