package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nkeys"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/internal/testenv"
	"github.com/keyturn/keyturn/ref"
)

// TestConnect signs in by every kind of file that keyturn tenants creds
// writes, and says what is wrong with one that does not do.
func TestConnect(t *testing.T) {
	kp, err := nkeys.CreateUser()
	if err != nil {
		t.Fatal(err)
	}
	seed, err := kp.Seed()
	if err != nil {
		t.Fatal(err)
	}
	public, err := kp.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	srv := testenv.NATS(t, func(o *server.Options) {
		o.Users = []*server.User{{Username: "KEYTURN.notifier", Password: "long:and.odd"}}
		o.Nkeys = []*server.NkeyUser{{Nkey: public}}
	})
	dir := t.TempDir()
	file := func(name, text string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	nk, login := file("user.nk", string(seed), 0o600), file("user.password", "KEYTURN.notifier:long:and.odd\n", 0o600)
	for name, c := range map[string]struct {
		conf natsConfig
		want string
	}{
		"nkey":                {natsConfig{NKeyFile: nk}, ""},
		"name and password":   {natsConfig{PasswordFile: login}, ""},
		"user and password":   {natsConfig{User: "KEYTURN.notifier", PasswordFile: file("p", "long:and.odd", 0o600)}, ""},
		"nothing":             {natsConfig{}, "refuses the credentials"},
		"wrong password":      {natsConfig{User: "KEYTURN.notifier", PasswordFile: login}, "refuses the credentials"},
		"no name":             {natsConfig{PasswordFile: file("q", "secretpassword", 0o600)}, "NAME:PASSWORD"},
		"no password":         {natsConfig{User: "x"}, "password_file is missing"},
		"no creds file":       {natsConfig{CredsFile: filepath.Join(dir, "none")}, "nats.creds_file"},
		"others may read it":  {natsConfig{NKeyFile: file("open.nk", string(seed), 0o644)}, "chmod 600"},
		"no seed":             {natsConfig{NKeyFile: file("bad.nk", "SUAsecretpassword", 0o600)}, "no nkey seed"},
		"two kinds":           {natsConfig{NKeyFile: nk, PasswordFile: login}, "expected one of"},
		"nobody at the place": {natsConfig{NKeyFile: nk, URL: "nats://127.0.0.1:1"}, "no server answers"},
	} {
		t.Run(name, func(t *testing.T) {
			if c.conf.URL == "" {
				c.conf.URL = srv.URL()
			}
			nc, err := connect(c.conf, "test", newLogger(t.Output(), "warn", "text"))
			if nc != nil {
				nc.Close()
			}
			switch {
			case c.want == "" && err != nil:
				t.Error(err)
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "secretpassword")):
				t.Errorf("%v; expected %q", err, c.want)
			}
		})
	}
}

// TestLineOfAnEvent: an event that is told late has both times, and one of
// another day its date.
func TestLineOfAnEvent(t *testing.T) {
	now := time.Now()
	e := events.New(events.VersionActivated, ref.Ref{Provider: ref.NATS, Scope: "b", Name: "s"}, now, "v")
	e.Data.Published, e.Data.Tenant = now, "acme"
	if s := humanEvent(e); strings.Contains(s, "happened") || !strings.HasPrefix(s, now.Local().Format("15:04:05")) {
		t.Errorf("at once: %s", s)
	}
	e.Time = now.Add(-48 * time.Hour)
	if s := humanEvent(e); !strings.Contains(s, "happened "+e.Time.Local().Format(time.DateTime)) {
		t.Errorf("late: %s", s)
	}
	e.Data.Published = now.Add(-24 * time.Hour)
	if s := humanEvent(e); !strings.HasPrefix(s, e.Data.Published.Local().Format(time.DateTime)) {
		t.Errorf("of another day: %s", s)
	}
}

// TestMisspeltKey names the key and where, and no type of the program.
func TestMisspeltKey(t *testing.T) {
	for text, want := range map[string]string{
		"nats: {url: x}\nnotifer: {}\n":                    "nothing reads notifer in the top of the file",
		"nats: {url: x, credsfile: y}\n":                   "nothing reads credsfile in nats",
		"nats: {url: x}\nnotifier: {routes: [{knd: sns}]}": "nothing reads knd in notifier.routes[0]",
	} {
		_, err := loadConfig(writeConfig(t, text))
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "main.") || strings.Contains(err.Error(), "\n") {
			t.Errorf("got %v; expected %q", err, want)
		}
	}
}
