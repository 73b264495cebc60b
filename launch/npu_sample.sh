#!/usr/bin/env bash
# Samples from a model on an Ascend NPU:
#
#   ./launch/npu_sample.sh MODEL_FOLDER --prompt "..." [--key value ...]
#   ./launch/npu_sample.sh MODEL_FOLDER --prompt "..." --device cpu
#
# PRESET=debug or PRESET=deterministic changes the environment (launch/ascend_env.sh).
set -euo pipefail

. "$(dirname "${BASH_SOURCE[0]}")/ascend_env.sh"
npu_verb sample "$@"
