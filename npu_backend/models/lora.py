"""Low-rank adapters on the dense layers of the blocks (LoRA, arXiv:2106.09685v2, section 4.1).

The base weights keep their names and are frozen; the output head never takes part. Files are those
of the PEFT library, see `common/weights/peft.py`.

Shape letters: I input width, O output width, r rank.
"""

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from jaxllada.common.config.lora import LoraConfig
from jaxllada.common.config.model import ModelConfig
from jaxllada.common.errors import UserError
from jaxllada.common.weights.adapter import Adapter, Module, initial_a, target_paths
from npu_backend.models.linear import Linear
from npu_backend.models.mask_predictor import MaskPredictor

FACTORS = ("lora_a", "lora_b")


class LoraLinear(Linear):
    """A frozen dense layer plus scale * B A x; dropout of x before A, in training mode only."""

    def __init__(self, base: Linear, lora: LoraConfig):
        nn.Module.__init__(self)
        self.weight = base.weight.requires_grad_(False)
        self.bias = None if base.bias is None else base.bias.requires_grad_(False)
        out, width = self.weight.shape
        self.scale, self.dropout = lora.scale, lora.lora_dropout
        device = self.weight.device
        # Trained in float32, whatever the frozen weights are stored in.
        self.lora_a = nn.Parameter(torch.empty(lora.r, width, device=device))
        self.lora_b = nn.Parameter(torch.zeros(out, lora.r, device=device))
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
    model: MaskPredictor, lora: LoraConfig, *, seed: int | None = None
) -> MaskPredictor:
    """Freezes a model, in place, and puts adapters onto its dense layers.

    A is drawn as PEFT does, uniform in +-1/sqrt(I), the same in both packages; B is zero, so the
    function does not change. Without a seed both are left as the memory was, to be filled.

    Raises:
        UserError: a name that no block of the model has, or an autoregressive twin.
    """
    if model.config.is_causal:
        raise UserError("lora=true: the twin model_type=qwen2 takes adapters in `jaxllada` only")
    paths = target_paths(model.config, lora.target_modules)
    model.requires_grad_(False)
    for layer in range(model.config.n_layers):
        for path in paths:
            parent, name = _place(model, path, layer)
            setattr(parent, name, LoraLinear(getattr(parent, name), lora))
    share_factors(model)
    if seed is not None:
        with torch.no_grad():
            for factor, value in initial_factors(model, seed):
                factor.copy_(torch.from_numpy(value))
    return model


def initial_factors(model: MaskPredictor, seed: int) -> Iterator[tuple[Tensor, np.ndarray]]:
    """Yields every factor of a model with its first value, whole; shared ones once."""
    drawn: dict[Module, np.ndarray] = {}
    done: set[int] = set()
    for path, layer, module in adapted(model):
        yield module.lora_b, np.zeros(module.lora_b.shape, np.float32)
        if id(module.lora_a) in done:
            continue
        done.add(id(module.lora_a))
        if path not in drawn:
            r, width = module.lora_a.shape
            drawn[path] = initial_a(model.config, path, r, width, seed)
        yield module.lora_a, drawn[path][layer]


def adapted(model: MaskPredictor) -> Iterator[tuple[Module, int, LoraLinear]]:
    """Yields (module path of the name table, layer, module) of every adapted layer."""
    if model.config.is_causal:  # never adapted here, see `add_adapters`
        return
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


def adapter_of(weights: Mapping[str, Tensor], lora: LoraConfig, config: ModelConfig) -> Adapter:
    """The factors among named weights as `write_adapter` takes them, float32, on the host."""
    factors: dict[Module, tuple[np.ndarray, np.ndarray]] = {}
    for path in target_paths(config, lora.target_modules):
        sides = [[], []]
        for layer in range(config.n_layers):
            for side, leaf in zip(sides, FACTORS, strict=True):
                tensor = weights[_stored_name(weights, path, layer, leaf)]
                side.append(tensor.detach().to("cpu", torch.float32, copy=True).numpy())
        factors[path] = np.stack(sides[0]), np.stack(sides[1])
    return Adapter.of(factors, lora)


def _stored_name(weights: Mapping[str, Tensor], path: Module, layer: int, leaf: str) -> str:
    """The name under which a factor is found; a shared one has that of the first that shares it."""
    shared = (path, *((*path[:-1], name) for name in ("q_proj", "k_proj", "v_proj")))
    names = (f"blocks.{layer}.{'.'.join(place[1:])}.{leaf}" for place in shared)
    return next(name for name in names if name in weights)


def put_adapter(model: MaskPredictor, adapter: Adapter) -> MaskPredictor:
    """Freezes a model, in place, and gives it the adapters of a file (`read_adapter`)."""
    add_adapters(model, adapter.settings)
    for path, layer, module in adapted(model):
        a, b = adapter.factors[path]
        with torch.no_grad():
            module.lora_a.copy_(torch.from_numpy(a[layer].astype(np.float32)))
            module.lora_b.copy_(torch.from_numpy(b[layer].astype(np.float32)))
    return model


def share_factors(model: MaskPredictor) -> None:
    """Gives q, k and v of a sequential block one A: a file stores them as one layer.

    Has to be called again whenever parameters were replaced, as by `to_empty`.
    """
    if model.config.block_type != "sequential":
        return
    for block in model.blocks:
        layers = (getattr(block.attention, name) for name in ("q_proj", "k_proj", "v_proj"))
        having = [layer for layer in layers if isinstance(layer, LoraLinear)]
        for layer in having[1:]:
            layer.lora_a = having[0].lora_a


def _place(model: MaskPredictor, path: Module, layer: int) -> tuple[nn.Module, str]:
    _, *parents, name = path
    return model.blocks[layer].get_submodule(".".join(parents)), name
