#!/usr/bin/env bash
# Programs beside Python that the tests start themselves: a PostgreSQL server out of the system's packages.
# Returns at once when it is there; installs it where that needs no questions (root on Debian or Ubuntu).
#
#   POSTGRES_HOME  where the packages put it (default /usr/lib/postgresql)
set -euo pipefail

readonly POSTGRES_HOME=${POSTGRES_HOME:-/usr/lib/postgresql}

die() { printf 'services: %s\n' "$*" >&2; exit 1; }

has_postgres() {
  command -v initdb >/dev/null || compgen -G "$POSTGRES_HOME/*/bin/initdb" >/dev/null
}

install_postgres() {
  local log
  log=$(mktemp)
  printf 'services: installing PostgreSQL\n'
  export DEBIAN_FRONTEND=noninteractive
  if ! { apt-get update && apt-get install --yes --no-install-recommends postgresql; } >"$log" 2>&1 </dev/null; then
    tail -n 20 "$log" >&2
    die "apt-get install postgresql failed; the whole log is $log"
  fi
  rm -f "$log"
  stop_clusters
}

# The package makes a cluster and may start it. The tests run their own, on a socket of their own.
stop_clusters() {
  local version cluster rest
  command -v pg_lsclusters >/dev/null || return 0
  pg_lsclusters --no-header | while read -r version cluster rest; do
    [[ $rest != *online* ]] || pg_ctlcluster "$version" "$cluster" stop --mode fast
  done
}

main() {
  if has_postgres; then return; fi
  command -v apt-get >/dev/null || die "the tests need a PostgreSQL server (initdb, postgres); install one"
  [[ $(id -u) -eq 0 ]] || die "the tests need a PostgreSQL server; run: sudo apt-get install postgresql"
  install_postgres
  has_postgres || die "the package postgresql brought no $POSTGRES_HOME/*/bin/initdb"
}

main "$@"
