package notice

import (
	"strings"
	"testing"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/fault"
)

func TestBatch(t *testing.T) {
	bad := fault.Newf(fault.Invalid, "x", "no name")
	later := fault.Newf(fault.Unavailable, "x", "no attributes")
	one := []events.Event{{ID: "1"}}
	type add struct {
		es  []events.Event
		err error
	}
	for name, c := range map[string]struct {
		adds []add
		n    int
		kind fault.Kind
		says string
	}{
		"nothing":        {nil, 0, 0, ""},
		"no event":       {[]add{{nil, nil}}, 0, 0, ""},
		"all good":       {[]add{{one, nil}, {one, nil}}, 2, 0, ""},
		"the only one":   {[]add{{nil, bad}}, 0, fault.Invalid, "x: no name"},
		"one of two":     {[]add{{one, nil}, {nil, bad}}, 1, fault.Invalid, "1 of 2"},
		"one for later":  {[]add{{nil, bad}, {nil, later}, {one, nil}, {nil, bad}}, 1, fault.Unavailable, "3 of 4 events in the array cannot be read, the first because: x: no attributes"},
		"later comes 1.": {[]add{{nil, later}, {nil, bad}}, 0, fault.Unavailable, "2 of 2"},
	} {
		var b Batch
		for _, a := range c.adds {
			b.Add(a.es, a.err)
		}
		es, err := b.Result("test")
		switch {
		case len(es) != c.n || (err != nil) != (c.says != ""):
			t.Errorf("%s: %d events, %v", name, len(es), err)
		case err != nil && (fault.KindOf(err) != c.kind || !strings.Contains(err.Error(), c.says)):
			t.Errorf("%s: %v, expected %q of kind %s", name, err, c.says, c.kind)
		}
	}
}

func TestMembers(t *testing.T) {
	for body, want := range map[string]struct {
		n     int
		array bool
		bad   bool
	}{
		"": {0, false, true}, " \n": {0, false, true}, "{}": {0, false, false}, "canary": {0, false, false},
		" [] ": {0, true, false}, "[1, {}]": {2, true, false}, "[canary": {0, true, true},
	} {
		m, array, err := Members([]byte(body), "test", "an object")
		if len(m) != want.n || array != want.array || fault.Is(err, fault.Invalid) != want.bad || err != nil && strings.Contains(err.Error(), "canary") {
			t.Errorf("%q: %d, %t, %v", body, len(m), array, err)
		}
	}
}

func TestLists(t *testing.T) {
	o, err := Parse([]byte(`{"L":["a",7,"",null,"b"],"none":[],"no":false,"yes":true,"word":"false"}`), "test", "anything")
	if err != nil {
		t.Fatal(err)
	}
	if l := o.List("l"); strings.Join(l, ",") != "a,b" || o.List("no") != nil || o.List("absent") != nil {
		t.Errorf("list %q", l)
	}
	if o.Array("none") == nil || len(o.Array("L")) != 5 || o.Array("no") != nil || o.Array("absent") != nil {
		t.Error("Array does not tell an empty array from none")
	}
	if !o.IsFalse("NO") || o.IsFalse("yes") || o.IsFalse("word") || o.IsFalse("absent") {
		t.Error("IsFalse is wrong")
	}
}
