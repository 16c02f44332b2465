# shellcheck shell=bash disable=SC2034
# What the scripts in this directory share: the options that name TPU slices, printing instead of
# running, and one command on every worker of every slice. It is sourced, not run.
#
# A "slice" is one gcloud node. One slice is a node called NAME; several slices are nodes NAME-0,
# NAME-1 … under one queued resource NAME (`--node-count` of gcloud).

NAME='' ZONE='' PROJECT='' SLICES=1 DRY_RUN=0
TAKEN=1 # how many words the last option used

# The comment at the top of a script is its help.
show_help() { sed -n '2,/^$/s/^# \{0,1\}//p' "$0"; }

bad_argument() {
  printf '%s: %s\n' "$(basename "$0")" "$1" >&2
  exit 2
}

give_up() {
  printf '%s: %s\n' "$(basename "$0")" "$1" >&2
  exit 1
}

# need_value OPTION [VALUE]: the value of an option, which must follow it and not be another option.
need_value() {
  if (($# < 2)) || [[ -z $2 || $2 == --* ]]; then
    bad_argument "$1 needs a value; see $(basename "$0") --help"
  fi
  TAKEN=2
}

# Reads one of the options that every script has from the front of its arguments; false if it is
# another.
slice_option() {
  TAKEN=1
  case $1 in
    --name) need_value "$@" && NAME=$2 ;;
    --zone) need_value "$@" && ZONE=$2 ;;
    --project) need_value "$@" && PROJECT=$2 ;;
    --slices) need_value "$@" && SLICES=$2 ;;
    --dry-run) DRY_RUN=1 ;;
    --help | -h) show_help && exit 0 ;;
    *) return 1 ;;
  esac
}

unknown_argument() { bad_argument "'$1' is not an option; see $(basename "$0") --help"; }

# Checks the common options and makes GCLOUD, the flags that every gcloud command gets.
check_slice_options() {
  [[ -n $NAME ]] || bad_argument "--name is missing: the name of the queued resource"
  [[ $NAME =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ ]] ||
    bad_argument "--name '$NAME' must be lower-case letters, digits and hyphens, from a letter on"
  [[ -n $ZONE ]] || bad_argument "--zone is missing: the zone of the slices, such as us-west4-a"
  [[ $SLICES =~ ^[1-9][0-9]*$ ]] || bad_argument "--slices '$SLICES' must be a whole number from 1 on"
  GCLOUD=("--zone=$ZONE" --quiet) # several gcloud at a time cannot ask questions
  [[ -z $PROJECT ]] || GCLOUD+=("--project=$PROJECT")
}

# node_name INDEX: the gcloud node of a slice.
node_name() {
  if ((SLICES == 1)); then printf '%s' "$NAME"; else printf '%s-%s' "$NAME" "$1"; fi
}

# quote WORDS…: the words for a POSIX shell, in single quotes where they need them.
quote() {
  local word separator=''
  for word in "$@"; do
    printf '%s' "$separator"
    if [[ $word =~ ^[-a-zA-Z0-9_./:=,@%+]+$ ]]; then
      printf '%s' "$word"
    else
      printf "'%s'" "$(printf '%s' "$word" | sed "s/'/'\\\\''/g")" # the sed of macOS ends with a newline
    fi
    separator=' '
  done
}

# run COMMAND…: runs it, or with --dry-run prints it.
run() {
  if ((DRY_RUN)); then
    quote "$@" && printf '\n'
  else
    "$@"
  fi
}

# on_workers NODE WORKER COMMAND: a shell command on one worker or on all of them.
on_workers() {
  run gcloud compute tpus tpu-vm ssh "$1" "${GCLOUD[@]}" "--worker=$2" "--command=$3"
}

# every_slice FUNCTION: FUNCTION INDEX NODE for all slices at the same time, because the workers of a
# run wait for one another; fails when one of them fails.
every_slice() {
  local index failed='' processes=()
  for ((index = 0; index < SLICES; index++)); do
    if ((DRY_RUN)); then
      "$1" "$index" "$(node_name "$index")"
    else
      "$1" "$index" "$(node_name "$index")" &
      processes+=("$!")
    fi
  done
  ((!DRY_RUN)) || return 0
  for ((index = 0; index < SLICES; index++)); do
    wait "${processes[index]}" || failed+=" $(node_name "$index")"
  done
  [[ -z $failed ]] || give_up "failed on$failed; the messages above are of its workers"
}
