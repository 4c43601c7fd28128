package vaultfake

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/coder/websocket"
)

const (
	// subscriberQueue is how many notifications wait for one subscriber before
	// it counts as slow and is cut off. Vault waits for a minute instead.
	subscriberQueue = 4096
	// frameTimeout bounds the writing of one frame.
	frameTimeout = 5 * time.Second
)

// A subscriber is one open subscription.
type subscriber struct {
	ns, pattern string
	frames      chan []byte
	ctx         context.Context //nolint:containedctx // ends the subscription
	cancel      context.CancelFunc
}

// Enterprise says whether the server is of the Enterprise edition, and so has
// event notifications. Open subscriptions stay.
func (s *Server) Enterprise(is bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.enterprise = is
}

// Paged says whether lists are told in pages, as OpenBao does.
func (s *Server) Paged(are bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.paged = are
}

// Subscriptions counts those that are open.
func (s *Server) Subscriptions() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.subs)
}

// CutEvents cuts all subscriptions off, as a network does: without a word.
func (s *Server) CutEvents() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for sub := range s.subs {
		sub.cancel()
		delete(s.subs, sub)
	}
}

// SendFrame sends any text to every subscriber, as a forger would.
func (s *Server) SendFrame(frame []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for sub := range s.subs {
		s.send(sub, frame)
	}
}

// RotateStatic is the scheduled rotation of a static role: two notifications,
// of which one is the rotation. There is no database engine behind it.
func (s *Server) RotateStatic(ns, mount, role string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, operation := range []string{"static-creds-create", "rotate"} {
		s.emit(ns, mount, "database", "", "database/"+operation, map[string]string{
			"name": role, "operation": operation, "path": strings.Trim(mount, "/"), "modified": "true",
		})
	}
}

// subscribe registers a subscriber before it is answered, so that it hears of
// all that happens after the answer.
func (s *Server) subscribe(req *request, pattern string) answer {
	sub := &subscriber{ns: req.ns, pattern: pattern, frames: make(chan []byte, subscriberQueue)}
	sub.ctx, sub.cancel = context.WithCancel(context.Background())
	s.subs[sub] = true
	s.serving.Add(1)
	return answer{status: http.StatusSwitchingProtocols, sub: sub}
}

// stream serves one subscription until it is cut or its client goes.
func (s *Server) stream(w http.ResponseWriter, r *http.Request, sub *subscriber) {
	defer s.serving.Done()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		sub.cancel()
		delete(s.subs, sub)
	}()
	conn, err := websocket.Accept(w, r, nil)
	if err != nil {
		return
	}
	defer func() { _ = conn.CloseNow() }()
	ctx := conn.CloseRead(sub.ctx)
	for {
		select {
		case <-ctx.Done():
			return
		case frame := <-sub.frames:
			wctx, cancel := context.WithTimeout(ctx, frameTimeout)
			err := conn.Write(wctx, websocket.MessageText, frame)
			cancel()
			if err != nil {
				return
			}
		}
	}
}

func (s *Server) send(sub *subscriber, frame []byte) {
	select {
	case sub.frames <- frame:
	default: // too slow
		sub.cancel()
		delete(s.subs, sub)
	}
}

// emit tells the subscribers of a namespace what happened, in the form of a
// captured notification.
func (s *Server) emit(ns, mount, plugin, version, what string, metadata map[string]string) {
	event := id(16)
	event = event[:8] + "-" + event[8:12] + "-" + event[12:16] + "-" + event[16:20] + "-" + event[20:]
	if metadata["modified"] == "true" {
		metadata["vault_index"] = "bm90IGFuIGluZGV4"
	}
	info := map[string]string{"mount_class": "secret", "mount_accessor": plugin + "_00000000", "mount_path": mount, "plugin": plugin}
	if version != "" {
		info["version"] = version
	}
	data := map[string]any{"event": map[string]any{"id": event, "metadata": metadata}, "event_type": what, "plugin_info": info}
	if ns != "" {
		data["namespace"] = ns + "/"
	}
	frame, err := json.Marshal(map[string]any{
		"id": event, "source": "vault://vault-0", "specversion": "1.0", "type": "*", "data": data,
		"datacontentype": "application/cloudevents", "time": stamp(s.now()),
	})
	if err != nil {
		panic("vaultfake: " + err.Error())
	}
	for sub := range s.subs {
		prefix, glob := strings.CutSuffix(sub.pattern, "*")
		if sub.ns == ns && (what == sub.pattern || glob && strings.HasPrefix(what, prefix)) {
			s.send(sub, frame)
		}
	}
}

// notifyKV tells of a request to the key-value engine that succeeded. Of a
// secret that does not exist the engine says nothing.
func (s *Server) notifyKV(req *request, mount, path string, e *engine, existed bool) {
	endpoint, name, _ := strings.Cut(path, "/")
	type route struct{ method, endpoint string }
	operation := map[route]string{
		{http.MethodPost, "data"}: "data-write", {http.MethodPatch, "data"}: "data-patch", {http.MethodDelete, "data"}: "data-delete",
		{http.MethodPost, "delete"}: "delete", {http.MethodPost, "undelete"}: "undelete", {http.MethodPost, "destroy"}: "destroy",
		{http.MethodPost, "metadata"}: "metadata-write", {http.MethodPatch, "metadata"}: "metadata-patch", {http.MethodDelete, "metadata"}: "metadata-delete",
	}[route{req.method, endpoint}]
	if operation == "" || !existed && e.keys[name] == nil {
		return
	}
	metadata := map[string]string{"modified": "true", "operation": operation, "path": mount + path}
	if k := e.keys[name]; k != nil && endpoint != "metadata" {
		metadata["current_version"], metadata["oldest_version"] = strconv.Itoa(k.current), strconv.Itoa(k.oldest)
	}
	switch operation {
	case "data-write", "data-patch", "metadata-write", "metadata-patch":
		metadata["data_path"] = mount + path
	case "undelete":
		metadata["data_path"] = mount + "data/" + name
	}
	if past := map[string]string{"delete": "deleted", "undelete": "undeleted", "destroy": "destroyed"}[operation]; past != "" {
		metadata[past+"_versions"] = strings.ReplaceAll(fmt.Sprint(ints(req.body["versions"])), " ", ",")
	}
	s.emit(req.ns, mount, "kv", "2", "kv-v2/"+operation, metadata)
}
