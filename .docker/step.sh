# Sourced by the scripts beside it, each of which is one RUN step of the Dockerfile.
#
#   DRY_RUN  print the commands of a step instead of running them

set -euo pipefail

die() { printf 'image: %s\n' "$*" >&2; exit 1; }

# run COMMAND...
run() {
  if [[ -n ${DRY_RUN:-} ]]; then printf '%s\n' "$*"; else "$@"; fi
}
