#!/usr/bin/env bash
# Evaluates on Ascend NPUs, the questions split over all cards of a machine or of several:
#
#   ./launch/npu_eval.sh MODEL_FOLDER --recipe mmlu@llada-base --output DIR [--key value ...] [options]
#   ./launch/npu_eval.sh MODEL_FOLDER --tasks gsm8k --output DIR --device cpu --nproc 2   # no NPU
#   ./launch/npu_eval.sh ... --nnodes 2 --node_rank 0 --master_addr HOST   # the same line on each
#
# Every card holds the whole model and answers its part into DIR, a folder that all machines see.
# Card 0 scores when all is answered. The same command again goes on from the answers in DIR.
#
# Options (also as variables; SLURM's and ModelArts' are understood):
#   --nproc N          processes, one a card           NPROC_PER_NODE, MA_NUM_GPUS; all cards
#   --nnodes N         machines                        NNODES, SLURM_NNODES, MA_NUM_HOSTS; 1
#   --node_rank R      number of this machine          NODE_RANK, SLURM_NODEID, VC_TASK_INDEX
#   --master_addr HOST machine 0, as all others see it MASTER_ADDR, SLURM, VC_WORKER_HOSTS
#   --master_port P    a free port there               MASTER_PORT; 29500
#   --restarts N       starts again after a crash, from the answers kept      RESTARTS; 3
#   --log_dir DIR      one log per rank                LOG_DIR; output/logs
#   --skip_checks      do not examine the machine first
#   --dry_run          print what would be run
#
# PRESET=debug or PRESET=deterministic changes the environment (launch/ascend_env.sh). All other
# arguments, --preset among them, go to `python -m npu_backend eval`. Exit code: 0 done, 2 wrong
# input, 128 + signal when stopped, else 1; torchrun's table names the rank that failed.
set -euo pipefail

. "$(dirname "${BASH_SOURCE[0]}")/ascend_env.sh"

words=("$@")
verb=eval
options="nproc nnodes node_rank master_addr master_port restarts grace log_dir"
output_key=output
default_grace=10
goes_on="the same command"
# Tasks that walk through a set ask the same in every process.
default PYTHONHASHSEED 0
talks=

. "$ROOT/launch/ranks.sh"
