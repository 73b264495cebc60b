"""AdamW with decoupled decay (arXiv:1711.05101v3), fed with the learning rate from outside.

Its kernels are those of torch.optim, fused where the device has them; its state is float32 and is
split like the weights. A step works on the parts that this process holds.
"""

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from jaxllada.common.config.train import TrainConfig

Tensors = dict[str, Tensor]


def decays(name: str) -> bool:
    """True for matrices and embeddings, False for norms and biases; decided by name."""
    names = name.split(".")
    return names[-1] != "bias" and not any("norm" in part or part == "ln_f" for part in names)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamW:
    """Clip by global norm, Adam, decay. `fused` asks for one kernel for all of it."""

    beta1: float
    beta2: float
    epsilon: float
    weight_decay: float
    max_grad_norm: float
    fused: bool = True

    def update(
        self,
        params: Mapping[str, Tensor],
        grads: Mapping[str, Tensor],
        mu: Mapping[str, Tensor],
        nu: Mapping[str, Tensor],
        *,
        count: int,
        grad_norm: float,
        learning_rate: float,
    ) -> None:
        """Moves weights and moments in place, from the local parts of everything.

        `grads` are float32 and are scaled in place; `count` is the number of updates before this
        one. Weights in bfloat16 are moved in float32 and rounded at the end.
        """
        if self.max_grad_norm and grad_norm >= self.max_grad_norm:
            torch._foreach_mul_(  # pyright: ignore[reportPrivateImportUsage]
                list(grads.values()), self.max_grad_norm / grad_norm
            )
        for decay in (True, False):
            names = [name for name in params if decays(name) is decay and params[name].numel()]
            rate = self.weight_decay if decay else 0.0
            plain = [name for name in names if params[name].dtype == torch.float32]
            self._kernel(params, grads, mu, nu, plain, count, rate, learning_rate)
            for name in names:
                if params[name].dtype != torch.float32:
                    moved = {name: params[name].float()}
                    self._kernel(moved, grads, mu, nu, [name], count, rate, learning_rate)
                    params[name].copy_(moved[name])

    def _kernel(
        self,
        params: Mapping[str, Tensor],
        grads: Mapping[str, Tensor],
        mu: Mapping[str, Tensor],
        nu: Mapping[str, Tensor],
        names: list[str],
        count: int,
        weight_decay: float,
        learning_rate: float,
    ) -> None:
        if not names:
            return
        # One-kernel steps count on the device, the others on the host.
        device = params[names[0]].device if self.fused else torch.device("cpu")
        steps = torch.full((len(names),), float(count), device=device)
        adamw(
            [params[name] for name in names],
            [grads[name] for name in names],
            [mu[name] for name in names],
            [nu[name] for name in names],
            [],
            list(steps.unbind()),
            fused=self.fused,
            foreach=not self.fused,
            amsgrad=False,
            beta1=self.beta1,
            beta2=self.beta2,
            lr=learning_rate,
            weight_decay=weight_decay,
            eps=self.epsilon,
            maximize=False,
        )


def make_optimizer(config: TrainConfig, *, fused: bool = True) -> AdamW:
    """Clip by global norm, Adam, decay, with the settings of a run."""
    return AdamW(
        beta1=config.adam_beta1,
        beta2=config.adam_beta2,
        epsilon=config.adam_epsilon,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        fused=fused,
    )


def initial_moments(params: Mapping[str, Tensor]) -> Tensors:
    """Zeros in float32, split like the weights, also where those are stored in bfloat16."""
    return {
        name: torch.zeros_like(param, dtype=torch.float32, requires_grad=False)
        for name, param in params.items()
    }


def average(
    ema: Mapping[str, Tensor], params: Mapping[str, Tensor], decay: float, step: int
) -> None:
    """Moves an exponential average of the weights in place; float32.

    The decay starts low, min(decay, (1 + step) / (10 + step)), so that the random start is
    forgotten (as in MDLM, arXiv:2406.07524v2).
    """
    decay_now = min(decay, (1.0 + step) / (10.0 + step))
    new = [params[name].float() for name in ema]
    torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage]
        list(ema.values()), new, 1 - decay_now
    )
