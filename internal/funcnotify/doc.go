// Package funcnotify is what the functions notify have in common: the notifier
// without a daemon, called by a cloud with what it says about secrets, for those
// whose NATS is within reach of a function's network.
//
// [ParseEnv] reads the settings. A [Bus] is the connection that is kept over
// invocations, and [NewHandler] the notifier on it. [Serve] is the HTTP server
// of the platforms that call by HTTP; package lambdanotify is Lambda's side.
//
// A function answers that it succeeded only after JetStream has stored the
// events, or the notice as a dead letter. It creates no streams unless it is
// allowed to, and then needs these rights and no others:
//
//	publish    keyturn.v1.> keyturn.late.v1.> keyturn.deadletter.>
//	           $JS.API.DIRECT.GET.KEYTURN_EVENTS $JS.API.DIRECT.GET.KEYTURN_EVENTS.>
//	           $JS.API.DIRECT.GET.KEYTURN_LATE $JS.API.DIRECT.GET.KEYTURN_LATE.>
//	subscribe  _INBOX.>, or KEYTURN_NATS_INBOX and what is below it
package funcnotify
