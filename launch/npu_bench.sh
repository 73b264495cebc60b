#!/usr/bin/env bash
# Measures sampling or training on an Ascend NPU:
#
#   ./launch/npu_bench.sh sample|train|growth [--key value ...]
#   ./launch/npu_bench.sh sample --model_name_or_path llada-8b --dtype bfloat16 --strategies all
#
# PRESET=debug or PRESET=deterministic changes the environment (launch/ascend_env.sh).
set -euo pipefail

. "$(dirname "${BASH_SOURCE[0]}")/ascend_env.sh"
npu_verb bench "$@"
