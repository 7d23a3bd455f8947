#!/usr/bin/env bash
# A largebatch command on every device of one machine, or of several: this script runs once on each.
#
#   launch/torchrun.sh train configs/imagenet/goyal2017.yaml
#   NNODES=4 RDZV_ENDPOINT=host0:29500 launch/torchrun.sh train configs/imagenet/goyal2017.yaml
#   launch/torchrun.sh --log-dir=logs --tee=3 train ...     options of torchrun's own, written with =, come first
#
#   NPROC_PER_NODE   ranks on this machine; else one per CUDA device, one without
#   NNODES           machines, or a range such as 2:4 of which any number will do; else 1
#   RDZV_ENDPOINT    host:port of one of the machines, the same on all
#   RDZV_ID          a name that tells two jobs with the same endpoint apart
#   MAX_RESTARTS     times that the ranks are started again after a failure; else 3 for train and compare
#   STOP_SECONDS     what the ranks get to save after a signal; else 120
#   PYTHON           the interpreter that has largebatch; else python
#
# In a pod of Kubeflow, PET_NNODES and the like say all of this to torchrun itself.
#
# TERM, INT and USR1 are passed on: the ranks finish their step and save. Then the exit code is 143, 130 or 138.
set -euo pipefail

PYTHON=${PYTHON:-$(command -v python || command -v python3)}
STOP_SECONDS=${STOP_SECONDS:-120}

options=()
while [[ ${1-} == --*=* ]]; do
  options+=("$1")
  shift
done
if [[ $# -eq 0 || $1 == -* ]]; then
  echo "usage: ${0##*/} [--torchrun-option=value ...] COMMAND [ARGUMENT ...], such as: ${0##*/} train CONFIG" >&2
  exit 2
fi

if [[ -z ${PET_NPROC_PER_NODE-} || -n ${NPROC_PER_NODE-} ]]; then
  here=${NPROC_PER_NODE:-$("$PYTHON" -c 'import torch; print(max(1, torch.cuda.device_count()))')}
  options+=("--nproc-per-node=$here")
fi
if [[ -n ${NNODES-} && $NNODES != 1 ]]; then
  if [[ -z ${RDZV_ENDPOINT-} ]]; then
    echo "NNODES = $NNODES needs RDZV_ENDPOINT, host:port of one of the machines, the same on all" >&2
    exit 2
  fi
  options+=("--nnodes=$NNODES" --rdzv-backend=c10d "--rdzv-endpoint=$RDZV_ENDPOINT" "--rdzv-id=${RDZV_ID:-largebatch}")
elif [[ -n ${NNODES-} || -z ${PET_NNODES-} ]]; then
  options+=(--standalone)
  export GLOO_SOCKET_IFNAME=${GLOO_SOCKET_IFNAME:-lo} # nobody else is to connect
fi
case $1 in
  train | compare) options+=("--max-restarts=${MAX_RESTARTS:-${PET_MAX_RESTARTS:-3}}") ;; # they go on where they stopped
  *) options+=(--max-restarts=0) ;;
esac

# As variables and not as options: a torchrun that does not know one of them leaves it unread.
export PET_RDZV_CONF=${PET_RDZV_CONF:-read_timeout=300} # the others may start minutes before the endpoint's machine
export PET_SIGNALS_TO_HANDLE=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1
export PET_SHUTDOWN_TIMEOUT=$STOP_SECONDS
# Else torch 2.15 keeps looking for rank zero's machine when it is gone, and cannot take a machine in again.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=${TORCH_DISABLE_SHARE_RDZV_TCP_STORE:-1}

# A rank that stopped on a signal leaves its exit code here: torchrun itself knows success and failure only.
LARGEBATCH_STOP_FILE=$(mktemp "${TMPDIR:-/tmp}/largebatch-stop.XXXXXX")
export LARGEBATCH_STOP_FILE

# Groups of their own, so that Ctrl-C and a scheduler's signal to the script's group reach torchrun once, through us.
set -m
"$PYTHON" -m torch.distributed.run "${options[@]}" -m largebatch "$@" &
agent=$!
# Where another machine was stopped, its ranks tell ours, and our torchrun would wait for that machine to come back.
(
  while :; do
    sleep 1
    code=
    read -r code _ <"$LARGEBATCH_STOP_FILE" || true
    case $code in
      '' | 0) continue ;;                # at work, or finished
      1 | 2) break ;;                    # started again it would end the same way
      *) sleep "$STOP_SECONDS" ;;        # saving
    esac
    [[ ! -s $LARGEBATCH_STOP_FILE ]] || break # else a machine joined, and the ranks went on
  done
  kill -TERM "$agent"
) >/dev/null 2>&1 &
watch=$!
set +m

passed=
interrupted=
# Once: a second signal would take the ranks the time to save; only a second Ctrl-C means that.
# shellcheck disable=SC2329  # the traps call it
pass_on() {
  interrupted=yes
  if [[ -z $passed || $1 == INT ]]; then kill -s "$1" "$agent" 2>/dev/null || true; fi
  passed=${passed:-$1}
}
trap 'pass_on TERM' TERM
trap 'pass_on INT' INT
trap 'pass_on USR1' USR1
trap 'kill -- "-$watch" 2>/dev/null || true; rm -f "$LARGEBATCH_STOP_FILE"' EXIT

while :; do
  interrupted=
  wait "$agent" && code=0 || code=$?
  [[ -n $interrupted ]] || break # else it was the signal that ended this wait
done

read -r stopped _ <"$LARGEBATCH_STOP_FILE" || true
if [[ -n ${stopped-} ]]; then
  exit "$stopped"
fi
if [[ $code -eq 1 && -n $passed ]]; then # torchrun's answer to any signal, here before there was anything to save
  exit $((128 + $(kill -l "$passed")))
fi
exit "$code"
