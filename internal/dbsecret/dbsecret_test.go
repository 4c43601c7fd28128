package dbsecret_test

import (
	"fmt"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/dbsecret"
	"github.com/keyturn/keyturn/internal/leaktest"
	"github.com/keyturn/keyturn/secrets"
)

const base = `"engine":"postgres","host":"db.example.com","username":"app","password":"pw"`

func TestParse(t *testing.T) {
	s, err := dbsecret.Parse(secrets.NewString(`{"engine":"aurora-postgresql","host":"h","port":"6432","username":"ü\"","password":"p\\w","dbname":"d","masterarn":"m","ssl":true,"probe":"SELECT 1","x":1}`))
	if err != nil {
		t.Fatal(err)
	}
	if s.Engine != "aurora-postgresql" || s.Host != "h" || s.Port != 6432 || s.Username != `ü"` || string(s.Password.Reveal()) != `p\w` ||
		s.DBName != "d" || s.MasterARN != "m" || s.SSL != dbsecret.SSLRequire || s.Probe != "SELECT 1" {
		t.Errorf("got %+v", s)
	}
	if err := s.RequireMaster(); err != nil {
		t.Error(err)
	}
	s, err = dbsecret.Parse(secrets.NewString("{" + base + `,"dbname":null,"port":null}`))
	if err != nil || s.Port != 5432 || s.DBName != "" || s.Addr() != "db.example.com:5432" {
		t.Errorf("defaults: got %+v, %v", s, err)
	}
	if err := s.RequireMaster(); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "masterarn") {
		t.Errorf("no masterarn: got %v", err)
	}
}

// TestSSL is the truth table of the AWS samples.
func TestSSL(t *testing.T) {
	for text, want := range map[string]dbsecret.SSL{
		``: dbsecret.SSLPrefer, `,"ssl":true`: dbsecret.SSLRequire, `,"ssl":"true"`: dbsecret.SSLRequire, `,"ssl":"TRUE"`: dbsecret.SSLRequire,
		`,"ssl":false`: dbsecret.SSLDisable, `,"ssl":"False"`: dbsecret.SSLDisable, `,"ssl":1`: dbsecret.SSLPrefer, `,"ssl":null`: dbsecret.SSLPrefer,
		`,"ssl":"yes"`: dbsecret.SSLPrefer, `,"ssl":{"a":true}`: dbsecret.SSLPrefer, `,"ssl":"\ud800"`: dbsecret.SSLPrefer,
	} {
		s, err := dbsecret.Parse(secrets.NewString("{" + base + text + "}"))
		if err != nil || s.SSL != want {
			t.Errorf("%s: got %v, %v; expected %v", text, s, err, want)
		}
	}
}

// TestC11 gives every kind of broken content: the error names the key and
// nothing of the content.
func TestC11(t *testing.T) {
	canary := leaktest.Canary()
	full := map[string]string{"engine": `"postgres"`, "host": `"h"`, "username": `"u"`, "password": `"` + canary + `"`}
	with := func(key, val string) string {
		var b strings.Builder
		for k, v := range full {
			if k == key {
				if v = val; v == "" {
					continue
				}
			}
			fmt.Fprintf(&b, ",%q:%s", k, v)
		}
		if _, ok := full[key]; !ok {
			fmt.Fprintf(&b, ",%q:%s", key, val)
		}
		return "{" + b.String()[1:] + "}"
	}
	var rec leaktest.Recorder
	for name, c := range map[string]struct{ text, wants string }{
		"empty": {"", "JSON object"}, "text": {canary, "JSON object"}, "array": {`["` + canary + `"]`, "JSON object"},
		"cut": {`{"password":"` + canary, "JSON object"}, "more": {with("x", "1") + `"` + canary + `"`, "JSON object"},
		"comma": {`{"password":"` + canary + `",}`, "JSON object"}, "latin1": {with("x", "\"\xff\""), "UTF-8"},
		"no engine": {with("engine", ""), `"engine"`}, "no host": {with("host", ""), `"host"`},
		"no user": {with("username", ""), `"username"`}, "no password": {with("password", ""), `"password"`},
		"engine": {with("engine", `"`+canary+`"`), "postgres or aurora-postgresql"}, "engine type": {with("engine", "7"), `"engine"`},
		"empty password": {with("password", `""`), `"password"`}, "null user": {with("username", "null"), `"username"`},
		"password object": {with("password", `{"a":"`+canary+`"}`), `"password"`}, "zero": {with("username", `"a\u0000b"`), "zero"},
		"surrogate": {with("password", `"`+canary+`\ud800"`), "surrogate"}, "twice": {with("password", `"a","password":"b"`), "twice"},
		"port word": {with("port", `"`+canary+`"`), `"port"`}, "port big": {with("port", "65536"), `"port"`}, "port part": {with("port", "1.5"), `"port"`},
		"port bool": {with("port", "true"), `"port"`}, "port empty": {with("port", `""`), `"port"`},
		"socket": {with("host", `"/tmp/`+canary+`"`), `"host"`}, "two hosts": {with("host", `"a,`+canary+`"`), `"host"`},
		"dbname": {with("dbname", "5"), `"dbname"`}, "probe": {with("probe", "[]"), `"probe"`},
		"size": {with("x", `"`+strings.Repeat(canary, 1<<16)+`"`), "bytes"},
	} {
		s, err := dbsecret.Parse(secrets.NewString(c.text))
		if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), c.wants) {
			t.Errorf("%s: got %v, %v; expected an Invalid error with %q", name, s, err, c.wants)
		}
		rec.Record(err, s)
	}
	s, err := dbsecret.Parse(secrets.NewString(with("x", "1")))
	if err != nil {
		t.Fatal(err)
	}
	rec.Record(s, *s)
	_, err = s.With(dbsecret.Changes{Password: secrets.NewString(canary + "\xff")})
	if !fault.Is(err, fault.Invalid) {
		t.Errorf("a password that JSON cannot hold: got %v", err)
	}
	rec.Record(err)
	rec.Check(t, canary)
}

func TestWithKeepsTheRest(t *testing.T) {
	in := "{ \"n\": 12345678901234567890123, \"engine\":\"postgres\",\n\t\"host\":\"h\", \"password\" : \"old\" ,\"username\":\"app\" , \"f\":1.0e+02,\"o\":{\"password\":\"inner\",\"l\":[1, 2.50]},\"u\":\"\\u00fc<&\",\"\":null}"
	want := strings.NewReplacer(`"old"`, `"n<e&w\"\\"`, `"app"`, `"app_clone"`).Replace(in)
	s, err := dbsecret.Parse(secrets.NewString(in))
	if err != nil {
		t.Fatal(err)
	}
	got, err := s.With(dbsecret.Changes{Username: "app_clone", Password: secrets.NewString(`n<e&w"\`)})
	if err != nil || string(got.Reveal()) != want {
		t.Errorf("got  %s, %v\nwant %s", got.Reveal(), err, want)
	}
	same, err := s.With(dbsecret.Changes{})
	if err != nil || string(same.Reveal()) != in {
		t.Errorf("no change: got %s, %v", same.Reveal(), err)
	}
}

func TestEncodeParse(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		word := rapid.StringMatching(`[^\x00]+`)
		in := dbsecret.Secret{
			Engine: "postgres", Host: "h", Port: rapid.IntRange(1, 65535).Draw(t, "port"), Username: word.Draw(t, "user"),
			Password: secrets.NewString(word.Draw(t, "password")), DBName: rapid.String().Filter(func(s string) bool { return !strings.ContainsRune(s, 0) }).Draw(t, "db"),
			SSL: rapid.SampledFrom([]dbsecret.SSL{dbsecret.SSLPrefer, dbsecret.SSLRequire, dbsecret.SSLDisable}).Draw(t, "ssl"),
		}
		v, err := dbsecret.Encode(in)
		if err != nil {
			t.Fatal(err)
		}
		user, pw := word.Draw(t, "user2"), secrets.NewString(word.Draw(t, "password2"))
		for range 2 {
			s, err := dbsecret.Parse(v)
			if err != nil || s.Username != in.Username || !s.Password.Equal(in.Password) || s.DBName != in.DBName || s.Port != in.Port || s.SSL != in.SSL {
				t.Fatalf("got %+v, %v; expected %+v", s, err, in)
			}
			in.Username, in.Password = user, pw
			if v, err = s.With(dbsecret.Changes{Username: user, Password: pw}); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func TestManaged(t *testing.T) {
	user, pw, ok := dbsecret.Managed(secrets.NewString(`{"username":"root","password":"pw"}`))
	if !ok || user != "root" || string(pw.Reveal()) != "pw" {
		t.Errorf("got %q, %v", user, ok)
	}
	for _, text := range []string{"{" + base + "}", `{"username":"root"}`, `{"username":"root","password":""}`, `{"username":"a","host":"b"}`, ``} {
		if _, _, ok := dbsecret.Managed(secrets.NewString(text)); ok {
			t.Errorf("%s: taken for a managed secret", text)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("{" + base + "}"))
	f.Add([]byte(`{"engine":"postgres","ssl":"","port":""}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := dbsecret.Parse(secrets.NewValue(b))
		if err != nil {
			return
		}
		same, err := s.With(dbsecret.Changes{})
		if err != nil || string(same.Reveal()) != string(b) {
			t.Errorf("no change gave %q, %v", same.Reveal(), err)
		}
	})
}
