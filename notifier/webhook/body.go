package webhook

import (
	"errors"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/keyturn/keyturn/fault"
)

// acceptable checks what can be checked without the body.
func (rt *route) acceptable(r *http.Request) *refusal {
	if r.Method != http.MethodPost {
		return refuse(http.StatusMethodNotAllowed, Method, "expected POST")
	}
	// No sender compresses; what would have to be unpacked could be a bomb.
	for _, ce := range r.Header.Values("Content-Encoding") {
		if ce != "" && !strings.EqualFold(ce, "identity") {
			return refuse(http.StatusUnsupportedMediaType, Encoding, "expected a body without Content-Encoding")
		}
	}
	if rt.profile.media != nil {
		if mt, ok := mediaType(r.Header); !ok || !rt.profile.media(mt) {
			return refuse(http.StatusUnsupportedMediaType, MediaType, "expected Content-Type application/json or another that ends in +json (for SNS text/plain), in UTF-8")
		}
	}
	if r.ContentLength > rt.MaxBody {
		return rt.tooLong()
	}
	return nil
}

func (rt *route) tooLong() *refusal {
	return refuse(http.StatusRequestEntityTooLarge, Oversized, "the body is longer than this path takes")
}

// smallBody is the memory that is reserved at once for a body of known length.
// Beyond it memory grows with what arrives, so that nobody reserves any by
// announcing a body.
const smallBody = 64 << 10

// read reads the body within its bounds of size, memory and time.
func (rt *route) read(w http.ResponseWriter, r *http.Request, t *ticket, deadline time.Time) ([]byte, *refusal) {
	limit := rt.MaxBody + 1 // the byte more finds the end
	if r.ContentLength >= 0 {
		limit = r.ContentLength + 1
	}
	size := min(limit, 4<<10)
	if r.ContentLength >= 0 && limit <= smallBody {
		size = limit
	}
	if !t.grow(size) {
		return nil, away(Overload, "too many bytes in flight", nil)
	}
	// A recorder in a test has no deadlines; a server's connection has.
	rc := http.NewResponseController(w)
	_ = rc.SetReadDeadline(deadline)
	src := http.MaxBytesReader(w, r.Body, rt.MaxBody)
	buf := make([]byte, 0, size)
	for {
		n, err := src.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		if errors.Is(err, io.EOF) {
			// Else the deadline would later look like a client that hung up.
			_ = rc.SetReadDeadline(time.Time{})
			return buf, nil
		}
		if tooLong := (*http.MaxBytesError)(nil); errors.As(err, &tooLong) {
			return nil, rt.tooLong()
		}
		if err != nil {
			return nil, away(Timeout, "the body did not arrive", readError(err))
		}
		if len(buf) == cap(buf) {
			more := min(int64(2*cap(buf)), limit) - int64(cap(buf))
			if more <= 0 {
				return nil, rt.tooLong() // than it said itself
			}
			if !t.grow(more) {
				return nil, away(Overload, "too many bytes in flight", nil)
			}
			buf = append(make([]byte, 0, int64(cap(buf))+more), buf...)
		}
	}
}

// readError says what became of a body; the text of net/http's own errors is
// not needed.
func readError(err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return &fault.Error{Kind: fault.Unavailable, Class: fault.ClassTimeout, Op: "webhook: read the body", Msg: "it took too long"}
	}
	return &fault.Error{Kind: fault.Unavailable, Class: fault.ClassNetwork, Op: "webhook: read the body", Msg: "it ended early or was malformed"}
}
