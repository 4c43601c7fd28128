package cloudevents

import (
	"net/url"
	"strings"
	"unicode/utf8"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/fault"
)

// DecodeHTTP is [Decode] for a request of any mode. The header Content-Type
// tells the mode, as the HTTP binding wants: application/cloudevents+json is an
// event and application/cloudevents-batch+json an array of them. With any other
// type the event is in binary mode, its attributes in headers ce-NAME and its
// data in the body; without the header ce-specversion the body decides, since
// many senders call an event application/json.
//
// header returns a request's header by name, as http.Header.Get does; it is
// asked for names in lower case.
// https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/http-protocol-binding.md
func DecodeHTTP(header func(string) string, body []byte) ([]events.Event, error) {
	contentType := strings.ToLower(header("content-type"))
	if strings.HasPrefix(contentType, "application/cloudevents") {
		if !isJSON(contentType) {
			return nil, fault.Newf(fault.Invalid, opDecode, "the event is in another format than JSON; expected application/cloudevents+json or application/cloudevents-batch+json")
		}
		return Decode(body)
	}
	if header("ce-specversion") == "" {
		return Decode(body)
	}
	e := event{data: body, attribute: func(name string) string {
		if name == "datacontenttype" {
			return contentType // the binding maps the one to the other
		}
		return plain(header("ce-" + name))
	}}
	return e.decode()
}

// isJSON reports whether a content type is that of JSON. No type is.
func isJSON(contentType string) bool {
	t, _, _ := strings.Cut(contentType, ";")
	t = strings.ToLower(strings.TrimSpace(t))
	return t == "" || t == "application/json" || t == "text/json" || strings.HasSuffix(t, "+json")
}

// plain decodes a header's value: percent-encoding, and the quotes and
// backslashes of older senders. What is not UTF-8 then is as good as missing.
func plain(s string) string {
	if len(s) >= 2 && s[0] == '"' && s[len(s)-1] == '"' {
		s = strings.NewReplacer(`\\`, `\`, `\"`, `"`).Replace(s[1 : len(s)-1])
	}
	s, err := url.PathUnescape(s)
	if err != nil || !utf8.ValidString(s) {
		return ""
	}
	return s
}
