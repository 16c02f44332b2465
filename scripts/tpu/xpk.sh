#!/usr/bin/env bash
# Runs training on a GKE cluster with xpk (pip install xpk), which writes a JobSet such as jobset.yaml.
# xpk restarts on exit codes 143 and 144 (and 42, 127 to 255), at most --restarts times.
#
#   scripts/tpu/xpk.sh --name run --zone us-west4-a --cluster tpus --type v5litepod-256 --slices 8 \
#     --image us-docker.pkg.dev/my-project/images/siglip2_jax -- \
#     configs/my_run.py --workdir gs://my-bucket/run
#
# --name NAME        the workload
# --zone, --project  of the cluster
# --cluster CLUSTER  made by xpk cluster create
# --type TYPE        one slice, such as v5litepod-256
# --slices N         how many (default 1)
# --image IMAGE      that of scripts/tpu/Dockerfile, with the configs (docs/tpu.md)
# --restarts N       how often to start again (default 100)
# --dry-run          print the command and run nothing
# -- CONFIG …        the arguments of siglip2 train

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=slice.sh
source "$(dirname "${BASH_SOURCE[0]}")/slice.sh"

cluster='' type='' image='' restarts=100
while (($#)); do
  if [[ $1 == -- ]]; then
    shift
    break
  fi
  if slice_option "$@"; then
    shift "$TAKEN"
    continue
  fi
  case $1 in
    --cluster) need_value "$@" && cluster=$2 ;;
    --type) need_value "$@" && type=$2 ;;
    --image) need_value "$@" && image=$2 ;;
    --restarts) need_value "$@" && restarts=$2 ;;
    *) unknown_argument "$1" ;;
  esac
  shift "$TAKEN"
done
check_slice_options
[[ -n $cluster ]] || bad_argument "--cluster is missing: the GKE cluster that xpk made"
[[ -n $type ]] || bad_argument "--type is missing: the accelerator of one slice, such as v5litepod-256"
[[ -n $image ]] || bad_argument "--image is missing: the container image that holds siglip2_jax"
[[ $restarts =~ ^[0-9]+$ ]] || bad_argument "--restarts '$restarts' must be a whole number"
(($#)) || bad_argument "the arguments of siglip2 train are missing: -- CONFIG --workdir gs://…"

place=("--zone=$ZONE")
[[ -z $PROJECT ]] || place+=("--project=$PROJECT")
run xpk workload create "--workload=$NAME" "--cluster=$cluster" "${place[@]}" "--tpu-type=$type" \
  "--num-slices=$SLICES" "--docker-image=$image" "--max-restarts=$restarts" \
  --termination-grace-period-seconds=300 "--command=siglip2 train $(quote "$@")"
