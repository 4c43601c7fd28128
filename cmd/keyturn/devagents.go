package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/keyturn/keyturn/agent"
	"github.com/keyturn/keyturn/agent/pgxauth"
	"github.com/keyturn/keyturn/events/natsbus"
	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/secrets"
)

// A demoAgent is what an agent of a fleet does, and no more: it holds a client
// and a live connection, and works all the time.
type demoAgent struct {
	name   string
	ref    ref.Ref
	client *agent.Client
	work   func(ctx context.Context) error // one query or one call
	close  func()
}

// pace is the pause between two requests of one agent.
const pace = 2 * time.Millisecond

// requestTimeout bounds one request.
const requestTimeout = 5 * time.Second

// startAgents starts the fleet: each agent has its own connection to NATS, as
// agents on different machines would. They run until ctx is done.
func startAgents(ctx context.Context, w *world, log *slog.Logger, d *dev, wg *sync.WaitGroup) ([]*demoAgent, error) {
	kinds := []struct {
		name, ref string
		work      func(context.Context, *world, *demoAgent) error
	}{
		{"acme/agent-1", refOrders, queryWorker("keyturn_demo_orders")},
		{"acme/agent-2", refAcmeLLM, callWorker},
		{"globex/agent-3", refBilling, queryWorker("keyturn_demo_billing")},
	}
	if w.pg == nil {
		kinds[0].ref, kinds[0].work = refAcmeLLM, callWorker
		kinds[2].ref, kinds[2].work = refGlobLLM, callWorker
	}
	var agents []*demoAgent
	for _, k := range kinds {
		r, err := ref.Parse(k.ref)
		if err != nil {
			return nil, err
		}
		nc, err := connect(w.cfg.NATS, k.name, log)
		if err != nil {
			return nil, err
		}
		store, err := (&stores{cfg: w.cfg, nc: nc, log: log}).builtIn(ctx)
		if err != nil {
			nc.Close()
			return nil, err
		}
		tenant, _, _ := strings.Cut(k.name, "/")
		a := &demoAgent{name: k.name, ref: r, close: nc.Close}
		a.client = agent.New(store, natsbus.NewSubscriber(nc, &natsbus.Options{Logger: log}), &agent.Options{
			Refs: []ref.Ref{r}, Tenant: tenant, Logger: log,
			// Three agents are no herd; a fleet of thousands keeps the default.
			Jitter: -1,
		})
		a.client.OnChange(r, func(_ context.Context, c agent.Change) {
			d.moved(a.name, r, c.New.ID, c.Lag, c.Event != nil && c.Old != nil)
		})
		wg.Go(func() {
			if err := a.client.Run(ctx); err != nil {
				d.scr.line("agent", "%-18s stopped: %v", a.name, err)
			}
		})
		if err := k.work(ctx, w, a); err != nil {
			a.close()
			return nil, fmt.Errorf("%s: %w", k.name, err)
		}
		wg.Go(func() { a.run(ctx, d) })
		agents = append(agents, a)
	}
	return agents, nil
}

// run works until ctx is done. A request under way is let finish.
func (a *demoAgent) run(ctx context.Context, d *dev) {
	defer a.close()
	for ctx.Err() == nil {
		rctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), requestTimeout)
		err := a.work(rctx)
		cancel()
		d.st.requests.Add(1)
		if err != nil {
			d.st.failed.Add(1)
			d.scr.line("agent", "%-18s request failed: %v", a.name, err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(pace):
		}
	}
}

// queryWorker does one insert and one count in a transaction, through a pool
// that follows the credential.
func queryWorker(table string) func(context.Context, *world, *demoAgent) error {
	name := pgx.Identifier{table}.Sanitize()
	return func(ctx context.Context, w *world, a *demoAgent) error {
		cfg, err := pgxpool.ParseConfig("")
		if err != nil {
			return fault.Newf(fault.Invalid, "PostgreSQL", "a PG* variable of the environment is damaged")
		}
		cfg.ConnConfig.TLSConfig, cfg.ConnConfig.Fallbacks = w.pg.tls(), nil
		cfg.MaxConns, cfg.MinConns = 4, 1
		hook, err := pgxauth.New(a.client, a.ref, nil)
		if err != nil {
			return err
		}
		pool, err := hook.NewPool(ctx, cfg)
		if err != nil {
			return err
		}
		closeNATS := a.close
		a.close = func() { pool.Close(); closeNATS() }
		a.work = func(ctx context.Context) error {
			return pool.Do(ctx, func(c *pgxpool.Conn) error {
				_, err := c.Exec(ctx, "INSERT INTO "+name+" (note) VALUES ($1)", a.name)
				if err != nil {
					return err
				}
				_, err = c.Exec(ctx, "DELETE FROM "+name+" WHERE id < (SELECT max(id) - 1000 FROM "+name+")")
				return err
			})
		}
		return nil
	}
}

// callWorker calls the LLM provider with the key that is current.
func callWorker(_ context.Context, w *world, a *demoAgent) error {
	hc := &http.Client{Timeout: requestTimeout}
	closeNATS := a.close
	a.close = func() { hc.CloseIdleConnections(); closeNATS() }
	a.work = func(ctx context.Context) error {
		v, err := a.client.Current(ctx, a.ref)
		if err != nil {
			return err
		}
		key, err := keyOf(v.Value)
		if err != nil {
			return err
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, w.issuer.url+"/v1/chat/completions", strings.NewReader(`{"messages":[{"role":"user","content":"hello"}]}`))
		if err != nil {
			return err
		}
		req.Header.Set("Authorization", "Bearer "+key)
		req.Header.Set("Content-Type", "application/json")
		resp, err := hc.Do(req)
		if err != nil {
			return err
		}
		defer func() { _ = resp.Body.Close() }()
		_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<20))
		if resp.StatusCode == http.StatusUnauthorized {
			a.client.Invalidate(a.ref, v.ID)
		}
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("the issuer answered %s", resp.Status)
		}
		return nil
	}
	return nil
}

// keyOf reads the key out of an apikey secret. A parser's error could quote
// the value, so it is dropped.
func keyOf(v secrets.Value) (string, error) {
	var s struct {
		Key string `json:"key"`
	}
	if err := json.Unmarshal(v.Reveal(), &s); err != nil || s.Key == "" {
		return "", fault.Newf(fault.Invalid, "read key", "the secret is not JSON with a member key")
	}
	return s.Key, nil
}
