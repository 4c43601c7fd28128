package vaultaudit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/keyturn/keyturn/internal/leaktest"
	"github.com/keyturn/keyturn/internal/spool"
	"github.com/keyturn/keyturn/notifier"
)

const childEnv = "KEYTURN_VAULTAUDIT_CHILD"

// child is a process that receives until it is killed: it prints its address,
// and appends the number of each entry that it delivers to a file.
func child(dir string) {
	die := func(err error) {
		if err != nil {
			_, _ = fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	s, err := Open(context.Background(), Options{Dir: filepath.Join(dir, "spool"), MaxBytes: 1 << 20, MaxInFlight: 4, NoSync: rand.N(5) > 0})
	die(err)
	out, err := os.OpenFile(filepath.Join(dir, "delivered"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	die(err)
	srv := httptest.NewServer(s.Handler())
	_, _ = fmt.Println(srv.URL)
	die(s.Run(context.Background(), func(_ context.Context, d notifier.Delivery) error {
		if rand.N(4) == 0 {
			return errors.New("away")
		}
		time.Sleep(time.Duration(rand.N(3)) * time.Millisecond)
		_, err := fmt.Fprintln(out, number(d))
		return err
	}))
}

// TestKill kills a process 50 times while entries come in: each that was
// answered is delivered by that process or by one after it.
func TestKill(t *testing.T) {
	dir := t.TempDir()
	var next atomic.Int64
	var mu sync.Mutex
	answered := map[int]bool{}
	torn := 0
	client := &http.Client{Timeout: 10 * time.Second}
	defer client.CloseIdleConnections()
	for round := range 50 {
		cmd := exec.CommandContext(t.Context(), os.Args[0])
		cmd.Env = append(os.Environ(), childEnv+"="+dir)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		stdout, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		var url string
		if _, err := fmt.Fscanln(stdout, &url); err != nil {
			_ = cmd.Wait()
			t.Fatalf("round %d: the child did not start: %v, %s", round, err, stderr.String())
		}
		var wg sync.WaitGroup
		var left atomic.Int64
		left.Store(1 + rand.Int64N(20))
		enough := make(chan struct{})
		for range 4 {
			wg.Go(func() {
				for {
					n := int(next.Add(1))
					resp, err := client.Post(url, "", strings.NewReader(write(n)+"\n"))
					if err != nil {
						return
					}
					_, _ = io.Copy(io.Discard, resp.Body)
					_ = resp.Body.Close()
					if resp.StatusCode == http.StatusOK {
						mu.Lock()
						answered[n] = true
						mu.Unlock()
						if left.Add(-1) == 0 {
							close(enough)
						}
					}
				}
			})
		}
		select { // some answers and a random moment after them
		case <-enough:
		case <-time.After(10 * time.Second):
			t.Errorf("round %d: too few answers within 10 s", round)
		}
		time.Sleep(rand.N(5 * time.Millisecond))
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		wg.Wait()
		if round%3 == 0 { // as a machine that fails in the middle of a write
			segs, err := filepath.Glob(filepath.Join(dir, "spool", "*.seg"))
			if err != nil {
				t.Fatal(err)
			}
			if len(segs) > 0 {
				f, err := os.OpenFile(segs[len(segs)-1], os.O_APPEND|os.O_WRONLY, 0)
				if err != nil {
					t.Fatal(err)
				}
				_, _ = f.Write(append([]byte{200, 0, 0, 0}, make([]byte, rand.N(150))...))
				_ = f.Close()
				torn++
			}
		}
	}
	b := &bus{}
	r := start(t, Options{Dir: filepath.Join(dir, "spool")}, b)
	delivered := func() map[int]bool {
		got := map[int]bool{}
		text, err := os.ReadFile(filepath.Join(dir, "delivered"))
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			n := 0
			_, _ = fmt.Sscan(line, &n)
			got[n] = true
		}
		for _, d := range b.deliveries() {
			got[number(d)] = true
		}
		return got
	}
	eventually(t, "what was answered to be delivered", func() bool {
		got := delivered()
		for n := range answered {
			if !got[n] {
				return false
			}
		}
		return true
	})
	if len(answered) < 100 || torn == 0 || r.Stats().Lost != 0 {
		t.Errorf("only %d entries were answered, %d tails torn, %d bytes lost", len(answered), torn, r.Stats().Lost)
	}
	t.Logf("%d entries answered, %d torn tails, %d delivered by the last process", len(answered), torn, b.distinct())
}

// sick is a disk that fails at times.
type sick struct {
	spool.File
	full *atomic.Bool
}

func (f sick) Write(b []byte) (int, error) {
	if f.full.Load() {
		n, _ := f.File.Write(b[:len(b)/2])
		return n, syscall.ENOSPC
	}
	return f.File.Write(b)
}

// A disk that is full costs what comes meanwhile, loudly, and nobody is kept
// waiting; when it has room all goes on.
func TestDiskFull(t *testing.T) {
	var full atomic.Bool
	b := &bus{}
	var rec leaktest.Recorder
	r := start(t, Options{Logger: rec.Logger(), create: func(name string) (spool.File, error) {
		f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		return sick{f, &full}, err
	}}, b)
	for i := range 5 {
		full.Store(i%2 == 1)
		if code := post(t, r.http.URL, write(i)); code != 200 {
			t.Errorf("status %d", code)
		}
	}
	eventually(t, "what was stored", func() bool { return b.distinct() == 3 })
	if n := r.counts.get("dropped disk"); n != 2 || !strings.Contains(rec.String(), "audit entries dropped") {
		t.Errorf("%d dropped, log %s", n, rec.String())
	}
}

// TestNothingLeaks: no part of a payload, by any transport, is on disk, in the
// log, in an error or delivered, whether the entry is good, broken or raw.
func TestNothingLeaks(t *testing.T) {
	canary := leaktest.Canary()
	dir := t.TempDir()
	var rec leaktest.Recorder
	b := &bus{away: errors.New("away")} // so that everything stays on disk
	logs := newLog(t)
	r := start(t, Options{
		Dir: dir, Logger: rec.Logger(), MaxLine: 64 << 10, Drain: time.Millisecond, Socket: loopback(),
		File: &File{Path: logs.path, FromStart: true, Poll: 5 * time.Millisecond},
	}, b)
	raw := strings.NewReplacer(`hmac-sha256:93569f`, canary, `hmac-sha256:8bb21a`, canary, `"token"`, `"`+canary+`"`, `hmac-sha256:66b5d6`, canary).Replace(write(1))
	lines := []string{
		raw, raw[:len(raw)/2], canary, "{" + canary, `{"type":"` + canary + `"`, canary + " " + raw, `{"` + canary + `":1}`,
		strings.Replace(raw, canary, strings.Repeat(canary, 5000), 1), strings.Replace(raw, `{"version":2,`, `{"version":"`+canary+`",`, 1),
		strings.TrimSuffix(raw, "}") + `,"error":{"x":"` + canary + `"}}`,
	}
	for _, l := range lines {
		post(t, r.http.URL, l)
		logs.raw(l + "\n")
	}
	conn := dial(t, r)
	send(t, conn, strings.Join(lines, "\n")+"\n")
	eventually(t, "all three transports to be stored", func() bool { return r.counts.get("stored") >= 12 })
	leaktest.CheckDir(t, dir, canary)
	r.stop()
	leaktest.CheckDir(t, dir, canary)
	b.set(nil)
	r = start(t, Options{Dir: dir, Logger: rec.Logger()}, b)
	eventually(t, "deliveries", func() bool { return r.Stats().Taken == 0 && r.counts.get("delivered") >= 12 })
	for _, d := range b.deliveries() {
		rec.Record(string(d.Body), d)
	}
	rec.Record(r.o)
	rec.Check(t, canary)
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err == nil && !d.IsDir() && info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %o", path, info.Mode().Perm())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}
