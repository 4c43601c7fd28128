#!/usr/bin/env bash
# Runs every test. A skipped test is a failure: it proves nothing.
set -euo pipefail
cd "$(dirname "$0")/.."
gotestsum=$1
mkdir -p build
log=build/test.jsonl
export REQUIRE_INTEGRATION=1
status=0
# The longest packages first, so that none of them runs on alone at the end.
$gotestsum --format pkgname --jsonfile "$log" -- -timeout 20m ./integration ./rotators/postgres ./... || status=$?

# How many outward calls the crash suites failed, one line a suite.
sed -nE 's/.*"Test":"([^"]*)".*"Output":" *[^"]*crash points: ([0-9]+)\\n".*/\1 \2/p' "$log" |
	awk '{ printf "crash points: %5d  %s\n", $2, $1; n += $2 } END { if (n) printf "crash points: %5d  in all\n", n }'

skips=$(grep -c '"Action":"skip","Package":"[^"]*","Test":' "$log" || true)
if [ "$skips" -ne 0 ]; then
	echo "test: $skips skipped test(s), which count as failures:" >&2
	sed -nE 's/.*"Action":"skip","Package":"([^"]*)","Test":"([^"]*)".*/  \1 \2/p' "$log" >&2
	status=1
fi
exit "$status"
