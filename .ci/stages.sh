# Sourced by the scripts beside it: run named stages, all of them, and fail at the end if one failed.

failed=()
timings=()

# stage NAME COMMAND...
stage() {
  local name=$1 start=$SECONDS verdict=ok
  shift
  printf '\n== %s\n' "$name"
  "$@" </dev/null || verdict="FAILED ($?)"
  timings+=("$(printf '%-24s %4ds  %s' "$name" $((SECONDS - start)) "$verdict")")
  [[ $verdict == ok ]] || failed+=("$name")
}

finish() {
  printf '\n'
  printf '%s\n' "${timings[@]}"
  [[ ${#failed[@]} -eq 0 ]] || { printf 'failed: %s\n' "${failed[*]}" >&2; exit 1; }
}
