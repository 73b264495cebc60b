"""Conditional log-likelihood of an answer (LLaDA, arXiv:2502.09992v3, Eq. 6).

Shape letters: B masks of one batch, L length of prompt and answer, S answer length, D model width.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from jaxllada.common.config.likelihood import LikelihoodConfig
from jaxllada.common.likelihood import Round, checked_tokens, mask_rounds
from npu_backend.calls import draw_seed, inference, on_host
from npu_backend.diffusion.chunked import chunked_cross_entropy


def log_likelihood(
    model: Any,
    prompt: Any,
    answer: Any,
    config: LikelihoodConfig | None = None,
    generator: torch.Generator | None = None,
) -> float:
    """Estimates the bound on log p(answer | prompt), in nats; 0 is certainty.

    `mc_num / batch_size` calls of the model, each on `batch_size` masked copies (twice as many
    with guidance). The head runs on hidden answer positions only.

    Args:
        model: a `MaskPredictor`.
        prompt: token ids [P], which may be empty.
        answer: token ids, at least one.
        config: number of masks, batch size, guidance, seed.
        generator: for the masks, of any device; without it they follow from `config.seed` and the
            length of the answer, the same on every backend.

    Raises:
        UserError: ids outside the vocabulary, or more tokens than the model has positions.
    """
    config = config or LikelihoodConfig()
    prompt, answer = checked_tokens(on_host(prompt), on_host(answer), model.config)
    seed = config.seed if generator is None else draw_seed(generator)
    rounds = mask_rounds(len(answer), config, seed)
    return mean_log_likelihood(model, prompt, answer, rounds, config.cfg_scale)


def mean_log_likelihood(
    model: Any,
    prompt: Int[np.ndarray, " P"],
    answer: Int[np.ndarray, " N"],
    rounds: Iterable[Round],
    cfg_scale: float = 0.0,
) -> float:
    """Averages Eq. 6 over given masks: the log-probability of hidden tokens times N / hidden."""
    tokens = torch.as_tensor(np.concatenate([prompt, answer]), device=model.device).long()
    values = []
    with inference(model):
        for is_masked, counts in rounds:
            weights = (is_masked * (len(answer) / counts)[:, None]).astype(np.float32)
            nats = weighted_nats(
                model,
                tokens,
                torch.from_numpy(weights).to(model.device),
                len(prompt),
                cfg_scale,
                counted=int(counts.sum()),
            )
            values.append(nats)
    # Looked at once, when all calls are on their way.
    return -float(torch.cat(values).cpu().double().mean())


def weighted_nats(
    model: Any,
    tokens: Int[Tensor, " L"],
    weights: Float[Tensor, "B S"],
    start: int,
    cfg_scale: float,
    *,
    counted: int | None = None,
) -> Float[Tensor, " B"]:
    """Returns sum(weights * cross-entropy) in nats of every masked copy of one sequence.

    The answer begins at `start`; where a weight is not 0, the token is hidden. `counted` is the
    number of such positions, where the host knows it.
    """
    batch, size = weights.shape
    canvas = tokens.repeat(batch, 1)
    window = canvas[:, start:]
    canvas = torch.cat(
        [canvas[:, :start], torch.where(weights != 0, model.config.mask_id, window)], dim=1
    )
    if cfg_scale > 0:
        place = torch.arange(len(tokens), device=tokens.device)
        without_prompt = torch.where(place < start, model.config.mask_id, canvas)
        canvas = torch.cat([canvas, without_prompt])
    states = model.hidden(canvas, window=(start, size))
    if cfg_scale > 0:
        # Logits are linear in these activations: guiding here is guiding the logits (Eq. 16).
        given, unconditional = states.float().chunk(2)
        states = unconditional + (cfg_scale + 1) * (given - unconditional)
    losses = chunked_cross_entropy(
        (states * model.logit_scale).flatten(0, 1),
        model.head_weight,
        window.flatten(),
        weights.flatten(),
        head_bias=None if model.head_bias is None else model.head_bias * model.logit_scale,
        counted=counted,
    )
    return torch.sum(losses.nll.view(weights.shape) * weights, dim=1)
