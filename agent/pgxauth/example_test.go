package pgxauth_test

import (
	"context"
	"log"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/keyturn/keyturn/agent"
	"github.com/keyturn/keyturn/agent/pgxauth"
	"github.com/keyturn/keyturn/ref"
)

// Everything but the TLS settings comes from the secret.
func Example() {
	ctx := context.Background()
	var client *agent.Client // from agent.New, and its Run is running
	db, err := ref.Parse("aws://123456789012/eu-central-1/prod/orders-db")
	if err != nil {
		log.Fatal(err)
	}
	hook, err := pgxauth.New(client, db, nil)
	if err != nil {
		log.Fatal(err)
	}
	cfg, err := pgxpool.ParseConfig("sslmode=verify-full sslrootcert=/etc/ssl/rds.pem")
	if err != nil {
		log.Fatal(err)
	}
	pool, err := hook.NewPool(ctx, cfg)
	if err != nil {
		log.Fatal(err)
	}
	defer pool.Close()
	if _, err := pool.Exec(ctx, "SELECT 1"); err != nil {
		log.Print(err)
	}
}
