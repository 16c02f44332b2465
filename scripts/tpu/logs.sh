#!/usr/bin/env bash
# Follows the log of one worker (Ctrl-C ends this, not the training). Only worker 0 of slice 0 writes
# progress; the others write their errors.
#
#   scripts/tpu/logs.sh --name run --zone us-west4-a --slices 8 --slice 3 --worker 17
#
# --name, --zone, --slices, --project  as given to create.sh
# --slice S          which slice (default 0)
# --worker N         which worker of the slice (default 0), or all: last lines only
# --lines N          how many lines to begin with (default 50)
# --dry-run          print the command and run nothing

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=slice.sh
source "$(dirname "${BASH_SOURCE[0]}")/slice.sh"

slice=0 worker=0 lines=50
while (($#)); do
  if slice_option "$@"; then
    shift "$TAKEN"
    continue
  fi
  case $1 in
    --slice) need_value "$@" && slice=$2 ;;
    --worker) need_value "$@" && worker=$2 ;;
    --lines) need_value "$@" && lines=$2 ;;
    *) unknown_argument "$1" ;;
  esac
  shift "$TAKEN"
done
check_slice_options
if [[ ! $slice =~ ^(0|[1-9][0-9]*)$ ]] || ((slice >= SLICES)); then
  bad_argument "--slice '$slice' must be from 0 to $((SLICES - 1)), below --slices"
fi
[[ $worker =~ ^([0-9]+|all)$ ]] || bad_argument "--worker '$worker' must be a number from 0 on, or all"
[[ $lines =~ ^[0-9]+$ ]] || bad_argument "--lines '$lines' must be a whole number"

if [[ $worker == all ]]; then follow=''; else follow='-F '; fi
on_workers "$(node_name "$slice")" "$worker" "tail -n $lines $follow~/siglip2.log"
