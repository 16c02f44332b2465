#!/usr/bin/env bash
# Installs siglip2_jax on every worker: the code in ~/siglip2_jax, exactly the versions of its uv.lock
# in ~/venv, with a Python of uv (that of the image is too old), and with --bucket the data in /data.
# Running it again updates.
#
#   scripts/tpu/setup.sh --name run --zone us-west4-a --slices 8 --bucket my-data
#
# --name, --zone, --slices, --project  as given to create.sh
# --bucket BUCKET    mount gs://BUCKET read-only on /data with gcsfuse
# --repo URL         clone this instead of copying what is committed in this checkout
# --ref REF          branch or tag of the clone (default: that of the repository)
# --dry-run          print the commands and run nothing

set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=slice.sh
source "$(dirname "${BASH_SOURCE[0]}")/slice.sh"

bucket='' repo='' ref=''
while (($#)); do
  if slice_option "$@"; then
    shift "$TAKEN"
    continue
  fi
  case $1 in
    --bucket) need_value "$@" && bucket=${2#gs://} ;;
    --repo) need_value "$@" && repo=$2 ;;
    --ref) need_value "$@" && ref=$2 ;;
    *) unknown_argument "$1" ;;
  esac
  shift "$TAKEN"
done
check_slice_options
[[ -z $bucket || $bucket =~ ^[a-z0-9][-_.a-z0-9]+$ ]] ||
  bad_argument "--bucket '$bucket' must be the name of a bucket, without a path"
[[ -z $ref || -n $repo ]] || bad_argument "--ref needs --repo: a copy is of what is committed here"

checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
python=3.12.16             # to the last digit: hosts that differ do not train together
archive=siglip2_jax.tar.gz # under a temporary directory here, in the home directory there

pack() {
  local folder=/tmp
  if ((!DRY_RUN)); then
    [[ -e $checkout/.git ]] || give_up "$checkout is not a git checkout: give --repo URL to clone one"
    folder=$(mktemp -d)
    # shellcheck disable=SC2064  # the folder's name is wanted now
    trap "rm -rf $(quote "$folder")" EXIT
  fi
  archive=$folder/$archive
  run git -C "$checkout" archive --format=tar.gz --prefix=siglip2_jax/ "--output=$archive" HEAD
}

copy() {
  run gcloud compute tpus tpu-vm scp "$archive" "$2:$(basename "$archive")" "${GCLOUD[@]}" --worker=all
}

# shellcheck disable=SC2088  # the worker's shell expands the tilde
install_code() {
  local command='rm -rf ~/siglip2_jax'
  if [[ -n $repo ]]; then
    command+=" && git clone --depth 1 ${ref:+--branch $(quote "$ref") }$(quote "$repo") ~/siglip2_jax"
  else
    command+=" && tar -xzf ~/$(basename "$archive") -C ~"
  fi
  on_workers "$2" all "$command"
}

install_locked() {
  local command='curl -LsSf https://astral.sh/uv/install.sh | sh'
  command+=' && cd ~/siglip2_jax && UV_PROJECT_ENVIRONMENT=~/venv ~/.local/bin/uv sync --frozen'
  command+=' --no-default-groups --extra tpu --extra gcs --extra remote --extra tensorboard'
  command+=" --managed-python --python $python"
  on_workers "$2" all "$command && ~/venv/bin/siglip2 --help > /dev/null"
}

# Objects of a training set do not change, so their metadata is kept for as long as the mount lives.
# shellcheck disable=SC2016  # the worker's shell expands the rest
mount_data() {
  local source='https://packages.cloud.google.com/apt'
  local key=/usr/share/keyrings/cloud.google.asc
  local command='command -v gcsfuse > /dev/null'
  command+=" || { curl -fsSL $source/doc/apt-key.gpg | sudo tee $key > /dev/null"
  command+=" && echo \"deb [signed-by=$key] $source gcsfuse-\$(lsb_release -c -s) main\""
  command+=' | sudo tee /etc/apt/sources.list.d/gcsfuse.list > /dev/null'
  command+=' && sudo apt-get update -q && sudo apt-get install -q -y gcsfuse; }'
  command+=' && { mountpoint -q /data || { sudo mkdir -p /data && sudo chown "$(id -u)" /data'
  command+=" && gcsfuse -o ro --implicit-dirs --metadata-cache-ttl-secs=-1 $bucket /data; }; }"
  on_workers "$2" all "$command"
}

if [[ -z $repo ]]; then
  pack
  every_slice copy
fi
every_slice install_code
every_slice install_locked
[[ -z $bucket ]] || every_slice mount_data
