#!/usr/bin/env bash
# Stops training on every worker: SIGTERM, upon which all hosts save the same step, then waits for the
# end. With --delete the TPUs go back too; without it they stay, and cost.
#
#   scripts/tpu/stop.sh --name run --zone us-west4-a --slices 8 --delete
#
# --name, --zone, --slices, --project  as given to create.sh
# --timeout SECONDS  how long saving may take (default 600)
# --delete           then delete the queued resource and its slices, if everything was saved
# --dry-run          print the commands and run nothing

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=slice.sh
source "$(dirname "${BASH_SOURCE[0]}")/slice.sh"

delete=0 timeout=600
while (($#)); do
  if slice_option "$@"; then
    shift "$TAKEN"
    continue
  fi
  case $1 in
    --timeout) need_value "$@" && timeout=$2 ;;
    --delete) delete=1 ;;
    *) unknown_argument "$1" ;;
  esac
  shift "$TAKEN"
done
check_slice_options
[[ $timeout =~ ^[1-9][0-9]*$ ]] ||
  bad_argument "--timeout '$timeout' must be a whole number of seconds from 1 on"

remove=(gcloud compute tpus queued-resources delete "$NAME" "${GCLOUD[@]}" --force)

# A free lock means that nothing runs; a held one names the process to signal (see launch.sh).
# shellcheck disable=SC2016  # the worker's shell expands it
stop() {
  local command='flock -n ~/siglip2.lock true || { kill -TERM "$(cat ~/siglip2.lock)"'
  command+=" && flock -w $timeout ~/siglip2.lock true"
  command+=" || { echo \"training on \$(hostname) did not end in $timeout seconds\" >&2; exit 1; }; }"
  on_workers "$2" all "$command"
}

if ! (every_slice stop); then
  ((!delete)) ||
    give_up "nothing was deleted, as not every worker stopped; if slices are gone: $(quote "${remove[@]}")"
  exit 1
fi
((!delete)) || run "${remove[@]}"
