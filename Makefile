# Every target is one command; `make` lists them.
.DEFAULT_GOAL := help
SHELL := bash

GO            ?= go
GOTESTSUM     := $(GO) run gotest.tools/gotestsum@v1.13.0
GOLANGCI_LINT := $(GO) run github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
BENCHTIME     ?= 2s
STATE         ?= .keyturn
ARGS          ?=

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /  make \1\t/' | expand -t 18

.PHONY: run
run: ## the whole pipeline on this machine: rotate, notify, refresh (ARGS="--help" for its flags)
	@scripts/deps.sh go
	@[ -x build/keyturn ] || echo "keyturn: building; the first time takes a minute or two"
	@$(GO) build -o build/keyturn ./cmd/keyturn
	@exec build/keyturn dev --state $(STATE) $(ARGS)

.PHONY: test
test: ## everything, with real servers; installs what it needs with apt
	@scripts/deps.sh go postgresql
	@scripts/test.sh "$(GOTESTSUM)"

.PHONY: test-vault
test-vault: ## the Vault store and notices on a real Vault; the first time builds it, for some minutes
	@scripts/deps.sh go
	@scripts/test-vault.sh

.PHONY: soak
soak: ## the crash suites in full: every mode, every store, more rounds of a NATS cluster
	@scripts/deps.sh go postgresql
	KEYTURN_SOAK=1 REQUIRE_INTEGRATION=1 $(GO) test -count=1 -timeout 90m -run 'Crash|TestSuite|TestCluster|TestNotifierDrains' ./rotators/postgres ./integration

.PHONY: race
race: ## the concurrent packages under the race detector
	@scripts/deps.sh go postgresql
	REQUIRE_INTEGRATION=1 $(GO) test -race -timeout 60m ./agent/... ./events/... ./notifier/... ./secrets/... ./rotators ./internal/natslock ./internal/scheduler ./internal/triggers

.PHONY: lint
lint: ## formatting, vet, golangci-lint, tidy module file
	@scripts/deps.sh go
	@scripts/lint.sh "$(GOLANGCI_LINT)"

.PHONY: fuzz
fuzz: ## fuzz the decoders (FUZZTIME=1m each)
	@scripts/fuzz.sh

.PHONY: bench
bench: ## what a hit, an event and a notice cost, each beside its baseline
	@scripts/deps.sh go
	$(GO) test -run '^$$' -bench . -benchmem -benchtime $(BENCHTIME) ./agent ./events/natsbus
	$(GO) test -run '^$$' -bench 'Notify$$' -benchtime 30000x -timeout 30m ./integration
	$(GO) test -run '^$$' -bench 'NotifyLag|NotifyMemory' -benchtime 1x -timeout 30m ./integration

.PHONY: package
package: ## Lambda zips for arm64 and amd64, in dist/
	@scripts/deps.sh go
	@scripts/package.sh
