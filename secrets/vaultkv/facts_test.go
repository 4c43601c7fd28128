package vaultkv_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/secrets"
	"github.com/keyturn/keyturn/secrets/sibling"
	"github.com/keyturn/keyturn/secrets/vaultkv"
)

// facts are what the package says about itself, against any Vault.
var facts = []struct {
	name string
	run  func(t *testing.T, tg *target)
}{
	{"readers see fields", testFields},
	{"what others write is read", testForeignValues},
	{"a user's custom metadata stays", testCustomMetadata},
	{"one version is refused", testOneVersion},
	{"a deleted newest version", testDeletedNewest},
	{"a deleted pending version", testDeletedPending},
	{"a user's secret in the sibling's place", testForeignSibling},
	{"disable, enable, destroy", testDisable},
	{"orphans", testOrphans},
	{"the policy is enough, and no more than that", testPolicy},
	{"AppRole with a secret id for one use", testAppRole},
	{"AppRole with a wrapped secret id", testWrapped},
	{"a mount that is not there", testNoMount},
	{"refs and ids that name nothing", testBadRefs},
}

func TestFacts(t *testing.T) {
	for _, f := range facts {
		t.Run(f.name, func(t *testing.T) { f.run(t, fake(t)) })
	}
}

// put rotates a secret to v and returns the token.
func put(t *testing.T, s secrets.Store, r ref.Ref, v string) string {
	t.Helper()
	tok := word()
	if _, err := s.PutPending(t.Context(), r, tok, secrets.NewString(v)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Promote(t.Context(), r, tok); err != nil {
		t.Fatal(err)
	}
	return tok
}

func create(t *testing.T, s *vaultkv.Store, r ref.Ref, v string) {
	t.Helper()
	if _, err := s.CreateSecret(t.Context(), r, secrets.NewString(v)); err != nil {
		t.Fatal(err)
	}
}

func get(t *testing.T, s secrets.Reader, r ref.Ref, stage secrets.Stage) string {
	t.Helper()
	v, err := s.Get(t.Context(), r, stage)
	if err != nil {
		t.Fatalf("get %s: %v", stage, err)
	}
	return string(v.Value.Reveal())
}

// wantErr fails t unless err is of the kind and says each of the words.
func wantErr(t *testing.T, what string, err error, kind fault.Kind, words ...string) {
	t.Helper()
	if !fault.Is(err, kind) {
		t.Errorf("%s: %v of kind %s, expected %s", what, err, fault.KindOf(err), kind)
		return
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%s: the error is %q, expected it to say %q", what, err, w)
		}
	}
}

func testFields(t *testing.T, tg *target) {
	mount, at := tg.mount(t)
	s := tg.store(t, nil)
	for name, c := range map[string]struct {
		value string
		want  string // data, as a reader sees it
	}{
		"sorted":    {`{"password":"p<&>","username":"app"}`, `{"password":"p<&>","username":"app"}`},
		"unsorted":  {`{"username":"app","password":"p"}`, `{"keyturn_text":"{\"username\":\"app\",\"password\":\"p\"}","password":"p","username":"app"}`},
		"spaces":    {`{ "a": 1 }`, `{"a":1,"keyturn_text":"{ \"a\": 1 }"}`},
		"numbers":   {`{"a":1.0,"b":5432}`, `{"a":1,"b":5432,"keyturn_text":"{\"a\":1.0,\"b\":5432}"}`},
		"nested":    {`{"a":{"b":[1,null,true]}}`, `{"a":{"b":[1,null,true]}}`},
		"empty":     {`{}`, `{}`},
		"text":      {`hunter2`, `{"value":"hunter2"}`},
		"array":     {`[1,2]`, `{"value":"[1,2]"}`},
		"number":    {`12`, `{"value":"12"}`},
		"lookalike": {`{"value":"x"}`, `{"keyturn_text":"{\"value\":\"x\"}","value":"x"}`},
		"bytes":     {"\xff\x00", `{"value_base64":"/wA="}`},
	} {
		r := at("fields/" + name)
		create(t, s, r, "first")
		put(t, s, r, c.value)
		if got := get(t, s, r, secrets.Current); got != c.value {
			t.Errorf("%s: read back as %q", name, got)
		}
		data := tg.must(t, "GET", mount+"/data/"+r.Name, nil)["data"]
		got, _ := json.Marshal(data)
		var compact any
		_ = json.Unmarshal([]byte(c.want), &compact)
		want, _ := json.Marshal(compact)
		if string(got) != string(want) {
			t.Errorf("%s: a reader sees %s, expected %s", name, got, want)
		}
	}
	r := at("fields/too-large-a-number")
	create(t, s, r, "first")
	for what, c := range map[string]struct{ value, says string }{
		"number":  {`{"a":1e400}`, "number"},
		"deeper":  {`{"a":{"b":[-1e400]}}`, "number"},
		"field":   {`{"keyturn_text":"x"}`, "keyturn_text"},
		"nesting": {`{"a":` + strings.Repeat("[", 299) + strings.Repeat("]", 299) + `}`, "nested"},
		"array":   {`{"a":[` + strings.Repeat("1,", 10000) + `1]}`, "10000"},
	} {
		_, err := s.PutPending(t.Context(), r, word(), secrets.NewString(c.value))
		wantErr(t, what, err, fault.Invalid, c.says)
		_, err = s.CreateSecret(t.Context(), at("fields/new-"+what), secrets.NewString(c.value))
		wantErr(t, "create, "+what, err, fault.Invalid, c.says)
		// Refused before a write: not even the sibling was made.
		for _, name := range []string{r.Name + "--pending", "fields/new-" + what} {
			if status, _ := tg.call(t, "GET", mount+"/metadata/"+name, nil); status != 404 {
				t.Errorf("%s: %s is there, status %d", what, name, status)
			}
		}
	}
	// JSON that Vault refuses, though it can be written otherwise.
	for what, odd := range map[string]string{
		"duplicate":          `{"a":1,"a":2}`,
		"nested duplicate":   `{"a":{"b":1,"b":2}}`,
		"half a pair":        `{"a":"\ud800"}`,
		"keys as pairs":      `{"a":{"\ud83d\ude00":1,"\ud83d\ude01":2}}`,
		"too small a number": `{"a":1e-400}`,
		"as deep as can be":  `{"a":` + strings.Repeat("[", 298) + strings.Repeat("]", 298) + `}`,
		"deep in an array":   strings.Repeat("[", 400) + strings.Repeat("]", 400),
	} {
		put(t, s, r, odd)
		if got := get(t, s, r, secrets.Current); got != odd {
			t.Errorf("%s: %s was read back as %s", what, odd, got)
		}
	}
	// What Vault rounds is still exact.
	put(t, s, r, `{"id":12345678901234567890}`)
	if got := get(t, s, r, secrets.Current); got != `{"id":12345678901234567890}` {
		t.Errorf("a long number was read back as %s", got)
	}
}

func testForeignValues(t *testing.T, tg *target) {
	mount, at := tg.mount(t)
	s := tg.store(t, &vaultkv.Options{Field: "key"})
	r := at("foreign")
	for what, c := range map[string]struct {
		data kv
		want string
	}{
		"fields":        {kv{"username": "u", "password": "<p>", "port": 5432}, `{"password":"<p>","port":5432,"username":"u"}`},
		"the one field": {kv{"key": "k-1"}, `k-1`},
		"another field": {kv{"value": "k-1"}, `{"value":"k-1"}`},
		"empty field":   {kv{"key": ""}, `{"key":""}`},
		"no base64":     {kv{"key_base64": "?"}, `{"key_base64":"?"}`},
		"no fields":     {kv{}, `{}`},
		"stale text":    {kv{"a": "2", "keyturn_text": `{ "a": "1" }`}, `{"a":"2"}`},
		"exact text":    {kv{"a": "1", "keyturn_text": `{ "a": "1" }`}, `{ "a": "1" }`},
		"text is a map": {kv{"a": "1", "keyturn_text": kv{"b": 1}}, `{"a":"1","keyturn_text":{"b":1}}`},
	} {
		tg.must(t, "POST", mount+"/data/"+r.Name, kv{"data": c.data})
		if got := get(t, s, r, secrets.Current); got != c.want {
			t.Errorf("%s: read as %s, expected %s", what, got, c.want)
		}
	}
	// A patch by somebody else counts, though the text beside is older.
	put(t, s, r, `{ "password": "old" }`)
	tg.must(t, "PATCH", mount+"/data/"+r.Name, kv{"data": kv{"password": "new"}})
	if got := get(t, s, r, secrets.Current); got != `{"password":"new"}` {
		t.Errorf("after a patch it reads as %s", got)
	}
}

func testCustomMetadata(t *testing.T, tg *target) {
	mount, at := tg.mount(t)
	s := tg.store(t, nil)
	r := at("noted")
	create(t, s, r, "0")
	own := kv{"keyturn-owner": "me"}
	for i := range 63 {
		own[fmt.Sprintf("k%02d", i)] = strings.Repeat("x", 512)
	}
	tg.must(t, "POST", mount+"/metadata/noted", kv{"custom_metadata": own, "max_versions": 7})
	var toks []string
	for i := range 5 {
		toks = append(toks, put(t, s, r, fmt.Sprint(i+1)))
	}
	m := tg.must(t, "GET", mount+"/metadata/noted", nil)
	custom, _ := m["custom_metadata"].(kv)
	notes := 0
	for k, v := range custom {
		if n, ok := strings.CutPrefix(k, "keyturn-"); ok && n != "owner" {
			notes++
			if (n != "6" || v != toks[4]+" 5") && (n != "5" || v != toks[3]+" 4") {
				t.Errorf("%s is noted as %v", k, v)
			}
			continue
		}
		if own[k] != v {
			t.Errorf("%s is %v, expected %v", k, v, own[k])
		}
	}
	if notes != 2 || len(custom) != 66 {
		t.Errorf("%d notes among %d keys, expected 2 among 66", notes, len(custom))
	}
	if m["max_versions"] != 7.0 {
		t.Errorf("max_versions is %v", m["max_versions"])
	}
	// The sibling is marked, and holds no value any more.
	sm := tg.must(t, "GET", mount+"/metadata/noted"+sibling.Suffix, nil)
	if c, _ := sm["custom_metadata"].(kv); c["keyturn"] != "pending" {
		t.Errorf("the sibling is marked %v", c)
	}
	for n, v := range sm["versions"].(kv) {
		if v.(kv)["destroyed"] != true {
			t.Errorf("version %s of the sibling was not destroyed", n)
		}
	}
	// Without the notes the versions are still there, their tokens forgotten.
	tg.must(t, "POST", mount+"/metadata/noted", kv{"custom_metadata": kv{"a": "b"}})
	d, err := s.Describe(t.Context(), r)
	if err != nil || d.Holder(secrets.Current).Token != "" || d.Holder(secrets.Previous).ID != "5" {
		t.Errorf("without notes: %+v, %v", d, err)
	}
	// A token that no note could hold is refused before anything is stored.
	for _, bad := range []string{"a b", "a\n", strings.Repeat("x", 257)} {
		_, err := s.PutPending(t.Context(), r, bad, secrets.NewString("v"))
		wantErr(t, "token", err, fault.Invalid, "token")
	}
}

func testOneVersion(t *testing.T, tg *target) {
	mount, at := tg.mount(t)
	s := tg.store(t, nil)
	r := at("one")
	create(t, s, r, "0")
	tg.must(t, "POST", mount+"/metadata/one", kv{"max_versions": 1})
	_, err := s.PutPending(t.Context(), r, word(), secrets.NewString("1"))
	wantErr(t, "one version", err, fault.Invalid, "-max-versions=2")
	wantErr(t, "check", s.Check(t.Context(), r), fault.Invalid, "-max-versions=2")
	// The mount's number counts too, if it is the larger.
	tg.must(t, "POST", mount+"/config", kv{"max_versions": 2})
	put(t, s, r, "1")
	if got := get(t, s, r, secrets.Previous); got != "0" {
		t.Errorf("previous is %q", got)
	}
	tg.must(t, "POST", mount+"/config", kv{"max_versions": 1})
	tg.must(t, "POST", mount+"/metadata/one", kv{"max_versions": 0})
	_, err = s.PutPending(t.Context(), r, word(), secrets.NewString("2"))
	wantErr(t, "one version by the mount", err, fault.Invalid)
}

func testDeletedNewest(t *testing.T, tg *target) {
	mount, at := tg.mount(t)
	s := tg.store(t, nil)
	r := at("team/deleted")
	create(t, s, r, "0")
	put(t, s, r, "1")
	tg.must(t, "DELETE", mount+"/data/team/deleted", nil)
	_, err := s.Get(t.Context(), r, secrets.Current)
	wantErr(t, "a deleted current version", err, fault.NotFound, "vault kv undelete -mount="+mount+" -versions=2 team/deleted")
	d, err := s.Describe(t.Context(), r)
	if err != nil || !d.Holder(secrets.Current).Disabled {
		t.Errorf("described as %+v, %v; expected current as disabled", d, err)
	}
	_, err = s.CreateSecret(t.Context(), r, secrets.NewString("x"))
	wantErr(t, "create over deleted versions", err, fault.Conflict)
	tg.must(t, "POST", mount+"/undelete/team/deleted", kv{"versions": []int{2}})
	if got := get(t, s, r, secrets.Current); got != "1" {
		t.Errorf("after undelete it is %q", got)
	}
	tg.must(t, "POST", mount+"/destroy/team/deleted", kv{"versions": []int{2}})
	_, err = s.Get(t.Context(), r, secrets.Current)
	wantErr(t, "a destroyed current version", err, fault.NotFound, "destroyed")
}

func testDeletedPending(t *testing.T, tg *target) {
	mount, at := tg.mount(t)
	s := tg.store(t, nil)
	r := at("p")
	create(t, s, r, "0")
	tok := word()
	if _, err := s.PutPending(t.Context(), r, tok, secrets.NewString("1")); err != nil {
		t.Fatal(err)
	}
	tg.must(t, "DELETE", mount+"/data/p"+sibling.Suffix, nil)
	// Nobody may be told that nothing is pending.
	_, err := s.Get(t.Context(), r, secrets.Pending)
	wantErr(t, "get pending", err, fault.Conflict, "vault kv undelete -mount="+mount+" -versions=1 p--pending")
	_, err = s.PutPending(t.Context(), r, word(), secrets.NewString("2"))
	wantErr(t, "another rotation", err, fault.Conflict, "undelete")
	tg.must(t, "POST", mount+"/undelete/p"+sibling.Suffix, kv{"versions": []int{1}})
	if _, err := s.Promote(t.Context(), r, tok); err != nil {
		t.Fatal(err)
	}
	if got := get(t, s, r, secrets.Current); got != "1" {
		t.Errorf("current is %q", got)
	}
}

func testForeignSibling(t *testing.T, tg *target) {
	mount, at := tg.mount(t)
	s := tg.store(t, nil)
	r := at("x")
	create(t, s, r, "0")
	for _, data := range []kv{{"mine": "1"}, {"token": "t"}, {"token": "t", "value": "a", "value_base64": "YQ=="}, {"token": 1, "value": "a"}, {}} {
		tg.must(t, "POST", mount+"/data/x"+sibling.Suffix, kv{"data": data})
		_, err := s.PutPending(t.Context(), r, word(), secrets.NewString("1"))
		wantErr(t, "put pending", err, fault.Conflict, "x--pending", "left alone")
		wantErr(t, "check", s.Check(t.Context(), r), fault.Conflict)
		if got := tg.must(t, "GET", mount+"/data/x"+sibling.Suffix, nil)["data"]; fmt.Sprint(got) != fmt.Sprint(data) {
			t.Errorf("a user's secret became %v", got)
		}
	}
}

func testDisable(t *testing.T, tg *target) {
	mount, at := tg.mount(t)
	s := tg.store(t, nil)
	r := at("d")
	create(t, s, r, "0")
	put(t, s, r, "1")
	ctx := t.Context()
	read := func() (int, any) {
		status, out := tg.call(t, "GET", mount+"/data/d?version=1", nil)
		data, _ := out["data"].(kv)
		meta, _ := data["metadata"].(kv)
		return status, meta["destroyed"]
	}
	for range 2 {
		if err := s.Disable(ctx, r, "1"); err != nil {
			t.Fatal(err)
		}
		if status, destroyed := read(); status != 404 || destroyed != false {
			t.Errorf("a disabled version answers %d, destroyed %v", status, destroyed)
		}
	}
	if err := s.Enable(ctx, r, "1"); err != nil {
		t.Fatal(err)
	}
	if got := get(t, s, r, secrets.Previous); got != "0" {
		t.Errorf("the enabled version is %q", got)
	}
	if err := s.Disable(ctx, r, "1"); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := s.Destroy(ctx, r, "1"); err != nil {
			t.Fatal(err)
		}
	}
	if status, destroyed := read(); status != 404 || destroyed != true {
		t.Errorf("a destroyed version answers %d, destroyed %v", status, destroyed)
	}
	wantErr(t, "enable what was destroyed", s.Enable(ctx, r, "1"), fault.NotFound)
	wantErr(t, "disable current", s.Disable(ctx, r, "2"), fault.Conflict)
	for _, id := range []string{"9", "0", "-1", "01", "x", "1 "} {
		wantErr(t, "disable "+id, s.Disable(ctx, r, id), fault.NotFound)
		wantErr(t, "enable "+id, s.Enable(ctx, r, id), fault.NotFound)
	}
}

func testOrphans(t *testing.T, tg *target) {
	mount, at := tg.mount(t)
	s := tg.store(t, nil)
	ctx := t.Context()
	if found, err := s.Orphans(ctx, at("any")); err != nil || len(found) != 0 {
		t.Errorf("an empty mount has %v, %v", found, err)
	}
	for _, path := range []string{"top", "a/b/deep", "a/kept", "a/deleted"} {
		create(t, s, at(path), "0")
		if _, err := s.PutPending(ctx, at(path), word(), secrets.NewString("1")); err != nil {
			t.Fatal(err)
		}
	}
	tg.must(t, "POST", mount+"/data/a/users"+sibling.Suffix, kv{"data": kv{"mine": "1"}})
	tg.must(t, "DELETE", mount+"/metadata/top", nil)
	tg.must(t, "DELETE", mount+"/metadata/a/b/deep", nil)
	tg.must(t, "DELETE", mount+"/data/a/deleted", nil)
	found, err := s.Orphans(ctx, at("any"))
	if err != nil {
		t.Fatal(err)
	}
	names := make([]string, len(found))
	for i, o := range found {
		names[i] = o.Ref.Name + " " + o.ID
	}
	slices.Sort(names)
	if want := []string{"a/b/deep " + mount + "/a/b/deep--pending", "top " + mount + "/top--pending"}; !slices.Equal(names, want) {
		t.Fatalf("found %v, expected %v", names, want)
	}
	create(t, s, at("top"), "back")
	for _, o := range found {
		for range 2 {
			err := s.RemoveOrphan(ctx, o)
			if o.Ref.Name == "top" {
				wantErr(t, "remove one whose secret is back", err, fault.Conflict)
			} else if err != nil {
				t.Error(err)
			}
		}
	}
	if status, _ := tg.call(t, "GET", mount+"/metadata/a/b/deep"+sibling.Suffix, nil); status != 404 {
		t.Errorf("the removed orphan answers %d", status)
	}
	wantErr(t, "remove a user's", s.RemoveOrphan(ctx, secrets.Orphan{Ref: at("a/users")}), fault.Conflict, "left alone")
}

func testNoMount(t *testing.T, tg *target) {
	s := tg.store(t, nil)
	r := mkref(t, "", "no-such-mount", "x")
	_, err := s.Get(t.Context(), r, secrets.Current)
	wantErr(t, "get", err, fault.Invalid, "mount")
	_, err = s.CreateSecret(t.Context(), r, secrets.NewString("v"))
	wantErr(t, "create", err, fault.Invalid, "mount")
}

func testBadRefs(t *testing.T, tg *target) {
	_, at := tg.mount(t)
	s := tg.store(t, &vaultkv.Options{Cluster: "main"})
	other := at("x")
	other.Scope = "else" + strings.TrimPrefix(other.Scope, "main")
	for _, r := range []ref.Ref{
		at("a//b"), at("/a"), at("a/"), at("a/../b"), at("."), at("a\nb"), at("a\x00"), at("\xff"), at("x" + sibling.Suffix), other,
		mkref(t, "", "../sys", "x"), mkref(t, "a/../b", "kv", "x"),
		{Provider: ref.NATS, Scope: "b", Name: "x"},
	} {
		_, err := s.Get(t.Context(), r, secrets.Current)
		wantErr(t, r.String(), err, fault.Invalid)
		_, err = s.CreateSecret(t.Context(), r, secrets.NewString("v"))
		wantErr(t, r.String(), err, fault.Invalid)
	}
	// What is unusual and allowed arrives as it is.
	for _, name := range []string{"a b", "a%2Fb", "a?b", "a#b", "ü/鍵", "a+b", "data/metadata", `a"b`, "a;b", "a&b=c"} {
		r := at(name)
		create(t, s, r, name)
		put(t, s, r, name+"!")
		if got := get(t, s, r, secrets.Current); got != name+"!" {
			t.Errorf("%s holds %q", r, got)
		}
	}
}
