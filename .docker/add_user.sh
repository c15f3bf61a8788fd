#!/usr/bin/env bash
# The user that everything runs as, and the folders that it may write to; the chart's `runAsUser` is the same number.
source "$(dirname "${BASH_SOURCE[0]}")/step.sh"

readonly ID=10001
readonly STATE=/var/lib/shadowserve CACHE=/var/cache/shadowserve

run groupadd --gid "$ID" shadowserve
run useradd --uid "$ID" --gid "$ID" --no-create-home --home-dir "$CACHE" --shell /usr/sbin/nologin shadowserve
run install --directory --owner="$ID" --group="$ID" --mode=0750 "$STATE" "$CACHE"
