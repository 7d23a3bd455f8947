#!/usr/bin/env bash
# A largebatch command by DeepSpeed's launcher: on this machine, or on those of a hostfile.
#
#   launch/deepspeed.sh train configs/imagenet/lamb2019.yaml engine.name=deepspeed
#   HOSTFILE=hostfile launch/deepspeed.sh train ...                  starts the others by pdsh over ssh
#   HOSTFILE=hostfile NO_SSH=1 NODE_RANK=0 MASTER_ADDR=host0 launch/deepspeed.sh train ...    once on each machine
#
#   NPROC_PER_NODE   ranks on each machine; else one per device, or the slots of the hostfile
#   HOSTFILE         lines of "host slots=8", see hostfile.example; without it this machine alone
#   LAUNCHER         what reaches the other machines: pdsh, openmpi, mpich, mvapich, impi, slurm; else pdsh
#   NO_SSH           1: start nothing elsewhere; NODE_RANK is this machine's line of the hostfile, from 0
#   MASTER_ADDR      host of rank 0; MASTER_PORT a free port there, else 29500
#   PYTHON           the interpreter that has largebatch and deepspeed; else python
#
# On this machine and with NO_SSH, TERM, INT and USR1 reach the ranks: they finish their step and save. Then the exit
# code is 143, 130 or 138. Over ssh a signal ends the run as DeepSpeed does, without a checkpoint.
set -euo pipefail

PYTHON=${PYTHON:-$(command -v python || command -v python3)}

if [[ $# -eq 0 ]]; then
  echo "usage: ${0##*/} COMMAND [ARGUMENT ...], such as: ${0##*/} train CONFIG engine.name=deepspeed" >&2
  exit 2
fi

# Without HOSTFILE none at all, where DeepSpeed would look for one in /job.
options=("--hostfile=${HOSTFILE-}" "--master_port=${MASTER_PORT:-29500}")
if [[ -n ${HOSTFILE-} && ! -r $HOSTFILE ]]; then
  echo "HOSTFILE = $HOSTFILE cannot be read; see launch/hostfile.example" >&2
  exit 2
fi
if [[ -n ${NO_SSH-} ]]; then
  if [[ -z ${HOSTFILE-} || -z ${NODE_RANK-} || -z ${MASTER_ADDR-} ]]; then
    echo "NO_SSH needs HOSTFILE, NODE_RANK (this machine's line of it, from 0) and MASTER_ADDR (the host of rank 0)" >&2
    exit 2
  fi
  options+=(--no_ssh "--node_rank=$NODE_RANK" "--master_addr=$MASTER_ADDR")
elif [[ -n ${HOSTFILE-} ]]; then
  options+=("--launcher=${LAUNCHER:-pdsh}")
  if [[ -n ${MASTER_ADDR-} ]]; then options+=("--master_addr=$MASTER_ADDR"); fi
fi
if [[ -n ${NPROC_PER_NODE-} ]]; then options+=("--num_gpus=$NPROC_PER_NODE"); fi

LARGEBATCH_STOP_FILE=$(mktemp "${TMPDIR:-/tmp}/largebatch-stop.XXXXXX")
export LARGEBATCH_STOP_FILE

# A group of its own, so that a signal to the script's group does not reach DeepSpeed, which would kill the ranks.
set -m
"$PYTHON" -m deepspeed.launcher.runner "${options[@]}" --module largebatch "$@" &
launcher=$!
set +m

# To the ranks themselves: DeepSpeed passes on no signal as it is, and gives them 30 seconds.
tell_ranks='
import sys, psutil
below = psutil.Process(int(sys.argv[1])).children(recursive=True)
ranks = [process for process in below if "deepspeed.launcher.launch" in process.parent().cmdline()]
for rank in ranks:
    rank.send_signal(int(sys.argv[2]))
sys.exit(not ranks)
'
interrupted=
# shellcheck disable=SC2329  # the traps call it
pass_on() {
  interrupted=yes
  if [[ -n ${HOSTFILE-} && -z ${NO_SSH-} ]]; then
    kill -s TERM "$launcher" 2>/dev/null || true
  else
    "$PYTHON" -c "$tell_ranks" "$launcher" "$(kill -l "$1")" 2>/dev/null ||
      kill -s TERM -- "-$launcher" 2>/dev/null || true # there is no rank yet
  fi
}
trap 'pass_on TERM' TERM
trap 'pass_on INT' INT
trap 'pass_on USR1' USR1
trap 'rm -f "$LARGEBATCH_STOP_FILE"' EXIT

while :; do
  interrupted=
  wait "$launcher" && code=0 || code=$?
  [[ -n $interrupted ]] || break # else it was the signal that ended this wait
done

read -r stopped _ <"$LARGEBATCH_STOP_FILE" || true
exit "${stopped:-$code}"
