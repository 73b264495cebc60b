#!/usr/bin/env bash
# From nothing to a trained and sampled masked-diffusion language model, on two CPU cores:
#
#   ./launch/quickstart.sh [--key value ...]         arguments go to `jaxllada pretrain`
#   ./launch/quickstart.sh --sft [--key value ...]   then teach it to answer (to `jaxllada sft`)
#
# Text: the Python standard library's documentation, docstrings and sources on this machine.
# Run again to see the samples; an interrupted run goes on where it was.
set -euo pipefail

. "$(dirname "${BASH_SOURCE[0]}")/venv.sh"
ensure_venv jax,plot
cd "$ROOT"
sft=
if [ "${1:-}" = --sft ]; then
    sft=output/quickstart/sft
    shift
fi
acts=${sft:+5}
acts=${acts:-4}
run=output/quickstart/run
tokenizer=output/quickstart/tokenizer
jaxllada() { "$ROOT/.venv/bin/jaxllada" "$@"; }

heading() { printf '\n\033[1m%s\033[0m\n' "$1"; }
[ -t 1 ] || heading() { printf '\n%s\n' "$1"; }

begin=$SECONDS
if [ ! -f "$tokenizer/tokenizer.json" ]; then
    heading "1/$acts  A tokenizer for the standard library's text"
    jaxllada tokenizer --dataset_args pystdlib --vocab_size 4096 --output_dir "$tokenizer"
fi

heading "2/$acts  Pre-training ($run)"
if [ -n "$sft" ]; then
    jaxllada pretrain configs/pretrain/quickstart.yaml --resume auto
else
    jaxllada pretrain configs/pretrain/quickstart.yaml --resume auto "$@"
fi

heading "3/$acts  Unmasking one sample"
jaxllada sample --model_name_or_path "$run" --prompt "def read_file(path):" \
    --gen_length 64 --steps 64 --block_length 16 --temperature 0.5 --seed 1 --animate

heading "4/$acts  What it learnt"
cat "$run/summary.txt"

if [ -n "$sft" ]; then
    heading "5/5  Fine-tuning on questions and answers ($sft)"
    jaxllada sft configs/sft/quickstart.yaml --resume auto "$@"
    heading "Answers before"
    cat "$sft/samples/step-0.txt"
    heading "Answers after"
    cat "$(printf '%s\n' "$sft"/samples/step-*.txt | sort -V | tail -n 1)"
    run=$sft
fi

cat <<NEXT

Done in $(((SECONDS - begin) / 60)) min $(((SECONDS - begin) % 60)) s. In $run:
  loss.png         the curves         samples/      a text for every checkpoint
  metrics.jsonl    every number       checkpoints/  to go on from

Next:${sft:+
  .venv/bin/jaxllada chat --model_name_or_path $sft \\
      --steps 32 --max_length 32 --block_length 32}
  .venv/bin/jaxllada sample --model_name_or_path $run --prompt "class Stack:" --animate
  .venv/bin/jaxllada evaluate --model_name_or_path $run --help
  .venv/bin/jaxllada pretrain configs/pretrain/quickstart.yaml --max_steps 20000 \\
      --output_dir output/longer
  .venv/bin/jaxllada inspect llada-8b
NEXT
