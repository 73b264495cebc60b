#!/usr/bin/env bash
# Puts transformers 4.57 into .hf4, for the tests that exported folders load under both majors:
#
#   ./launch/hf4.sh
#   PYTHONPATH=.hf4 .venv/bin/python -c 'import transformers; print(transformers.__version__)'
#
# Only what differs from .venv is installed; everything else still comes from there.
set -euo pipefail

. "$(dirname "${BASH_SOURCE[0]}")/venv.sh"
[ -x "$PYTHON_BIN" ] || ensure_venv dev

packages=(
    transformers==4.57.6 tokenizers==0.22.2 huggingface_hub==0.36.2
    requests==2.32.5 charset-normalizer==3.4.4 idna==3.11 urllib3==2.5.0 certifi==2025.10.5
)
stamp=$ROOT/.hf4/.installed
wanted="${packages[*]} $("$PYTHON_BIN" -c 'import sys; print(sys.version)')"
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then
    exit
fi
say setup "installing ${packages[*]} into .hf4"
rm -rf "$ROOT/.hf4"
"$PYTHON_BIN" -m pip install --disable-pip-version-check --no-input --quiet --no-deps \
    --target "$ROOT/.hf4" "${packages[@]}"
printf '%s\n' "$wanted" >"$stamp"
