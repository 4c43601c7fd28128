package vaultevents

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/coder/websocket"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/notice"
	"github.com/keyturn/keyturn/notifier"
)

const opSubscribe = "vaultevents: subscribe"

// errUnsupported is what a Vault without notifications answers.
var errUnsupported = errors.New("no event notifications")

// subscribe keeps one subscription until ctx is done.
func (r *run) subscribe(ctx context.Context, typ string) {
	b := backoff{o: &r.o}
	log := r.o.Logger.With("source", r.o.Name, "type", typ)
	for ctx.Err() == nil {
		opened, err := r.connect(ctx, typ)
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, errUnsupported):
			if r.unsupported.CompareAndSwap(false, true) {
				r.o.Logger.WarnContext(ctx, "there are no event notifications (404): they are of Vault Enterprise, and of a namespace that exists; the metadata of the mounts is looked at instead",
					"source", r.o.Name, "every", r.o.ResyncEvery.String(), "mounts", len(r.o.Mounts))
				r.resync()
			}
			b.reset()
			sleep(ctx, around(r.o.RetryUnsupported))
			continue
		case !opened.IsZero() && time.Since(opened) > r.o.MaxBackoff:
			b.reset() // one that held for a while was a good one
		}
		wait := b.next()
		log.WarnContext(ctx, "the subscription ended", "err", err, "again_in", wait.String())
		sleep(ctx, wait)
	}
}

// dial opens a subscription. With a token that Vault does not know any more it
// asks for another, once.
func (r *run) dial(ctx context.Context, typ string) (*websocket.Conn, error) {
	for again := false; ; again = true {
		dctx, cancel := context.WithTimeout(ctx, r.o.Timeout)
		secret, err := r.client.token.get(dctx, opSubscribe)
		if err != nil {
			cancel()
			return nil, err
		}
		conn, resp, err := websocket.Dial(dctx, r.client.base+"sys/events/subscribe/"+typ+"?json=true", &websocket.DialOptions{ //nolint:bodyclose // closed by Dial
			HTTPClient: r.client.http, HTTPHeader: r.client.header(secret),
		})
		cancel()
		switch {
		case err == nil:
			return conn, nil
		case resp == nil:
			return nil, unreachable(opSubscribe, err)
		case resp.StatusCode == http.StatusNotFound:
			return nil, errUnsupported
		case resp.StatusCode == http.StatusSwitchingProtocols || resp.StatusCode == http.StatusOK:
			return nil, fault.Newf(fault.Unavailable, opSubscribe, "the answer is no websocket; look for a proxy in between that does not pass one on")
		case resp.StatusCode != http.StatusForbidden || again || !r.client.over(ctx, opSubscribe, secret):
			return nil, refusal(opSubscribe, resp.StatusCode)
		}
	}
}

// A line is one open connection.
type line struct {
	conn *websocket.Conn
	// frames counts what was read. reading says that more would be read at once:
	// otherwise handlers are slow, and a pong would wait as well.
	frames  atomic.Int64
	reading atomic.Bool
}

// connect opens a subscription and reads from it until it ends. opened is when
// it began, zero if it did not.
func (r *run) connect(ctx context.Context, typ string) (opened time.Time, err error) {
	conn, err := r.dial(ctx, typ)
	if err != nil {
		return time.Time{}, err
	}
	opened = time.Now()
	r.o.Logger.InfoContext(ctx, "subscribed", "source", r.o.Name, "type", typ)
	r.listening.Add(1)
	r.unsupported.Store(false)
	// What happened before this moment is found by looking, and what happens
	// after it is heard.
	r.resync()
	conn.SetReadLimit(r.o.MaxMessage)
	l := &line{conn: conn}
	cctx, cancel := context.WithCancel(ctx)
	pinged := make(chan struct{})
	go func() {
		defer close(pinged)
		r.ping(cctx, l)
	}()
	err = r.read(cctx, l)
	cancel()
	_ = conn.CloseNow()
	<-pinged
	r.listening.Add(-1)
	return opened, err
}

// read hands on what is heard. It takes the next notification only when the
// one before has found a slot: then Vault's own buffers fill up, and in the end
// it lets go of us.
func (r *run) read(ctx context.Context, l *line) error {
	for {
		l.reading.Store(true)
		_, body, err := l.conn.Read(ctx)
		l.reading.Store(false)
		if err != nil {
			return ended(err, r.o.MaxMessage)
		}
		l.frames.Add(1)
		received := time.Now()
		select {
		case r.slots <- struct{}{}:
		case <-ctx.Done():
			return unreachable(opSubscribe, ctx.Err())
		}
		r.inFlight.Go(func() {
			defer func() { <-r.slots }()
			r.handle(notifier.Delivery{Source: r.o.Name, ID: idOf(body), Body: body, Received: received})
		})
	}
}

// handle hands on one notification. One that is given up is looked for among
// the metadata.
func (r *run) handle(d notifier.Delivery) {
	err := r.deliver(d)
	if err == nil {
		return
	}
	r.o.Logger.ErrorContext(r.handling, "a notification was given up; if it was a write of a key-value engine, looking at the metadata finds it",
		"source", r.o.Name, "id", d.ID, "attempts", d.Attempt, "kind", fault.KindOf(err).String())
	r.resync()
}

// ping finds out that the other side is gone.
func (r *run) ping(ctx context.Context, l *line) {
	t := time.NewTicker(r.o.PingEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		before := l.frames.Load()
		pctx, cancel := context.WithTimeout(ctx, r.o.Timeout)
		err := l.conn.Ping(pctx)
		cancel()
		if err != nil && l.reading.Load() && l.frames.Load() == before {
			_ = l.conn.CloseNow() // ends the read
			return
		}
	}
}

// ended says why a subscription ended, without what the other side wrote.
func ended(err error, limit int64) error {
	switch {
	case errors.Is(err, websocket.ErrMessageTooBig):
		return fault.Newf(fault.Unavailable, opSubscribe, "a notification is longer than %d bytes", limit)
	case websocket.CloseStatus(err) != -1:
		return fault.Newf(fault.Unavailable, opSubscribe, "Vault closed the subscription with code %d", websocket.CloseStatus(err))
	}
	return fault.Newf(fault.Unavailable, opSubscribe, "the connection ended")
}

// idOf is the id of a notification, or "".
func idOf(body []byte) string {
	var n struct {
		ID string `json:"id"`
	}
	if json.Unmarshal(body, &n) != nil {
		return ""
	}
	return notice.Token(n.ID)
}
