#!/usr/bin/env bash
# Trains on Ascend NPUs: one card, all cards of a machine, or several machines.
#
#   ./launch/npu_train.sh CONFIG.yaml [--key value ...] [options]
#   ./launch/npu_train.sh sft configs/sft/llada-8b.yaml            # fine-tuning
#   ./launch/npu_train.sh CONFIG.yaml --device cpu                 # no NPU: one CPU process
#   ./launch/npu_train.sh CONFIG.yaml --nnodes 2 --node_rank 0 --master_addr HOST   # on each
#
# Options (also as variables; SLURM's and ModelArts' are understood):
#   --nproc N          processes, one a card           NPROC_PER_NODE, MA_NUM_GPUS; all cards
#   --nnodes N         machines                        NNODES, SLURM_NNODES, MA_NUM_HOSTS; 1
#   --node_rank R      number of this machine          NODE_RANK, SLURM_NODEID, VC_TASK_INDEX
#   --master_addr HOST machine 0, as all others see it MASTER_ADDR, SLURM, VC_WORKER_HOSTS
#   --master_port P    a free port there               MASTER_PORT; 29500
#   --preset NAME      fast, debug or deterministic    PRESET; fast (launch/ascend_env.sh)
#   --restarts N       starts again after a crash, from the last checkpoint   RESTARTS; 3
#   --grace SECONDS    time to save after SIGTERM      GRACE; 600
#   --log_dir DIR      one log per rank                LOG_DIR; output_dir/logs
#   --verb VERB        what to run, or as first word   VERB; pretrain
#   --skip_checks      do not examine the machine first
#   --dry_run          print what would be run
#
# All other arguments go to `python -m npu_backend VERB`. Exit code: 0 done, 2 wrong input,
# 128 + signal when stopped with the state saved (go on with --resume auto), else 1.
set -euo pipefail

. "$(dirname "${BASH_SOURCE[0]}")/ascend_env.sh"

words=("$@")
verb=${VERB:-pretrain}
options="nproc nnodes node_rank master_addr master_port preset restarts grace log_dir verb"
output_key=output_dir
default_grace=600
goes_on=
talks=1

# A bare first word that is neither a file nor a setting is the verb.
case ${1:-} in
    "" | -* | *=* | *.yaml | *.yml) ;;
    *)
        verb=$1
        shift
        ;;
esac

. "$ROOT/launch/ranks.sh"
