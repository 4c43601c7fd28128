package vaultkv

import (
	"context"
	"encoding/json"
	"sync"
	"time"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/secrets"
)

// WithAfter lets a test say when time has passed.
func WithAfter(o SessionOptions, after func(time.Duration) <-chan time.Time) *SessionOptions {
	o.after = after
	return &o
}

// A Hanging is a method whose first login gives a token for an hour, and whose
// others end when Release is closed, whatever their context says.
type Hanging struct {
	Begun   chan<- struct{}
	Release <-chan struct{}
	first   sync.Once
}

func (h *Hanging) login(context.Context, *conn, string, *unwrapped) (l *lease, err error) {
	h.first.Do(func() { l = &lease{token: "hanging", ttl: time.Hour} })
	if l == nil {
		h.Begun <- struct{}{}
		<-h.Release
		err = fault.Newf(fault.Unavailable, "hanging", "released")
	}
	return l, err
}

func (*Hanging) owned() bool { return true }

// WithPatience lets a test say how long Close waits.
func WithPatience(o *SessionOptions, d time.Duration) *SessionOptions {
	o.patience = d
	return o
}

// RoundTrip writes v as Vault stores it and reads it as Vault serves it.
func RoundTrip(v secrets.Value, field string) (stored []byte, back secrets.Value, err error) {
	data, err := encode("test", v, field)
	if err != nil {
		return nil, secrets.Value{}, err
	}
	if stored, err = json.Marshal(data); err != nil {
		return nil, secrets.Value{}, err
	}
	served, err := asServed(data)
	if err != nil {
		return nil, secrets.Value{}, err
	}
	back, err = decode("test", served, field)
	return stored, back, err
}

// Decode reads data that anybody may have written.
func Decode(data []byte, field string) (secrets.Value, error) { return decode("test", data, field) }

// MaxBody is the longest answer.
const MaxBody = maxBody

// TextField is the field with the exact text.
const TextField = textField
