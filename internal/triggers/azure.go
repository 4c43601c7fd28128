package triggers

import (
	"regexp"
	"time"

	"github.com/keyturn/keyturn/internal/funcenv"
	"github.com/keyturn/keyturn/internal/funcserve"
)

// HostAnswer is [funcserve.HostAnswer].
const HostAnswer = funcserve.HostAnswer

var suffixForm = regexp.MustCompile(`^[a-z0-9-]{1,63}(\.[a-z0-9-]{1,63}){1,5}$`)

// Vaults reads what is Key Vault's own: KEYTURN_VALIDITY, how long a new
// version is valid, and KEYTURN_VAULT_SUFFIX, the domain of the cloud's vaults.
// What is not set is left alone.
func Vaults(p *funcenv.Parser, validity *time.Duration, url *func(vault string) string) {
	*validity = p.Duration("KEYTURN_VALIDITY", *validity)
	suffix := p.Get("KEYTURN_VAULT_SUFFIX")
	switch {
	case suffix == "":
	case !suffixForm.MatchString(suffix):
		p.Bad("KEYTURN_VAULT_SUFFIX", "found %q; expected a domain such as vault.azure.net or vault.azure.cn", suffix)
	default:
		*url = func(vault string) string { return "https://" + vault + "." + suffix }
	}
}
