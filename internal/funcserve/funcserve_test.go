package funcserve_test

import (
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/funcserve"
	"github.com/keyturn/keyturn/internal/testenv"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// SIGTERM lets a call end, and takes nothing new.
func TestServeEndsGently(t *testing.T) {
	address := net.JoinHostPort("127.0.0.1", strconv.Itoa(testenv.FreePort(t)))
	log := funcserve.NewLogger(io.Discard, nil)
	begun, finish := make(chan struct{}), make(chan struct{})
	h := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		close(begun)
		<-finish
		w.WriteHeader(http.StatusNoContent)
	})
	served := make(chan error, 1)
	go func() { served <- funcserve.Serve(t.Context(), address, h, time.Minute, log) }()
	listens := func() bool {
		c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", address)
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	}
	testenv.Eventually(t, 10*time.Second, "the server listens", listens)
	answered := make(chan int, 1)
	go func() {
		code := 0
		defer func() { answered <- code }()
		req, err := http.NewRequestWithContext(context.Background(), http.MethodPost, "http://"+address+"/", http.NoBody)
		if err != nil {
			return
		}
		client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		if resp, err := client.Do(req); err == nil {
			_ = resp.Body.Close()
			code = resp.StatusCode
		}
	}()
	<-begun
	if err := syscall.Kill(os.Getpid(), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, 10*time.Second, "the server takes nothing new", func() bool { return !listens() })
	close(finish)
	if code := <-answered; code != http.StatusNoContent {
		t.Errorf("what ran was answered with %d", code)
	}
	if err := <-served; err != nil {
		t.Errorf("serve: %v", err)
	}
	if err := funcserve.Serve(t.Context(), "nowhere:-1", h, time.Minute, log); !fault.Is(err, fault.Invalid) {
		t.Errorf("%v; expected Invalid", err)
	}
}
