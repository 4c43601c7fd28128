package eventbridge

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/notice/noticetest"
)

func decode(body []byte) ([]events.Event, error) { return Decode(body, received) }

func FuzzDecode(f *testing.F) {
	for _, body := range notices(f) {
		f.Add(body)
	}
	_, typ, detail, err := Entry(events.New(events.VersionActivated, paymentsRef, received, rotation))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(put(Source, typ, detail))
	words := noticetest.Vocabulary(f)
	f.Fuzz(func(t *testing.T, body []byte) {
		es, err := decode(body)
		noticetest.Sound(t, es, err, fault.Invalid)
		words.NoEcho(t, body, err)
	})
}

func decodeAny(body []byte) ([]events.Event, error) { return DecodeAny(body, received) }

func FuzzDecodeAny(f *testing.F) {
	all := notices(f)
	for _, body := range all {
		f.Add(body)
	}
	for _, wrap := range routes() {
		f.Add([]byte(wrap(string(all["file/secret-label-updated"]))))
		f.Add([]byte(wrap(`{"Records":[` + record(f, all["file/ct-rotation-succeeded"]) + `]}`)))
	}
	words := noticetest.Vocabulary(f)
	f.Fuzz(func(t *testing.T, body []byte) {
		es, err := decodeAny(body)
		noticetest.Sound(t, es, err, fault.Invalid)
		words.NoEcho(t, body, err)
		// What is an event by itself is the same event here.
		if one, oneErr := decode(body); oneErr == nil && len(body) > 0 && !slices.Equal(one, es) {
			t.Fatalf("Decode gives %+v, DecodeAny %+v, %v", one, es, err)
		}
	})
}

func TestDecodeIsTotal(t *testing.T) { noticetest.Total(t, notices(t), decode, fault.Invalid) }

// The same for notices in envelopes, and for the envelopes themselves.
func TestDecodeAnyIsTotal(t *testing.T) {
	all := notices(t)
	wrapped := map[string][]byte{}
	for name, wrap := range routes() {
		wrapped[name] = []byte(wrap(string(all["file/secret-label-updated"])))
	}
	wrapped["a log file"] = []byte(`{"Records":[` + record(t, all["file/ct-rotation-succeeded"]) + `]}`)
	noticetest.Total(t, wrapped, decodeAny, fault.Invalid)
	noticetest.Total(t, all, func(body []byte) ([]events.Event, error) { return decodeAny([]byte(inSQSAnswer(inSNS(string(body))))) }, fault.Invalid)
	noticetest.NeverEchoes(t, wrapped, decodeAny, isIdentity, 300)
	maps.DeleteFunc(all, func(name string, _ []byte) bool {
		return !strings.HasPrefix(name, "file/") || strings.Contains(name, "-delete")
	})
	noticetest.NeverEchoes(t, all, func(body []byte) ([]events.Event, error) { return decodeAny([]byte(inSQSRecord(string(body)))) }, isIdentity, 1000)
}

// Where a notice's identity is read from, a text that looks like a name is the
// name.
func TestDecodeNeverEchoes(t *testing.T) {
	noticetest.NeverEchoes(t, notices(t), decode, isIdentity, 2000)
}

// isIdentity reports whether a member names a thing and is copied if it has the
// form of a name.
func isIdentity(key string) bool {
	switch strings.ToLower(key) {
	case "secretid", "arn", "name", "versionid", "clientrequesttoken", "movetoversionid", "removefromversionid",
		"labelupdated", "versionstage", "versionstages", "resources", "account", "region", "awsregion", "recipientaccountid", "id", "eventid", "requestid":
		return true
	}
	return false
}
