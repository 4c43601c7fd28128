package integration_test

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/keyturn/keyturn/internal/testenv"
)

// say writes text on a connection of its own and returns the statuses that come
// until the program closes it or is silent.
func (s *siege) say(t testing.TB, text string) (statuses []int) {
	t.Helper()
	c := s.raw(t)
	defer func() { _ = c.Close() }()
	_, _ = io.WriteString(c, text)
	r := bufio.NewReader(c)
	for {
		_ = c.SetReadDeadline(time.Now().Add(8 * time.Second))
		resp, err := http.ReadResponse(r, &http.Request{Method: http.MethodPost})
		if err != nil {
			return statuses
		}
		b, _ := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		s.clean(t, b)
		statuses = append(statuses, resp.StatusCode)
	}
}

// head is a request's head, with lines more.
func head(path string, lines ...string) string {
	return "POST " + path + " HTTP/1.1\r\nHost: keyturn.example.com\r\nContent-Type: application/json\r\n" + strings.Join(lines, "\r\n") + "\r\n\r\n"
}

// connections are attacks below the requests: what is malformed, lies about its
// length, hides another, or is slow.
func (s *siege) connections(t *testing.T) {
	key := "X-Api-Key: " + s.key
	body := func(name string) string { return string(awsNoticeOf(name)) }
	length := func(b string) string { return fmt.Sprintf("Content-Length: %d", len(b)) }
	chunk := func(b string) string { return fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(b), b) }
	bad := body("row-" + s.known)
	stolen := head("/v1/eventbridge", "X-Api-Key: "+s.stranger, length(bad)) + bad // what is hidden has no key
	const path = "/v1/eventbridge"

	t.Run("malformed", func(t *testing.T) {
		for name, x := range map[string]struct {
			text string
			want []int // the first answer; none is fine too if 0 is among them
		}{
			"two lengths":                 {head(path, key, length(bad), "Content-Length: 3") + bad, []int{400}},
			"two lengths in one":          {head(path, key, fmt.Sprintf("Content-Length: %d, 3", len(bad))) + bad, []int{400}},
			"a negative length":           {head(path, key, "Content-Length: -1") + bad, []int{400}},
			"a length with a sign":        {head(path, key, fmt.Sprintf("Content-Length: +%d", len(bad))) + bad, []int{400}},
			"a length in hex":             {head(path, key, fmt.Sprintf("Content-Length: 0x%x", len(bad))) + bad, []int{400}},
			"a length beyond numbers":     {head(path, key, "Content-Length: 99999999999999999999") + bad, []int{400}},
			"a length of 8 EiB":           {head(path, key, "Content-Length: 9223372036854775807") + bad, []int{413}},
			"chunked twice":               {head(path, key, "Transfer-Encoding: chunked", "Transfer-Encoding: chunked") + chunk(bad), []int{400, 501}},
			"chunked, and something else": {head(path, key, "Transfer-Encoding: gzip, chunked") + chunk(bad), []int{400, 501}},
			"chunked, misspelt":           {head(path, key, "Transfer-Encoding: xchunked", length(bad)) + bad, []int{400, 501}},
			"chunked, with a tab":         {head(path, key, "Transfer-Encoding:\x0bchunked", length(bad)) + bad, []int{400, 501}},
			"a blank before the colon":    {head(path, "X-Api-Key : "+s.key, length(bad)) + bad, []int{400}},
			"a folded header":             {head(path, key, " X-Other: 1", length(bad)) + bad, []int{400, 401}},
			"NUL in a header":             {head(path, key, "X-Note: a\x00b", length(bad)) + bad, []int{400}},
			"NUL in a name":               {head(path, key, "X-No\x00te: a", length(bad)) + bad, []int{400}},
			"no host":                     {strings.Replace(head(path, key, length(bad))+bad, "Host: keyturn.example.com\r\n", "", 1), []int{400}},
			"two hosts":                   {head(path, key, "Host: evil.test", length(bad)) + bad, []int{400}},
			"a host that is none":         {strings.Replace(head(path, key, length(bad))+bad, "keyturn.example.com", "a b/c", 1), []int{400}},
			"HTTP/9.9":                    {strings.Replace(head(path, key, length(bad))+bad, "HTTP/1.1", "HTTP/9.9", 1), []int{400, 505}},
			"no version":                  {"POST " + path + "\r\n\r\n", []int{400}},
			"a header of 64 KiB":          {head(path, key, "X-Note: "+strings.Repeat("a", 64<<10), length(bad)) + bad, []int{431}},
			"ten thousand headers":        {head(path, key, strings.Repeat("A: b\r\n", 10_000)+"B: c", length(bad)) + bad, []int{431}},
			"a line of 64 KiB":            {head(path+"?"+strings.Repeat("a", 64<<10), key, length(bad)) + bad, []int{431}},
			"chunks that are none":        {head(path, key, "Transfer-Encoding: chunked") + "zz\r\n" + bad, []int{400, 503}},
			"a chunk of 16 EiB":           {head(path, key, "Transfer-Encoding: chunked") + "ffffffffffffffff\r\n" + bad, []int{400, 413, 503}},
			"less than it says":           {head(path, key, fmt.Sprintf("Content-Length: %d", len(bad)+100)) + bad, []int{0, 503}},
			"a path that climbs":          {head("/x/.."+path, key, length(bad)) + bad, []int{404}},
			"a path with a dot":           {head("/v1/./eventbridge", key, length(bad)) + bad, []int{404}},
			"a path with two slashes":     {head("/"+path, key, length(bad)) + bad, []int{404}},
			"a path with a slash behind":  {head(path+"/", key, length(bad)) + bad, []int{404}},
			"a path in capitals":          {head("/V1/EventBridge", key, length(bad)) + bad, []int{404}},
			"an escaped path":             {head("/v1/%65ventbridge", key, length(bad)) + bad, []int{404}},
			"an escaped slash":            {head("/v1%2feventbridge", key, length(bad)) + bad, []int{404}},
			"a path with NUL":             {head(path+"%00", key, length(bad)) + bad, []int{404}},
			"a path with a parameter":     {head(path+";x=1", key, length(bad)) + bad, []int{404}},
			"a tunnel":                    {strings.Replace(head("127.0.0.1:22", key), "POST", "CONNECT", 1), []int{400, 404}},
			"debugging":                   {strings.Replace(head("/debug/pprof/heap", key), "POST", "GET", 1), []int{404}},
			"the metrics":                 {strings.Replace(head("/metrics", key), "POST", "GET", 1), []int{404}},
			"TRACE":                       {strings.Replace(head(path, "X-Api-Key: "+s.stranger), "POST", "TRACE", 1), []int{401}},
			"another protocol":            {"\x16\x03\x01" + s.stranger + "\r\n\r\n", []int{0, 400}},
			"no wait for a wrong key":     {head(path, "X-Api-Key: "+s.stranger, "Expect: 100-continue", "Content-Length: 1000"), []int{401}},
			"an upgrade":                  {head(path, "X-Api-Key: "+s.stranger, "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__"), []int{401}},
			// The hidden request is one of its own, which needs a key of its own.
			"hidden behind a length":  {head(path, key, "Content-Length: 2") + "[]" + stolen, []int{200}},
			"hidden behind chunks":    {head(path, key, "Content-Length: 4", "Transfer-Encoding: chunked") + chunk("[]") + stolen, []int{200, 400}},
			"hidden in the other way": {head(path, key, "Transfer-Encoding: chunked", fmt.Sprintf("Content-Length: %d", len(chunk("[]")+stolen))) + chunk("[]") + stolen, []int{200, 400}},
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel() // each waits for what may still come
				got := s.say(t, x.text)
				first := 0
				if len(got) > 0 {
					first = got[0]
				}
				if !slices.Contains(x.want, first) {
					t.Errorf("answered %v; want one of %v first", got, x.want)
				}
				for _, st := range got[min(len(got), 1):] {
					if st < 400 {
						t.Errorf("what was hidden was answered %v", got)
					}
				}
			})
		}
	})
	t.Run("pipelined", func(t *testing.T) {
		text := ""
		for range 3 {
			name := s.name("pipelined")
			b := body(name)
			text += head(path, key, length(b)) + b
			s.stored = append(s.stored, name)
		}
		name := s.name("chunked")
		s.stored = append(s.stored, name)
		text += head(path, key, "Transfer-Encoding: chunked", "Connection: close") + chunk(body(name))
		if got := s.say(t, text); !slices.Equal(got, []int{200, 200, 200, 200}) {
			t.Errorf("answered %v; want four times 200", got)
		}
	})
	t.Run("plain HTTP where TLS is", func(t *testing.T) {
		c, err := net.Dial("tcp", s.addr)
		must(t, err)
		defer func() { _ = c.Close() }()
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		_, _ = io.WriteString(c, head(path, key, length(bad))+bad)
		if b, _ := io.ReadAll(c); !strings.HasPrefix(string(b), "HTTP/1.0 400") {
			t.Errorf("answered %q", b)
		}
	})
	t.Run("TLS 1.1", func(t *testing.T) {
		cfg := s.tls()
		cfg.MinVersion, cfg.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
		if c, err := tls.Dial("tcp", s.addr, cfg); err == nil {
			_ = c.Close()
			t.Error("an old version of TLS is spoken")
		}
	})
	t.Run("slow and idle", s.slow)
}

// slow holds as many connections as a flood would, each in its own way slow,
// and checks that others are served all the while, and that it ends by itself.
func (s *siege) slow(t *testing.T) {
	var conns []net.Conn
	defer func() {
		for _, c := range conns {
			_ = c.Close()
		}
	}()
	for range 2000 {
		c, err := net.Dial("tcp", s.addr)
		must(t, err)
		conns = append(conns, c)
	}
	s.control(t, byKey)
	// One byte of a head now and then; a body that never ends, of one who has
	// the key, and of strangers, who have none to show before it is there.
	began := time.Now()
	ended := make(chan string, 200)
	drip := func(what, text string) {
		c := s.raw(t)
		_, _ = io.WriteString(c, text)
		go func() {
			for {
				_ = c.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
				var b [1]byte
				if _, err := c.Read(b[:]); err == nil {
					break
				} else if !errors.Is(err, os.ErrDeadlineExceeded) {
					break
				}
				if _, err := c.Write([]byte("a")); err != nil {
					break
				}
			}
			ended <- what
		}()
	}
	n := 0
	for range 20 {
		drip("head", "POST /v1/eventbridge HTTP/1.1\r\nX-Note: ")
		drip("known", head("/v1/eventbridge", "X-Api-Key: "+s.key, "Content-Length: 100000"))
		drip("stranger", head("/v1/sns", "X-Amz-Sns-Message-Type: Notification", "Content-Length: 100000"))
		drip("stranger", head("/v1/sns", "X-Amz-Sns-Message-Type: Notification", "Content-Length: 100000"))
		n += 4
	}
	for _, c := range []sender{byKey, byEntra2, byGoogle, byHMAC, byAudit} {
		s.control(t, c)
	}
	last := map[string]time.Duration{}
	for range n {
		select {
		case what := <-ended:
			last[what] = time.Since(began).Round(100 * time.Millisecond)
		case <-time.After(40 * time.Second):
			t.Fatalf("slow connections live on; ended so far: %v", last)
		}
	}
	t.Logf("slow ones ended after %v", last)
	// Those who only connected are cut off too.
	_ = conns[0].SetReadDeadline(time.Now().Add(30 * time.Second))
	if _, err := io.ReadAll(conns[0]); err != nil && strings.Contains(err.Error(), "timeout") {
		t.Error("a connection without a request lives on")
	}
	// The strangers' own route is free again.
	testenv.Eventually(t, 20*time.Second, "SNS to be served again", func() bool {
		status, _, _ := s.fire(t, bySNS.shot(s, "control-after-slow"))
		return status == 200
	})
	s.stored = append(s.stored, "control-after-slow")
	for range 3 { // and stays so; repeated tries above may have been stored once only
		s.control(t, bySNS)
	}
}

// flood sends tokens with key ids that nobody has. The issuers hardly hear of
// it, nobody is let in, and whoever has a known key is served.
func (s *siege) flood(t *testing.T) {
	before := s.clouds.keySets.Load()
	began := time.Now()
	var wg sync.WaitGroup
	var odd atomic.Int64
	senders := []sender{byOAuth, byEntra2, byGoogle}
	for i := range 8 {
		wg.Go(func() {
			for j := range 40 {
				c := senders[j%len(senders)]
				x := c.notice(s, "row-"+s.stranger)
				x.set("Authorization", "Bearer "+mint(t, jose.RS256, forgerKey(), fmt.Sprintf("%s-%d-%d", s.stranger, i, j), c.claims().json()))
				if status, _, _ := s.fire(t, x); status != 401 && status != 503 {
					odd.Add(1)
				}
			}
		})
	}
	for range 5 {
		for _, c := range senders {
			s.control(t, c)
		}
	}
	wg.Wait()
	if n := odd.Load(); n > 0 {
		t.Errorf("%d tokens by unknown keys were answered neither 401 nor 503", n)
	}
	// Of each of the three at most one each five seconds.
	most := int64(3 * (2 + time.Since(began)/(5*time.Second)))
	if n := s.clouds.keySets.Load() - before; n > most {
		t.Errorf("the issuers were asked %d times; want at most %d", n, most)
	}
}
