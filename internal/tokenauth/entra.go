package tokenauth

import (
	"net/url"
	"regexp"
	"slices"
	"strings"

	"github.com/go-jose/go-jose/v4"

	"github.com/keyturn/keyturn/fault"
)

// What Event Grid is in Entra, in the public cloud and in that of the US
// government.
// https://learn.microsoft.com/azure/event-grid/secure-webhook-delivery
const (
	eventGridApp    = "4962773b-9cdb-44cf-a8bf-237846a00ab7"
	eventGridAppGov = "54316b56-3481-47f9-8f30-0300f5542a7b"
	eventGridRole   = "AzureEventGridSecureWebhookSubscriber"
)

// The authorities of the clouds.
// https://learn.microsoft.com/entra/identity-platform/authentication-national-cloud
const (
	authorityPublic = "https://login.microsoftonline.com"
	authorityGov    = "https://login.microsoftonline.us"
	authorityChina  = "https://login.partner.microsoftonline.cn"
)

var guidForm = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)

// EntraOptions of [Entra]. TenantID and Audiences are required.
type EntraOptions struct {
	// TenantID is the directory that the subscription names, a GUID.
	TenantID string
	// Audiences are how the subscription may name our application: its client
	// id, which tokens of version 2 carry, and its App ID URI, which those of
	// version 1 do. Which version comes is set at the application
	// (requestedAccessTokenVersion); give both to be safe.
	Audiences []string
	// CallerAppID is the application that calls, Event Grid's own by default.
	CallerAppID string
	// Role is the app role that the caller must have,
	// AzureEventGridSecureWebhookSubscriber by default.
	Role string
	// Authority is https://login.microsoftonline.com by default. Of the other
	// clouds it is https://login.microsoftonline.us for US Government, and
	// https://login.partner.microsoftonline.cn for China.
	Authority string
	// V1Issuer is the issuer of tokens of version 1 without the tenant. By
	// default it is the one that belongs to Authority, such as
	// https://sts.windows.net/.
	V1Issuer string
	Options
}

// Entra returns the Verifier of the tokens that Event Grid sends to a webhook
// which is protected by Microsoft Entra ID: issuer, tenant, audience, calling
// application and app role, each in the form of the token's version. A token
// for the right audience alone says nothing, since every application of the
// tenant can get one. The error is Invalid: it says what is wrong with o.
// https://learn.microsoft.com/entra/identity-platform/access-token-claims-reference
func Entra(o EntraOptions) (*Verifier, error) {
	bad := func(format string, args ...any) (*Verifier, error) {
		return nil, fault.Newf(fault.Invalid, op, format, args...)
	}
	o.TenantID = strings.ToLower(o.TenantID)
	if !guidForm.MatchString(o.TenantID) {
		return bad("%q is no tenant id; expected a GUID: common and organizations are everybody", o.TenantID)
	}
	if len(o.Audiences) == 0 || slices.Contains(o.Audiences, "") {
		return bad("the audiences are missing, or one is empty; expected the application's client id and its App ID URI")
	}
	if o.Authority == "" {
		o.Authority = authorityPublic
	}
	o.Authority = strings.TrimSuffix(o.Authority, "/")
	if o.CallerAppID == "" {
		o.CallerAppID = eventGridApp
		if o.Authority == authorityGov {
			o.CallerAppID = eventGridAppGov
		}
	}
	o.CallerAppID = strings.ToLower(o.CallerAppID)
	if !guidForm.MatchString(o.CallerAppID) {
		return bad("%q is no application id; expected a GUID", o.CallerAppID)
	}
	if o.Role == "" {
		o.Role = eventGridRole
	}
	if o.V1Issuer == "" {
		o.V1Issuer = "https://sts.windows.net"
		if o.Authority == authorityChina {
			o.V1Issuer = "https://sts.chinacloudapi.cn"
		}
	}
	v1 := strings.TrimSuffix(o.V1Issuer, "/") + "/" + o.TenantID + "/"
	v2 := o.Authority + "/" + o.TenantID + "/v2.0"
	for _, u := range []string{v1, v2} {
		if p, err := url.Parse(u); err != nil || p.Scheme != "https" || p.Host == "" {
			return bad("%q is no authority; expected an https URL", u)
		}
	}
	// The set of version 2 holds the keys of both versions.
	// https://learn.microsoft.com/entra/identity-platform/access-tokens#validate-the-signature
	find, err := fixed(o.Authority + "/" + o.TenantID + "/discovery/v2.0/keys")
	if err != nil {
		return nil, err
	}
	return newVerifier(o.Options, "tenant "+o.TenantID, []jose.SignatureAlgorithm{jose.RS256}, find, func(c claims) error {
		if err := c.is("iss", v2, v1); err != nil {
			return err
		}
		if err := c.is("tid", o.TenantID); err != nil {
			return err
		}
		if err := c.audience(o.Audiences...); err != nil {
			return err
		}
		version, caller := "2.0", "azp"
		if iss, _ := c.text("iss"); iss == v1 {
			version, caller = "1.0", "appid"
		}
		// The issuer tells the version; ver may not say another.
		if _, found := c["ver"]; found {
			if err := c.is("ver", version); err != nil {
				return err
			}
		}
		if err := c.is(caller, o.CallerAppID); err != nil {
			return err
		}
		roles, err := c.list("roles")
		if err != nil {
			return err
		}
		if !slices.Contains(roles, o.Role) {
			return forbid("the caller's app roles are %s; expected %s, assigned to Event Grid's service principal", quoted(roles), quoted([]string{o.Role}))
		}
		return nil
	}), nil
}
