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
