#!/usr/bin/env bash
# Asks Google Cloud for TPU slices (a queued resource) and waits until they are there.
#
#   scripts/tpu/create.sh --name run --zone us-west4-a --type v5litepod-256 --slices 8 --spot
#
# --name NAME        the queued resource; one slice is the node NAME, several are NAME-0, NAME-1 …
# --zone ZONE        where
# --type TYPE        one slice, such as v5litepod-8 (8 chips, 1 host) or v5litepod-256 (64 hosts)
# --slices N         how many slices (default 1)
# --spot             cheaper, and may be taken back at any time
# --project PROJECT  default: that of gcloud
# --runtime VERSION  software of the VMs (default for v5litepod: v2-alpha-tpuv5-lite)
# --network NETWORK  a network of yours (several slices: one with MTU 8896)
# --no-wait          return once the request is queued
# --poll SECONDS     between two looks while waiting (default 30)
# --dry-run          print the commands and run nothing
#
# Stopping this script leaves the request in the queue.

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=slice.sh
source "$(dirname "${BASH_SOURCE[0]}")/slice.sh"

type='' runtime='' network='' spot=0 wait_for_it=1 poll=30
while (($#)); do
  if slice_option "$@"; then
    shift "$TAKEN"
    continue
  fi
  case $1 in
    --type) need_value "$@" && type=$2 ;;
    --runtime) need_value "$@" && runtime=$2 ;;
    --network) need_value "$@" && network=$2 ;;
    --poll) need_value "$@" && poll=$2 ;;
    --spot) spot=1 ;;
    --no-wait) wait_for_it=0 ;;
    *) unknown_argument "$1" ;;
  esac
  shift "$TAKEN"
done
check_slice_options
[[ -n $type ]] || bad_argument "--type is missing: the accelerator of one slice, such as v5litepod-256"
[[ $poll =~ ^[0-9]+$ ]] || bad_argument "--poll '$poll' must be a whole number of seconds"
if [[ -z $runtime ]]; then
  [[ $type == v5litepod-* ]] ||
    bad_argument "--runtime is missing: the VMs' software has a default for v5litepod, not for $type"
  runtime=v2-alpha-tpuv5-lite
fi

describe=(gcloud compute tpus queued-resources describe "$NAME" "${GCLOUD[@]}")
state=("${describe[@]}" '--format=value(state.state)')

# Returns when the slices are ACTIVE. A wait can take days, so it survives a few failing looks.
wait_until_active() {
  local now='' before='' failures=0
  while true; do
    if now=$("${state[@]}"); then
      failures=0
    else
      ((++failures < 5)) || give_up "gcloud could not tell the state of $NAME five times in a row"
      now=$before
    fi
    [[ $now == "$before" ]] || printf '%s %s %s\n' "$(date '+%F %T')" "$NAME" "$now"
    before=$now
    case $now in
      ACTIVE) return ;;
      FAILED | SUSPENDING | SUSPENDED | DELETING)
        give_up "$NAME is $now, not ACTIVE: $(quote "${describe[@]}") says why; delete it with \
$(quote gcloud compute tpus queued-resources delete "$NAME" "${GCLOUD[@]}" --force), then create it again"
        ;;
    esac
    sleep "$poll"
  done
}

request=("--accelerator-type=$type" "--runtime-version=$runtime")
if ((SLICES == 1)); then
  request+=("--node-id=$NAME")
else
  request+=("--node-count=$SLICES" "--node-prefix=$NAME")
fi
((!spot)) || request+=(--spot)
[[ -z $network ]] || request+=("--network=$network")
run gcloud compute tpus queued-resources create "$NAME" "${GCLOUD[@]}" "${request[@]}"
if ((wait_for_it)); then
  if ((DRY_RUN)); then
    run "${state[@]}"
  else
    wait_until_active
  fi
fi
