package natskv

import (
	"bytes"
	"encoding/base64"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/nats-io/nats.go/jetstream"
	"pgregory.net/rapid"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/leaktest"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/secrets"
)

func b64(b byte) string { return base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{b}, 32)) }

func TestKeyFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "seal.key")
	if err := GenerateKeyFile(path); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := GenerateKeyFile(path); !fault.Is(err, fault.Conflict) {
		t.Errorf("generate over a key: %v, expected a conflict", err)
	}
	if after, _ := os.ReadFile(path); !bytes.Equal(before, after) {
		t.Error("the existing key was changed")
	}
	first, err := LoadKeys(path, "IGNORED")
	if err != nil || len(first.IDs()) != 1 {
		t.Fatalf("load: %d keys, %v", len(first.IDs()), err)
	}
	if err := GenerateKeyFile(path + "2"); err != nil {
		t.Fatal(err)
	}
	if second, err := LoadKeys(path+"2", ""); err != nil || second.IDs()[0] == first.IDs()[0] {
		t.Errorf("two generated keys are one: %v", err)
	}
	if err := GenerateKeyFile(filepath.Join(dir, "no", "such", "dir")); err == nil {
		t.Error("generated a key in a directory that does not exist")
	}
	if runtime.GOOS == "windows" {
		return
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the key file has mode %v, %v; expected 0600", info.Mode(), err)
	}
	for mode, ok := range map[os.FileMode]bool{
		0o600: true, 0o400: true, 0o644: false, 0o640: false, 0o604: false, 0o660: false, 0o601: false, 0o700: false, 0o444: false,
	} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		_, err := LoadKeys(path, "")
		if ok && err != nil {
			t.Errorf("mode %04o: %v", mode, err)
		}
		if !ok && (!fault.Is(err, fault.Denied) || !strings.Contains(err.Error(), "0600")) {
			t.Errorf("mode %04o: %v, expected denied", mode, err)
		}
	}
}

func TestLoadKeysErrors(t *testing.T) {
	dir, canary := t.TempDir(), leaktest.Canary()
	write := func(text string) string {
		t.Helper()
		p := filepath.Join(dir, "key")
		if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	long := base64.StdEncoding.EncodeToString([]byte(canary + canary))
	rec := &leaktest.Recorder{}
	check := func(what string, kind fault.Kind, err error) {
		t.Helper()
		rec.Record(err)
		if !fault.Is(err, kind) {
			t.Errorf("%s: %v of kind %s, expected %s", what, err, fault.KindOf(err), kind)
		}
	}
	for what, text := range map[string]string{
		"empty": "", "comment only": "# " + canary + "\n", "not base64": canary, "too long": long, "too short": "AAAA",
		"no padding": strings.TrimRight(b64(1), "="), "url alphabet": strings.ReplaceAll(b64(0xff), "/", "_"),
		"twice": b64(1) + "\n" + b64(2) + "\n" + b64(1), "second is bad": b64(1) + "\n" + canary, "huge": strings.Repeat(b64(1)+"\n", 1000),
		"loose bits": strings.TrimSuffix(b64(0), "A=") + "B=",
	} {
		_, err := LoadKeys(write(text), "")
		check("file "+what, fault.Invalid, err)
		if what == "empty" {
			continue
		}
		t.Setenv("KEYTURN_TEST_KEY", text)
		_, err = LoadKeys("", "KEYTURN_TEST_KEY")
		check("environment "+what, fault.Invalid, err)
	}
	_, err := LoadKeys(filepath.Join(dir, "none"), "")
	check("no file", fault.NotFound, err)
	_, err = LoadKeys(dir, "")
	check("a directory", fault.Invalid, err)
	_, err = LoadKeys("", "KEYTURN_TEST_NO_SUCH_KEY")
	check("no variable", fault.NotFound, err)
	_, err = LoadKeys("", "")
	check("nothing named", fault.Invalid, err)
	_, err = Open(t.Context(), nil, Keys{}, nil)
	check("an empty keyring", fault.Invalid, err)
	rec.Check(t, canary, canary+canary)
}

func TestParseKeys(t *testing.T) {
	k, err := ParseKeys([]byte("# newest first\r\n" + b64(1) + "\r\n\n  " + b64(2) + ", " + b64(3) + "\n#" + b64(4)))
	if err != nil || len(k.IDs()) != 3 {
		t.Fatalf("parsed %v, %v; expected three keys", k.IDs(), err)
	}
	one, err := ParseKeys([]byte(b64(1)))
	if err != nil || one.IDs()[0] != k.IDs()[0] {
		t.Errorf("the first key's id is %v, %v; expected %s", one.IDs(), err, k.IDs()[0])
	}
	rec := &leaktest.Recorder{}
	secret := strings.Repeat("k", 32)
	k, err = ParseKeys([]byte(base64.StdEncoding.EncodeToString([]byte(secret))))
	rec.Record(k, &k, err, newStore(nil, k, "b", 0))
	rec.Check(t, secret)
}

// TestEntryKey: every name has one key that NATS accepts, and no two names
// share one.
func TestEntryKey(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		name := rapid.OneOf(rapid.String(), rapid.StringMatching(`[-_=./a-zA-Z0-9*> ]{0,12}`), rapid.Map(rapid.SliceOf(rapid.Byte()), func(b []byte) string { return string(b) })).Draw(t, "name")
		key := EntryKey(name)
		if strings.ContainsAny(key, ". *>\t\r\n") || strings.HasPrefix(key, "_") {
			t.Fatalf("%q is no key", key)
		}
		back, err := EntryName(key)
		if name == "" {
			if err == nil {
				t.Fatal("the empty key has a name")
			}
			return
		}
		if err != nil || back != name {
			t.Fatalf("%q came back as %q, %v", name, back, err)
		}
	})
	for _, key := range []string{"", "a.b", "=", "=4", "=41", "=2e", "=zz", "_a", "a b", "é", "a=", "a=4"} {
		if name, err := EntryName(key); !fault.Is(err, fault.Invalid) {
			t.Errorf("key %q has the name %q, %v; expected invalid", key, name, err)
		}
	}
}

func TestOpenVerifies(t *testing.T) {
	b := newBackend(t)
	js := b.jetStream(t)
	good := jetstream.StreamConfig{
		Name: "KV_other", Subjects: []string{"$KV.other.>"}, MaxMsgsPerSubject: 1, Storage: jetstream.FileStorage,
		Discard: jetstream.DiscardNew, AllowDirect: true, AllowRollup: true, DenyDelete: true,
	}
	for _, c := range []struct {
		name, want string
		edit       func(c *jetstream.StreamConfig)
		opts       Options
	}{
		{"as it should be", "", func(*jetstream.StreamConfig) {}, Options{Replicas: 1}},
		{"in memory", "file", func(c *jetstream.StreamConfig) { c.Storage = jetstream.MemoryStorage }, Options{}},
		{"with history", "history 5", func(c *jetstream.StreamConfig) { c.MaxMsgsPerSubject = 5 }, Options{}},
		{"that expires", "1h0m0s", func(c *jetstream.StreamConfig) { c.MaxAge = 3600e9 }, Options{}},
		{"that drops old", "discard", func(c *jetstream.StreamConfig) { c.Discard = jetstream.DiscardOld }, Options{}},
		{"of few messages", "messages", func(c *jetstream.StreamConfig) { c.MaxMsgs = 10 }, Options{}},
		{"of short values", "longest value", func(c *jetstream.StreamConfig) { c.MaxMsgSize = 1000 }, Options{}},
		{"with other replicas", "replicas", func(*jetstream.StreamConfig) {}, Options{Replicas: 3}},
		{"that is no bucket", "no key-value bucket", func(c *jetstream.StreamConfig) { c.MaxMsgsPerSubject = -1 }, Options{}},
	} {
		t.Run("a bucket "+c.name, func(t *testing.T) {
			cfg := good
			c.edit(&cfg)
			if _, err := js.CreateStream(t.Context(), cfg); err != nil {
				t.Fatal(err)
			}
			defer func() { _ = js.DeleteStream(t.Context(), "KV_other") }()
			c.opts.Bucket = "other"
			s, err := Open(t.Context(), js, b.keys, &c.opts)
			if c.want == "" {
				if err != nil || s.Bucket() != "other" {
					t.Errorf("open: %v", err)
				}
				return
			}
			if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("open: %v of kind %s, expected invalid, with %q", err, fault.KindOf(err), c.want)
			}
		})
	}
	for _, o := range []Options{{Bucket: "a.b"}, {Bucket: "a b"}, {Replicas: 9}, {Replicas: -1}, {MaxBytes: -1}} {
		if _, err := Open(t.Context(), js, b.keys, &o); !fault.Is(err, fault.Invalid) {
			t.Errorf("open with %+v: %v, expected invalid", o, err)
		}
	}
	// Default options, twice, and one replica asked of a bucket that has it.
	for _, o := range []*Options{nil, nil, {Replicas: 1}} {
		s, err := Open(t.Context(), js, b.keys, o)
		if err != nil || s.Bucket() != "keyturn" {
			t.Fatalf("open: %v", err)
		}
	}
	_, err := Open(t.Context(), js, b.keys, &Options{Bucket: "three", Replicas: 3})
	if !fault.Is(err, fault.Invalid) {
		t.Errorf("three replicas on one server: %v of kind %s, expected invalid", err, fault.KindOf(err))
	}
	// A bucket that is gone is no missing secret.
	if err := js.DeleteStream(t.Context(), "KV_"+b.bucket); err != nil {
		t.Fatal(err)
	}
	r := ref.Ref{Provider: ref.NATS, Scope: b.bucket, Name: "x"}
	if _, err := b.seeds.Get(t.Context(), r, secrets.Current); !fault.Is(err, fault.Unavailable) {
		t.Errorf("get of a bucket that is gone: %v of kind %s, expected unavailable", err, fault.KindOf(err))
	}
	if _, err := b.seeds.CreateSecret(t.Context(), r, secrets.NewString("x")); !fault.Is(err, fault.Unavailable) {
		t.Errorf("create in a bucket that is gone: %v of kind %s, expected unavailable", err, fault.KindOf(err))
	}
}

func TestFullBucket(t *testing.T) {
	b := newBackend(t)
	s, err := Open(t.Context(), b.jetStream(t), b.keys, &Options{Bucket: "small", MaxBytes: 20_000})
	if err != nil {
		t.Fatal(err)
	}
	first := ref.Ref{Provider: ref.NATS, Scope: "small", Name: "first"}
	v := secrets.NewString(strings.Repeat("x", 10_000))
	if _, err := s.CreateSecret(t.Context(), first, v); err != nil {
		t.Fatal(err)
	}
	_, err = s.CreateSecret(t.Context(), ref.Ref{Provider: ref.NATS, Scope: "small", Name: "second"}, v)
	if !fault.Is(err, fault.Unavailable) || fault.ClassOf(err) != fault.ClassQuota {
		t.Errorf("create in a full bucket: %v of kind %s, expected unavailable, quota", err, fault.KindOf(err))
	}
	wantValue(t, s, first, secrets.Current, v) // nothing was dropped for it
}
