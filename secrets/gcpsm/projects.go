package gcpsm

import (
	"context"
	"regexp"
	"strings"
	"sync"

	"github.com/keyturn/keyturn/ref"
)

// Projects maps project ids to numbers and back. The service answers with
// numbers, and its events carry them, while people write ids; a ref keeps what
// its writer wrote. What was not told with [Projects.Add] is learned from
// answers. It is safe for concurrent use; the zero value knows nothing yet.
type Projects struct {
	mu     sync.Mutex
	number map[string]string // by id
	id     map[string]string // by number
}

var (
	numberForm = regexp.MustCompile(`^[0-9]+$`)
	parentForm = regexp.MustCompile(`^projects/([^/]+)`)
)

// Add tells the number of a project.
func (p *Projects) Add(id, number string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.number == nil {
		p.number, p.id = map[string]string{}, map[string]string{}
	}
	p.number[id], p.id[number] = number, id
}

// learn takes from an answer the number of the project that was asked by id.
func (p *Projects) learn(asked, answered string) {
	a, b := parentForm.FindStringSubmatch(asked), parentForm.FindStringSubmatch(answered)
	if a != nil && b != nil && !numberForm.MatchString(a[1]) && numberForm.MatchString(b[1]) {
		p.Add(a[1], b[1])
	}
}

// Numbered returns r with its project's number, and whether that is known. Two
// refs name one secret if these are equal.
func (p *Projects) Numbered(r ref.Ref) (ref.Ref, bool) {
	project := r.ScopePart(0)
	if r.Provider != ref.GCP || numberForm.MatchString(project) {
		return r, r.Provider == ref.GCP
	}
	p.mu.Lock()
	number, ok := p.number[project]
	p.mu.Unlock()
	return withProject(r, project, number, ok)
}

// Named returns r with its project's id, as people write it, and whether that
// is known.
func (p *Projects) Named(r ref.Ref) (ref.Ref, bool) {
	project := r.ScopePart(0)
	if r.Provider != ref.GCP || !numberForm.MatchString(project) {
		return r, r.Provider == ref.GCP
	}
	p.mu.Lock()
	id, ok := p.id[project]
	p.mu.Unlock()
	return withProject(r, project, id, ok)
}

func withProject(r ref.Ref, from, to string, ok bool) (ref.Ref, bool) {
	if !ok {
		return r, false
	}
	scope := []string{to}
	if location := r.ScopePart(1); location != "" && strings.Contains(r.Scope, "/") {
		scope = append(scope, location)
	}
	out, err := ref.New(ref.GCP, r.Name, scope...)
	if err != nil || from == "" {
		return r, false
	}
	return out, true
}

// Canonical returns r with its project's number, for comparing it with the ref
// of an event. If the number is not known yet the service is asked for the
// secret; NotFound if there is none.
func (s *Store) Canonical(ctx context.Context, r ref.Ref) (ref.Ref, error) {
	p, err := s.d.place(ctx, "gcpsm: canonical ref", r)
	if err != nil {
		return ref.Ref{}, err
	}
	if out, ok := s.d.opts.Projects.Numbered(r); ok {
		return out, nil
	}
	if _, err := p.get(ctx); err != nil {
		return ref.Ref{}, err
	}
	out, _ := s.d.opts.Projects.Numbered(r)
	return out, nil
}

// Projects returns what the Store knows of project ids and numbers.
func (s *Store) Projects() *Projects { return s.d.opts.Projects }
