#!/usr/bin/env bash
# The test suites of a machine without a GPU: on two workers that share the machine units, quick ones and then slow ones,
# and what compares a real engine's answers; then, with nothing beside them, units and engine tests that bound real time
# (marker `alone`). Before them, what they start beside Python.
#
#   WORKERS  that share the machine (default 2)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source .ci/stages.sh
readonly HERE="not gpu and not network and not timing"
readonly WORKERS=${WORKERS:-2}

# suite SECONDS MARKERS [OPTION...]: no single test, its fixtures included, may take longer than SECONDS.
suite() { "${VENV:-.venv}/bin/python" -m pytest -q --durations=5 --timeout="$1" -m "$HERE and $2" "${@:3}"; }

# shared SECONDS MARKERS OPTION...: the same on several workers, which take turns on the cores; their tensors take one each.
shared() { OMP_NUM_THREADS=1 suite "$@" --numprocesses="$WORKERS"; }

stage "services" .ci/services.sh
stage "unit tests" shared 300 "not alone and not engine and not slow" --dist=loadscope
# One by one: a module of sixty takes longer than all the others together.
stage "slow unit tests" shared 1200 "slow and not alone and not engine" --dist=worksteal
# Not among the engine tests: in a process as large as theirs, collecting garbage alone breaks a bound.
stage "unit tests alone" suite 300 "alone and not engine"
stage "engine tests" shared 1200 "engine and not alone" --dist=loadscope
stage "engine tests alone" suite 1200 "engine and alone and not slow"
stage "slow engine tests alone" suite 1200 "engine and alone and slow"
finish
