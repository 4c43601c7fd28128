package integration

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// A tap stands between a function and the fake AWS: it sees every request,
// may refuse, hold or rewrite one, and lets a test act at the very moment
// between two of them.
type tap struct {
	srv     *httptest.Server
	backend string

	mu    sync.Mutex
	calls []awsCall
	// before runs before a request is passed on, after once it was answered.
	// A refusal is answered instead of passing the request on.
	before func(c awsCall) *refusal
	after  func(c awsCall)
	// rewrite changes an answer's JSON.
	rewrite func(c awsCall, answer map[string]any)
}

// An awsCall is one request: the operation, and its JSON.
type awsCall struct {
	Op string
	In map[string]any
}

// A refusal is an error of the service.
type refusal struct {
	status int
	code   string
}

func newTap(t testing.TB, backend string) *tap {
	t.Helper()
	p := &tap{backend: backend}
	p.srv = httptest.NewServer(p)
	t.Cleanup(p.srv.Close)
	return p
}

// writes are the operations that change something at Secrets Manager.
var writes = map[string]bool{
	"PutSecretValue": true, "UpdateSecretVersionStage": true, "UpdateSecret": true, "CreateSecret": true, "DeleteSecret": true,
	"RestoreSecret": true, "RotateSecret": true, "CancelRotateSecret": true, "TagResource": true, "UntagResource": true,
}

func (p *tap) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(io.LimitReader(r.Body, 4<<20))
	if err != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	_, op, _ := strings.Cut(r.Header.Get("X-Amz-Target"), ".")
	c := awsCall{Op: op}
	_ = json.Unmarshal(body, &c.In) // what is not JSON is for the backend to refuse
	p.mu.Lock()
	p.calls = append(p.calls, c)
	before, after, rewrite := p.before, p.after, p.rewrite
	p.mu.Unlock()
	if before != nil {
		if no := before(c); no != nil {
			w.Header().Set("Content-Type", "application/x-amz-json-1.1")
			w.WriteHeader(no.status)
			_, _ = fmt.Fprintf(w, `{"__type":%q,"message":"refused by the test"}`, no.code)
			return
		}
	}
	req, err := http.NewRequestWithContext(r.Context(), r.Method, p.backend+r.URL.RequestURI(), bytes.NewReader(body))
	if err != nil {
		w.WriteHeader(http.StatusBadGateway)
		return
	}
	req.Header = r.Header.Clone()
	req.Host = r.Host // it is part of the signature
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		w.WriteHeader(http.StatusBadGateway)
		return
	}
	answer, err := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	if err != nil {
		w.WriteHeader(http.StatusBadGateway)
		return
	}
	if rewrite != nil && resp.StatusCode == http.StatusOK {
		var m map[string]any
		if err := json.Unmarshal(answer, &m); err == nil {
			rewrite(c, m)
			answer, _ = json.Marshal(m)
		}
	}
	maps.Copy(w.Header(), resp.Header)
	w.Header().Del("Content-Length")
	w.WriteHeader(resp.StatusCode)
	_, _ = w.Write(answer)
	if after != nil {
		after(c)
	}
}

// set changes the hooks while requests may be under way.
func (p *tap) set(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f()
}

// of returns the calls of op so far.
func (p *tap) of(op string) []awsCall {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []awsCall
	for _, c := range p.calls {
		if c.Op == op {
			out = append(out, c)
		}
	}
	return out
}

// written counts the calls so far that change something.
func (p *tap) written() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := 0
	for _, c := range p.calls {
		if writes[c.Op] {
			n++
		}
	}
	return n
}

// A gate is a TCP proxy whose connections are counted and can be cut.
type gate struct {
	l     net.Listener
	n     atomic.Int64
	mu    sync.Mutex
	conns []net.Conn
}

func newGate(t testing.TB, target string) *gate {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := &gate{l: l}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			g.n.Add(1)
			up, err := net.Dial("tcp", target)
			if err != nil {
				_ = c.Close()
				continue
			}
			g.mu.Lock()
			g.conns = append(g.conns, c, up)
			g.mu.Unlock()
			wg.Go(func() { pipe(up, c) })
			wg.Go(func() { pipe(c, up) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		g.cut()
		wg.Wait()
	})
	return g
}

// pipe copies until either side ends, and then ends both.
func pipe(dst, src net.Conn) {
	_, _ = io.Copy(dst, src)
	_ = dst.Close()
	_ = src.Close()
}

func (g *gate) port() int { return g.l.Addr().(*net.TCPAddr).Port }

// cut closes every connection.
func (g *gate) cut() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, c := range g.conns {
		_ = c.Close()
	}
	g.conns = nil
}
