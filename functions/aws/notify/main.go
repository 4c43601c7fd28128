// Command notify is the AWS Lambda function that publishes on NATS what AWS says
// about secrets, as target of a rule of EventBridge, of an SQS queue or of an SNS
// topic. docs/aws-lambda.md says how to deploy it.
package main

import (
	"context"
	"log/slog"
	"os"

	"github.com/aws/aws-lambda-go/lambda"

	"github.com/keyturn/keyturn/internal/funcnotify"
	"github.com/keyturn/keyturn/internal/funcnotify/lambdanotify"
)

func main() {
	env, err := lambdanotify.ParseEnv(os.Environ())
	log := lambdanotify.NewLogger(os.Stderr, env.LogLevel)
	slog.SetDefault(log) // so that the runtime's own lines are JSON too
	var bus *funcnotify.Bus
	if err == nil {
		bus, err = lambdanotify.Bus(context.Background(), env, log)
	}
	var h *lambdanotify.Handler
	if err == nil {
		h, err = lambdanotify.New(env.Env, bus, log)
	}
	if err != nil {
		h = lambdanotify.Refusing(err, log)
	}
	lambda.Start(h)
}
