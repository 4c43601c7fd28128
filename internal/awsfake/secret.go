package awsfake

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"regexp"
	"sort"
	"time"
)

// The staging labels of a rotation.
const (
	current  = "AWSCURRENT"
	pending  = "AWSPENDING"
	previous = "AWSPREVIOUS"
)

// The service's limits.
// https://docs.aws.amazon.com/secretsmanager/latest/userguide/reference_limits.html
const (
	maxValue  = 65536
	maxLabels = 20 // across all versions of a secret
)

// A secret and its versions. The Server's lock guards it.
type secret struct {
	name, arn string
	created   time.Time
	changed   time.Time // LastChangedDate
	deleted   time.Time
	versions  map[string]*version // by version id, those without a label too
	labels    map[string]string   // label to version id
	tags      []tag

	rotation      *bool // RotationEnabled
	lambda        string
	next          time.Time
	lastRotated   time.Time
	rotationToken string // of the rotation that is open, or ""
}

// A version is a value under an id. One that a rotation has announced and
// nobody has written yet has no value.
type version struct {
	text    *string
	binary  []byte
	created time.Time
}

func (v *version) empty() bool { return v.text == nil && v.binary == nil }

func (v *version) same(w *version) bool {
	if (v.text == nil) != (w.text == nil) {
		return false
	}
	if v.text != nil {
		return *v.text == *w.text
	}
	return bytes.Equal(v.binary, w.binary)
}

// touch is called with every change of a secret, "in any way".
// https://docs.aws.amazon.com/secretsmanager/latest/apireference/API_DescribeSecret.html
func (c *secret) touch() { c.changed = time.Now() }

type tag struct{ Key, Value string }

// A request is the members of every operation's input that the fake knows.
type request struct {
	Name, SecretId, ClientRequestToken, RotationToken string //nolint:revive // spelled as on the wire
	SecretString                                      *string
	SecretBinary                                      []byte
	VersionId, VersionStage                           string //nolint:revive // spelled as on the wire
	VersionStages                                     []string
	MoveToVersionId, RemoveFromVersionId              *string //nolint:revive // spelled as on the wire
	Tags                                              []tag
	RotationLambdaARN                                 string
	RotateImmediately                                 *bool
	ForceDeleteWithoutRecovery                        bool
	RecoveryWindowInDays                              int
	IncludeDeprecated                                 bool
	MaxResults                                        int
	NextToken                                         string
	Entries                                           []entry
}

func (r *request) value() (*version, error) {
	v := &version{text: r.SecretString, binary: r.SecretBinary, created: time.Now()}
	if (v.text == nil) == (v.binary == nil) {
		return nil, fail("InvalidParameterException", "You must provide either SecretString or SecretBinary, not both.")
	}
	n := len(v.binary)
	if v.text != nil {
		n = len(*v.text)
	}
	if n < 1 || n > maxValue {
		return nil, fail("ValidationException", "the length of the value must be between 1 and %d", maxValue)
	}
	return v, nil
}

func (r *request) token() (string, error) {
	if n := len(r.ClientRequestToken); n < 32 || n > 64 {
		return "", fail("InvalidParameterException", "ClientRequestToken must be 32-64 characters long.")
	}
	return r.ClientRequestToken, nil
}

// lookup finds a secret by name, full ARN or partial ARN.
func (s *Server) lookup(id string) (*secret, error) {
	if sec := s.secrets[id]; sec != nil {
		return sec, nil
	}
	for _, sec := range s.secrets {
		// A partial ARN lacks the hyphen and the six random characters.
		if id == sec.arn || id == sec.arn[:len(sec.arn)-7] {
			return sec, nil
		}
	}
	return nil, fail("ResourceNotFoundException", "Secrets Manager can't find the specified secret.")
}

// live is lookup for operations that a secret marked for deletion refuses.
func (s *Server) live(id string) (*secret, error) {
	sec, err := s.lookup(id)
	if err == nil && !sec.deleted.IsZero() {
		return nil, fail("InvalidRequestException", "You can't perform this operation on the secret because it was marked for deletion.")
	}
	return sec, err
}

var nameForm = regexp.MustCompile(`^[A-Za-z0-9/_+=.@!-]{1,512}$`)

func (s *Server) createSecret(r *request) (any, error) {
	token, err := r.token()
	if err != nil {
		return nil, err
	}
	if !nameForm.MatchString(r.Name) {
		return nil, fail("ValidationException", "Invalid name. Must be a valid name containing alphanumeric characters, or any of the following: -/_+=.@!")
	}
	v, err := r.value()
	if err != nil {
		return nil, err
	}
	if sec := s.secrets[r.Name]; sec != nil {
		if !sec.deleted.IsZero() {
			return nil, fail("InvalidRequestException", "You can't create this secret because a secret with this name is already scheduled for deletion.")
		}
		if old := sec.versions[token]; old == nil || !old.same(v) {
			return nil, fail("ResourceExistsException", "The operation failed because the secret %s already exists.", r.Name)
		}
		return map[string]any{"ARN": sec.arn, "Name": sec.name, "VersionId": token}, nil
	}
	sec := s.add(r.Name, token, v)
	sec.tags = r.Tags
	s.announce(sec, current, token)
	return map[string]any{"ARN": sec.arn, "Name": sec.name, "VersionId": token}, nil
}

// add makes a secret whose current version is v.
func (s *Server) add(name, id string, v *version) *secret {
	sec := &secret{
		name: name, created: v.created, changed: v.created,
		arn:      fmt.Sprintf("arn:aws:secretsmanager:%s:%s:secret:%s-%s", Region, Account, name, suffix()),
		versions: map[string]*version{id: v}, labels: map[string]string{current: id},
	}
	s.secrets[name] = sec
	return sec
}

// suffix is the six random characters at the end of an ARN.
func suffix() string {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
	var b [6]byte
	_, _ = rand.Read(b[:]) // never fails: crypto/rand since Go 1.24
	for i := range b {
		b[i] = alphabet[int(b[i])%len(alphabet)]
	}
	return string(b[:])
}

func (s *Server) getSecretValue(r *request) (any, error) {
	sec, err := s.live(r.SecretId)
	if err != nil {
		return nil, err
	}
	id, label := r.VersionId, r.VersionStage
	if id == "" && label == "" {
		label = current
	}
	what := "VersionId: " + id
	if label != "" {
		what = "staging label: " + label
		holder, held := sec.labels[label]
		switch {
		case !held:
			id = ""
		case id != "" && id != holder:
			return nil, fail("InvalidRequestException", "You provided a VersionStage that is not associated to the provided VersionId.")
		default:
			id = holder
		}
	}
	v := sec.versions[id]
	if v == nil || v.empty() {
		return nil, fail("ResourceNotFoundException", "Secrets Manager can't find the specified secret value for %s", what)
	}
	out := map[string]any{
		"ARN": sec.arn, "Name": sec.name, "VersionId": id, "VersionStages": sec.stages(id), "CreatedDate": epoch(v.created),
	}
	if v.text != nil {
		out["SecretString"] = *v.text
	} else {
		out["SecretBinary"] = v.binary
	}
	return out, nil
}

func (s *Server) describeSecret(r *request) (any, error) {
	sec, err := s.lookup(r.SecretId)
	if err != nil {
		return nil, err
	}
	return sec.describe(), nil
}

func (c *secret) describe() map[string]any {
	byVersion := map[string][]string{}
	for _, id := range c.labels {
		byVersion[id] = c.stages(id)
	}
	out := map[string]any{
		"ARN": c.arn, "Name": c.name, "CreatedDate": epoch(c.created), "LastChangedDate": epoch(c.changed),
		"VersionIdsToStages": byVersion,
	}
	if c.rotation != nil {
		out["RotationEnabled"] = *c.rotation
	}
	if c.lambda != "" {
		out["RotationLambdaARN"] = c.lambda
	}
	if len(c.tags) > 0 {
		out["Tags"] = c.tags
	}
	for member, when := range map[string]time.Time{"NextRotationDate": c.next, "LastRotatedDate": c.lastRotated, "DeletedDate": c.deleted} {
		if !when.IsZero() {
			out[member] = epoch(when)
		}
	}
	return out
}

func (s *Server) listSecrets(*request) (any, error) {
	names := []string{}
	for name, sec := range s.secrets {
		if sec.deleted.IsZero() {
			names = append(names, name)
		}
	}
	sort.Strings(names)
	list := make([]any, 0, len(names))
	for _, name := range names {
		d := s.secrets[name].describe()
		d["SecretVersionsToStages"] = d["VersionIdsToStages"]
		delete(d, "VersionIdsToStages")
		list = append(list, d)
	}
	return map[string]any{"SecretList": list}, nil
}

func (s *Server) deleteSecret(r *request) (any, error) {
	sec, err := s.live(r.SecretId)
	if err != nil {
		return nil, err
	}
	days := r.RecoveryWindowInDays
	if days == 0 {
		days = 30
	}
	sec.deleted = time.Now().AddDate(0, 0, days)
	sec.touch()
	if r.ForceDeleteWithoutRecovery {
		delete(s.secrets, sec.name)
	}
	return map[string]any{"ARN": sec.arn, "Name": sec.name, "DeletionDate": epoch(sec.deleted)}, nil
}

func (s *Server) restoreSecret(r *request) (any, error) {
	sec, err := s.lookup(r.SecretId)
	if err != nil {
		return nil, err
	}
	sec.deleted = time.Time{}
	sec.touch()
	return map[string]any{"ARN": sec.arn, "Name": sec.name}, nil
}

// epoch is a time on the wire: seconds with a fraction.
func epoch(t time.Time) float64 { return float64(t.UnixMilli()) / 1000 }

func deref(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}
