package snssig

import (
	"context"
	"net/http"
	"net/url"

	"github.com/keyturn/keyturn/fault"
)

// Confirm confirms the subscription that m asks about, so that SNS begins to
// deliver. m must be a SubscriptionConfirmation that this Verifier returned;
// an UnsubscribeConfirmation is not answered, since that would subscribe again.
// What is called is built anew from the topic and the token of m, after its own
// address was found to say the same. Repeated it changes nothing.
//
// Errors: Invalid, m is something else; Denied, its address is not that of SNS
// for this topic, or SNS refuses the token, which is good for three days;
// Unavailable, SNS cannot be reached, and SNS asks again if it is told so.
// https://docs.aws.amazon.com/sns/latest/api/API_ConfirmSubscription.html
func (v *Verifier) Confirm(ctx context.Context, m *Message) error {
	if m == nil || m.proof.by != v || m.proof.kind != TypeSubscription {
		return invalid("only a subscription confirmation can be confirmed, and only one that was verified here")
	}
	p := m.proof.place
	u, err := onHost("address to subscribe at", m.proof.url, p)
	if err != nil {
		return err
	}
	// A broken query could be read in two ways.
	q, err := url.ParseQuery(u.RawQuery)
	if err != nil || u.Path != "/" && u.Path != "" {
		return refuse("the address to subscribe at has another form; expected https://%s/?Action=ConfirmSubscription and so on", p.host)
	}
	want := url.Values{"Action": {"ConfirmSubscription"}, "TopicArn": {p.arn}, "Token": {m.proof.token}}
	for name, vs := range want {
		if got := q[name]; len(got) != 1 || got[0] != vs[0] {
			return refuse("the address to subscribe at says another %s than the message; expected the same", name)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	got, err := v.call(ctx, "confirm the subscription", "https://"+p.host+"/?"+want.Encode())
	if err != nil {
		return err
	}
	switch code := got.status; {
	case code == http.StatusOK:
		v.o.Logger.InfoContext(ctx, "the subscription of a topic was confirmed", "topic", p.arn)
		return nil
	case code >= 400 && code < 500 && code != http.StatusTooManyRequests && code != http.StatusRequestTimeout:
		return &fault.Error{Kind: fault.Denied, Class: fault.ClassPermission, Op: op, Msg: "SNS refuses to confirm the subscription of " + p.arn + ": the token may be used up or older than three days; subscribe again"}
	default:
		return fault.Newf(fault.Unavailable, op, "confirming the subscription of %s was answered with status %d; expected 200", p.arn, code)
	}
}
