#!/usr/bin/env bash
# Talks to a model on an Ascend NPU:
#
#   ./launch/npu_chat.sh MODEL_FOLDER [--key value ...]
#   ./launch/npu_chat.sh MODEL_FOLDER --device cpu
#
# PRESET=debug or PRESET=deterministic changes the environment (launch/ascend_env.sh).
set -euo pipefail

. "$(dirname "${BASH_SOURCE[0]}")/ascend_env.sh"
npu_verb chat "$@"
