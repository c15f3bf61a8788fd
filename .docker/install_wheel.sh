#!/usr/bin/env bash
# Installs the wheel and what the server needs beside the engine that is there; the engine and its torch stay as they are.
#
#   install_wheel.sh FOLDER
#   PYTHON  interpreter (default python3)
source "$(dirname "${BASH_SOURCE[0]}")/step.sh"
[[ $# -eq 1 ]] || die "install_wheel.sh FOLDER"
readonly PYTHON=${PYTHON:-python3} FOLDER=$1
export PIP_BREAK_SYSTEM_PACKAGES=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore

wheels=("$FOLDER"/shadowserve-*.whl)
[[ -e ${wheels[0]} && ${#wheels[@]} -eq 1 ]] || die "$FOLDER holds no wheel of shadowserve, or several"
constraints=$(mktemp)
trap 'rm -f "$constraints"' EXIT

# Only what others agree on by name and version: no path of a local build.
"$PYTHON" -m pip list --format=freeze --exclude-editable --exclude shadowserve | grep -E '^[A-Za-z0-9._-]+==[^ ]+$' >"$constraints"
run "$PYTHON" -m pip install --constraint "$constraints" "${wheels[0]}[server]"
