package gcpfake

import (
	"strings"

	"cloud.google.com/go/secretmanager/apiv1/secretmanagerpb"
	"google.golang.org/grpc/codes"
)

// parseFilter reads the part of the filter language that the fake knows: terms
// joined by AND, each name:PART, labels.KEY=VALUE or labels.KEY:*. A filter
// with anything else is refused, so that a test cannot rely on it.
// https://cloud.google.com/secret-manager/docs/filtering
func parseFilter(filter string) (func(*secretmanagerpb.Secret) bool, error) {
	var terms []func(*secretmanagerpb.Secret) bool
	for term := range strings.SplitSeq(filter, " AND ") {
		term = strings.TrimSpace(term)
		if term == "" && filter == "" {
			break
		}
		field, rest, _ := strings.Cut(term, ".")
		key, value, equals := strings.Cut(rest, "=")
		switch {
		case strings.HasPrefix(term, "name:") && !strings.ContainsAny(term[5:], " ()~"):
			part := strings.Trim(term[5:], `"`)
			terms = append(terms, func(s *secretmanagerpb.Secret) bool { return strings.Contains(lastPart(s.GetName()), part) })
		case field == "labels" && equals:
			terms = append(terms, func(s *secretmanagerpb.Secret) bool { got, ok := s.GetLabels()[key]; return ok && got == value })
		case field == "labels" && strings.HasSuffix(rest, ":*"):
			key = strings.TrimSuffix(rest, ":*")
			terms = append(terms, func(s *secretmanagerpb.Secret) bool { _, ok := s.GetLabels()[key]; return ok })
		default:
			return nil, fail(codes.InvalidArgument, "gcpfake: the filter term %q is not one that it knows", term)
		}
	}
	return func(s *secretmanagerpb.Secret) bool {
		for _, t := range terms {
			if !t(s) {
				return false
			}
		}
		return true
	}, nil
}
