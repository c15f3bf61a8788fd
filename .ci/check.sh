#!/usr/bin/env bash
# Static checks. All of them run, so that one look shows everything that is wrong.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source .ci/stages.sh
bin=${VENV:-.venv}/bin

stage lint "$bin/ruff" check .
stage format "$bin/ruff" format --check .
stage types "$bin/mypy"
stage imports "$bin/lint-imports"
stage architecture "$bin/python" -m pytest -q tests/architecture
finish
