package vaultevents

import "sync"

// A memory knows which versions were handed on, so that a look at unchanged
// secrets costs the bus nothing. It begins empty with each process, and is
// bounded; what it does not know is handed on again, which does no harm.
type memory struct {
	mu       sync.Mutex
	versions map[string]remembered
	limit    int
	round    int
}

type remembered struct {
	version int
	created string
	round   int // the last look that saw it
}

func (s secret) key() string { return s.mount + "\x00" + s.path }

// begin begins a look.
func (m *memory) begin() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.round++
}

// has reports whether a version was handed on. A secret that was deleted and
// made anew may have the same version again, of another time.
func (m *memory) has(s secret, version int, created string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	v, ok := m.versions[s.key()]
	if !ok || v.version != version || v.created != created {
		return false
	}
	v.round = m.round
	m.versions[s.key()] = v
	return true
}

// add notes that a version was handed on.
func (m *memory) add(s secret, version int, created string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.versions[s.key()]; ok || len(m.versions) < m.limit {
		m.versions[s.key()] = remembered{version, created, m.round}
	}
}

// end ends a look at everything: what it did not see is gone.
func (m *memory) end() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for k, v := range m.versions {
		if v.round != m.round {
			delete(m.versions, k)
		}
	}
}
