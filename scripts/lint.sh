#!/usr/bin/env bash
# Formatting, vet, linters, and a module file that says what is used.
set -euo pipefail
cd "$(dirname "$0")/.."
lint=$1
unformatted=$(gofmt -l .)
if [ -n "$unformatted" ]; then
	echo "lint: not gofmt'd; run gofmt -w on:" >&2
	echo "$unformatted" >&2
	exit 1
fi
go vet ./...
go mod tidy -diff
$lint run ./...
