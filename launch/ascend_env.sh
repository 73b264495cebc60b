# Sourced by npu_*.sh: CANN, the Python to use, and the environment of Ascend processes.
#
#   . launch/ascend_env.sh; ascend_preset fast     # or debug, deterministic
#
# A variable that is set already stays as it is, so every line below can be overridden. These have
# to be set before Python starts: torch_npu and CANN read them when they are loaded.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

say() { printf '[%s] %s\n' "$1" "$2" >&2; }

default() { [ -n "${!1+set}" ] || export "$1=$2"; }

ascend_preset() {
    case $1 in fast | debug | deterministic) ;; *)
        say error "preset=$1: expected fast, debug or deterministic"
        return 2 ;;
    esac
    # torchrun and tools import torch where torch_npu may not load; npu_backend imports it itself.
    default TORCH_DEVICE_BACKEND_AUTOLOAD 0
    # An operator without an NPU kernel is an error, not a slow detour over the CPU.
    default TORCH_NPU_FALLBACK_CPU_DISABLE 1
    # Ranks read checkpoints at different speeds; CANN's default wait of minutes is short for that.
    default HCCL_CONNECT_TIMEOUT 1200
    default ACL_OP_COMPILER_CACHE_DIR "${TMPDIR:-/tmp}/ascend-ops-$(id -u)"
    default TORCH_NPU_COMPACT_ERROR_OUTPUT 1
    default ASCEND_GLOBAL_LOG_LEVEL 3 # errors only
    if [ -z "${PYTORCH_ALLOC_CONF+set}" ]; then # both at once are an error of torch_npu
        default PYTORCH_NPU_ALLOC_CONF expandable_segments:True
    fi
    case $1 in
        fast)
            default TASK_QUEUE_ENABLE 2
            default CPU_AFFINITY_CONF 2
            ;;
        debug) # true stack traces, a memory snapshot when memory runs out
            default ASCEND_LAUNCH_BLOCKING 1
            default TASK_QUEUE_ENABLE 0
            default MULTI_STREAM_MEMORY_REUSE 0
            default TORCH_DISTRIBUTED_DEBUG DETAIL
            default OOM_SNAPSHOT_ENABLE 1
            default OOM_SNAPSHOT_PATH "$PWD"
            ;;
        deterministic) # equal runs give equal bits; slower
            default HCCL_DETERMINISTIC true
            default TASK_QUEUE_ENABLE 1
            default JAXLLADA_DETERMINISTIC 1 # read by npu_backend: deterministic kernels
            ;;
    esac
}

# Loads CANN into this shell where that has not been done.
load_cann() {
    local file
    [ -n "${ASCEND_TOOLKIT_HOME:-}${ASCEND_HOME_PATH:-}" ] && return
    for file in /usr/local/Ascend/ascend-toolkit/set_env.sh /usr/local/Ascend/cann/set_env.sh \
        "$HOME/Ascend/ascend-toolkit/set_env.sh" "$HOME/Ascend/cann/set_env.sh"; do
        if [ -f "$file" ]; then
            set +u # CANN's script reads unset variables
            # shellcheck disable=SC1090
            . "$file" || true
            set -u
            return
        fi
    done
}

# Prints how many NPUs this process may use.
count_npus() {
    local visible=${ASCEND_RT_VISIBLE_DEVICES:-} devices
    devices=$(compgen -G '/dev/davinci[0-9]*' | wc -l)
    if [ "$devices" -gt 0 ] && [ -n "$visible" ]; then
        devices=$(tr ',' '\n' <<<"$visible" | grep -c .)
    fi
    echo "$devices"
}

no_npu() {
    say error "this machine has no Ascend NPU (no /dev/davinci*)."
    say error "To run on the CPU: $0 ${1:+$1 }--device cpu"
    return 2
}

# Prints the Python to use: $PYTHON, the environment of launch/venv.sh, or the one on the path.
npu_python() {
    local python
    for python in "${PYTHON:-}" "$ROOT/.venv-npu/bin/python" "$(command -v python3)"; do
        if [ -n "$python" ] && command -v "$python" >/dev/null; then
            echo "$python"
            return
        fi
    done
    say error "no Python found; name one: PYTHON=/path/to/python3.11 $0"
    return 2
}

# Prints the value of --device among arguments (--device X, --device=X, device=X), or auto.
device_of() {
    local device=auto
    while [ $# -gt 0 ]; do
        case $1 in
            --device) device=${2:-} ;;
            --device=* | device=*) device=${1#*=} ;;
        esac
        shift
    done
    echo "$device"
}

# For verbs of one process: npu_verb VERB ARGUMENT...
npu_verb() {
    local verb=$1 python device
    shift
    device=$(device_of "$@")
    if [ "$device" != cpu ] && [ "$device" != cuda ]; then
        load_cann
        ascend_preset "${PRESET:-fast}" || return
        if [ "$(count_npus)" -eq 0 ] && [ "${NPU_SIM:-0}" != 1 ]; then
            no_npu "$*"
            return
        fi
    fi
    export TORCH_DEVICE_BACKEND_AUTOLOAD=${TORCH_DEVICE_BACKEND_AUTOLOAD:-0}
    python=$(npu_python) || return
    PYTHONPATH=$ROOT${PYTHONPATH:+:$PYTHONPATH} exec "$python" -m npu_backend "$verb" "$@"
}
