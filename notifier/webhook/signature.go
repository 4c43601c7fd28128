package webhook

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"log/slog"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/keyturn/keyturn/fault"
)

// The headers of Standard Webhooks. They are in the canonical form of net/http.
const (
	headerWebhookID        = "Webhook-Id"
	headerWebhookTime      = "Webhook-Timestamp"
	headerWebhookSignature = "Webhook-Signature"
)

const (
	// tolerance is how far the time of a signed request may be from ours, either
	// way. A request that is repeated within it does no harm, since events are
	// named by what happened.
	tolerance = 5 * time.Minute
	// maxSignatures bounds how many signatures of one request are looked at. A
	// sender has one a key, and two keys while it rotates.
	maxSignatures = 16

	minHMACKey, maxHMACKey = 24, 64
)

// idForm leaves out the full stop, which separates the parts of what is signed:
// so that a signed text can be taken apart in one way only.
var idForm = regexp.MustCompile(`^[!-\-/-~]{1,256}$`)

type standardWebhooks struct {
	keys [][]byte
	now  func() time.Time
}

// StandardWebhooks accepts requests that are signed as Standard Webhooks has it,
// with a symmetric key: webhook-signature holds "v1," and the base64 of the
// HMAC-SHA256 of webhook-id, webhook-timestamp and the body, joined by full
// stops. Several signatures may be there, of which one must match, and
// webhook-timestamp must be within 5 minutes of this machine's clock. A secret
// is "whsec_" and the base64 of 24 to 64 bytes; give two while one is being
// rotated. The error is of kind Invalid.
//
// https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
func StandardWebhooks(secrets ...string) (BodyAuthenticator, error) {
	if len(secrets) == 0 {
		return nil, fault.Newf(fault.Invalid, op, "no signing secret; expected at least one")
	}
	a := &standardWebhooks{now: time.Now}
	for i, s := range secrets {
		key, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(s, "whsec_"))
		if err != nil || len(key) < minHMACKey || len(key) > maxHMACKey {
			return nil, fault.Newf(fault.Invalid, op, "signing secret %d is not whsec_ and the base64 of %d to %d bytes; a final newline of a file must go", i+1, minHMACKey, maxHMACKey)
		}
		a.keys = append(a.keys, key)
	}
	return a, nil
}

// Authenticate refuses what is too old or has no signature, before the body is
// read.
func (a *standardWebhooks) Authenticate(_ context.Context, h http.Header) error {
	_, _, _, err := a.parts(h)
	return err
}

func (a *standardWebhooks) parts(h http.Header) (id, stamp, signatures string, err error) {
	if id, err = only(h, headerWebhookID); err != nil {
		return "", "", "", err
	}
	if !idForm.MatchString(id) {
		return "", "", "", denied("%s is not of 1 to 256 printable ASCII characters without space and full stop", headerWebhookID)
	}
	if stamp, err = only(h, headerWebhookTime); err != nil {
		return "", "", "", err
	}
	sec, err := strconv.ParseInt(stamp, 10, 64)
	if err != nil || strconv.FormatInt(sec, 10) != stamp {
		return "", "", "", denied("%s is no whole number of seconds", headerWebhookTime)
	}
	// A time far off would overflow a duration: seconds are compared.
	if off := a.now().Unix() - sec; off > int64(tolerance/time.Second) || off < -int64(tolerance/time.Second) {
		return "", "", "", denied("%s is more than %s away from our clock", headerWebhookTime, tolerance)
	}
	if signatures, err = only(h, headerWebhookSignature); err != nil {
		return "", "", "", err
	}
	if !strings.Contains(signatures, "v1,") {
		return "", "", "", denied("%s holds no signature of version v1", headerWebhookSignature)
	}
	return id, stamp, signatures, nil
}

func (a *standardWebhooks) AuthenticateBody(_ context.Context, h http.Header, body []byte) error {
	id, stamp, signatures, err := a.parts(h)
	if err != nil {
		return err
	}
	want := make([][]byte, len(a.keys))
	for i, k := range a.keys {
		m := hmac.New(sha256.New, k)
		_, _ = m.Write([]byte(id + "." + stamp + "."))
		_, _ = m.Write(body)
		want[i] = m.Sum(nil)
	}
	tried := 0
	for s := range strings.SplitSeq(signatures, " ") {
		text, ok := strings.CutPrefix(s, "v1,")
		if !ok {
			continue // another version, as the asymmetric v1a
		}
		if tried++; tried > maxSignatures {
			break
		}
		sum, err := base64.StdEncoding.DecodeString(text)
		if err != nil {
			continue
		}
		for _, w := range want {
			if hmac.Equal(w, sum) {
				return nil
			}
		}
	}
	return denied("no signature matches the body")
}

func (a *standardWebhooks) challenge() string { return "StandardWebhooks" }

// Format prints a without its keys, whatever the verb.
func (a *standardWebhooks) Format(f fmt.State, _ rune) {
	_, _ = fmt.Fprintf(f, "Standard Webhooks (%d keys)", len(a.keys))
}

// LogValue is what slog prints of a.
func (a *standardWebhooks) LogValue() slog.Value { return slog.StringValue(fmt.Sprint(a)) }
