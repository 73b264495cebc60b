#!/usr/bin/env bash
# Sets up .venv when needed and runs every check. Arguments go to pytest:
#
#   ./launch/test.sh                         everything
#   ./launch/test.sh tests/common -k noise   the static checks and some tests
set -uo pipefail

. "$(dirname "${BASH_SOURCE[0]}")/venv.sh"
ensure_venv dev || exit
cd "$ROOT" || exit
export PATH=$ROOT/.venv/bin:$PATH

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

check "ruff check" ruff check .
check "ruff format" ruff format --check .
check "pyright" pyright
check "import-linter" lint-imports
check "pytest" python -m pytest --durations=10 "$@"

printf '\n'
printf '%s\n' "${summary[@]}"
if [ ${#failed[@]} -gt 0 ]; then
    exit 1
fi
