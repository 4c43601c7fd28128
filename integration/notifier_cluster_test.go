package integration_test

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyturn/keyturn/events/natsbus"
	"github.com/keyturn/keyturn/internal/crashtest"
	"github.com/keyturn/keyturn/internal/testenv"
)

// clusterLimit is how long three servers may take to find a leader and to have
// it followed, on a machine that is busy: an election alone takes up to nine
// seconds.
const clusterLimit = 3 * time.Minute

// streamsOf are those that a notifier writes to.
var streamsOf = []string{natsbus.EventStream, natsbus.LateStream, natsbus.DeadLetterStream}

// clusterState says what a stream lacks, and who leads it.
func clusterState(t *testing.T, js jetstream.JetStream, stream string) (leader, lacks string) {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	s, err := js.Stream(ctx, stream)
	if err != nil {
		return "", err.Error()
	}
	info := s.CachedInfo().Cluster
	if info == nil || info.Leader == "" {
		return "", "no leader"
	}
	if len(info.Replicas) != 2 {
		return info.Leader, fmt.Sprintf("%d followers", len(info.Replicas))
	}
	for _, r := range info.Replicas {
		if !r.Current || r.Offline {
			return info.Leader, r.Name + " is behind"
		}
	}
	return info.Leader, ""
}

// whole waits until all streams have a leader and two followers that are up to
// date, and returns the leader of the events.
func whole(t *testing.T, js jetstream.JetStream) (leader string) {
	t.Helper()
	lacks := ""
	deadline := time.Now().Add(clusterLimit)
	for _, stream := range streamsOf {
		for {
			at, missing := clusterState(t, js, stream)
			if lacks = missing; lacks == "" {
				if stream == natsbus.EventStream {
					leader = at
				}
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("stream %s is not whole within %s: %s", stream, clusterLimit, lacks)
			}
			time.Sleep(100 * time.Millisecond)
		}
	}
	return leader
}

// clustered starts replicas of keyturn serve at a cluster of three, the n-th at
// urls[n], and a few sources.
func clustered(t *testing.T, cl *testenv.NATSCluster, every time.Duration, urls ...string) (*sources, *feeds, *ledger, []*replica) {
	t.Helper()
	c, l := newSources(t), newLedger(t)
	var fleet []*replica
	for i, url := range urls {
		name := string(rune('a' + i))
		conf := c.config(url, filepath.Join(c.dir, "spool-"+name), shortPath(t), filepath.Join(c.dir, "audit-"+name+".log"))
		r := newReplica(t, name, conf, append(c.env(), "KEYTURN_NATS__REPLICAS=3")...)
		// A cluster that has just started refuses streams for some seconds.
		r.start()
		fleet = append(fleet, r)
	}
	for _, r := range fleet {
		r.serving()
	}
	f := newFeeds(t, l, every, fleet...)
	bridge, queue, posted := newChanges("bridge"), newChanges("queue"), newChanges("http")
	f.run(func(n int) {
		body, es := bridge.next().eventBridge(t)
		f.push("/v1/eventbridge", body, es, c.withKey)
		if n%5 == 0 {
			c.sqs.Send(body, "")
		}
	})
	f.run(func(int) {
		body, es := queue.next().eventBridge(t)
		l.require(es)
		c.sqs.Send(body, "")
	})
	f.run(func(int) {
		entry, es := posted.next().audit(t)
		f.auditPost(entry, es, c.withKey)
	})
	return c, f, l, fleet
}

// finish drains all sources and checks what is stored.
func finish(t *testing.T, c *sources, f *feeds, l *ledger, js jetstream.JetStream) {
	t.Helper()
	f.drain()
	l.settle(js)
	testenv.Eventually(t, limit, "empty queues", func() bool { return c.waiting() == "" })
	l.check(js)
}

func rounds(few, many int) int {
	if os.Getenv(crashtest.SoakEnv) != "" {
		return many
	}
	return few
}

// TestClusterLeaderKilled: three servers in processes of their own with three
// replicas of each stream. The one that leads the events is killed under load,
// again and again.
func TestClusterLeaderKilled(t *testing.T) {
	t.Parallel() // it waits most of the time, for elections
	cl := testenv.NATSNodes(t, 3)
	_, js := connectTo(t, cl.URL())
	began := time.Now()
	c, f, l, fleet := clustered(t, cl, 200*time.Millisecond, cl.URL(), cl.URL())
	leader := whole(t, js)
	t.Logf("a cluster of three and two notifiers after %s", time.Since(began).Round(time.Millisecond))
	for range rounds(3, 20) {
		before := l.size()
		testenv.Eventually(t, limit, "load", func() bool { return l.size() >= before+20 })
		at := time.Now()
		cl.Named(leader).Kill()
		accepted := f.pushes.Load()
		testenv.Eventually(t, clusterLimit, "a push that is accepted without the leader", func() bool { return f.pushes.Load() > accepted+3 })
		took := time.Since(at)
		cl.Named(leader).Start()
		was := leader
		leader = whole(t, js)
		t.Logf("%s was killed; accepted again after %s; %s leads, and all is whole after %s", was, took.Round(time.Millisecond), leader, time.Since(at).Round(time.Millisecond))
	}
	finish(t, c, f, l, js)
	for _, r := range fleet {
		r.tell(t)
	}
}

// TestClusterPartition: the server that leads the events is cut off from the
// others, and one notifier knows no other server. It must not acknowledge
// anything, which nobody but itself could ever read, and go on by itself once
// the servers see one another again.
func TestClusterPartition(t *testing.T) {
	t.Parallel() // it waits most of the time, for elections
	cl := testenv.NATSNodes(t, 3)
	_, js := connectTo(t, cl.URL())
	c, f, l, fleet := clustered(t, cl, 200*time.Millisecond, cl.URL(), cl.URL())
	minor, major := fleet[0], fleet[1]
	lone := newChanges("lone")
	for n := range rounds(2, 8) {
		reset := n%2 == 1
		leader := cl.Named(whole(t, js))
		// One stays with the old leader and the other with the majority.
		for r, url := range map[*replica]string{minor: leader.URL(), major: cl.URL(leader)} {
			if err := r.stop(syscall.SIGTERM); err != nil {
				t.Errorf("%s ended with %v after SIGTERM", r.name, err)
			}
			r.start("KEYTURN_NATS__URL=" + url)
		}
		minor.serving()
		major.serving()
		_, others := connectTo(t, cl.URL(leader))
		testenv.Eventually(t, limit, "both to be ready", func() bool { return minor.probe("/readyz") == 200 && major.probe("/readyz") == 200 })
		t.Logf("%s leads and is cut off, reset %t", leader.Name(), reset)
		at := time.Now()
		cl.Isolate(leader, reset)

		// Nothing that the minority takes can be stored. What is on its way in
		// this moment is repeated by f; this is new.
		refused := 0
		for {
			ch := lone.next()
			body, es := ch.eventBridge(t)
			l.allow(es)
			switch code := f.once(minor.url(), "/v1/eventbridge", body, c.withKey); code {
			case http.StatusServiceUnavailable:
				refused++
			case http.StatusOK:
				t.Errorf("a notice was acknowledged %s after the cut, by a notifier whose server is alone", time.Since(at))
			default:
				t.Errorf("a notice during the cut was answered %d; want 503", code)
			}
			f.push("/v1/eventbridge", body, es, c.withKey) // its sender comes again
			now, lacks := clusterState(t, others, natsbus.EventStream)
			if refused >= 3 && now != "" && now != leader.Name() {
				break
			}
			if time.Since(at) > clusterLimit {
				t.Fatalf("no new leader within %s: %q %s", clusterLimit, now, lacks)
			}
		}
		testenv.Eventually(t, clusterLimit, "the minority to say that it is not ready", func() bool { return minor.probe("/readyz") == http.StatusServiceUnavailable })
		if code := minor.probe("/healthz"); code != http.StatusOK {
			t.Errorf("/healthz says %d during the cut; want 200", code)
		}
		accepted := f.pushes.Load()
		testenv.Eventually(t, clusterLimit, "pushes that the majority takes", func() bool { return f.pushes.Load() > accepted+5 })
		t.Logf("%d notices were refused by the minority within %s", refused, time.Since(at).Round(time.Millisecond))

		at = time.Now()
		cl.Heal()
		testenv.Eventually(t, clusterLimit, "the minority to be ready again", func() bool { return minor.probe("/readyz") == http.StatusOK })
		ch := lone.next()
		body, es := ch.eventBridge(t)
		l.require(es)
		testenv.Eventually(t, clusterLimit, "the minority to take a notice", func() bool {
			return f.once(minor.url(), "/v1/eventbridge", body, c.withKey) == http.StatusOK
		})
		t.Logf("healed after %s", time.Since(at).Round(time.Millisecond))
	}
	finish(t, c, f, l, js)
}
