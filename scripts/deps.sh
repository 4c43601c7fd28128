#!/usr/bin/env bash
# Makes sure that what the named things need is here: deps.sh go postgresql
# On Debian and Ubuntu it installs; elsewhere it says in one line what is missing.
set -euo pipefail

want_go=1.26

apt_install() {
	if ! command -v apt-get >/dev/null; then
		echo "keyturn: $1 is missing, and this is not a Debian or Ubuntu system; install $2 with your package manager and run the command again" >&2
		exit 1
	fi
	local sudo=""
	if [ "$(id -u)" -ne 0 ]; then
		if ! command -v sudo >/dev/null; then
			echo "keyturn: $1 is missing; as root, run: apt-get install -y $2" >&2
			exit 1
		fi
		sudo="sudo"
	fi
	echo "keyturn: installing $2" >&2
	$sudo apt-get update -qq
	# The package's own cluster is not wanted: the tests start their own.
	DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq --no-install-recommends "$2" >/dev/null
}

for what in "$@"; do
	case "$what" in
	go)
		if ! command -v go >/dev/null; then
			echo "keyturn: Go is missing; install Go $want_go or newer (go.dev/doc/install) and put it on the PATH" >&2
			exit 1
		fi
		have=$(GOTOOLCHAIN=local go env GOVERSION | sed 's/^go//')
		if [ "$(printf '%s\n%s\n' "$want_go" "$have" | sort -V | head -n 1)" != "$want_go" ]; then
			echo "keyturn: Go $have is too old; install Go $want_go or newer (go.dev/doc/install)" >&2
			exit 1
		fi
		;;
	postgresql)
		if ! ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 && ! command -v initdb >/dev/null; then
			apt_install "the PostgreSQL server" postgresql
		fi
		;;
	*)
		echo "deps.sh: unknown thing $what" >&2
		exit 2
		;;
	esac
done
