"""Runs Fast-dLLM's PyTorch code (arXiv:2505.22618) beside ours, for `jaxllada bench --beside`.

    jaxllada bench sample --beside "PYTHON launch/fast_dllm_worker.py FAST_DLLM"

PYTHON is an interpreter with torch, transformers, safetensors and einops; FAST_DLLM a checkout of
NVlabs/Fast-dLLM, whose `llada/generate.py` and model class are called as they are. It answers one
prompt at a time and takes part in the strategies that it has: exact, threshold, prefix, dual and
combinations of them.
"""

import json
import sys
import types
from pathlib import Path

import torch
from released_worker import model_of, module_of, serve

STRATEGIES = [
    "exact", "threshold:0.9", "prefix", "dual", "prefix+threshold:0.9", "dual+threshold:0.9",
]  # fmt: skip


def sampler(task: dict, home: Path, model: torch.nn.Module, mask_id: int):
    """Returns a function that makes one whole generation with a strategy such as dual+threshold."""
    # generate.py imports its class by this name; only the type of the annotation is used.
    sys.modules["model"] = types.ModuleType("model")
    sys.modules["model.modeling_llada"] = sys.modules["released.modeling_llada"]
    code = module_of(home / "generate.py", "fast_dllm")
    ways = {
        "none": code.generate,
        "prefix": code.generate_with_prefix_cache,
        "dual": code.generate_with_dual_cache,
    }
    prompt = torch.tensor(task["prompt"])
    options = {key: task[key] for key in ("steps", "gen_length", "block_length")}
    model.eval()

    @torch.no_grad()
    def once(strategy: str) -> dict:
        parts = strategy.split("+")
        cache = next((part for part in parts if part in ways), "none")
        limit = next((part[10:] for part in parts if part.startswith("threshold:")), None)
        threshold = None if limit is None else float(limit)
        tokens, calls = ways[cache](model, prompt, **options, mask_id=mask_id, threshold=threshold)
        return {"tokens": tokens.tolist(), "nfe": calls}

    short = options | {"steps": 2, "gen_length": options["block_length"]}
    with torch.no_grad():
        code.generate(model, prompt, **short, mask_id=mask_id)  # the first calls are slower
    return once


def main() -> None:
    """Builds the model, then answers."""
    home, task = Path(sys.argv[1]) / "llada", json.loads(sys.argv[2])
    if len(task["prompt"]) > 1:
        sys.exit("fast_dllm_worker.py: Fast-dLLM answers one prompt at a time: use --batch_size 1")
    model, mask_id = model_of(home / "model", Path(task["folder"]), getattr(torch, task["dtype"]))
    serve(sampler(task, home, model, mask_id), {"name": "Fast-dLLM", "strategies": STRATEGIES})


if __name__ == "__main__":
    main()
