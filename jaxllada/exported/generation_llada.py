"""Answers by diffusion: the sampler of LLaDA (arXiv:2502.09992v3, Algorithm 5) for transformers.

Exported by jaxllada, and the same file twice where a folder has its own modeling file: as
`custom_generate/generate.py`, which transformers binds to `model.generate` when remote code is
trusted, and as the module behind `LLaDAModelLM.generate`. It needs torch and transformers only.

Shape letters: B rows, P prompt length, N answer length, C positions looked at, V vocabulary rows.
"""

from dataclasses import dataclass
from typing import Any

import torch
import transformers
from transformers.utils import ModelOutput

_ALIASES = {
    "gen_length": ("max_new_tokens",),
    "block_length": ("block_size", "canvas_length"),
    "steps": ("max_denoising_steps",),
    "mask_token_id": ("mask_id",),
}
_DEFAULTS = {
    "gen_length": 128,
    "block_length": None,
    "steps": None,
    "temperature": None,
    "cfg_scale": 0.0,
    "remasking": "low_confidence",
    "logits_eos_inf": False,
    "confidence_eos_eot_inf": False,
    "mask_token_id": None,
    "eos_token_id": None,
    "eot_token_id": None,
    "compat": None,
    "stop_at_eos": False,
    "return_dict_in_generate": False,
}
# What callers of autoregressive models pass along: without a meaning here, or while it is off.
_MEANINGLESS = ("token_type_ids", "tokenizer", "pad_token_id", "do_sample")
_OFF = {"use_cache": False, "synced_gpus": False, "num_beams": 1, "num_return_sequences": 1}


@dataclass
class DiffusionOutput(ModelOutput):
    """`sequences` [B, P + N], and how many times the model was called for them."""

    sequences: torch.Tensor | None = None
    num_calls: int | None = None
    tokens_per_call: float | None = None


def generate(
    inputs=None,
    generation_config=None,
    *,
    model=None,
    input_ids=None,
    attention_mask=None,
    generator=None,
    streamer=None,
    **options,
):
    """Appends N masks to the prompts and fills them block by block, the most certain ones first.

    Args:
        inputs: prompts [B, P], padded on the left (also as `input_ids`).
        generation_config: holds defaults of the options below; what is passed here overrides it.
        model: LlamaForCausalLM with `is_causal: false`, or LLaDAModelLM.
        attention_mask: [B, P], 0 at padding. Rows get the same answers alone and in a batch.
        generator: torch.Generator of the random numbers; the global one by default.
        streamer: gets the prompt and every finished block by `put`, and, where it has `put_draft`,
            the state of the answer after every step.
        gen_length: answer length N in tokens, 128 by default (also `max_new_tokens`).
        block_length: tokens per block, finished from left to right; must divide N. All of N by
            default (also `block_size`, `canvas_length`).
        steps: model calls in total, shared equally by the blocks; N by default, which is one token
            per call (also `max_denoising_steps`).
        temperature: scale of the Gumbel noise on the logits; 0 (the default) takes the best token.
            A temperature in `generation_config` counts only with `do_sample=True` there.
        cfg_scale: strength of unsupervised guidance (Eq. 16), which doubles the cost; 0 is off.
        remasking: keep the "low_confidence" predictions masked, or "random" ones.
        logits_eos_inf: never predict the end-of-sequence token.
        confidence_eos_eot_inf: commit end tokens last within a block.
        eot_token_id: the end-of-turn id that this holds back too.
        mask_token_id, eos_token_id: those of the model's config by default.
        compat: "official-2025" repeats the accidents of the sampler released in October 2025.
        stop_at_eos: end a row after the block with its first end-of-sequence token.
        return_dict_in_generate: return a DiffusionOutput instead of the tokens.

    Returns:
        prompts and answers [B, P + N], without masks.

    Raises:
        ValueError: unknown options, or values that do not go together.
    """
    if input_ids is not None and inputs is not None:
        raise ValueError("expected either inputs or input_ids")
    prompt = inputs if input_ids is None else input_ids
    _check_model(model)
    options = _merged(options, generation_config, model)
    visible = _checked_prompt(prompt, attention_mask, options)
    with torch.no_grad():
        return _run(model, prompt, visible, options, generator, streamer)


def _run(model, prompt, visible, options, generator, streamer):
    (rows, start), length = prompt.shape, options["gen_length"]
    mask_id, eos_id = options["mask_token_id"], options["eos_token_id"]
    block_length = options["block_length"]
    steps_per_block = options["steps"] * block_length // length
    canvas = torch.full((rows, start + length), mask_id, dtype=torch.long, device=prompt.device)
    canvas[:, :start] = prompt
    # The released sampler also fills masks inside the prompt.
    first_open = 0 if options["compat"] else start
    visible = torch.cat([visible, visible.new_ones(rows, length)], dim=1)
    known = canvas != mask_id
    calls = committed = 0
    if streamer is not None:
        streamer.put(prompt.cpu())
    for block_start in range(start, start + length, block_length):
        block_end = block_start + block_length
        num_masks = (canvas[:, block_start:block_end] == mask_id).sum(dim=1)
        for step in range(min(steps_per_block, block_length)):
            count = num_masks // steps_per_block + (step < num_masks % steps_per_block)
            is_open = canvas[:, first_open:block_end] == mask_id
            columns = is_open.any(dim=0).nonzero()[:, 0] + first_open
            if not len(columns) or not count.any():
                break
            logits = _logits(model, canvas, visible, known, columns, options)
            tokens, confidence, late = _read(logits, options, generator)
            is_open = canvas[:, columns] == mask_id
            chosen = _most_confident(confidence, is_open, count, late)
            canvas[:, columns] = torch.where(chosen, tokens, canvas[:, columns])
            calls += 1
            committed += int(chosen.sum())
            if hasattr(streamer, "put_draft"):
                streamer.put_draft(canvas[:, start:].cpu())
        if streamer is not None:
            streamer.put(canvas[:, block_start:block_end].cpu())
        if options["stop_at_eos"]:
            ended = (canvas[:, start:block_end] == eos_id).any(dim=1, keepdim=True)
            is_rest = torch.arange(canvas.shape[1], device=canvas.device) >= start
            canvas[ended & is_rest & (canvas == mask_id)] = eos_id
            if ended.all():
                break
    if streamer is not None:
        streamer.end()
    if not options["return_dict_in_generate"]:
        return canvas
    return DiffusionOutput(
        sequences=canvas, num_calls=calls, tokens_per_call=committed / max(1, calls * rows)
    )


def _logits(model, canvas, visible, known, columns, options):
    """Returns float32 logits [B, C, V] at `columns`."""
    # Positions count from a row's first visible token, as if it were alone.
    places = torch.arange(canvas.shape[1], device=canvas.device) - visible.int().argmax(1)[:, None]
    scale = options["cfg_scale"]
    if scale > 0:
        canvas = torch.cat([canvas, canvas.masked_fill(known, options["mask_token_id"])])
        visible, places = torch.cat([visible, visible]), torch.cat([places, places])
    # Without padding the model needs no mask, and picks a faster kernel.
    mask = None if visible.all() else visible.long()
    out = model(
        input_ids=canvas,
        attention_mask=mask,
        position_ids=places.clamp(min=0),
        logits_to_keep=columns,
        use_cache=False,
    )
    logits = out.logits.to(canvas.device).float()
    if scale > 0:
        given, without = logits.chunk(2)
        logits = without + (scale + 1) * (given - without)
    return logits


def _read(logits, options, generator):
    """Returns predictions [B, C], their confidence, and which of them are to be committed last."""
    mask_id, eos_id, eot_id = (options[f"{name}_token_id"] for name in ("mask", "eos", "eot"))
    compat, temperature = options["compat"], options["temperature"]
    if options["logits_eos_inf"]:
        logits[..., eos_id] = -torch.inf
    scores = logits
    if temperature > 0:
        scores = logits + temperature * _gumbel(logits, generator)
    of_mask = scores[..., mask_id].clone()
    if compat is None:  # no mask may be left at the end
        scores[..., mask_id] = -torch.inf
    tokens = scores.argmax(dim=-1)
    scores[..., mask_id] = of_mask
    late = None
    if options["confidence_eos_eot_inf"]:
        ends = [eos_id] if eot_id is None else [eos_id, eot_id]
        if compat is None:
            late = torch.isin(tokens, torch.tensor(ends, device=tokens.device))
        else:
            # The release wrote to the logits of one id, and to those of the other only while no
            # noise made another tensor of them.
            logits[..., ends[1:] if temperature > 0 else ends] = -torch.inf
    if options["remasking"] == "random":
        confidence = torch.rand(tokens.shape, device=tokens.device, generator=generator)
    else:
        value = logits.gather(-1, tokens[..., None])[..., 0]
        confidence = (value - logits.logsumexp(dim=-1)).exp()
    return tokens, confidence, late


def _gumbel(like, generator):
    """Draws -log(-log(u)) in float32 with a right upper tail (arXiv:2409.02908v6).

    u has 24 bits from one draw and as many below from another, so that it is fine near 0, where
    the rare large values come from: noise ends at 33 instead of 16.6, without float64.
    """
    shape, where = like.shape, {"device": like.device, "generator": generator}
    u = torch.randint(1 << 24, shape, dtype=torch.float32, **where)
    u = (u + torch.rand(shape, **where).clamp_(min=2.0**-24)) * 2.0**-24
    return -torch.log(-torch.log1p(-u.clamp_(max=1 - 2.0**-24)))


def _most_confident(confidence, is_open, count, late):
    """Marks the `count` open positions of each row that come first; ties: the lowest position."""
    order = torch.where(is_open, confidence, -1.0).argsort(dim=1, descending=True, stable=True)
    if late is not None:
        group = (late & is_open).gather(1, order).long() + 2 * (~is_open).gather(1, order).long()
        order = order.gather(1, group.argsort(dim=1, stable=True))
    rank = order.argsort(dim=1)
    return is_open & (rank < count[:, None])


def _check_model(model):
    if model is None:
        raise ValueError("model: pass the model by keyword")
    config = model.config
    if config.model_type == "llama":
        if getattr(config, "is_causal", True):
            raise ValueError("is_causal is not false in this model's config: it is autoregressive")
        release = tuple(int(part) for part in transformers.__version__.split(".")[:2])
        if release < (5, 2):
            raise ValueError(
                f"transformers {transformers.__version__} ignores is_causal=false and would run "
                "this model causally: use 5.2 or later, or the llada layout of this model"
            )


def _merged(given, generation_config, model):
    """Returns every option: as passed, else of the generation config, else the default."""
    given = {key: value for key, value in given.items() if value is not None}
    for name, aliases in _ALIASES.items():
        same = {key: given.pop(key) for key in (name, *aliases) if key in given}
        if len(set(same.values())) > 1:
            raise ValueError(f"{', '.join(same)} say the same thing and differ: {same}")
        if same:
            given[name] = next(iter(same.values()))
    if given.get("do_sample") and "temperature" not in given:
        raise ValueError("do_sample=True: say how much with temperature=")
    for name in [*_MEANINGLESS, *(key for key, off in _OFF.items() if given.get(key) == off)]:
        given.pop(name, None)
    if unknown := sorted(given.keys() - _DEFAULTS.keys()):
        known = ", ".join(key for key in _DEFAULTS if key != "return_dict_in_generate")
        raise ValueError(f"{', '.join(unknown)}: unknown to a diffusion model; it knows {known}")
    options = dict(_DEFAULTS)
    for source in (getattr(model, "generation_config", None), generation_config):
        for name in _DEFAULTS if source is not None else ():
            found = [getattr(source, key, None) for key in (name, *_ALIASES.get(name, ()))]
            found = [value for value in found if value is not None]
            if name == "temperature" and not getattr(source, "do_sample", False):
                continue
            if found:
                options[name] = found[0]
    options |= given
    return _completed(options, model.config)


def _completed(options: dict[str, Any], config: Any) -> dict[str, Any]:
    """Fills in what depends on other options or on the model, and checks the numbers."""
    for name in ("mask_token_id", "eos_token_id"):
        if options[name] is None:
            options[name] = getattr(config, name, None)
        if isinstance(options[name], list | tuple):  # several ends; the first is that of the text
            options[name] = options[name][0]
        if options[name] is None:
            raise ValueError(f"{name}: the model's config says none, pass it")
    length = options["gen_length"]
    options["block_length"] = options["block_length"] or length
    options["steps"] = options["steps"] or length
    for name in ("gen_length", "block_length", "steps"):
        if not isinstance(options[name], int) or options[name] < 1:
            raise ValueError(f"{name}={options[name]!r} must be a whole number, at least 1")
    options["temperature"] = options["temperature"] or 0.0
    for name in ("temperature", "cfg_scale"):
        if not 0 <= options[name] < float("inf"):
            raise ValueError(f"{name}={options[name]} must be a finite number, 0 or larger")
    if length % options["block_length"]:
        raise ValueError(
            f"gen_length={length} is not a whole number of blocks of "
            f"block_length={options['block_length']}"
        )
    num_blocks = length // options["block_length"]
    if options["steps"] % num_blocks:
        raise ValueError(
            f"steps={options['steps']} cannot be shared equally by {num_blocks} blocks"
        )
    if options["remasking"] not in ("low_confidence", "random"):
        raise ValueError(f"remasking={options['remasking']!r}: use low_confidence or random")
    if options["compat"] not in (None, "official-2025"):
        raise ValueError(f"compat={options['compat']!r}: use official-2025, or leave it out")
    return options


def _checked_prompt(prompt, attention_mask, options):
    """Returns which prompt tokens are visible, as booleans [B, P]."""
    if prompt is None or prompt.ndim != 2:
        raise ValueError("inputs: expected prompts as a tensor [rows, tokens]")
    if attention_mask is None:
        visible = torch.ones(prompt.shape, dtype=torch.bool, device=prompt.device)
    else:
        visible = attention_mask.to(prompt.device) != 0
    if visible.shape != prompt.shape:
        raise ValueError(
            f"attention_mask has shape {tuple(visible.shape)}; expected {tuple(prompt.shape)}"
        )
    if prompt.shape[1] and not visible[:, -1].all():
        raise ValueError("prompts are padded on the right: set tokenizer.padding_side = 'left'")
    if options["compat"] is None and (visible & (prompt == options["mask_token_id"])).any():
        raise ValueError(
            "a prompt holds the mask token; only compat='official-2025' fills masks in prompts"
        )
    return visible
