"""Runs the released PyTorch code beside ours, for `jaxllada bench --beside`.

    jaxllada bench sample --beside "PYTHON launch/released_worker.py DLLM LLADA"

PYTHON is an interpreter with torch, transformers and safetensors; DLLM a checkout of ZHZisZZ/dllm
(its copy of the released model class), LLADA one of ML-GSAI/LLaDA (its `generate.py`). Sampling
calls the released `generate`; training makes the steps of a plain loop: full logits, cross-entropy,
backward, clip, AdamW.
"""

import importlib.util
import json
import os
import sys
import time
import types
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

ANSWERS = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # what libraries print must not mix with the answers


def module_of(path: Path, package: str) -> types.ModuleType:
    """Imports one file of a checkout without importing its package."""
    spec = importlib.util.spec_from_file_location(f"{package}.{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def released_model(folder: Path, dllm: Path, dtype: torch.dtype):
    """Builds the released class on the CPU and loads the weights of a model folder."""
    return model_of(dllm / "dllm" / "pipelines" / "llada" / "models", folder, dtype)


def model_of(home: Path, folder: Path, dtype: torch.dtype):
    """The same for a folder with configuration_llada.py and modeling_llada.py."""
    sys.modules["released"] = types.ModuleType("released")
    sys.modules["released"].__path__ = []
    configuration = module_of(home / "configuration_llada.py", "released")
    modeling = module_of(home / "modeling_llada.py", "released")
    values = json.loads((folder / "config.json").read_text())
    config = configuration.LLaDAConfig(**{**values, "init_device": "cpu"})
    config.use_cache = False  # newer transformers no longer set it
    inner = modeling.create_model_config_from_pretrained_config(config)
    inner.init_device = "cpu"
    model = modeling.LLaDAModelLM(config, model=modeling.LLaDAModel(inner, init_params=False))
    weights = {}
    for file in sorted(folder.glob("*.safetensors")):
        weights |= load_file(file)
    model.load_state_dict(weights)
    return model.to(dtype), config.mask_token_id


def sampler(task: dict, llada: Path, model: torch.nn.Module, mask_id: int):
    """Returns a function that makes one whole generation."""
    generate = module_of(llada / "generate.py", "released").generate
    prompt = torch.tensor(task["prompt"])
    options = {key: task[key] for key in ("steps", "gen_length", "block_length")}
    model.eval()
    short = options | {"steps": 2, "gen_length": options["block_length"]}
    with torch.no_grad():
        generate(model, prompt, **short, mask_id=mask_id)  # the first calls are slower

    @torch.no_grad()
    def once(strategy: str) -> dict:
        return {"tokens": generate(model, prompt, **options, mask_id=mask_id).tolist()}

    return once


def trainer(task: dict, model: torch.nn.Module, mask_id: int):
    """Returns a function that makes one optimiser step on the batch of the task."""
    tokens, noisy = torch.tensor(task["tokens"]), torch.tensor(task["noisy"])
    weights = (noisy == mask_id) / torch.tensor(task["mask_rate"])[:, None]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.1)
    model.train()

    def once(strategy: str) -> dict:
        with torch.autocast("cpu", torch.bfloat16, enabled=task["dtype"] == "bfloat16"):
            logits = model(noisy).logits
        nll = F.cross_entropy(logits.transpose(1, 2).float(), tokens, reduction="none")
        loss = (nll * weights).sum() / tokens.numel()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return {"loss": loss.item()}

    return once


def peak() -> int | None:
    """Peak resident bytes of this process alone, where Linux tells them."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")]
    return found[0] if found else None


def serve(once, hello: dict) -> None:
    """Speaks the protocol of `jaxllada bench --help`: one timed call per line of input."""
    print(json.dumps(hello), file=ANSWERS, flush=True)
    for line in sys.stdin:
        begun = time.perf_counter()
        result = once(json.loads(line).get("strategy", "exact"))
        seconds = time.perf_counter() - begun
        print(json.dumps({"seconds": seconds, "peak_bytes": peak(), **result}), file=ANSWERS)
        ANSWERS.flush()


def main() -> None:
    """Builds the model, then answers."""
    dllm, llada, task = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
    is_sampling = task["task"] == "sample"
    dtype = getattr(torch, task["dtype"]) if is_sampling else torch.float32
    model, mask_id = released_model(Path(task["folder"]), dllm, dtype)
    once = sampler(task, llada, model, mask_id) if is_sampling else trainer(task, model, mask_id)
    serve(once, {"name": "released", "strategies": ["exact"]})


if __name__ == "__main__":
    main()
