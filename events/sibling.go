package events

import "strings"

// SiblingSuffix ends the names of the secrets in which stores without staging
// labels keep pending versions. It is that of package secrets/sibling, which
// nothing on the event path may import; a test holds the two together.
const SiblingSuffix = "--pending"

// IsSibling reports whether a secret of this name only holds the pending
// version of another. What happens to it is a rotation's bookkeeping, of which
// decoders make no events: its values are not tested yet, and nobody is to be
// sent to read one.
func IsSibling(name string) bool {
	main, ok := strings.CutSuffix(name, SiblingSuffix)
	return ok && main != ""
}

// connectionPrefix starts the names of the secrets in which EventBridge keeps
// the credentials of API destinations.
// https://docs.aws.amazon.com/eventbridge/latest/userguide/eb-api-destinations.html
const connectionPrefix = "events!connection/"

// IsConnection reports whether an AWS secret of this name is such a credential,
// which nobody but AWS may rotate or read. A rule that matches every secret
// would tell the notifier of the one with which it is called itself.
func IsConnection(name string) bool { return strings.HasPrefix(name, connectionPrefix) }
