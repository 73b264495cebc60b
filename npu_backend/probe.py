"""Compares every fused kernel with its float32 twin before a run relies on it.

Outputs and gradients are compared at the shapes of the run, attention also under a mask. A kernel
may be as far from float32 as twice its plain twin in the same type is, or as that type's rounding.

Shape letters: B batch, L positions, D model width, H head width.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.optim.adamw import adamw
from torch.utils.checkpoint import checkpoint

from jaxllada.common.config.compute import ComputeConfig
from jaxllada.common.config.model import ModelConfig
from jaxllada.common.errors import UserError
from jaxllada.common.notices import warn
from npu_backend import ops
from npu_backend.models.rope import rotation
from npu_backend.ops import Kernels

OpsMode = Literal["auto", "fused", "plain"]
_FLOOR = {torch.float32: 1e-5, torch.bfloat16: 2**-8, torch.float16: 2**-11}

Function = Callable[..., Tensor]


@dataclasses.dataclass(frozen=True)
class Finding:
    """What the probe found out about one kernel; `error` is relative, in the root mean square."""

    kernel: str
    case: str
    error: float
    allowed: float
    failure: str = ""

    @property
    def is_exact(self) -> bool:
        """Whether the kernel may be used. An error that is not a number is none."""
        return not self.failure and self.error <= self.allowed

    def __str__(self) -> str:
        what = f"fused {self.kernel} ({self.case})"
        if self.failure:
            return f"{what} fails: {self.failure}"
        return f"{what} differs from float32 by {self.error:.1e}, allowed {self.allowed:.1e}"


def choose_kernels(
    mode: str,
    device: torch.device,
    config: ModelConfig,
    compute: ComputeConfig,
    *,
    batch: int,
    length: int,
    tell: Callable[[str], None] = warn,
) -> Kernels:
    """Returns the kernels of a run: `plain`, all `fused` ones, or (`auto`) those found exact.

    Only NPUs have fused ones. Every disagreement is told, and the plain twin used instead.

    Raises:
        UserError: an unknown mode, or `fused` where there is no NPU.
    """
    check_mode(mode, device)
    if device.type != "npu":
        return ops.PLAIN
    if mode != "auto":
        return ops.FUSED if mode == "fused" else ops.PLAIN
    found = probe(config, compute.dtype, length, batch, device)
    exact = {f.name: True for f in dataclasses.fields(Kernels)}
    for finding in found:
        if not finding.is_exact:
            exact[finding.kernel] = False
            tell(f"{finding}: the plain one is used (--ops fused insists)")
    torch.get_device_module(device.type).empty_cache()
    return Kernels(**exact)


def check_mode(mode: str, device: torch.device) -> None:
    """Raises `UserError` for an unknown mode, and for `fused` where there is no NPU."""
    if mode not in get_args(OpsMode):
        raise UserError(f"ops={mode!r} is unknown: use one of {', '.join(get_args(OpsMode))}")
    if mode == "fused" and device.type != "npu":
        raise UserError(f"ops=fused: {device.type} has no fused kernels; use auto or plain")


def probe(
    config: ModelConfig, dtype: str, length: int, batch: int, device: torch.device
) -> list[Finding]:
    """Compares each fused kernel with its twin, on random numbers from a fixed seed."""
    c, kind = config, getattr(torch, dtype)
    draw = _Draw(torch.Generator().manual_seed(0), kind, device)
    turn = rotation(torch.arange(length, device=device)[None], c.head_dim, c.rope_theta)
    width = c.ffn_width // 2 if c.activation_type == "swiglu" else c.ffn_width
    hidden_share = torch.arange(length, device=device) >= length - max(1, length // 4)
    rows = torch.arange(batch, device=device)[:, None] % 2 == 0
    visible = ~(hidden_share & rows)[:, None, None]

    def with_turn(rotate: Function) -> Function:
        # The model rotates in float32 and rounds once, whatever its type.
        return lambda x: rotate(x.float(), *turn).to(x.dtype)

    def norm_by(norm: Function) -> Function:
        return lambda x: norm(x, c.rms_norm_eps)

    def attention(mask: Tensor | None) -> tuple[Function, Function]:
        never = torch.finfo(kind).min
        added = None if mask is None else torch.where(mask, 0.0, never)
        return (
            lambda q, k, v: ops.fused_attention(q, k, v, mask),
            lambda q, k, v: _by_heads(q, k, v, added),
        )

    heads = (batch, length, c.n_heads, c.head_dim)
    kv_heads = (batch, length, c.kv_heads, c.head_dim)
    hidden, inner = (batch, length, c.d_model), (batch, length, width)
    cases = [
        ("rms_norm", "", norm_by(ops.fused_unit_rms), norm_by(ops.unit_rms), [hidden]),
        ("rotary", "", with_turn(ops.fused_rotate), with_turn(ops.plain_rotate), [heads]),
        ("swiglu", "", ops.fused_swiglu, ops.plain_swiglu, [inner] * 2),
        ("attention", "no mask", *attention(None), [heads, kv_heads, kv_heads]),
        ("attention", "key mask", *attention(visible), [heads, kv_heads, kv_heads]),
    ]
    found = []
    for kernel, what, fused, plain, shapes in cases:
        case = ", ".join(filter(None, [what, "x".join(map(str, shapes[0])), dtype]))
        found.append(_compare(kernel, case, fused, plain, [draw(s) for s in shapes], draw))
    return [*found, _compare_adamw(device, c.d_model)]


class _Draw:
    """Normal numbers of the run's type, drawn on the host and moved to the device."""

    def __init__(self, generator: torch.Generator, dtype: torch.dtype, device: torch.device):
        self.generator, self.dtype, self.device = generator, dtype, device

    def __call__(self, shape: Sequence[int]) -> Tensor:
        return torch.randn(shape, generator=self.generator).to(self.device, self.dtype)


def _compare(
    kernel: str, case: str, fused: Function, plain: Function, inputs: list[Tensor], draw: _Draw
) -> Finding:
    exact = _outputs(plain, [x.float() for x in inputs], grad := draw(_shape(plain, inputs)))
    plain_error = _distance(_outputs(plain, inputs, grad), exact)
    allowed = max(2 * plain_error, _FLOOR[draw.dtype])
    try:
        error = _distance(_outputs(fused, inputs, grad), exact)
    except (RuntimeError, ValueError, AttributeError, TypeError) as problem:
        first = (str(problem).strip().splitlines() or [type(problem).__name__])[0]
        return Finding(kernel, case, math.nan, allowed, first)
    return Finding(kernel, case, error, allowed)


def _shape(function: Function, inputs: list[Tensor]) -> torch.Size:
    with torch.no_grad():
        return function(*inputs).shape


def _outputs(function: Function, inputs: list[Tensor], grad: Tensor) -> list[Tensor]:
    """The result and the gradient of every input."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    with torch.enable_grad():
        result = function(*leaves)
        grads = torch.autograd.grad(result, leaves, grad.to(result.dtype))
    return [result.detach(), *grads]


def _distance(found: list[Tensor], exact: list[Tensor]) -> float:
    """The largest relative difference of any tensor, in the root mean square."""
    errors = []
    for a, b in zip(found, exact, strict=True):
        wide = a.float()
        errors.append(float((wide - b).square().mean().sqrt() / b.square().mean().sqrt()))
    return math.nan if any(math.isnan(e) for e in errors) else max(errors)


def _by_heads(q: Tensor, k: Tensor, v: Tensor, added: Tensor | None) -> Tensor:
    """Plain attention, one row and a key head at a time: all scores at once would not fit."""
    groups, rows = q.shape[2] // k.shape[2], []
    for row in range(len(q)):
        here = None if added is None else added[row : row + 1]
        heads = [
            checkpoint(
                ops.products_attention,
                q[row : row + 1, :, n * groups : (n + 1) * groups],
                k[row : row + 1, :, n : n + 1],
                v[row : row + 1, :, n : n + 1],
                here,
                use_reentrant=False,
            )
            for n in range(k.shape[2])
        ]
        rows.append(torch.cat(heads, dim=2))
    return torch.cat(rows)


def _compare_adamw(device: torch.device, width: int) -> Finding:
    """Three steps of fused AdamW against torch's loop on the host, in float32."""
    generator = torch.Generator().manual_seed(1)
    start, *grads = (torch.randn((width, width), generator=generator) for _ in range(4))

    def moved(on: torch.device, *, fused: bool) -> Tensor:
        x, mu, nu = (y.clone().to(on) for y in (start, *[torch.zeros_like(start)] * 2))
        step = torch.zeros((), device=on if fused else "cpu")
        for grad in grads:
            adamw(
                [x], [grad.to(on)], [mu], [nu], [], [step], fused=fused, foreach=False,
                amsgrad=False, beta1=0.9, beta2=0.95, lr=1e-2, weight_decay=0.1, eps=1e-8,
                maximize=False,
            )  # fmt: skip
        return x.cpu() - start

    case, allowed = f"3 steps, {width}x{width}, float32", _FLOOR[torch.float32]
    exact = [moved(torch.device("cpu"), fused=False)]
    try:
        error = _distance([moved(device, fused=True)], exact)
    except (RuntimeError, ValueError, AttributeError, TypeError) as problem:
        return Finding("adamw", case, math.nan, allowed, str(problem).splitlines()[0])
    return Finding("adamw", case, error, allowed)
