#!/usr/bin/env bash
# Sets up the environments when needed and runs every check. Arguments go to pytest:
#
#   ./launch/test.sh                         everything
#   ./launch/test.sh tests/common -k noise   the static checks and some tests
#
# The Ascend half runs twice: with plain torch in .venv, and on the real torch_npu over a simulated
# device in .venv-npu, where that can be installed (Linux x86-64, CPython 3.11, a C compiler).
set -uo pipefail

. "$(dirname "${BASH_SOURCE[0]}")/venv.sh"
ensure_venv dev || exit
cd "$ROOT" || exit
python=$PYTHON_BIN

npu_reason=
if [ "$(uname -s) $(uname -m)" != "Linux x86_64" ]; then
    npu_reason="needs Linux on x86-64, this is $(uname -s) on $(uname -m)"
elif [ "$("$python" -c 'import sys; print(*sys.version_info[:2], sys.implementation.name)')" \
    != "3 11 cpython" ]; then
    npu_reason="needs CPython 3.11, .venv has $("$python" --version 2>&1)"
elif ! command -v cc >/dev/null || ! command -v nm >/dev/null; then
    npu_reason="needs a C compiler and nm"
elif ! (PYTHON=$python ensure_venv npu-dev .venv-npu); then
    npu_reason="torch_npu could not be installed"
fi
[ -z "$npu_reason" ] || say skip "simulated NPU: $npu_reason"
"$(dirname "${BASH_SOURCE[0]}")/hf4.sh" || say skip "transformers 4.57 could not be installed"
export PATH=$ROOT/.venv/bin:$PATH

# Whole files to every process: within a file, tests share what they compile. They are handed out in
# the order of tests/conftest.py, the slow ones first.
parallel=(--numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder)
failed=()
summary=()

check() {
    local name=$1 begin=$SECONDS status
    shift
    printf '\n== %s\n' "$name"
    "$@"
    status=$?
    [ $status -eq 0 ] || failed+=("$name")
    summary+=("$(printf '%-14s %4d s  %s' "$name" $((SECONDS - begin)) \
        "$([ $status -eq 0 ] && echo ok || echo FAILED)")")
}

on_simulated_npu() {
    # Without autoload: a plain `import torch`, as torchrun does it, must not look for CANN.
    NPU_SIM=1 TORCH_DEVICE_BACKEND_AUTOLOAD=0 PYTHONPATH=$ROOT \
        "$ROOT/.venv-npu/bin/python" -m pytest tests/npu --durations=8 "${parallel[@]}"
}

check "ruff check" ruff check .
check "ruff format" ruff format --check .
check "pyright" pyright
check "import-linter" lint-imports
check "pytest" python -m pytest --durations=15 "${parallel[@]}" "$@"
if [ -z "$npu_reason" ] && [ $# -eq 0 ]; then
    check "simulated NPU" on_simulated_npu
fi

printf '\n'
printf '%s\n' "${summary[@]}"
[ -z "$npu_reason" ] || printf '%-14s        skipped: %s\n' "simulated NPU" "$npu_reason"
if [ ${#failed[@]} -gt 0 ]; then
    exit 1
fi
