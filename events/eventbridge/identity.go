package eventbridge

import (
	"regexp"
	"slices"
	"strings"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/ref"
)

// Every place is checked against these before it is used, so that an error
// never quotes what a stranger wrote.
var (
	// A name may hold letters, digits and /_+=.@-; services add "!" to theirs.
	// https://docs.aws.amazon.com/secretsmanager/latest/apireference/API_CreateSecret.html
	nameForm    = regexp.MustCompile(`^[A-Za-z0-9/_+=.@!-]{1,512}$`)
	arnForm     = regexp.MustCompile(`^arn:aws[a-z-]{0,16}:secretsmanager:[a-z0-9-]{1,32}:[0-9A-Za-z]{1,32}:secret:([A-Za-z0-9/_+=.@!-]{1,519})$`)
	accountForm = regexp.MustCompile(`^[0-9A-Za-z]{1,32}$`)
	regionForm  = regexp.MustCompile(`^[a-z0-9-]{1,32}$`)
	suffixForm  = regexp.MustCompile(`^-[A-Za-z0-9]{6}$`)
)

// identity finds the secret that the notice is about. ARNs are looked for
// first, in the order of how much they can be trusted to be whole; account and
// region are the ARN's, since a call may cross accounts. The friendly name is
// taken from beside it where it is there, because an ARN that a caller typed
// without its suffix cannot be told from one with it.
func (m *message) identity() (identity, error) {
	d := m.detail
	more, service := d.Object("additionalEventData"), d.Object("serviceEventDetails")
	resp, req := d.Object("responseElements"), d.Object("requestParameters")

	places := append(m.envelope.List("resources"), // the service's own events only
		more.Text("SecretId"),    // rotation events
		service.Text("secretId"), // seen once, in the wild
		more.Text("ARN"),         // version deletion
		resp.Text("arn"),         // calls; null for some years and some calls
		req.Text("secretId"),     // as the caller typed it
	)
	names := []string{d.Text("name")}
	for _, s := range append(slices.Clone(places), more.Text("Name"), resp.Text("name"), req.Text("name")) {
		if nameForm.MatchString(s) {
			names = append(names, s)
		}
	}
	for _, arn := range places {
		if id, ok := fromARN(arn, names); ok {
			return id, nil
		}
	}

	account, region := d.Text("recipientAccountId"), d.Text("awsRegion")
	if !accountForm.MatchString(account) {
		account = m.envelope.Text("account")
	}
	if !regionForm.MatchString(region) {
		region = m.envelope.Text("region")
	}
	for _, name := range names {
		if nameForm.MatchString(name) && accountForm.MatchString(account) && regionForm.MatchString(region) {
			return identity{ref: ref.Ref{Provider: ref.AWS, Scope: account + "/" + region, Name: name}}, nil
		}
	}
	return identity{}, fault.Newf(fault.Invalid, opDecode, "no secret is named; expected an ARN in resources, additionalEventData.SecretId or responseElements.arn, or a name in requestParameters with account and region")
}

// fromARN reads one ARN. A name from beside it that fits it is better than what
// its last hyphen suggests.
func fromARN(arn string, names []string) (id identity, ok bool) {
	m := arnForm.FindStringSubmatch(arn)
	if m == nil {
		return id, false
	}
	r, err := ref.FromARN(arn)
	if err != nil {
		return id, false
	}
	resource := m[1]
	for _, name := range names {
		rest, fits := strings.CutPrefix(resource, name)
		if name != "" && fits && (rest == "" || suffixForm.MatchString(rest)) {
			r.Name = name
			break
		}
	}
	id.ref = r
	if suffixForm.MatchString(strings.TrimPrefix(resource, r.Name)) {
		id.arn = arn
	}
	return id, true
}
