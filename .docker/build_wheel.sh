#!/usr/bin/env bash
# Makes the wheel of the package, with the CUDA operators if they have been compiled.
#
#   build_wheel.sh FOLDER
#   PYTHON  interpreter (default python3)
source "$(dirname "${BASH_SOURCE[0]}")/step.sh"
[[ $# -eq 1 ]] || die "build_wheel.sh FOLDER"
folder=$(realpath --canonicalize-missing "$1")
cd "$(dirname "${BASH_SOURCE[0]}")/.."
readonly PYTHON=${PYTHON:-python3} folder

"$PYTHON" -c 'import hatchling' 2>/dev/null || run "$PYTHON" -m pip install --no-cache-dir 'hatchling>=1.27'
run "$PYTHON" -m hatchling build --target wheel --directory "$folder"
