#!/usr/bin/env bash
# The test suites of a machine without a GPU: units first, then everything that starts a real engine, then the slow ones.
# Before them, what they start beside Python.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source .ci/stages.sh
readonly HERE="not gpu and not network and not timing"

# suite SECONDS MARKERS: no single test, its fixtures included, may take longer than SECONDS.
suite() { "${VENV:-.venv}/bin/python" -m pytest -q --durations=5 --timeout="$1" -m "$2"; }

stage "services" .ci/services.sh
stage "unit tests" suite 300 "$HERE and not engine and not slow"
stage "engine tests" suite 1200 "$HERE and engine and not slow"
stage "slow tests" suite 1200 "$HERE and slow"
finish
