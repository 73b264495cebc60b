"""Low-rank adapters on the dense layers of the blocks (LoRA, arXiv:2106.09685v2, section 4.1).

The base weights keep their names and are frozen; the output head never takes part. Files are those
of the PEFT library, see `common/weights/peft.py`.

Shape letters: I input width, O output width, r rank.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from jaxllada.common.weights.peft import Adapter, Module, target_paths
from npu_backend.models.linear import Linear
from npu_backend.models.mask_predictor import MaskPredictor


class LoraLinear(Linear):
    """A frozen dense layer plus scale * B A x; dropout of x before A, in training mode only."""

    def __init__(self, base: Linear, r: int, scale: float, dropout: float):
        nn.Module.__init__(self)
        self.weight = base.weight.requires_grad_(False)
        self.bias = None if base.bias is None else base.bias.requires_grad_(False)
        out, width = self.weight.shape
        self.scale, self.dropout = scale, dropout
        device = self.weight.device
        # Trained in float32, whatever the frozen weights are stored in.
        self.lora_a = nn.Parameter(torch.empty(r, width, device=device))
        self.lora_b = nn.Parameter(torch.zeros(out, r, device=device))
        self.train(base.training)

    def forward(self, x: Float[Tensor, "*rows I"]) -> Float[Tensor, "*rows O"]:
        narrow = F.dropout(x, self.dropout if self.training else 0.0)
        narrow = F.linear(narrow, self.lora_a.to(x.dtype))
        return super().forward(x) + F.linear(narrow, self.lora_b.to(x.dtype)) * self.scale

    @torch.no_grad()
    def merged(self) -> Linear:
        """The dense layer W + scale * B A, computed in float32 and rounded once."""
        plain = Linear.__new__(Linear)
        nn.Module.__init__(plain)
        sum_ = self.weight.float() + self.scale * (self.lora_b @ self.lora_a)
        plain.weight = nn.Parameter(sum_.to(self.weight.dtype))
        plain.bias = None if self.bias is None else nn.Parameter(self.bias.detach())
        return plain.train(self.training)


def add_adapters(
    model: MaskPredictor,
    *,
    r: int,
    lora_alpha: float,
    use_rslora: bool = False,
    lora_dropout: float = 0.0,
    target_modules: str = "all-linear",
    generator: torch.Generator | None = None,
) -> MaskPredictor:
    """Freezes a model, in place, and puts adapters onto its dense layers.

    A is drawn as PEFT does, uniform in +-1/sqrt(I); B is zero, so the function does not change.

    Args:
        r: rank.
        lora_alpha: the update is scaled by alpha / r, for rsLoRA (arXiv:2312.03732, theorem 3.2)
            by alpha / sqrt(r).
        target_modules: comma-separated names of either layout, or `all-linear`.
        generator: of the host; None leaves A as the memory was, to be filled.

    Raises:
        UserError: a name that no block of the model has.
    """
    scale = lora_alpha / (math.sqrt(r) if use_rslora else r)
    paths = target_paths(model.config, target_modules)
    model.requires_grad_(False)
    for layer in range(model.config.n_layers):
        for path in paths:
            parent, name = _place(model, path, layer)
            setattr(parent, name, LoraLinear(getattr(parent, name), r, scale, lora_dropout))
        _share_factors(model, paths, layer)
    if generator is not None:
        _draw(model, generator)
    return model


def adapted(model: MaskPredictor) -> Iterator[tuple[Module, int, LoraLinear]]:
    """Yields (module path of the name table, layer, module) of every adapted layer."""
    for path in target_paths(model.config, "all-linear"):
        for layer in range(model.config.n_layers):
            parent, name = _place(model, path, layer)
            if isinstance(module := getattr(parent, name), LoraLinear):
                yield path, layer, module


def merge(model: MaskPredictor) -> MaskPredictor:
    """Adds the adapters to the weights, in place, and removes them; everything trains again."""
    for path, layer, module in list(adapted(model)):
        parent, name = _place(model, path, layer)
        setattr(parent, name, module.merged())
    return model.requires_grad_(True)


def adapter_of(
    model: MaskPredictor, *, r: int, lora_alpha: float, use_rslora: bool = False
) -> Adapter:
    """The factors of a model as `write_adapter` takes them: float32, stacked over the layers."""
    factors: dict[Module, tuple[list[np.ndarray], list[np.ndarray]]] = {}
    for path, _, module in adapted(model):
        pair = factors.setdefault(path, ([], []))
        pair[0].append(module.lora_a.detach().float().cpu().numpy())
        pair[1].append(module.lora_b.detach().float().cpu().numpy())
    stacked = {path: (np.stack(a), np.stack(b)) for path, (a, b) in factors.items()}
    return Adapter(stacked, r=r, lora_alpha=lora_alpha, use_rslora=use_rslora)


def put_adapter(model: MaskPredictor, adapter: Adapter) -> MaskPredictor:
    """Freezes a model, in place, and gives it the adapters of a file (`read_adapter`)."""
    add_adapters(
        model,
        r=adapter.r,
        lora_alpha=adapter.lora_alpha,
        use_rslora=adapter.use_rslora,
        lora_dropout=adapter.lora_dropout,
        target_modules=",".join(path[-1] for path in adapter.factors),
    )
    with torch.no_grad():
        for path, layer, module in adapted(model):
            a, b = adapter.factors[path]
            module.lora_a.copy_(torch.from_numpy(a[layer].astype(np.float32)))
            module.lora_b.copy_(torch.from_numpy(b[layer].astype(np.float32)))
    return model


@torch.no_grad()
def _draw(model: MaskPredictor, generator: torch.Generator) -> None:
    for _, _, module in adapted(model):
        bound = 1 / math.sqrt(module.lora_a.shape[1])
        drawn = torch.empty(module.lora_a.shape).uniform_(-bound, bound, generator=generator)
        module.lora_a.copy_(drawn)


def _share_factors(model: MaskPredictor, paths: tuple[Module, ...], layer: int) -> None:
    """One A for q, k and v of a sequential block, which a file stores as one layer."""
    if model.config.block_type != "sequential":
        return
    fused = [path for path in paths if path[-1] in ("q_proj", "k_proj", "v_proj")]
    for path in fused[1:]:
        first, own = (getattr(*_place(model, p, layer)) for p in (fused[0], path))
        own.lora_a = first.lora_a


def _place(model: MaskPredictor, path: Module, layer: int) -> tuple[nn.Module, str]:
    _, *parents, name = path
    return model.blocks[layer].get_submodule(".".join(parents)), name
