#!/usr/bin/env bash
# Builds the Lambda packages: one zip an architecture, in dist/. The zips are
# the same bytes on every machine with the same Go; one over the limit fails.
set -euo pipefail
cd "$(dirname "$0")/.."
limit=5500000
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
go build -o "$work/lambdazip" ./internal/lambdazip
for main in functions/aws/*/main.go; do
	job=$(basename "$(dirname "$main")")
	for arch in arm64 amd64; do
		CGO_ENABLED=0 GOOS=linux GOARCH=$arch go build -trimpath -buildvcs=false -tags lambda.norpc \
			-ldflags "-s -w -buildid=" -o "$work/$job-$arch" "./functions/aws/$job"
		"$work/lambdazip" -out "dist/aws-$job-$arch.zip" -limit $limit "$work/$job-$arch"
	done
done
