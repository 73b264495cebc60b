"""The exact log-likelihood of the autoregressive twin: one call, nothing drawn.

log p(answer | prompt) is the sum over answer tokens of log p(token | all before it).
"""

from collections.abc import Sequence

import numpy as np
import torch

from jaxllada.common.autoregressive import padded
from npu_backend.calls import inference
from npu_backend.diffusion.chunked import chunked_cross_entropy
from npu_backend.models.causal_lm import CausalLM


def log_likelihood(model: CausalLM, prompt: Sequence[int], answer: Sequence[int]) -> float:
    """Returns log p(answer | prompt) in nats, exactly.

    Nothing is drawn. An empty prompt is the beginning of a text.
    """
    if not len(answer):
        return 0.0
    laid = padded([prompt], model.config)
    tokens = np.concatenate([laid.tokens[0], np.asarray(answer, np.int32)])
    start = len(tokens) - len(answer)
    whole = torch.from_numpy(tokens).to(model.device)
    with inference(model):
        hidden = model.hidden(whole[None])[0, start - 1 : -1]
        ones = torch.ones(len(answer), device=model.device)
        losses = chunked_cross_entropy(
            hidden, model.head_weight, whole[start:], ones, counted=len(answer)
        )
    return -float(losses[0])
