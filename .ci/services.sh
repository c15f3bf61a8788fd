#!/usr/bin/env bash
# Programs beside Python that the tests start themselves: PostgreSQL, Prometheus and Chromium out of the system's packages.
# Returns at once when they are there; installs them where that needs no questions (root on Debian or Ubuntu).
#
#   POSTGRES_HOME  where the packages put it (default /usr/lib/postgresql)
set -euo pipefail

readonly POSTGRES_HOME=${POSTGRES_HOME:-/usr/lib/postgresql}

die() { printf 'services: %s\n' "$*" >&2; exit 1; }

has_postgres() {
  command -v initdb >/dev/null || compgen -G "$POSTGRES_HOME/*/bin/initdb" >/dev/null
}

has_prometheus() { command -v prometheus >/dev/null && command -v promtool >/dev/null; }

has_chromium() { command -v chromium >/dev/null && command -v chromedriver >/dev/null; }

# install_packages NAME...
install_packages() {
  local log
  log=$(mktemp)
  printf 'services: installing %s\n' "$*"
  export DEBIAN_FRONTEND=noninteractive
  if ! { apt-get update && apt-get install --yes --no-install-recommends "$@"; } >"$log" 2>&1 </dev/null; then
    tail -n 20 "$log" >&2
    die "apt-get install $* failed; the whole log is $log"
  fi
  rm -f "$log"
}

# The package makes a cluster and may start it. The tests run their own, on a socket of their own.
stop_clusters() {
  local version cluster rest
  command -v pg_lsclusters >/dev/null || return 0
  pg_lsclusters --no-header | while read -r version cluster rest; do
    [[ $rest != *online* ]] || pg_ctlcluster "$version" "$cluster" stop --mode fast
  done
}

# The package's own server scrapes itself on port 9090. The tests run theirs, on a free port.
stop_prometheus() {
  command -v systemctl >/dev/null || return 0
  systemctl --quiet is-active prometheus 2>/dev/null || return 0
  systemctl stop prometheus
}

main() {
  local missing=()
  has_postgres || missing+=(postgresql)
  has_prometheus || missing+=(prometheus)
  has_chromium || missing+=(chromium chromium-driver)
  [[ ${#missing[@]} -gt 0 ]] || return 0
  command -v apt-get >/dev/null || die "the tests need PostgreSQL (initdb), Prometheus (promtool) and Chromium (chromedriver); install them"
  [[ $(id -u) -eq 0 ]] || die "the tests need programs; run: sudo apt-get install ${missing[*]}"
  install_packages "${missing[@]}"
  [[ " ${missing[*]} " != *" postgresql "* ]] || stop_clusters
  [[ " ${missing[*]} " != *" prometheus "* ]] || stop_prometheus
  has_postgres || die "the package postgresql brought no $POSTGRES_HOME/*/bin/initdb"
  has_prometheus || die "the package prometheus brought no promtool"
  has_chromium || die "the package chromium-driver brought no chromedriver"
}

main "$@"
