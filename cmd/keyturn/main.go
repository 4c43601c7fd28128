// Command keyturn rotates the credentials that fleets of AI agents hold, and
// tells the fleets.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/alecthomas/kong"
)

// version is set by the linker in releases.
var version = "dev"

// cli is the command line. Each command is one file.
type cli struct {
	Config    string           `help:"Configuration file." short:"c" default:"${config}" env:"KEYTURN_CONFIG" type:"path"`
	Log       string           `help:"Log level on standard error: ${enum}." default:"warn" enum:"debug,info,warn,error" env:"KEYTURN_LOG"`
	LogFormat string           `help:"Log lines as ${enum}." default:"text" enum:"text,json" env:"KEYTURN_LOG_FORMAT"`
	Version   kong.VersionFlag `help:"Print the version."`

	Dev         devCmd         `cmd:"" help:"Run the whole pipeline on this machine: embedded NATS, a demo issuer, PostgreSQL, three agents."`
	Serve       serveCmd       `cmd:"" help:"Run the notifier and the scheduled rotations of the configuration against your NATS."`
	Rotate      rotateCmd      `cmd:"" help:"Rotate one secret now, or finish its unfinished rotation."`
	Create      createCmd      `cmd:"" help:"Put the first value of a secret, from standard input, into its store."`
	Retire      retireCmd      `cmd:"" help:"Take the superseded credential of a secret out of use now, if its gate lets go."`
	Restore     restoreCmd     `cmd:"" help:"Undo retire: enable the superseded version again."`
	Rollback    rollbackCmd    `cmd:"" help:"Make the previous credential current again, at the target too."`
	Destroy     destroyCmd     `cmd:"" help:"Make the value of a retired version unrecoverable."`
	Doctor      doctorCmd      `cmd:"" help:"Find stuck rotations, dead credentials and what was left behind, each with its one repair."`
	Discard     discardCmd     `cmd:"" help:"Drop the pending version of a rotation that can never finish."`
	Status      statusCmd      `cmd:"" help:"Show the stages, ages and next rotation of secrets."`
	Watch       watchCmd       `cmd:"" help:"Print events as they happen."`
	Replay      replayCmd      `cmd:"" help:"Give stored events to a consumer again."`
	Tenants     tenantsCmd     `cmd:"" help:"Tell whose secrets are, and keep tenants apart on NATS."`
	Normalize   normalizeCmd   `cmd:"" help:"Read a provider's raw notice on standard input, print Keyturn's events as JSON."`
	Deadletters deadlettersCmd `cmd:"" help:"List, show and hand on again the notices that could not be handed on."`
	Keygen      keygenCmd      `cmd:"" help:"Write a new sealing key for the built-in store."`
}

const description = `Keyturn rotates the credentials that fleets of AI agents hold, and tells the fleets within milliseconds.

Start with "keyturn dev": it needs no account and no server. It writes .keyturn/keyturn.yaml, which the other commands read, so that from a second terminal you can try "keyturn status", "keyturn watch" and "keyturn rotate nats://keyturn/acme/llm-key".`

// defaultConfig is what dev writes.
const defaultConfig = ".keyturn/keyturn.yaml"

// env is what a command needs of the world, so that tests can run commands
// in process.
type env struct {
	ctx    context.Context
	stdin  io.Reader
	stdout io.Writer
	log    *slog.Logger
	config string
}

func main() {
	// The second signal is not caught: it ends a shutdown that hangs.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// run runs one command and returns the exit code: 0, 1 when it failed, 2 when
// the command line is wrong.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	var c cli
	exit := -1
	parser, err := kong.New(&c,
		kong.Name("keyturn"), kong.Description(description), kong.UsageOnError(),
		kong.Vars{"version": version, "config": defaultConfig}, kong.Writers(stdout, stderr),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true}),
		kong.Exit(func(code int) { exit = code }),
	)
	if err != nil {
		_, _ = fmt.Fprintln(stderr, "keyturn:", err)
		return 2
	}
	if len(args) == 0 {
		args = []string{"--help"}
	}
	kctx, err := parser.Parse(args)
	if exit >= 0 { // --help and --version end here
		return exit
	}
	if err != nil {
		_, _ = fmt.Fprintf(stderr, "keyturn: %v; see keyturn --help\n", err)
		return 2
	}
	e := &env{ctx: ctx, stdin: stdin, stdout: stdout, config: c.Config, log: newLogger(stderr, c.Log, c.LogFormat)}
	if err := kctx.Run(e); err != nil {
		if errors.Is(err, context.Canceled) && ctx.Err() != nil {
			return 130
		}
		if c.LogFormat == "json" {
			e.log.ErrorContext(ctx, "keyturn failed", "err", err.Error())
		} else {
			_, _ = fmt.Fprintln(stderr, "keyturn:", err)
		}
		return 1
	}
	return 0
}

// newLogger returns what commands log to; level and format are of the enums.
func newLogger(w io.Writer, level, format string) *slog.Logger {
	var l slog.Level
	_ = l.UnmarshalText([]byte(level))
	opts := &slog.HandlerOptions{Level: l}
	if format == "json" {
		return slog.New(slog.NewJSONHandler(w, opts))
	}
	return slog.New(slog.NewTextHandler(w, opts))
}
