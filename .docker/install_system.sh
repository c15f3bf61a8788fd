#!/usr/bin/env bash
# What the CPU engine needs beside Python: libnuma, and the compiler of torch.compile.
source "$(dirname "${BASH_SOURCE[0]}")/step.sh"

export DEBIAN_FRONTEND=noninteractive
run apt-get update
run apt-get install --yes --no-install-recommends g++ libnuma1
run rm -rf /var/lib/apt/lists
