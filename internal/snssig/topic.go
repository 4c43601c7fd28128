package snssig

import (
	"net/url"
	"regexp"
	"strings"

	"github.com/keyturn/keyturn/fault"
)

// arnForm is the ARN of a topic: partition, region, account, name. Regions of
// other partitions have other hosts, which are not known here.
// https://docs.aws.amazon.com/sns/latest/api/API_CreateTopic.html
var arnForm = regexp.MustCompile(`^arn:(aws|aws-cn|aws-us-gov):sns:([a-z]{2}(?:-[a-z]+)+-[0-9]{1,2}):([0-9]{12}):([A-Za-z0-9_-]{1,256}(?:\.fifo)?)$`)

// A place is where a topic is.
type place struct{ arn, host string }

func placeOf(arn string) (place, bool) {
	m := arnForm.FindStringSubmatch(arn)
	if m == nil {
		return place{}, false
	}
	host := "sns." + m[2] + ".amazonaws.com"
	if m[1] == "aws-cn" {
		host += ".cn"
	}
	return place{arn: arn, host: host}, true
}

// A pattern is an ARN, or the beginning of one.
type pattern struct {
	text   string
	prefix bool
}

// parsePattern reads an ARN whose name may end in *. Region and account are
// always said: a pattern over them would let strangers in.
func parsePattern(s string) (pattern, error) {
	text, prefix := strings.CutSuffix(s, "*")
	whole := text
	if prefix {
		whole += "x"
	}
	if _, ok := placeOf(whole); !ok {
		return pattern{}, fault.Newf(fault.Invalid, op, "%q is no topic; expected arn:aws:sns:REGION:ACCOUNT:NAME, where NAME may end in *", s)
	}
	return pattern{text, prefix}, nil
}

// allowed tells where a topic is, if it is ours.
func (v *Verifier) allowed(arn string) (place, bool) {
	p, ok := placeOf(arn)
	if !ok {
		return place{}, false
	}
	for _, t := range v.topics {
		if arn == t.text || t.prefix && strings.HasPrefix(arn, t.text) {
			return p, true
		}
	}
	return place{}, false
}

// onHost parses an address, and refuses it unless it is on the host of SNS in
// the topic's region.
func onHost(what, address string, p place) (*url.URL, error) {
	u, err := url.Parse(address)
	switch {
	case err != nil || u.Opaque != "":
		return nil, refuse("the %s is no URL; expected one at https://%s/", what, p.host)
	case u.Scheme != "https" || u.User != nil || u.Fragment != "" || u.Hostname() != p.host || u.Port() != "" && u.Port() != "443" || strings.HasSuffix(u.Host, ":"):
		return nil, refuse("the %s is not at SNS in the topic's region; expected https://%s/ without port and user", what, p.host)
	}
	return u, nil
}

// certPath is one file. What it is called is not documented beyond examples.
var certPath = regexp.MustCompile(`^/[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}\.pem$`)

// certAddress checks the address of a certificate and writes it anew.
func certAddress(address string, p place) (string, error) {
	u, err := onHost("address of the signing certificate", address, p)
	if err != nil {
		return "", err
	}
	if u.RawQuery != "" || u.ForceQuery || u.RawPath != "" || !certPath.MatchString(u.Path) {
		return "", refuse("the address of the signing certificate is no file; expected https://%s/NAME.pem", p.host)
	}
	return "https://" + p.host + u.Path, nil
}

// short shortens what an error quotes.
func short(s string) string {
	const most = 120
	if len(s) > most {
		return strings.ToValidUTF8(s[:most], "") + "..."
	}
	return s
}
