package eventbridge

import (
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
	f.Fuzz(func(t *testing.T, body []byte) {
		es, err := decode(body)
		noticetest.Sound(t, es, err, fault.Invalid)
	})
}

func TestDecodeIsTotal(t *testing.T) { noticetest.Total(t, notices(t), decode, fault.Invalid) }

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
