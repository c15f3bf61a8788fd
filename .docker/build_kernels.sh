#!/usr/bin/env bash
# Compiles the CUDA operators ahead, for every architecture that the package names, with the torch of the image.
#
#   PYTHON  interpreter that has this torch (default python3)
source "$(dirname "${BASH_SOURCE[0]}")/step.sh"
cd "$(dirname "${BASH_SOURCE[0]}")/.."
readonly PYTHON=${PYTHON:-python3}

has_nvcc() { command -v nvcc >/dev/null || [[ -x ${CUDA_HOME:-/usr/local/cuda}/bin/nvcc ]]; }

# The compiler of torch's own CUDA, out of the packages that the image's CUDA is from.
install_nvcc() {
  local cuda
  cuda=$("$PYTHON" -c 'import torch; print((torch.version.cuda or "").replace(".", "-"))')
  [[ -n $cuda ]] || die "the torch of $PYTHON is built without CUDA"
  export DEBIAN_FRONTEND=noninteractive
  run apt-get update
  run apt-get install --yes --no-install-recommends "cuda-nvcc-$cuda" "cuda-cudart-dev-$cuda"
}

has_nvcc || install_nvcc
run env PYTHONPATH=kernels "$PYTHON" -m shadow_kernels.build
