package awsfake

import (
	"context"
	"encoding/json"
	"time"
)

// A Lambda is a rotation function: it gets the event that Secrets Manager
// sends, as JSON.
type Lambda func(ctx context.Context, payload []byte) error

// rotationTries is how often the fake runs the four steps of a rotation that
// fails. The service does so "multiple times".
const rotationTries = 3

// A Rotation is one that RotateSecret started and that has ended.
type Rotation struct {
	Secret, Token string
	Tries         int
	Err           error // of the last try
}

func (s *Server) rotateSecret(r *request) (any, error) {
	sec, err := s.live(r.SecretId)
	if err != nil {
		return nil, err
	}
	token, err := r.token()
	if err != nil {
		return nil, err
	}
	if r.RotationLambdaARN != "" {
		sec.lambda = r.RotationLambdaARN
	}
	if sec.lambda == "" {
		return nil, fail("InvalidRequestException", "No Lambda rotation function ARN is associated with this secret.")
	}
	f := s.lambdas[sec.lambda]
	if f == nil {
		return nil, fail("AccessDeniedException", "Secrets Manager cannot invoke the specified Lambda function. Ensure that the function policy grants access to the principal secretsmanager.amazonaws.com.")
	}
	out := map[string]any{"ARN": sec.arn, "Name": sec.name}
	on := true
	if r.RotateImmediately != nil && !*r.RotateImmediately {
		// The service also tries testSecret with a version that it then
		// removes. The fake only takes the configuration.
		sec.rotation, sec.next = &on, time.Now().AddDate(0, 0, 1)
		sec.touch()
		return out, nil
	}
	out["VersionId"] = token
	if sec.labels[pending] == token {
		return out, nil // the same request again
	}
	if err := sec.open(token); err != nil {
		return nil, err
	}
	payloads := sec.payloads(token)
	s.rotations.Go(func() { s.rotate(sec, token, f, payloads) })
	return out, nil
}

// open labels token AWSPENDING before it has a value.
func (c *secret) open(token string) error {
	if id, ok := c.labels[pending]; ok && id != c.labels[current] {
		return fail("InvalidRequestException", "A previous rotation isn't complete. That rotation will be reattempted.")
	}
	if c.versions[token] == nil {
		c.versions[token] = &version{created: time.Now()}
	}
	on := true
	c.rotation, c.rotationToken = &on, uuid()
	c.touch()
	c.attach(pending, token)
	return nil
}

// payloads are the events of the four steps, in order.
func (c *secret) payloads(token string) [][]byte {
	var out [][]byte
	for _, step := range []string{"createSecret", "setSecret", "testSecret", "finishSecret"} {
		b, _ := json.Marshal(map[string]string{ // strings always encode
			"Step": step, "SecretId": c.arn, "ClientRequestToken": token, "RotationToken": c.rotationToken,
		})
		out = append(out, b)
	}
	return out
}

// rotate runs the four steps, all of them again when one fails. Afterwards
// AWSPENDING goes from a version that became current, and stays on one that
// did not.
func (s *Server) rotate(sec *secret, token string, f Lambda, payloads [][]byte) {
	result := Rotation{Secret: sec.name, Token: token}
	for result.Tries < rotationTries && s.ctx.Err() == nil {
		result.Tries++
		result.Err = nil
		for _, p := range payloads {
			if result.Err = f(s.ctx, p); result.Err != nil {
				break
			}
		}
		if result.Err == nil {
			break
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if result.Err == nil && sec.labels[current] == token {
		sec.rotationToken, sec.lastRotated, sec.next = "", time.Now(), time.Now().AddDate(0, 0, 1)
		sec.touch()
		if sec.labels[pending] == token {
			sec.detach(pending)
		}
	}
	s.results = append(s.results, result)
}

// cancelRotateSecret turns rotation off. AWSPENDING stays where it is.
func (s *Server) cancelRotateSecret(r *request) (any, error) {
	sec, err := s.live(r.SecretId)
	if err != nil {
		return nil, err
	}
	off := false
	sec.rotation, sec.rotationToken, sec.next = &off, "", time.Time{}
	sec.touch()
	out := map[string]any{"ARN": sec.arn, "Name": sec.name}
	if id := sec.labels[pending]; id != "" {
		out["VersionId"] = id
	}
	return out, nil
}
