#!/usr/bin/env bash
# Starts `siglip2 train` in the background on every worker, where it outlives this connection, writes
# ~/siglip2.log, and starts again whenever it was interrupted: after saving (exit code 143), because
# another worker was lost (144), or by a kill from outside (137), which is how others come to lose it.
# Before the first start `siglip2 doctor` checks all workers, up to three minutes, and training does
# not start where something fails.
#
#   scripts/tpu/launch.sh --name run --zone us-west4-a --slices 8 -- \
#     configs/my_run.py --workdir gs://my-bucket/run --set optim.peak_lr=3e-4
#
# --name, --zone, --slices, --project  as given to create.sh
# --dry-run          print the commands and run nothing
# --no-doctor        start without checking the workers
# -- CONFIG …        the arguments of siglip2 train; paths are those in ~/siglip2_jax of the workers
#
# A workdir that holds a checkpoint resumes. stop.sh saves and stops, logs.sh shows the log.

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=slice.sh
source "$(dirname "${BASH_SOURCE[0]}")/slice.sh"

# supervise PROGRAM CHECKED ARGUMENTS…: this half runs on a worker. The lock holds as long as training
# runs or restarts, and the lock file names the process that stop.sh signals. With CHECKED 1 the
# doctor comes first, with the same arguments.
supervise() {
  local program=$1 checked=$2 code stopping='' child=''
  shift 2
  exec 9<> ~/siglip2.lock
  flock -n 9 || give_up "training already runs here; stop it first"
  echo "$$" > ~/siglip2.lock
  trap 'stopping=1; [[ -z $child ]] || kill -TERM "$child" 2> /dev/null || true' TERM
  if ((checked)); then
    attend "$program" doctor "$@"
    ((code == 0)) || exit "$code"
  fi
  while [[ -z $stopping ]]; do
    attend "$program" train "$@"
    [[ $code == 143 || $code == 144 || $code == 137 ]] || exit "$code"
    sleep 10 9>&- & # in the background, so that the trap can end it
    wait "$!" || true
  done
  exit 143
}

# attend COMMAND…: runs it to its end, whose exit code it leaves in `code`; the trap of supervise
# passes SIGTERM on.
attend() {
  "$@" 9>&- &
  child=$!
  code=0
  wait "$child" || code=$?
  while kill -0 "$child" 2> /dev/null; do # the trap ends a wait before the child has saved
    code=0
    wait "$child" || code=$?
  done
  child=''
  printf '%s %s %s ended with exit code %s\n' "$(date '+%F %T')" "$1" "$2" "$code"
}

if [[ ${1-} == --supervise ]]; then
  shift
  supervise "$@"
fi

doctor=1
while (($#)); do
  if [[ $1 == -- ]]; then
    shift
    break
  fi
  case $1 in
    --no-doctor) doctor=0 TAKEN=1 ;;
    *) slice_option "$@" || unknown_argument "$1" ;;
  esac
  shift "$TAKEN"
done
check_slice_options
(($#)) || bad_argument "the arguments of siglip2 train are missing: -- CONFIG --workdir gs://…"
[[ $1 != -* ]] || bad_argument "'$1' is not a config: a recipe, Python file or module must follow --"
[[ " $* " == *" --workdir gs://"* || " $* " == *" --workdir=gs://"* ]] ||
  bad_argument "--workdir gs://BUCKET/RUN is missing after --: workers share it, and it outlives them"

# Several slices find each other through the first worker of slice 0. gcloud knows its address only
# once the slices exist, so a dry run shows a placeholder. JAX and libtpu read these variables.
coordinator='' port=8080
if ((SLICES > 1)); then
  describe=(gcloud compute tpus tpu-vm describe "$(node_name 0)" "${GCLOUD[@]}"
    '--format=value(networkEndpoints[0].ipAddress)')
  if ((DRY_RUN)); then
    run "${describe[@]}"
    coordinator=ADDRESS_OF_$(node_name 0)
  else
    coordinator=$("${describe[@]}")
    [[ -n $coordinator ]] || give_up "gcloud gave no address of $(node_name 0): is it ACTIVE?"
  fi
fi

train=$(quote "$@")
# shellcheck disable=SC2016  # the worker's shell expands it
start() {
  local environment=''
  if ((SLICES > 1)); then
    environment="MEGASCALE_COORDINATOR_ADDRESS=$coordinator:$port MEGASCALE_PORT=$port"
    environment+=" MEGASCALE_NUM_SLICES=$SLICES MEGASCALE_SLICE_ID=$1 "
  fi
  local command='flock -n ~/siglip2.lock true'
  command+=' || { echo "training already runs on $(hostname): stop it first" >&2; exit 1; }'
  command+="; cd ~/siglip2_jax && { ${environment}setsid nohup bash scripts/tpu/launch.sh --supervise"
  command+=" ~/venv/bin/siglip2 $doctor $train >> ~/siglip2.log 2>&1 < /dev/null & }"
  on_workers "$2" all "$command"
}
every_slice start
