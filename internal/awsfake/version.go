package awsfake

import (
	"slices"
	"sort"
)

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
	c.touch()
	c.labels[label] = id
	if label == current && held {
		c.labels[previous] = from
	}
	c.sweep()
}

// detach takes a label away.
func (c *secret) detach(label string) {
	c.touch()
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
		s.announce(sec, l, token)
	}
	if slices.Contains(labels, current) && sec.labels[pending] != token {
		// A version made by hand ends the rotation: RotationAbandoned.
		// https://docs.aws.amazon.com/secretsmanager/latest/userguide/cloudtrail_log_entries.html
		sec.detach(pending)
	}
	return answer()
}

// listSecretVersionIDs lists the versions with a label, by id and a page at a
// time; with IncludeDeprecated the others too.
// https://docs.aws.amazon.com/secretsmanager/latest/apireference/API_ListSecretVersionIds.html
func (s *Server) listSecretVersionIDs(r *request) (any, error) {
	sec, err := s.lookup(r.SecretId)
	if err != nil {
		return nil, err
	}
	if r.MaxResults < 0 || r.MaxResults > 100 {
		return nil, fail("ValidationException", "MaxResults must be between 1 and 100")
	}
	size := r.MaxResults
	if size == 0 {
		size = 100
	}
	ids := []string{}
	for id := range sec.versions {
		if id > r.NextToken && (r.IncludeDeprecated || len(sec.stages(id)) > 0) {
			ids = append(ids, id)
		}
	}
	sort.Strings(ids)
	out, list := map[string]any{"ARN": sec.arn, "Name": sec.name}, []any{}
	for i, id := range ids {
		if i == size {
			out["NextToken"] = ids[i-1] // this package's choice
			break
		}
		list = append(list, map[string]any{"VersionId": id, "VersionStages": sec.stages(id), "CreatedDate": epoch(sec.versions[id].created)})
	}
	out["Versions"] = list
	return out, nil
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
		if holder != to {
			s.announce(sec, label, to)
		}
	}
	return map[string]any{"ARN": sec.arn, "Name": sec.name}, nil
}
