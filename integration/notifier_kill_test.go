package integration_test

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"path/filepath"
	"testing"
	"time"

	"github.com/keyturn/keyturn/internal/testenv"
	"github.com/keyturn/keyturn/internal/vaultfake"
)

// kills is how often a notifier is killed.
const kills = 200

// TestNotifierSurvives200Kills: two processes of keyturn serve are fed by every
// way in at once, and one of them is killed at a random moment, again and
// again. Afterwards each change that was told of is stored once.
//
// What is promised differs. What is pushed or pulled is repeated by who sends
// it until it was acknowledged, so all of it must be there. Of audit entries
// those must be there that were answered 200, and all that are in a file. On a
// socket nothing is answered, so only entries are counted whose process lived
// on. Vault's notifications are sent once and to whoever listens: what must be
// there of them is the current version of each secret.
func TestNotifierSurvives200Kills(t *testing.T) {
	srv := testenv.NATS(t)
	_, js := connectTo(t, srv.URL())
	c := newSources(t)
	l := newLedger(t)
	var fleet []*replica
	var sockets []*socketDevice
	var files []*fileDevice
	for _, name := range []string{"a", "b"} {
		spool, socket, file := filepath.Join(c.dir, "spool-"+name), shortPath(t), filepath.Join(c.dir, "audit-"+name+".log")
		r := newReplica(t, name, c.config(srv.URL(), spool, socket, file), c.env()...)
		r.start()
		fleet = append(fleet, r)
		sockets = append(sockets, &socketDevice{path: socket})
		files = append(files, &fileDevice{t: t, path: file})
		// A file that is there when it is first followed is old news.
		testenv.Eventually(t, limit, "the position in the audit file of "+name, func() bool {
			found, err := filepath.Glob(filepath.Join(spool, "file-*.json"))
			return err == nil && len(found) == 1
		})
		r.serving()
	}
	t.Cleanup(func() {
		for i := range sockets {
			sockets[i].close()
			files[i].close()
		}
	})

	f := newFeeds(t, l, 250*time.Millisecond, fleet...)
	c.subscribe(f)
	vaulted := c.feedAll(f, sockets, files)
	killed := time.Now()
	for n := range kills {
		r := fleet[rand.N(len(fleet))]
		if rand.N(5) > 0 { // now and then while it starts
			r.serving()
		}
		time.Sleep(rand.N(250 * time.Millisecond))
		r.kill()
		r.start()
		if n%50 == 49 {
			t.Logf("%d kills after %s; %d events are to be there", n+1, time.Since(killed).Round(time.Second), l.size())
		}
	}
	t.Logf("%d kills in %s", kills, time.Since(killed).Round(time.Millisecond))
	for _, r := range fleet {
		r.serving()
	}
	f.drain()
	// Nobody is killed any more.
	last := newChanges("socket-end")
	for i, d := range sockets {
		d.close()
		for range 10 {
			entry, es := last.next().audit(t)
			testenv.Eventually(t, limit, fmt.Sprintf("audit socket %d", i), func() bool { return d.write(entry) == nil })
			l.require(es)
		}
	}
	vaulted()
	l.settle(js)
	testenv.Eventually(t, limit, "empty queues", func() bool { return c.waiting() == "" })
	if dead := c.grid.Dead(); len(dead) > 0 {
		t.Errorf("%d events were given up by Event Grid", len(dead))
	}
	l.check(js)
	c.onlySNS()
	for _, r := range fleet {
		r.tell(t)
		if code := r.probe("/readyz"); code != http.StatusOK {
			t.Errorf("%s says %d to /readyz at the end", r.name, code)
		}
	}
}

// feedAll starts every source. The function that it returns says what must be
// there of Vault's secrets once all is over.
func (c *sources) feedAll(f *feeds, sockets []*socketDevice, files []*fileDevice) (vaulted func()) {
	t := f.t
	some := func() bool { return rand.N(5) == 0 } // are told of twice
	aws, queue := newChanges("bridge"), newChanges("queue")
	f.run(func(int) {
		body, es := aws.next().eventBridge(t)
		f.push("/v1/eventbridge", body, es, c.withKey)
		if some() {
			c.sqs.Send(body, "")
		}
	})
	c.feedSNS(f)
	f.run(func(int) {
		ch := queue.next()
		body, es := ch.eventBridge(t)
		f.l.require(es)
		c.sqs.Send(body, "")
		if some() {
			again, es := ch.eventBridge(t) // of another id
			f.push("/v1/eventbridge", again, es, c.withKey)
		}
	})
	hook, pull := newChanges("grid-hook"), newChanges("grid-pull")
	f.run(func(n int) {
		ch := hook.next()
		body, es := ch.grid(t, n%2 == 0)
		f.push("/v1/eventgrid", body, es, c.withSecret)
		if some() {
			again, _ := ch.grid(t, true)
			c.grid.Publish(again)
		}
	})
	f.run(func(int) {
		ch := pull.next()
		body, es := ch.grid(t, true)
		f.l.require(es)
		c.grid.Publish(body)
		if some() {
			again, es := ch.grid(t, false)
			f.push("/v1/eventgrid", again, es, c.withSecret)
		}
	})
	push, sub := newChanges("push"), newChanges("pull")
	f.run(func(int) {
		m, es := push.next().message(t)
		f.push("/v1/pubsub", pushed(m), es, c.withToken)
		if some() {
			c.pub.Publish(pubsubTopic, m.Data, m.Attributes)
		}
	})
	f.run(func(int) {
		m, es := sub.next().message(t)
		f.l.require(es)
		c.pub.Publish(pubsubTopic, m.Data, m.Attributes)
		if some() {
			f.push("/v1/pubsub", pushed(m), es, c.withToken)
		}
	})
	own := newChanges("own")
	f.run(func(int) {
		body, es := own.next().inHouse(t)
		f.push("/v1/cloudevents", body, es, func(h http.Header) {
			h.Set("Content-Type", "application/cloudevents+json")
			standardWebhooks(h, c.hmacBytes, body)
		})
	})
	posted, written, filed := newChanges("http"), newChanges("socket"), newChanges("file")
	f.run(func(int) {
		entry, es := posted.next().audit(t)
		f.auditPost(entry, es, c.withKey)
	})
	f.run(func(n int) {
		entry, es := written.next().audit(t)
		f.l.allow(es)
		_ = sockets[n%len(sockets)].write(entry) // Vault does not mind either, if another device works
	})
	f.run(func(n int) {
		ch := filed.next()
		entry, es := ch.audit(t)
		f.l.require(es)
		d := files[n%len(files)]
		d.write(entry)
		if some() {
			again, es := ch.audit(t)
			f.auditPost(again, es, c.withKey)
		}
		if n%40 > 37 {
			d.rotate()
		}
	})
	return c.feedVault(f)
}

// feedVault writes to a real key-value engine, and now and then has an audit
// device tell of it as well.
func (c *sources) feedVault(f *feeds) (current func()) {
	t := f.t
	kv := c.vault.Client(vaultfake.Root, nil).KVv2("secret")
	versions := map[string]int{}
	f.run(func(n int) {
		name := fmt.Sprintf("agents/s%02d", n%12)
		s, err := kv.Put(f.ctx, name, map[string]any{"k": n})
		if err != nil {
			t.Error(err)
			return
		}
		v := s.VersionMetadata.Version
		versions[name] = v
		entry, es := audit(t, name, v, s.VersionMetadata.CreatedTime)
		f.l.allow(es)
		if n%2 == 0 {
			f.auditPost(entry, es, c.withKey)
		}
	})
	return func() { // after the feeds have stopped
		for name, v := range versions {
			_, es := audit(t, name, v, time.Now())
			f.l.require(es)
		}
	}
}
