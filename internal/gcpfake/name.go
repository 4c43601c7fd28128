package gcpfake

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// A name is a resource name, taken apart.
type name struct {
	project, location, secret, version string
}

var nameForm = regexp.MustCompile(`^projects/([^/]+)(?:/locations/([^/]+))?(?:/secrets/([^/]+))?(?:/versions/([^/]+))?$`)

// parse reads a resource name and puts the project's number into it. A project
// that does not exist is refused as one that may not be seen. That a regional
// resource is an invalid argument at another location's endpoint is this
// package's choice.
func (v *service) parse(text, permission string) (name, error) {
	m := nameForm.FindStringSubmatch(text)
	if m == nil {
		return name{}, fail(codes.InvalidArgument, "The resource name [%s] is not valid.", text)
	}
	n := name{m[1], m[2], m[3], m[4]}
	if n.location != v.location {
		return name{}, fail(codes.InvalidArgument, "The resource [%s] is not served at this endpoint (location %q).", text, v.location)
	}
	number, ok := v.s.projects[n.project]
	if !ok {
		return name{}, denied(permission, text)
	}
	n.project = number
	if !v.byHand && permission != "" && !v.s.permitted(n, permission) {
		return name{}, denied(permission, text)
	}
	return n, nil
}

func (n name) parent() string {
	if n.location != "" {
		return "projects/" + n.project + "/locations/" + n.location
	}
	return "projects/" + n.project
}

func (n name) secretName() string { return n.parent() + "/secrets/" + n.secret }

// full is the whole name, which conditions of IAM compare.
func (n name) full() string {
	switch {
	case n.secret == "":
		return n.parent()
	case n.version == "":
		return n.secretName()
	}
	return n.secretName() + "/versions/" + n.version
}

// secret finds the secret of a request.
func (v *service) secret(text, permission string) (*secret, name, error) {
	n, err := v.parse(text, permission)
	if err != nil {
		return nil, n, err
	}
	sec := v.s.secrets[n.secretName()]
	if sec == nil {
		return nil, n, fail(codes.NotFound, "Secret [%s] not found.", n.secretName())
	}
	return sec, n, nil
}

// version finds the version of a request: by number, and, where aliases says
// so, by alias or as the newest that was created.
func (v *service) version(text, permission string, aliases bool) (*secret, *version, error) {
	n, err := v.parse(text, permission)
	if err != nil {
		return nil, nil, err
	}
	sec := v.s.secrets[n.secretName()]
	if sec == nil || aliases && n.version == "latest" && len(sec.versions) == 0 {
		return nil, nil, fail(codes.NotFound, "Secret [%s] not found or has no versions.", n.secretName())
	}
	number, err := strconv.ParseInt(n.version, 10, 64)
	switch {
	case err == nil:
	case !aliases:
		return nil, nil, fail(codes.InvalidArgument, "The version [%s] of [%s] must be a number.", n.version, n.secretName())
	case n.version == "latest":
		number = int64(len(sec.versions))
	default:
		number = sec.pb.GetVersionAliases()[n.version]
	}
	if number < 1 || number > int64(len(sec.versions)) {
		return nil, nil, fail(codes.NotFound, "Secret Version [%s/versions/%s] not found.", n.secretName(), n.version)
	}
	return sec, sec.versions[number-1], nil
}

func fail(code codes.Code, format string, args ...any) error {
	return status.Error(code, fmt.Sprintf(format, args...))
}

// lastPart is what follows the last slash.
func lastPart(s string) string { return s[strings.LastIndex(s, "/")+1:] }
