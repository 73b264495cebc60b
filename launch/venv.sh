# Sourced by the other scripts: makes a virtual environment beside this folder and installs the
# package into it.
#
#   . launch/venv.sh; ensure_venv dev              # extras of pyproject.toml, comma-separated
#   . launch/venv.sh; ensure_venv npu .venv-npu    # the same in another environment
#
# Sets ROOT (the repository) and PYTHON_BIN (the interpreter of the environment). Installs again
# only after pyproject.toml or the interpreter changed.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
PYTHON_BIN=$ROOT/.venv/bin/python

say() { printf '[%s] %s\n' "$1" "$2" >&2; }

find_python() {
    local candidate
    for candidate in ${PYTHON:-} python3 python3.12 python3.13 python3.11 python; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    say error "Python 3.11 or newer is needed; found $(python3 --version 2>&1 || echo none)."
    say error "Install one, or name it: PYTHON=/path/to/python3.11 $0"
    return 2
}

make_venv() {
    local python=$1 folder=$2 boot
    if "$python" -m venv "$folder" >/dev/null 2>&1; then
        return
    fi
    # Some distributions ship Python without ensurepip; virtualenv from pip does the same.
    rm -rf "$folder"
    boot=$(mktemp -d)
    "$python" -m pip install --quiet --target "$boot" virtualenv &&
        PYTHONPATH=$boot "$python" -m virtualenv --quiet "$folder"
    local status=$?
    rm -rf "$boot"
    return $status
}

ensure_venv() {
    local extras=$1 name=${2:-.venv} folder python stamp wanted log
    folder=$ROOT/$name
    PYTHON_BIN=$folder/bin/python
    if [ ! -x "$PYTHON_BIN" ] || ! "$PYTHON_BIN" -m pip --version >/dev/null 2>&1; then
        python=$(find_python) || return
        say setup "making $name with $("$python" --version) ($python)"
        rm -rf "$folder"
        make_venv "$python" "$folder" || {
            say error "could not make $name: $python has neither venv nor pip"
            return 2
        }
    fi
    stamp=$folder/.installed-${extras//,/-}
    wanted=$("$PYTHON_BIN" -c 'import hashlib, sys
print(hashlib.sha256(open(sys.argv[1], "rb").read() + sys.version.encode()).hexdigest())' \
        "$ROOT/pyproject.toml") || return
    if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then
        return
    fi
    say setup "installing jaxllada[$extras] into $name (some minutes the first time)"
    log=$folder/install.log
    if ! "$PYTHON_BIN" -m pip install --disable-pip-version-check --no-input \
        --editable "$ROOT[$extras]" >"$log" 2>&1; then
        tail -n 20 "$log" >&2
        say error "installation failed, the whole log is $log"
        return 1
    fi
    printf '%s\n' "$wanted" >"$stamp"
    say setup "done"
}
