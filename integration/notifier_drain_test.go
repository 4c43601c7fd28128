package integration_test

import (
	"net/http"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/keyturn/keyturn/internal/testenv"
)

// TestNotifierDrains: SIGTERM under load, several times. What is in flight is
// answered as ever; after that the listener is closed, and the rest is for the
// next process. Nothing is answered 5xx, nothing is lost.
func TestNotifierDrains(t *testing.T) {
	srv := testenv.NATS(t)
	_, js := connectTo(t, srv.URL())
	c, l := newSources(t), newLedger(t)
	r := newReplica(t, "a", c.config(srv.URL(), filepath.Join(c.dir, "spool"), shortPath(t), filepath.Join(c.dir, "audit.log")), c.env()...)
	r.start()
	r.serving()
	f := newFeeds(t, l, 40*time.Millisecond, r)
	for _, from := range []string{"bridge1", "bridge2", "bridge3"} {
		ch := newChanges(from)
		f.run(func(n int) {
			body, es := ch.next().eventBridge(t)
			f.push("/v1/eventbridge", body, es, c.withKey)
			if n%4 == 0 {
				c.sqs.Send(body, "")
			}
		})
	}
	queue, posted := newChanges("queue"), newChanges("http")
	f.run(func(int) {
		body, es := queue.next().eventBridge(t)
		l.require(es)
		c.sqs.Send(body, "")
	})
	f.run(func(int) {
		entry, es := posted.next().audit(t)
		f.auditPost(entry, es, c.withKey)
	})
	for range rounds(4, 30) {
		before := f.pushes.Load()
		testenv.Eventually(t, limit, "load", func() bool { return f.pushes.Load() > before+25 })
		at := time.Now()
		if err := r.stop(syscall.SIGTERM); err != nil {
			t.Errorf("after SIGTERM the process ended with %v; want status 0", err)
		}
		t.Logf("ended within %s of SIGTERM", time.Since(at).Round(time.Millisecond))
		r.start()
		r.serving()
	}
	finish(t, c, f, l, js)
	for what, n := range f.refused {
		t.Errorf("%d pushes were answered %s; want answers as ever, and then no listener", n, what)
	}
	r.tell(t)
}

// TestNotifierReadiness: while NATS is away the notifier is not ready, lives,
// answers 503 and takes nothing; when it is back all goes on by itself.
func TestNotifierReadiness(t *testing.T) {
	srv := testenv.NATS(t)
	c, l := newSources(t), newLedger(t)
	r := newReplica(t, "a", c.config(srv.URL(), filepath.Join(c.dir, "spool"), shortPath(t), filepath.Join(c.dir, "audit.log")), c.env()...)
	r.start()
	r.serving()
	testenv.Eventually(t, limit, "ready", func() bool { return r.probe("/readyz") == http.StatusOK })
	f := newFeeds(t, l, 100*time.Millisecond, r)
	hook, queue := newChanges("hook"), newChanges("queue")
	for range 2 {
		srv.Stop()
		testenv.Eventually(t, limit, "not ready without NATS", func() bool { return r.probe("/readyz") == http.StatusServiceUnavailable })
		if code := r.probe("/healthz"); code != http.StatusOK {
			t.Errorf("/healthz says %d without NATS; want 200: nobody should restart it", code)
		}
		var wg sync.WaitGroup
		for range 8 {
			body, es := queue.next().eventBridge(t)
			l.require(es)
			c.sqs.Send(body, "")
			body, es = hook.next().eventBridge(t)
			wg.Go(func() {
				if code := f.once(r.url(), "/v1/eventbridge", body, c.withKey); code != http.StatusServiceUnavailable {
					t.Errorf("a notice without NATS was answered %d; want 503", code)
				}
			})
			f.push("/v1/eventbridge", body, es, c.withKey)
			// Vault does not notice.
			entry, es := hook.next().audit(t)
			if code := f.once(r.url(), "/v1/vaultaudit", entry, c.withKey); code != http.StatusOK {
				t.Errorf("an audit entry without NATS was answered %d; want 200", code)
			}
			l.require(es)
		}
		wg.Wait()
		if c.waiting() == "" {
			t.Error("the queue was emptied without NATS")
		}
		srv.Start()
		testenv.Eventually(t, limit, "ready again", func() bool { return r.probe("/readyz") == http.StatusOK })
		_, js := connectTo(t, srv.URL())
		l.settle(js)
	}
	_, js := connectTo(t, srv.URL())
	finish(t, c, f, l, js)
	if r.alone != 0 {
		t.Errorf("the process ended by itself %d times", r.alone)
	}
}
