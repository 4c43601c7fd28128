package pgxauth

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/keyturn/keyturn/agent"
	"github.com/keyturn/keyturn/events"
)

// A Pool is a pgxpool that follows a secret. Whatever needs a new connection
// while the server refuses the current credential waits for a newer version,
// for at most Options.RetryFor in all, and tries again: so the moment in
// which a rotation with a single user has changed the password and not yet
// promoted it fails no query. Only signing in is retried, never a statement.
type Pool struct {
	*pgxpool.Pool
	hook *Hook

	unregister func()
	stop       context.CancelFunc
	done       sync.WaitGroup

	mu    sync.Mutex
	moved chan struct{} // closed and replaced with each new version
}

// NewPool makes a pool from a copy of cfg, which [pgxpool.ParseConfig] made.
// It waits for the secret's first version, bounded by ctx, and fails if that
// is no database secret; whether the server is there shows with the first
// connection, as with any pool. Close it with Close.
func (h *Hook) NewPool(ctx context.Context, cfg *pgxpool.Config) (*Pool, error) {
	if _, err := h.current(ctx); err != nil {
		return nil, err
	}
	cfg = cfg.Copy()
	h.Configure(cfg)
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		return nil, err
	}
	p := &Pool{Pool: pool, hook: h, moved: make(chan struct{})}
	run, cancel := context.WithCancel(context.Background())
	p.stop = cancel
	sweep := make(chan struct{}, 1)
	p.unregister = h.client.OnChange(h.secret.Ref(), func(_ context.Context, ch agent.Change) {
		if ch.Event != nil && ch.Event.Type == events.VersionRevoked {
			h.rush(ch.Old)
		}
		p.mu.Lock()
		close(p.moved)
		p.moved = make(chan struct{})
		p.mu.Unlock()
		select {
		case sweep <- struct{}{}:
		default:
		}
	})
	p.done.Go(func() { p.sweep(run, sweep) })
	return p, nil
}

// Close closes the pool; like pgxpool's it waits for acquired connections.
func (p *Pool) Close() {
	p.unregister()
	p.stop()
	p.done.Wait()
	p.Pool.Close()
}

// Format shows the ref only; a pool's configuration holds a password.
func (p *Pool) Format(f fmt.State, _ rune) { _, _ = fmt.Fprintf(f, "pool for %s", p.hook.secret.Ref()) }

// minSweep keeps sweeping rare: it takes hold of all idle connections for a
// moment.
const minSweep = 50 * time.Millisecond

// sweeping marks the context in which sweep acquires.
type sweeping struct{}

// sweep closes idle connections of superseded versions, each at its moment.
func (p *Pool) sweep(ctx context.Context, changed <-chan struct{}) {
	t := time.NewTimer(0)
	defer t.Stop()
	t.Stop()
	for pause := minSweep; ; {
		select {
		case <-ctx.Done():
			return
		case <-changed:
			pause = minSweep
		case <-t.C:
			// Releasing runs AfterRelease, which drops what is due. Were it
			// dropped by PrepareConn, pgxpool would not look after MinConns
			// until its next health check.
			for _, c := range p.AcquireAllIdle(context.WithValue(ctx, sweeping{}, true)) {
				c.Release()
			}
			// What is left past its moment is in use, and goes when it is
			// released; looking again is for what was being opened or
			// released as its moment passed.
			pause = min(2*pause, 5*time.Second)
		}
		now := time.Now()
		if at, more := p.hook.next(now); more {
			if at.After(now) {
				pause = minSweep
			}
			t.Reset(max(time.Until(at), pause))
		}
	}
}

// refusal reports whether err is a connection that the server refused because
// of the credential: nothing was sent on it.
func refusal(err error) bool {
	var ce *pgconn.ConnectError
	var pe *pgconn.PgError
	return errors.As(err, &ce) && errors.As(err, &pe) && authCode(pe.Code)
}

// retry calls f again while f fails by a refusal and a newer version comes in
// time.
func (p *Pool) retry(ctx context.Context, f func() error) error {
	err := f()
	if !refusal(err) || p.hook.opts.RetryFor < 0 {
		return err
	}
	wait, cancel := context.WithTimeout(ctx, p.hook.opts.RetryFor)
	defer cancel()
	// The event tells of the new version. Where it is lost, asking helps; the
	// client bounds how often.
	nudge := time.NewTicker(max(p.hook.opts.RetryFor/5, 10*time.Millisecond))
	defer nudge.Stop()
	for refusal(err) && wait.Err() == nil {
		p.mu.Lock()
		moved := p.moved
		p.mu.Unlock()
		refused := p.hook.refused.Load()
		if refused == nil || refused != p.hook.secret.Current() {
			if err = f(); !refusal(err) || p.hook.refused.Load() != refused {
				continue
			}
		}
		select {
		case <-moved:
		case <-nudge.C:
			if refused != nil {
				p.hook.client.Invalidate(p.hook.secret.Ref(), refused.ID)
			}
		case <-wait.Done():
		}
	}
	return err
}

// Do calls f with a connection and releases it. f is called at most once, and
// its error returned as it is.
func (p *Pool) Do(ctx context.Context, f func(*pgxpool.Conn) error) error {
	c, err := p.Acquire(ctx)
	if err != nil {
		return err
	}
	defer c.Release()
	return f(c)
}

// AcquireFunc is Do.
func (p *Pool) AcquireFunc(ctx context.Context, f func(*pgxpool.Conn) error) error {
	return p.Do(ctx, f)
}

// Acquire returns a connection, which the caller releases.
func (p *Pool) Acquire(ctx context.Context) (c *pgxpool.Conn, err error) {
	err = p.retry(ctx, func() (err error) {
		c, err = p.Pool.Acquire(ctx)
		return err
	})
	return c, err
}

// Exec is as in pgxpool.
func (p *Pool) Exec(ctx context.Context, sql string, args ...any) (tag pgconn.CommandTag, err error) {
	err = p.retry(ctx, func() (err error) {
		tag, err = p.Pool.Exec(ctx, sql, args...)
		return err
	})
	return tag, err
}

// Query is as in pgxpool.
func (p *Pool) Query(ctx context.Context, sql string, args ...any) (rows pgx.Rows, err error) {
	err = p.retry(ctx, func() (err error) {
		rows, err = p.Pool.Query(ctx, sql, args...)
		return err
	})
	return rows, err
}

// QueryRow is as in pgxpool.
func (p *Pool) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	rows, err := p.Query(ctx, sql, args...)
	return row{rows, err}
}

type row struct {
	rows pgx.Rows
	err  error
}

// Scan reads the first row.
func (r row) Scan(dest ...any) error {
	if r.err != nil {
		return r.err
	}
	defer r.rows.Close()
	if !r.rows.Next() {
		if err := r.rows.Err(); err != nil {
			return err
		}
		return pgx.ErrNoRows
	}
	if err := r.rows.Scan(dest...); err != nil {
		return err
	}
	r.rows.Close()
	return r.rows.Err()
}

// Begin is as in pgxpool.
func (p *Pool) Begin(ctx context.Context) (pgx.Tx, error) { return p.BeginTx(ctx, pgx.TxOptions{}) }

// BeginTx is as in pgxpool.
func (p *Pool) BeginTx(ctx context.Context, o pgx.TxOptions) (tx pgx.Tx, err error) {
	err = p.retry(ctx, func() (err error) {
		tx, err = p.Pool.BeginTx(ctx, o)
		return err
	})
	return tx, err
}

// SendBatch is as in pgxpool.
func (p *Pool) SendBatch(ctx context.Context, b *pgx.Batch) pgx.BatchResults {
	c, err := p.Acquire(ctx)
	if err != nil {
		// It fails the same way, and its result carries the error.
		return p.Pool.SendBatch(ctx, b)
	}
	return &batch{c.SendBatch(ctx, b), c}
}

type batch struct {
	pgx.BatchResults
	c *pgxpool.Conn
}

// Close ends the batch and releases its connection.
func (b *batch) Close() error {
	err := b.BatchResults.Close()
	if b.c != nil {
		b.c.Release()
		b.c = nil
	}
	return err
}

// CopyFrom is as in pgxpool.
func (p *Pool) CopyFrom(ctx context.Context, table pgx.Identifier, columns []string, src pgx.CopyFromSource) (n int64, err error) {
	err = p.retry(ctx, func() (err error) {
		n, err = p.Pool.CopyFrom(ctx, table, columns, src)
		return err
	})
	return n, err
}

// Ping is as in pgxpool.
func (p *Pool) Ping(ctx context.Context) error {
	return p.retry(ctx, func() error { return p.Pool.Ping(ctx) })
}
