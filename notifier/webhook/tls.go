package webhook

import (
	"crypto/tls"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/keyturn/keyturn/fault"
)

// certRecheck is how often the files of a certificate are looked at.
const certRecheck = 10 * time.Second

// A certificate is a key pair in files that somebody else renews. It is safe
// for concurrent use.
type certificate struct {
	certFile, keyFile string
	log               *slog.Logger

	mu      sync.Mutex
	pair    *tls.Certificate
	stamp   [2]time.Time // modification times of what is loaded
	checked time.Time
}

// load reads the files. The error is of kind Invalid.
func (c *certificate) load(now time.Time) error {
	c.checked = now
	stamp, err := c.stamps()
	if err != nil {
		return err
	}
	pair, err := tls.LoadX509KeyPair(c.certFile, c.keyFile)
	if err != nil {
		// A parser's text could quote the key.
		return fault.Newf(fault.Invalid, "webhook: certificate", "%s and %s are no certificate chain and key that belong together; expected PEM", c.certFile, c.keyFile)
	}
	c.pair, c.stamp = &pair, stamp
	return nil
}

func (c *certificate) stamps() (out [2]time.Time, err error) {
	for i, name := range []string{c.certFile, c.keyFile} {
		fi, err := os.Stat(name)
		if err != nil {
			return out, fault.New(fault.Invalid, "webhook: certificate", err)
		}
		out[i] = fi.ModTime()
	}
	return out, nil
}

// get returns the pair, renewed if the files changed. While they cannot be read,
// as between two writes of a renewal, the pair before is served on.
func (c *certificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	if now.Sub(c.checked) < certRecheck {
		return c.pair, nil
	}
	c.checked = now
	if stamp, err := c.stamps(); err == nil && stamp == c.stamp {
		return c.pair, nil
	}
	if err := c.load(now); err != nil {
		c.log.Error("certificate not renewed, the one before is served on", "err", err)
	} else {
		c.log.Info("certificate renewed")
	}
	return c.pair, nil
}
