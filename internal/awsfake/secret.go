package awsfake

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"regexp"
	"slices"
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

func (c *secret) stages(id string) []string {
	out := []string{}
	for label, v := range c.labels {
		if v == id {
			out = append(out, label)
		}
	}
	sort.Strings(out)
	return out
}

// attach moves a label. With AWSCURRENT goes AWSPREVIOUS, to the version that
// AWSCURRENT leaves.
func (c *secret) attach(label, id string) {
	from, held := c.labels[label]
	if held && from == id {
		return
	}
	c.labels[label] = id
	if label == current && held {
		c.labels[previous] = from
	}
	c.sweep()
}

// detach takes a label away.
func (c *secret) detach(label string) {
	delete(c.labels, label)
	c.sweep()
}

// sweep drops versions that have neither a value nor a label. Those with a
// value stay: the service deletes deprecated versions some day, not at once.
func (c *secret) sweep() {
	for id, v := range c.versions {
		if v.empty() && len(c.stages(id)) == 0 {
			delete(c.versions, id)
		}
	}
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
	return map[string]any{"ARN": sec.arn, "Name": sec.name, "VersionId": token}, nil
}

// add makes a secret whose current version is v.
func (s *Server) add(name, id string, v *version) *secret {
	sec := &secret{
		name: name, created: v.created,
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

func (s *Server) putSecretValue(r *request) (any, error) {
	sec, err := s.live(r.SecretId)
	if err != nil {
		return nil, err
	}
	token, err := r.token()
	if err != nil {
		return nil, err
	}
	v, err := r.value()
	if err != nil {
		return nil, err
	}
	if r.RotationToken != "" && r.RotationToken != sec.rotationToken {
		return nil, fail("InvalidParameterException", "The RotationToken is not that of a rotation in progress.")
	}
	answer := func() (any, error) {
		return map[string]any{"ARN": sec.arn, "Name": sec.name, "VersionId": token, "VersionStages": sec.stages(token)}, nil
	}
	if old := sec.versions[token]; old != nil && !old.empty() {
		if !old.same(v) {
			return nil, fail("ResourceExistsException", "You can't modify an existing version, you can only create a new version.")
		}
		return answer() // the request is ignored, its labels too
	}
	labels := r.VersionStages
	if len(labels) == 0 {
		labels = []string{current}
	}
	if _, ok := sec.labels[current]; !ok && !slices.Contains(labels, current) && len(sec.versions) == 0 {
		labels = append(slices.Clone(labels), current) // the first version of a secret
	}
	fresh := 0
	for _, l := range labels {
		if _, ok := sec.labels[l]; !ok {
			fresh++
		}
	}
	if len(sec.labels)+fresh > maxLabels {
		return nil, fail("LimitExceededException", "a secret can have %d staging labels", maxLabels)
	}
	sec.versions[token] = v
	for _, l := range labels {
		sec.attach(l, token)
	}
	if slices.Contains(labels, current) && sec.labels[pending] != token {
		// A version made by hand ends the rotation: RotationAbandoned.
		// https://docs.aws.amazon.com/secretsmanager/latest/userguide/cloudtrail_log_entries.html
		sec.detach(pending)
	}
	return answer()
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
		"ARN": c.arn, "Name": c.name, "CreatedDate": epoch(c.created), "LastChangedDate": epoch(time.Now()),
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

func (s *Server) updateSecretVersionStage(r *request) (any, error) {
	sec, err := s.live(r.SecretId)
	if err != nil {
		return nil, err
	}
	label, to, from := r.VersionStage, deref(r.MoveToVersionId), deref(r.RemoveFromVersionId)
	holder := sec.labels[label]
	switch {
	case label == "" || len(label) > 256:
		return nil, fail("ValidationException", "VersionStage must have 1 to 256 characters")
	case to == "" && from == "":
		return nil, fail("InvalidParameterException", "You must specify MoveToVersionId or RemoveFromVersionId.")
	case to == "" && label == current:
		return nil, fail("InvalidParameterException", "You can only move staging label AWSCURRENT to a different secret version. It can't be completely removed.")
	case to != "" && holder != "" && holder != to && from == "":
		return nil, fail("InvalidParameterException", "The parameter RemoveFromVersionId can't be empty. Staging label %s is currently attached to version %s, so you must explicitly reference that version in RemoveFromVersionId.", label, holder)
	case from != "" && from != holder:
		return nil, fail("InvalidParameterException", "Staging label %s is not attached to version %s, so it can't be removed from it.", label, from)
	}
	if to == "" {
		sec.detach(label)
	} else {
		v := sec.versions[to]
		// That AWSCURRENT cannot go to a version without a value is this
		// package's choice; the documentation does not say.
		if v == nil || label == current && v.empty() {
			return nil, fail("ResourceNotFoundException", "Secrets Manager can't find the specified secret version: %s", to)
		}
		if holder == "" && len(sec.labels) >= maxLabels {
			return nil, fail("LimitExceededException", "a secret can have %d staging labels", maxLabels)
		}
		sec.attach(label, to)
	}
	return map[string]any{"ARN": sec.arn, "Name": sec.name}, nil
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
