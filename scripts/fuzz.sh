#!/usr/bin/env bash
# Runs every fuzz target for FUZZTIME (1m by default), or those of the packages
# that are named, and stops at the first find, which stays in testdata.
# FUZZPARALLEL is the number of workers (all processors by default).
set -euo pipefail
cd "$(dirname "$0")/.."

# Files are searched, since go test -list builds every package's tests.
if [ $# -gt 0 ]; then where=("$@"); else where=(.); fi
mapfile -t dirs < <(grep -rl --include='*_test.go' '^func Fuzz' "${where[@]}" | xargs -r -n1 dirname | sort -u)
[ ${#dirs[@]} -gt 0 ] || { echo "fuzz: no target is in ${where[*]}" >&2; exit 1; }

ran=0
for dir in "${dirs[@]}"; do
	pkg=./${dir#./}
	for target in $(grep -h '^func Fuzz' "$dir"/*_test.go | sed -E 's/^func (Fuzz[A-Za-z0-9_]*).*/\1/'); do
		echo "fuzz: $pkg $target"
		# Go would take up to a minute to make each interesting input short.
		go test -run '^$' -fuzz "^$target\$" -fuzztime "${FUZZTIME:-1m}" -fuzzminimizetime 100x \
			${FUZZPARALLEL:+-parallel "$FUZZPARALLEL"} "$pkg"
		ran=$((ran + 1))
	done
done
echo "fuzz: $ran targets, nothing found"
