#!/usr/bin/env bash
# The test suites of a machine without a GPU: units first, then everything that starts a real engine, then the slow ones.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source .ci/stages.sh
readonly HERE="not gpu and not network"

suite() { "${VENV:-.venv}/bin/python" -m pytest -q --durations=5 -m "$1"; }

stage "unit tests" suite "$HERE and not engine and not slow"
stage "engine tests" suite "$HERE and engine and not slow"
stage "slow tests" suite "$HERE and slow"
finish
