// Command rotate is the AWS Lambda function that rotates PostgreSQL passwords
// for Secrets Manager. docs/aws-lambda.md says how to deploy it.
package main

import (
	"context"
	"log/slog"
	"os"

	"github.com/aws/aws-lambda-go/lambda"

	"github.com/keyturn/keyturn/internal/lambdarotate"
)

func main() {
	env, err := lambdarotate.ParseEnv(os.Environ())
	logger := lambdarotate.NewLogger(os.Stderr, env.LogLevel)
	slog.SetDefault(logger) // so that the runtime's own lines are JSON too
	var h *lambdarotate.Handler
	if err == nil {
		h, err = lambdarotate.New(context.Background(), env, &lambdarotate.Options{Logger: logger})
	}
	if err != nil {
		h = lambdarotate.Refusing(err, logger)
	}
	lambda.Start(h)
}
