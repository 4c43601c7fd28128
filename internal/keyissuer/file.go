package keyissuer

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/keyturn/keyturn/fault"
)

// state is the file.
type state struct {
	Version int      `json:"version"`
	Keys    []record `json:"keys"`
}

const stateVersion = 1

func load(path string) ([]record, error) {
	if path == "" {
		return nil, nil
	}
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("key issuer: %w", err)
	}
	var s state
	if err := json.Unmarshal(b, &s); err != nil || s.Version != stateVersion {
		return nil, fault.Newf(fault.Invalid, "key issuer", "%s is not a file of this issuer, version %d; move it away to start without keys", path, stateVersion)
	}
	return s.Keys, nil
}

// save replaces the file in one step, so that a process that dies leaves the
// old one or the new one. What it returned for is on the disk.
func save(path string, keys []record) (err error) {
	if path == "" {
		return nil
	}
	defer func() {
		if err != nil {
			err = &fault.Error{Kind: fault.Unavailable, Op: "key issuer", Msg: "the keys could not be saved", Err: err}
		}
	}()
	b, err := json.MarshalIndent(state{Version: stateVersion, Keys: keys}, "", "  ")
	if err != nil {
		return err
	}
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, filepath.Base(path)+".*") // mode 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	_, err = f.Write(append(b, '\n'))
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err = os.Rename(f.Name(), path); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
