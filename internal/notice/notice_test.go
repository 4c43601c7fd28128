package notice

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/keyturn/keyturn/fault"
)

func TestObjectIsLenient(t *testing.T) {
	o, err := Parse([]byte(`{"ObjectName ":" x ","EXP":"1559082102","nbf":1559081980.5,"Version":null,"version":"v","aRN":"1","ARN":"2","bad":{"s":7},"In":{" K ":"v"}}`), "test", "anything")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range [][2]string{
		{o.Text("objectname"), "x"}, {o.Text("ObjectName"), "x"}, {o.Number("exp"), "1559082102"}, {o.Number("NBF"), "1559081980.5"},
		{o.Text("Version"), "v"}, {o.Text("arn"), "2"}, {o.Text("bad"), ""}, {o.Number("bad"), ""}, {o.Number("objectname"), ""}, {o.Number("absent"), ""},
		{o.Object("in").Text("k"), "v"}, {o.Object("bad").Text("s"), ""}, {o.Object("absent").Object("more").Text("x"), ""},
	} {
		if c[0] != c[1] {
			t.Errorf("found %q, expected %q", c[0], c[1])
		}
	}
	if o.Has("absent") || !o.Has("In") || Object(nil).Has("x") {
		t.Error("Has is wrong")
	}
	if got := o.Texts("in"); len(got) != 1 || got[" K "] != "v" || len(o.Texts("bad")) != 0 || o.Texts("exp") != nil {
		t.Errorf("texts %v", got)
	}
}

// Strings are read as the standard library reads them, whatever they hold.
func TestTextIsTheLibrarys(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		raw := rapid.OneOf(
			rapid.Map(rapid.String(), func(s string) []byte { b, _ := json.Marshal(s); return b }),
			rapid.Map(rapid.SliceOf(rapid.Byte()), func(b []byte) []byte { return slices.Concat([]byte{'"'}, b, []byte{'"'}) }),
			rapid.Map(rapid.StringMatching(`(\\\\|\\"|\\u00e4|\\ud83d\\ude00|\\ud800|ä|x){0,6}`), func(s string) []byte { return []byte(`"` + s + `"`) }),
			rapid.SampledFrom([][]byte{[]byte("null"), []byte("7"), []byte("{}"), []byte(`[""]`), []byte("true")}),
		).Draw(t, "raw")
		var want map[string]json.RawMessage
		body := slices.Concat([]byte(`{"k":`), raw, []byte("}"))
		if json.Unmarshal(body, &want) != nil || len(want) != 1 {
			return // not JSON, or more than one member
		}
		var s string
		_ = json.Unmarshal(want["k"], &s)
		o, err := Parse(body, "test", "anything")
		if err != nil {
			t.Fatal(err)
		}
		if got := o.Text("k"); got != strings.TrimSpace(s) {
			t.Fatalf("%s is read as %q, expected %q", raw, got, s)
		}
	})
}

// A digest depends on the members, and not on their order.
func TestDigest(t *testing.T) {
	of := func(s string) string {
		o, err := Parse([]byte(s), "test", "anything")
		if err != nil {
			t.Fatal(err)
		}
		return o.Digest()
	}
	if of(`{"a":1,"b":"2"}`) != of(`{"b":"2","a":1}`) || of(`{"a":1}`) == of(`{"a":2}`) || of(`{"a":"b"}`) == of(`{"b":"a"}`) {
		t.Error("the digest does not name the members")
	}
}

func TestErrorsQuoteNothing(t *testing.T) {
	for _, body := range []string{"", "null", "7", `["canary"]`, `"canary"`, `{"canary`, "canary", `{"a":1}canary`} {
		_, err := Parse([]byte(body), "test", "an object")
		if !fault.Is(err, fault.Invalid) || strings.Contains(err.Error(), "canary") || !strings.Contains(err.Error(), "expected an object") {
			t.Errorf("%q: %v", body, err)
		}
	}
}

func TestFormsOfTokensAndTimes(t *testing.T) {
	for s, ok := range map[string]bool{"2070443601311540": true, "a-b_c:d/e": true, "": false, "a b": false, strings.Repeat("a", 65): false, "<x>": false} {
		if (Token(s) != "") != ok {
			t.Errorf("Token(%q) is %q", s, Token(s))
		}
	}
	for s, want := range map[string]string{
		"2026-06-01T03:00:00.5-07:00": "2026-06-01T10:00:00.5Z", "2026-06-01T10:00:00.1234567Z": "2026-06-01T10:00:00.1234567Z",
		"9999-12-31T23:59:59-12:00": "", "yesterday": "", "": "",
	} {
		got, ok := Time(s)
		if b, _ := json.Marshal(got); ok != (want != "") || ok && string(b) != `"`+want+`"` {
			t.Errorf("Time(%q) is %s, %t", s, b, ok)
		}
	}
}
