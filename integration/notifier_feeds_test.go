package integration_test

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyturn/keyturn/events"
)

// feeds are the senders of a test: each makes changes at a steady rate until
// stop, and goes on until what it has sent is accepted.
type feeds struct {
	t      *testing.T
	l      *ledger
	fleet  []*replica
	client *http.Client
	every  time.Duration

	ending  chan struct{} // closed by stop: nothing new
	making  sync.WaitGroup
	sending sync.WaitGroup
	ctx     context.Context //nolint:containedctx // ends what is still sent
	cancel  context.CancelFunc

	pushes, repeats atomic.Int64
	mu              sync.Mutex
	refused         map[string]int // 429 and 5xx, by path and status
}

func newFeeds(t *testing.T, l *ledger, every time.Duration, fleet ...*replica) *feeds {
	f := &feeds{
		t: t, l: l, fleet: fleet, every: every, ending: make(chan struct{}), refused: map[string]int{},
		client: &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 64}},
	}
	f.ctx, f.cancel = context.WithCancel(context.Background())
	t.Cleanup(func() {
		f.cancel()
		f.stop()
		f.sending.Wait()
		f.client.CloseIdleConnections()
	})
	return f
}

// run calls make at the rate of the feeds. It is told the number of the call.
func (f *feeds) run(produce func(n int)) {
	f.making.Go(func() {
		for n := 0; ; n++ {
			select {
			case <-f.ending:
				return
			case <-time.After(f.every/2 + rand.N(f.every)):
			}
			produce(n)
		}
	})
}

// stop ends the making of changes.
func (f *feeds) stop() {
	select {
	case <-f.ending:
	default:
		close(f.ending)
	}
	f.making.Wait()
}

// drain stops, and waits until every push was accepted.
func (f *feeds) drain() {
	f.t.Helper()
	f.stop()
	done := make(chan struct{})
	go func() { f.sending.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(limit):
		f.t.Errorf("pushes are not accepted within %s", limit)
		f.cancel()
		<-done
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.t.Logf("%d pushes accepted, %d tries were repeated, of which were answered: %v", f.pushes.Load(), f.repeats.Load(), f.refused)
}

// target is where some replica serves, or "" if none does.
func (f *feeds) target() string {
	for _, i := range rand.Perm(len(f.fleet)) {
		if at := f.fleet[i].url(); at != "" {
			return at
		}
	}
	return ""
}

// once posts a body, and returns the status, or 0 for no answer.
func (f *feeds) once(at, path, body string, header func(http.Header)) int {
	req, err := http.NewRequestWithContext(f.ctx, http.MethodPost, at+path, strings.NewReader(body))
	if err != nil {
		f.t.Error(err)
		return 0
	}
	req.GetBody = nil // whether to repeat is for us to say
	req.Header.Set("Content-Type", "application/json")
	header(req.Header)
	resp, err := f.client.Do(req)
	if err != nil {
		return 0
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	_ = resp.Body.Close()
	return resp.StatusCode
}

// push sends a notice as a cloud does: again after 429, 5xx and a broken
// connection, never after another answer, of which 2xx alone is good.
func (f *feeds) push(path, body string, es []events.Event, header func(http.Header)) {
	f.l.require(es)
	f.sending.Go(func() {
		for wait := 20 * time.Millisecond; f.ctx.Err() == nil; wait = min(2*wait, time.Second) {
			code := 0
			if at := f.target(); at != "" {
				code = f.once(at, path, body, header)
			}
			switch {
			case code/100 == 2:
				f.pushes.Add(1)
				return
			case code == http.StatusTooManyRequests || code/100 == 5:
				f.mu.Lock()
				f.refused[fmt.Sprintf("%d %s", code, path)]++
				f.mu.Unlock()
			case code != 0:
				f.t.Errorf("a notice to %s was answered %d, after which its sender gives up", path, code)
				return
			}
			f.repeats.Add(1)
			select {
			case <-f.ctx.Done():
			case <-time.After(wait/2 + rand.N(wait)):
			}
		}
	})
}

// auditPost sends an audit entry as OpenBao's device does: once. Only what was
// answered 200 is promised.
func (f *feeds) auditPost(entry string, es []events.Event, header func(http.Header)) {
	f.l.allow(es)
	f.sending.Go(func() {
		at := f.target()
		if at == "" {
			return
		}
		switch code := f.once(at, "/v1/vaultaudit", entry+"\n", header); {
		case code == http.StatusOK:
			f.l.require(es)
		case code != 0 && code/100 != 5:
			f.t.Errorf("an audit entry was answered %d", code)
		}
	})
}

// A socketDevice writes audit entries to a unix socket as Vault does: on a
// broken connection it connects once more and writes the entry again.
type socketDevice struct {
	path string
	mu   sync.Mutex
	conn net.Conn
}

func (d *socketDevice) write(entry string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	var err error
	for range 2 {
		if d.conn == nil {
			if d.conn, err = net.DialTimeout("unix", d.path, time.Second); err != nil {
				d.conn = nil
				return err
			}
		}
		_ = d.conn.SetWriteDeadline(time.Now().Add(2 * time.Second))
		if _, err = d.conn.Write([]byte(entry + "\n")); err == nil {
			return nil
		}
		_ = d.conn.Close()
		d.conn = nil
	}
	return err
}

func (d *socketDevice) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.conn != nil {
		_ = d.conn.Close()
		d.conn = nil
	}
}

// A fileDevice appends audit entries to a file, which is rotated by renaming.
type fileDevice struct {
	t    *testing.T
	path string
	file *os.File
	n    int
}

func (d *fileDevice) write(entry string) {
	var err error
	if d.file == nil {
		if d.file, err = os.OpenFile(d.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600); err != nil {
			d.t.Error(err)
			return
		}
	}
	if _, err := d.file.WriteString(entry + "\n"); err != nil {
		d.t.Error(err)
	}
}

// rotate is logrotate and SIGHUP.
func (d *fileDevice) rotate() {
	d.n++
	if err := os.Rename(d.path, fmt.Sprintf("%s.%d", d.path, d.n)); err != nil {
		d.t.Error(err)
	}
	d.close()
}

func (d *fileDevice) close() {
	if d.file != nil {
		_ = d.file.Close()
		d.file = nil
	}
}
