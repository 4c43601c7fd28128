// Command retire is the AWS Lambda function that a schedule calls to take
// superseded versions of Secrets Manager's secrets out of use once their gate
// is open. docs/aws-lambda.md says how to deploy it.
package main

import (
	"context"
	"log/slog"
	"os"

	"github.com/aws/aws-lambda-go/lambda"

	"github.com/keyturn/keyturn/internal/lambdarotate"
)

func main() {
	env, err := lambdarotate.ParseSweepEnv(os.Environ())
	logger := lambdarotate.NewLogger(os.Stderr, env.LogLevel)
	slog.SetDefault(logger) // so that the runtime's own lines are JSON too
	var s *lambdarotate.Sweeper
	if err == nil {
		s, err = lambdarotate.NewSweeper(context.Background(), env, &lambdarotate.Options{Logger: logger})
	}
	if err != nil {
		s = lambdarotate.RefusingSweep(err, logger)
	}
	lambda.Start(s)
}
