# Sourced by npu_train.sh and npu_eval.sh, with their arguments: starts one process a card.
#
#   verb=...            what `python -m npu_backend` runs
#   options="..."       names of the options that are the script's own; the others are the verb's
#   output_key=...      the verb's key for the folder that logs go into
#   default_grace=...   seconds between SIGTERM and SIGKILL
#   goes_on=...         what takes up a run that was stopped by a signal without saying so itself
#   talks=...           1 if cards exchange tensors: then the network between machines is checked
#   words=(...)         what the user typed

# SLURM lists hosts as node[01-04]; its own tool spells them out.
slurm_master() {
    [ -n "${SLURM_JOB_NODELIST:-}" ] || return 0
    scontrol show hostnames "$SLURM_JOB_NODELIST" 2>/dev/null | head -n 1
}

nproc=${NPROC_PER_NODE:-${MA_NUM_GPUS:-}}
nnodes=${NNODES:-${SLURM_NNODES:-${MA_NUM_HOSTS:-1}}}
node_rank=${NODE_RANK:-${SLURM_NODEID:-${VC_TASK_INDEX:-0}}}
master_hosts=${VC_WORKER_HOSTS:-}
master_addr=${MASTER_ADDR:-${master_hosts%%,*}}
master_port=${MASTER_PORT:-29500}
preset=${PRESET:-fast}
restarts=${RESTARTS:-3}
grace=${GRACE:-$default_grace}
log_dir=${LOG_DIR:-}
checks=1
dry_run=
arguments=()

while [ $# -gt 0 ]; do
    option=$1
    name=${option#--}
    name=${name%%=*}
    case $option in
        --skip_checks) checks= ;;
        --dry_run) dry_run=1 ;;
        -h | --help)
            sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p}' "$0"
            exit 0
            ;;
        --*)
            if [[ " $options " != *" $name "* ]]; then
                arguments+=("$option")
            elif [[ $option == *=* ]]; then
                set -- "--$name" "${option#*=}" "${@:2}"
                continue
            elif [ $# -lt 2 ]; then
                say error "$option: a value is missing"
                exit 2
            else
                printf -v "$name" %s "$2"
                shift
            fi
            ;;
        *) arguments+=("$option") ;;
    esac
    shift
done

for name in nproc nnodes node_rank master_port restarts grace; do
    if [ -n "${!name}" ] && ! [[ ${!name} =~ ^[0-9]+$ ]]; then
        say error "$name=${!name}: expected a whole number"
        exit 2
    fi
done
if [ "$node_rank" -ge "$nnodes" ]; then
    say error "node_rank=$node_rank: expected a number below nnodes=$nnodes"
    exit 2
fi
if [ "$nnodes" -gt 1 ]; then
    [ -n "$master_addr" ] || master_addr=$(slurm_master)
    if [ -z "$master_addr" ]; then
        say error "nnodes=$nnodes: give --master_addr, the name of machine 0"
        exit 2
    fi
fi

python=$(npu_python) || exit
device=$(device_of "${arguments[@]}")
if [ "$device" = cpu ] || [ "$device" = cuda ]; then
    export TORCH_DEVICE_BACKEND_AUTOLOAD=${TORCH_DEVICE_BACKEND_AUTOLOAD:-0}
    nproc=${nproc:-1}
else
    load_cann
    ascend_preset "$preset" || exit
    if [ -z "$nproc" ]; then
        nproc=$(count_npus)
        if [ "$nproc" -eq 0 ]; then
            no_npu "${words[*]}" || exit
        fi
    fi
    # Threads of the host share its cores; CPU operators must not each take all of them.
    threads=$(($(nproc) / nproc))
    default OMP_NUM_THREADS $((threads > 0 ? threads : 1))
fi
export PYTHONPATH=$ROOT${PYTHONPATH:+:$PYTHONPATH}

if [ -n "$checks" ] && [ "$device" != cpu ] && [ "$device" != cuda ]; then
    machines=1
    [ -z "$talks" ] || machines=$nnodes
    if ! "$python" -m npu_backend doctor --nodes "$machines"; then
        say error "fix the above, or go on regardless with --skip_checks"
        exit 2
    fi
fi

if [ -z "$log_dir" ]; then
    for ((i = 0; i < ${#arguments[@]}; i++)); do
        case ${arguments[i]} in
            --"$output_key") log_dir=${arguments[i + 1]:-} ;;
            --"$output_key"=* | "$output_key"=*) log_dir=${arguments[i]#*=} ;;
            *.yaml | *.yml)
                if [ -f "${arguments[i]}" ]; then
                    found=$(sed -n "s/^$output_key: *\"\{0,1\}\([^\"#]*[^\"# ]\).*/\1/p" "${arguments[i]}")
                    log_dir=${log_dir:-$found}
                fi
                ;;
        esac
    done
    log_dir=${log_dir:-output}/logs
fi

launcher=("$python" -m torch.distributed.run --nproc-per-node "$nproc"
    --max-restarts "$restarts" --monitor-interval 1
    --log-dir "$log_dir" --redirects 3 --tee 0:3 --local-ranks-filter 0)
# Looked up in its source: importing torch for its help takes seconds.
find='import importlib.util as util; print(util.find_spec("torch").origin)'
if ! torch=$("$python" -c "$find" 2>/dev/null); then
    say error "$python has no torch; launch/ASCEND.md tells how to install it"
    exit 2
fi
if grep -qs -e --shutdown-timeout "$(dirname "$torch")/distributed/run.py"; then
    launcher+=(--shutdown-timeout "$grace")
fi
if [ "$nnodes" -eq 1 ]; then
    launcher+=(--standalone)
else
    launcher+=(--nnodes "$nnodes" --node-rank "$node_rank" --rdzv-backend c10d
        --rdzv-endpoint "$master_addr:$master_port"
        --rdzv-id "${SLURM_JOB_ID:-${MA_VJ_NAME:-jaxllada}}"
        --rdzv-conf "is_host=$([ "$node_rank" -eq 0 ] && echo true || echo false)")
fi
# Behind `--`, so that torchrun does not take `--r` for one of its own options.
launcher+=(-m -- npu_backend "$verb" "${arguments[@]}")

if [ -n "$dry_run" ]; then
    printf '%q ' "${launcher[@]}"
    echo
    exit 0
fi

# Wrong settings are told once, before any process starts.
"$python" -m npu_backend "$verb" "${arguments[@]}" --print_config >/dev/null || exit

mkdir -p "$log_dir"
default TORCHELASTIC_LOG_LINE_PREFIX_TEMPLATE '[${rank}] '
# Every start gets a store of its own. Shared, it still holds the addresses of the ranks that
# crashed, and the new ones call those.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
# A process that ends for good (wrong input, divergence, a stop on request) says so here; torchrun
# itself only knows that something failed, and would start it again.
JAXLLADA_EXIT_FILE=$(mktemp "${TMPDIR:-/tmp}/jaxllada-exit.XXXXXX")
export JAXLLADA_EXIT_FILE
child=
stopped=
stop() {
    stopped=$1
    [ -z "$child" ] || kill -s "$1" "$child" 2>/dev/null || true
}
trap 'stop TERM' TERM
trap 'stop INT' INT
trap 'rm -f "$JAXLLADA_EXIT_FILE" "$JAXLLADA_EXIT_FILE.begun"' EXIT

"${launcher[@]}" &
child=$!
status=0
wait "$child" || status=$?
while [ -n "$stopped" ] && kill -0 "$child" 2>/dev/null; do # wait returns early on a signal
    status=0
    wait "$child" || status=$?
done

if [ -s "$JAXLLADA_EXIT_FILE" ]; then
    status=$(cat "$JAXLLADA_EXIT_FILE")
    if [ "$status" -eq 2 ] && [ "$nproc" -gt 1 ]; then # the message again, below torchrun's own
        cause=$(grep -rhm 1 '^error: ' "$log_dir" --include stderr.log 2>/dev/null | tail -n 1)
        say error "${cause#error: }"
    fi
elif [ "$status" -ne 0 ] && [ -n "$stopped" ] && [ -n "$goes_on" ]; then
    say info "stopped by SIG$stopped; $goes_on goes on"
    status=$((128 + $(kill -l "$stopped")))
elif [ "$status" -ne 0 ]; then
    say error "the run failed (exit code $status); the logs of all ranks are in $log_dir"
fi
exit "$status"
