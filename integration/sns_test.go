package integration_test

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"testing"
	"time"

	"github.com/keyturn/keyturn/rotators"
)

// SNS of a region, of which clouds is the host.
const (
	snsTopic    = "arn:aws:sns:eu-west-1:111122223333:keyturn"
	snsHost     = "sns.eu-west-1.amazonaws.com"
	snsMedia    = "text/plain; charset=UTF-8" // though it is JSON
	snsToken    = "2336412f37fb687f5d51e6e2425ba1f3"
	signingPath = "/SimpleNotificationService-0123456789abcdef0123456789abcdef.pem"

	subscribeURL = "https://" + snsHost + "/?Action=ConfirmSubscription&TopicArn=" + snsTopic + "&Token=" + snsToken
)

// notification is a message of SNS that nobody signed.
func notification(message string) siegeObject {
	return siegeObject{
		"Type": "Notification", "MessageId": rotators.NewToken(), "TopicArn": snsTopic, "Message": message,
		"Timestamp": time.Now().UTC().Format("2006-01-02T15:04:05.000Z"), "SignatureVersion": "2",
		"SigningCertURL": "https://" + snsHost + signingPath,
	}
}

// envelope is one about a secret.
func envelope(name string) siegeObject { return notification(string(awsNoticeOf(name))) }

// confirmation asks whether we subscribe.
func confirmation(topic, address string) siegeObject {
	return notification("You have chosen to subscribe").with("Type", "SubscriptionConfirmation", "Token", snsToken, "TopicArn", topic, "SubscribeURL", address)
}

// snsSigned signs m as SNS documents it, apart from the code under test.
// https://docs.aws.amazon.com/sns/latest/dg/sns-verify-signature-of-message-verify-message-signature.html
func snsSigned(t testing.TB, m siegeObject, key *rsa.PrivateKey) []byte {
	t.Helper()
	names := []string{"Message", "MessageId", "Subject", "Timestamp", "TopicArn", "Type"}
	if m["Type"] != "Notification" {
		names = []string{"Message", "MessageId", "SubscribeURL", "Timestamp", "Token", "TopicArn", "Type"}
	}
	text := ""
	for _, n := range names {
		if v, ok := m[n]; ok {
			text += fmt.Sprint(n, "\n", v, "\n")
		}
	}
	h, sum := crypto.SHA256, sha256.Sum256([]byte(text))
	digest := sum[:]
	if m["SignatureVersion"] == "1" {
		old := sha1.Sum([]byte(text))
		h, digest = crypto.SHA1, old[:]
	}
	sig, err := rsa.SignPKCS1v15(rand.Reader, key, h, digest)
	must(t, err)
	return m.with("Signature", base64.StdEncoding.EncodeToString(sig)).json()
}

// snsShot is m, signed, as SNS posts it.
func snsShot(s *siege, m siegeObject, key *rsa.PrivateKey) *shot {
	return jsonShot("/v1/sns", snsSigned(s.t, m, key)).set("Content-Type", snsMedia).set("X-Amz-Sns-Message-Type", fmt.Sprint(m["Type"]))
}
