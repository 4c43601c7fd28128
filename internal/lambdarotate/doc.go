// Package lambdarotate is the AWS Lambda function that Secrets Manager calls
// to rotate the password of a PostgreSQL user. It takes the place of the
// functions SecretsManagerRDSPostgreSQLRotationSingleUser and ...MultiUser of
// AWS: the event, the secret's JSON, the environment variables and the moves
// of the staging labels are theirs.
// https://docs.aws.amazon.com/secretsmanager/latest/userguide/reference_available-rotation-templates.html
//
// [ParseEnv] reads the settings, [New] makes the clients, once per cold
// start, and [Handler] serves one step an invocation. What a step does is
// decided in package rotators, at the store in secrets/awssm, and at the
// database in rotators/postgres; announcements go out by events/putevents.
package lambdarotate
