#!/usr/bin/env bash
# The Vault store's tests against a real Vault, built from its module in the
# edition that Vault itself calls minimal: key-value engine and AppRole are in
# it. The first run builds for some minutes; the binary is kept, so that the
# next ones take seconds.
set -euo pipefail
cd "$(dirname "$0")/.."

module=github.com/hashicorp/vault
version=v1.21.4
cache=${XDG_CACHE_HOME:-$HOME/.cache}/keyturn/vault
# What is built depends on the edits too: a changed one builds anew.
binary=$cache/vault-$version-$(sha256sum <scripts/vault/main.go | cut -c1-12)

build() {
	local source work
	source=$(go mod download -json "$module@$version" | sed -n 's/^[[:space:]]*"Dir": "\(.*\)",\{0,1\}$/\1/p')
	[ -d "$source" ] || { echo "test-vault: $module@$version was not downloaded" >&2; return 1; }
	mkdir -p "$cache"
	work=$(mktemp -d "$cache/build.XXXXXX")
	# shellcheck disable=SC2064 # the directory is known now
	trap "chmod -R u+w '$work'; rm -rf '$work'" EXIT
	cp -r "$source/." "$work/"
	chmod -R u+w "$work"
	go run ./scripts/vault "$work"
	(
		cd "$work"
		# What the module replaces by directories of its repository is not in it.
		go mod edit \
			-dropreplace "$module/api" -dropreplace "$module/sdk" \
			-dropreplace "$module/api/auth/approle" -dropreplace "$module/api/auth/kubernetes" \
			-dropreplace "$module/api/auth/userpass" \
			-require "$module/sdk@v0.21.0" -require "$module/api@v1.22.0"
		GOFLAGS=-mod=mod CGO_ENABLED=0 nice -n 10 go build -tags minimal -trimpath -buildvcs=false -ldflags '-s -w' -o "$binary.new" .
	)
	mv "$binary.new" "$binary"
}

if [ ! -x "$binary" ]; then
	echo "test-vault: building Vault $version; this takes some minutes, once" >&2
	build
fi
if [ "${1:-}" = --build ]; then
	echo "$binary"
	exit
fi
KEYTURN_VAULT=$binary go test -count=1 -tags realvault ./secrets/vaultkv/... ./internal/vaultfake/... ./events/vault/... ./notifier/vaultevents/... "$@"
