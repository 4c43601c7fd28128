package ref_test

import (
	"encoding/json"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/ref"
)

func TestParse(t *testing.T) {
	for text, want := range map[string]ref.Ref{
		"aws://123456789012/eu-central-1/prod/db":  {Provider: ref.AWS, Scope: "123456789012/eu-central-1", Name: "prod/db"},
		"aws://123456789012/us-east-1/a@b+c=d.e_f": {Provider: ref.AWS, Scope: "123456789012/us-east-1", Name: "a@b+c=d.e_f"},
		"gcp://my-project/db":                      {Provider: ref.GCP, Scope: "my-project", Name: "db"},
		"gcp://my-project/europe-west3/db":         {Provider: ref.GCP, Scope: "my-project/europe-west3", Name: "db"},
		"azure://my-vault/db":                      {Provider: ref.Azure, Scope: "my-vault", Name: "db"},
		"vault://prod//secret/app/db":              {Provider: ref.Vault, Scope: "prod//secret", Name: "app/db"},
		"vault://prod/ns1%2Fns2/kv%2Fteam/app/db":  {Provider: ref.Vault, Scope: "prod/ns1%2Fns2/kv%2Fteam", Name: "app/db"},
		"nats://keyturn/acme/db":                   {Provider: ref.NATS, Scope: "keyturn", Name: "acme/db"},
		"nats://keyturn/a%20b%25%2E":               {Provider: ref.NATS, Scope: "keyturn", Name: "a b%."},
	} {
		got, err := ref.Parse(text)
		if err != nil || got != want {
			t.Errorf("%s: parsed as %+v, %v; expected %+v", text, got, err, want)
		}
		if back, err := ref.Parse(got.String()); err != nil || back != got {
			t.Errorf("%s: its text form %s reads as %+v, %v", text, got, back, err)
		}
	}
}

func TestParseErrors(t *testing.T) {
	for text, want := range map[string]string{
		"":                             "has no scheme",
		"db":                           "has no scheme",
		"aws:123/eu/db":                "has no scheme",
		"s3://a/b/c":                   "has an unknown scheme",
		"AWS://1/eu/db":                "has an unknown scheme",
		"://1/eu/db":                   "has an unknown scheme",
		"aws://":                       "is too short",
		"aws://123/eu-central-1":       "is too short",
		"gcp://project":                "is too short",
		"vault://c/ns/kv":              "is too short",
		"aws://123/eu/":                "has no name",
		"aws:///eu/db":                 "has an empty part",
		"aws://123//db":                "has an empty part",
		"azure:///db":                  "has an empty part",
		"vault:////db":                 "is too short",
		"vault://///db":                "has an empty part",
		"gcp://p//n":                   "has an empty part",
		"gcp://p/a/b/c":                "has a slash in its name",
		"gcp://p/a%2Fb":                "has a slash in its name",
		"azure://v/a/b":                "has a slash in its name",
		"aws://123/eu/a%zz":            "has a broken percent-escape",
		"vault://c/%4/kv/x":            "has a broken percent-escape",
		"nats://b/\x00%":               "has a broken percent-escape",
		"arn:aws:secretsmanager:eu:1:": "has no scheme",
	} {
		r, err := ref.Parse(text)
		if !fault.Is(err, fault.Invalid) || !r.IsZero() {
			t.Errorf("%q: parsed as %+v, %v; expected invalid", text, r, err)
			continue
		}
		for _, part := range []string{want, "expected aws://ACCOUNT/REGION/NAME"} {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("%q: the error is %q, expected it to say %q", text, err, part)
			}
		}
		if strings.ContainsAny(err.Error(), "\x00\n") {
			t.Errorf("%q: the error holds control characters", text)
		}
	}
}

// genRef draws a valid ref of any provider, its parts of any characters.
func genRef(t *rapid.T) ref.Ref {
	part := rapid.OneOf(
		rapid.StringMatching(`[a-zA-Z0-9-]{1,20}`),
		rapid.StringN(1, 20, -1),
		rapid.StringMatching(`[/%. ?#:@&=+$,;~*>-]{1,8}`),
	)
	noSlash := part.Filter(func(s string) bool { return !strings.Contains(s, "/") })
	p := rapid.SampledFrom([]ref.Provider{ref.AWS, ref.GCP, ref.Azure, ref.Vault, ref.NATS}).Draw(t, "provider")
	var scope []string
	name := part
	switch p {
	case ref.AWS:
		scope = []string{part.Draw(t, "account"), part.Draw(t, "region")}
	case ref.GCP:
		name = noSlash
		scope = []string{part.Draw(t, "project")}
		if rapid.Bool().Draw(t, "regional") {
			scope = append(scope, part.Draw(t, "location"))
		}
	case ref.Azure:
		name = noSlash
		scope = []string{part.Draw(t, "vault")}
	case ref.NATS:
		scope = []string{part.Draw(t, "bucket")}
	case ref.Vault:
		ns := rapid.OneOf(rapid.Just(""), part).Draw(t, "namespace")
		scope = []string{part.Draw(t, "cluster"), ns, part.Draw(t, "mount")}
	}
	r, err := ref.New(p, name.Draw(t, "name"), scope...)
	if err != nil {
		t.Fatalf("new: %v", err)
	}
	for i, s := range scope {
		if got := r.ScopePart(i); got != s {
			t.Fatalf("scope part %d of %s is %q, expected %q", i, r, got, s)
		}
	}
	return r
}

func TestRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := genRef(t)
		text := r.String()
		got, err := ref.Parse(text)
		if err != nil || got != r {
			t.Fatalf("%+v: its text form %q reads as %+v, %v", r, text, got, err)
		}
		// A JSON string, a map key and a field.
		type doc struct {
			R ref.Ref
			M map[ref.Ref]int
		}
		b, err := json.Marshal(doc{r, map[ref.Ref]int{r: 1}})
		if err != nil {
			t.Fatal(err)
		}
		var back doc
		if err := json.Unmarshal(b, &back); err != nil || back.R != r || back.M[r] != 1 {
			t.Fatalf("%s came back as %+v, %v", b, back, err)
		}
	})
}

// TestDistinct: two refs of one text are one ref.
func TestDistinct(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := genRef(t), genRef(t)
		if (a.String() == b.String()) != (a == b) {
			t.Fatalf("%+v and %+v both read %s", a, b, a)
		}
	})
}

func TestValidate(t *testing.T) {
	for name, r := range map[string]ref.Ref{
		"zero":             {},
		"no provider":      {Scope: "a", Name: "b"},
		"unknown provider": {Provider: "x", Scope: "a", Name: "b"},
		"no scope":         {Provider: ref.NATS, Name: "b"},
		"no name":          {Provider: ref.NATS, Scope: "a"},
		"short scope":      {Provider: ref.AWS, Scope: "a", Name: "b"},
		"long scope":       {Provider: ref.Azure, Scope: "a/b", Name: "c"},
		"three of gcp":     {Provider: ref.GCP, Scope: "a/b/c", Name: "d"},
		"slash":            {Provider: ref.Azure, Scope: "a", Name: "b/c"},
		"empty mount":      {Provider: ref.Vault, Scope: "a/b/", Name: "c"},
	} {
		if err := r.Validate(); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v, expected invalid", name, err)
		}
	}
	if _, err := ref.New(ref.AWS, "n", "only-account"); !fault.Is(err, fault.Invalid) {
		t.Errorf("new with a short scope: %v, expected invalid", err)
	}
}

func TestText(t *testing.T) {
	var r ref.Ref
	if b, err := r.MarshalText(); err != nil || len(b) != 0 {
		t.Errorf("the zero ref reads %q, %v", b, err)
	}
	if !r.IsZero() || r.String() != "" {
		t.Errorf("the zero ref is %q", r)
	}
	r = ref.Ref{Provider: ref.NATS, Scope: "b", Name: "n"}
	if err := r.UnmarshalText([]byte("rubbish")); err == nil || r.Name != "n" {
		t.Errorf("bad text gave %v and changed the ref to %s", err, r)
	}
	if err := r.UnmarshalText(nil); err != nil || !r.IsZero() {
		t.Errorf("empty text gave %s, %v", r, err)
	}
	for _, i := range []int{-1, 1, 9} {
		if got := (ref.Ref{Provider: ref.NATS, Scope: "b", Name: "n"}).ScopePart(i); got != "" {
			t.Errorf("scope part %d is %q, expected none", i, got)
		}
	}
}

func TestFromARN(t *testing.T) {
	for arn, want := range map[string]string{
		"arn:aws:secretsmanager:eu-central-1:123456789012:secret:prod/db-AbC123":        "aws://123456789012/eu-central-1/prod/db",
		"arn:aws:secretsmanager:us-east-1:123456789012:secret:my-secret-a1B2c3":         "aws://123456789012/us-east-1/my-secret",
		"arn:aws:secretsmanager:us-east-1:123456789012:secret:db":                       "aws://123456789012/us-east-1/db",
		"arn:aws:secretsmanager:us-east-1:123456789012:secret:a-b-AbC12":                "aws://123456789012/us-east-1/a-b-AbC12",
		"arn:aws:secretsmanager:us-east-1:123456789012:secret:-AbC123":                  "aws://123456789012/us-east-1/-AbC123",
		"arn:aws:secretsmanager:us-east-1:123456789012:secret:x-AbC123-DeF456":          "aws://123456789012/us-east-1/x-AbC123",
		"arn:aws-cn:secretsmanager:cn-north-1:123456789012:secret:db-AbC123":            "aws://123456789012/cn-north-1/db",
		"arn:aws-us-gov:secretsmanager:us-gov-west-1:123456789012:secret:db-AbC123":     "aws://123456789012/us-gov-west-1/db",
		"arn:aws:secretsmanager:us-east-1:123456789012:secret:rds!db-1a2b3c4d-5-Zz9Zz9": "aws://123456789012/us-east-1/rds%21db-1a2b3c4d-5",
	} {
		r, err := ref.FromARN(arn)
		if err != nil || r.String() != want {
			t.Errorf("%s: %s, %v; expected %s", arn, r, err, want)
		}
	}
	for _, arn := range []string{
		"", "prod/db", "arn:aws:secretsmanager:us-east-1:123456789012:secret:", "arn:aws:s3:::bucket",
		"arn:aws:secretsmanager:us-east-1:123456789012:key:x", "arn:aws:secretsmanager::123456789012:secret:x",
		"arn:aws:secretsmanager:us-east-1::secret:x", "arn:azure:secretsmanager:us-east-1:123456789012:secret:x",
		" arn:aws:secretsmanager:us-east-1:123456789012:secret:x", "arn:aws:secretsmanager:us-east-1:123456789012:secret:x\n",
	} {
		r, err := ref.FromARN(arn)
		if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "expected arn:aws:secretsmanager:REGION:ACCOUNT:secret:NAME") {
			t.Errorf("%q: %s, %v; expected invalid", arn, r, err)
		}
	}
}

// FuzzParse: whatever is accepted is valid and has one text form.
func FuzzParse(f *testing.F) {
	for _, s := range []string{
		"aws://123456789012/eu-central-1/prod/db", "gcp://p/n", "gcp://p/l/n", "azure://v/n", "vault://c//kv/a/b",
		"vault://c/n%2Fm/kv/a", "nats://b/a%20b", "nats://b//", "nats://b/%", "://", "gcp://p/%2F", "aws://a/b/../c?d#e",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := ref.Parse(s)
		if err != nil {
			if !fault.Is(err, fault.Invalid) || !r.IsZero() {
				t.Fatalf("%q: %+v, error %v of kind %s", s, r, err, fault.KindOf(err))
			}
			return
		}
		if err := r.Validate(); err != nil {
			t.Fatalf("%q was accepted as %+v, which is not valid: %v", s, r, err)
		}
		back, err := ref.Parse(r.String())
		if err != nil || back != r {
			t.Fatalf("%q: %+v reads %q, which parses as %+v, %v", s, r, r.String(), back, err)
		}
	})
}
