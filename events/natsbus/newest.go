package natsbus

import (
	"strconv"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/keyturn/keyturn/events"
)

// These headers of a stored event tell what its subject had told before,
// where that is newer than the event itself. So the last message alone says
// what is newest, and small steps backwards within the tolerance cannot add up.
const (
	headerNewestVersion = "Keyturn-Newest-Version"
	headerNewestTime    = "Keyturn-Newest-Time"
	headerAhead         = "Keyturn-Ahead"

	// maxClock is how far a publisher's clock may be ahead of the server's.
	maxClock = time.Minute
)

// newest is what a subject tells: the bounds that an event must reach so as
// not to be late. The zero value is that of a subject without events.
//
// Where both have a version that counts, a larger version is newer whatever
// its time: a clock may be wrong, the provider's counter is not. A smaller one
// is older, unless its time is later by more than the tolerance: then the
// secret was deleted and made anew, and its counter began again. Else, also
// with equal versions under different ids, the time decides, with the
// tolerance: an event is older only if its time is before the newest by more.
//
// Only created and activated versions count. Versions are disabled, enabled,
// destroyed, revoked and retired in any order, so that version 2 after version
// 3 is news.
//
// An event without a time is never older by time. A time in the future is
// remembered as now: a wrong clock must not make everything after it late. It
// is compared as it is, since the wrong clock may be ours.
type newest struct {
	version uint64    // 0: none that counts
	at      time.Time // the latest time, and never later than when it was stored
	ahead   time.Time // the latest time that was in the future when it was stored
}

// counted returns e's version if it is one that counts: a decimal without
// leading zeros, as of GCP and Vault. The ids of AWS and Azure are longer.
func counted(e *events.Event) uint64 {
	v := e.Data.Version
	if (e.Type != events.VersionActivated && e.Type != events.VersionCreated) || v == "" || len(v) > 18 || v[0] == '0' {
		return 0
	}
	n, err := strconv.ParseUint(v, 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// older reports whether e is older than n.
func (n newest) older(e *events.Event, skew time.Duration) bool {
	at := e.Time
	if v := counted(e); v != 0 && n.version != 0 && v != n.version {
		return v < n.version && (at.IsZero() || !at.After(n.at.Add(skew)))
	}
	return !at.IsZero() && at.Before(n.at.Add(-skew))
}

// with returns n after e, which is not older, was stored at the time now.
// margin is how far ahead of now a time is taken for right.
func (n newest) with(e *events.Event, now time.Time, margin time.Duration) newest {
	if v := counted(e); v != 0 {
		n.version = v
	}
	n.at = later(n.at, earlier(e.Time, now))
	if e.Time.After(now.Add(margin)) {
		n.ahead = later(n.ahead, e.Time)
	}
	return n
}

// write puts into h what a reader of e alone would not know of n.
func (n newest) write(h nats.Header, e *events.Event) {
	for _, k := range []string{headerNewestVersion, headerNewestTime, headerAhead} {
		delete(h, k)
	}
	if n.version != counted(e) {
		h[headerNewestVersion] = []string{strconv.FormatUint(n.version, 10)}
	}
	if !n.at.Equal(e.Time) {
		h[headerNewestTime] = []string{n.at.UTC().Format(time.RFC3339Nano)}
	}
	if !n.ahead.IsZero() {
		h[headerAhead] = []string{n.ahead.UTC().Format(time.RFC3339Nano)}
	}
}

// readNewest is what a subject tells whose last message is e with the headers
// h, stored at the time at.
func readNewest(h nats.Header, e *events.Event, at time.Time) newest {
	n := newest{version: counted(e), at: earlier(e.Time, at)}
	if v, err := strconv.ParseUint(lastValue(h, headerNewestVersion), 10, 64); err == nil {
		n.version = v
	}
	if t, err := time.Parse(time.RFC3339Nano, lastValue(h, headerNewestTime)); err == nil {
		n.at = earlier(t, at.Add(maxClock))
	}
	if t, err := time.Parse(time.RFC3339Nano, lastValue(h, headerAhead)); err == nil {
		n.ahead = t
	}
	return n
}

func earlier(a, b time.Time) time.Time {
	if a.After(b) {
		return b
	}
	return a
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
