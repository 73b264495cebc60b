"""The model card of an exported folder: what it is, how to run it, how it was trained, caveats."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from jaxllada.common.config.model import ModelConfig
from jaxllada.common.counting import count_parameters
from jaxllada.common.version import __version__
from jaxllada.common.weights import card_qwen2
from jaxllada.common.weights.card_run import metadata_of, run_of, settings_of, training_part


def model_card(
    name: str,
    *,
    config: ModelConfig,
    layout: str,
    dtypes: Iterable[str] = (),
    source_folder: Path | None = None,
    recipe: Mapping[str, Any] | None = None,
    has_tokenizer: bool = True,
    has_template: bool = False,
    has_code: bool = True,
) -> str:
    """Returns README.md: metadata in YAML, then Markdown.

    The recipe is `recipe` and the settings of `source_folder`, if that is a training run.
    `has_code` tells whether the folder runs by what it holds; families with modeling files of
    their own may not.
    """
    run = run_of(source_folder)
    recipe = {**settings_of(run), **(recipe or {})}
    metadata = metadata_of(source_folder, recipe)
    if config.is_causal:
        metadata["tags"] = list(card_qwen2.TAGS)
    parts = [
        f"---\n{yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)}---",
        f"# {name}",
        _about(config, layout, dtypes),
        "## Use\n\n" + _usage(name, layout, has_tokenizer, has_template) if has_code else "",
        training_part(recipe, run),
        "## Caveats\n\n" + "\n".join(f"- {text}" for text in _caveats(config, layout, has_code)),
        f"Written by jaxllada {__version__}.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _about(config: ModelConfig, layout: str, dtypes: Iterable[str]) -> str:
    c = config
    heads = f"{c.n_heads}" if c.kv_heads == c.n_heads else f"{c.n_heads} ({c.kv_heads} for k, v)"
    rows = {
        "parameters": f"{count_parameters(c).total:,}",
        "layers, width, feed-forward": f"{c.n_layers}, {c.d_model}, {c.ffn_width}",
        "heads of attention": heads,
        "vocabulary": f"{c.vocab_size:,}" + (" (tied head)" if c.weight_tying else ""),
        "context": f"{c.max_sequence_length:,} tokens",
        **(
            {"end-of-text id": f"{c.eos_token_id}"}
            if c.is_causal
            else {"mask, end-of-text id": f"{c.mask_token_id}, {c.eos_token_id}"}
        ),
        "stored type": " and ".join(dtypes) or "as in the files",
        "layout": {
            "llada": "`llada`: names of the LLaDA release, with a modeling file",
            "llama": "`llama`: names of `LlamaForCausalLM`, `is_causal: false`",
            "qwen2": card_qwen2.LAYOUT,
        }[layout],
    }
    table = "\n".join(f"| {key} | {value} |" for key, value in rows.items())
    if config.is_causal:
        return f"{card_qwen2.ABOUT}\n\n| | |\n|---|---|\n{table}"
    return (
        "A masked-diffusion language model of the LLaDA family "
        "([arXiv:2502.09992](https://arxiv.org/abs/2502.09992)): a Transformer without a causal "
        "mask that predicts all hidden tokens of a text at once. It answers by filling a row of "
        f"masks, the most certain tokens first.\n\n| | |\n|---|---|\n{table}"
    )


def _usage(name: str, layout: str, has_tokenizer: bool, has_template: bool) -> str:
    if layout == "qwen2":
        return card_qwen2.usage(name, has_tokenizer, has_template)
    prompt = 'inputs = {"input_ids": torch.tensor([[1, 2, 3]])}  # ids of your tokenizer'
    if has_tokenizer:
        prompt = 'inputs = tokenizer(["Once upon a time"], return_tensors="pt", padding=True)'
    if has_tokenizer and has_template:
        prompt = """\
inputs = tokenizer.apply_chat_template(
    [{"role": "user", "content": "What is a diffusion model?"}],
    add_generation_prompt=True, return_dict=True, return_tensors="pt",
)"""
    # The tokenizer needs no code, but transformers 5 asks for the config's before it reads one.
    trust = ", trust_remote_code=True" if layout == "llada" else ""
    lines = [
        "import torch",
        "from transformers import AutoModelForCausalLM" + (", AutoTokenizer" * has_tokenizer),
        "",
        f'path = "{name}"',
        "model = AutoModelForCausalLM.from_pretrained(",
        "    path, trust_remote_code=True, dtype=torch.bfloat16",
        ").eval()",
        f'tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left"{trust})'
        * has_tokenizer,
        prompt,
        "tokens = model.generate(**inputs, gen_length=64, block_length=32, steps=64)",
        'answer = tokens[:, inputs["input_ids"].shape[1] :]',
        "print(tokenizer.batch_decode(answer, skip_special_tokens=True)[0])"
        if has_tokenizer
        else "print(answer)",
    ]
    code = "\n".join(line for i, line in enumerate(lines) if line or i == 2)
    versions = {
        "llada": "transformers 4.57 or later, 5.x included; `trust_remote_code=True` is needed "
        "for local folders too.",
        "llama": "transformers 5.2 or later. `LlamaForCausalLM` runs the weights as they are; "
        "`trust_remote_code=True` is for `generate` alone.",
    }[layout]
    return (
        f"```python\n{code}\n```\n\nNeeds {versions} The options of `generate` (`steps`, "
        "`block_length`, `temperature`, `cfg_scale`, `remasking`, ...) are explained in "
        "`custom_generate/generate.py`. In Flax: `jaxllada.load(path)`."
    )


def _caveats(config: ModelConfig, layout: str, has_code: bool) -> list[str]:
    if config.is_causal:
        return list(card_qwen2.CAVEATS)
    shared = [
        "Logits belong to their own position, not to the next one, and there is no cache: loops "
        "and losses for autoregressive models (`labels` shifted by one, beam search, servers "
        "for such models) give nonsense.",
        f"Hidden tokens have the id {config.mask_token_id} in the input. Prompts hold none, and "
        "padding goes to the left, with an `attention_mask`.",
        "Every position attends to every other: cost grows with `steps` times the length of "
        "prompt and answer. Fewer steps than answer tokens are faster and worse.",
    ]
    if not has_code:
        return [
            "config.json names classes of another project, whose files have to lie beside it.",
            *shared,
        ]
    if layout == "llada":
        return [
            "The modeling file is jaxllada's own; names, shapes and logits are those of the "
            "released class, also for tools that read the weights alone.",
            *shared,
        ]
    return [
        "Before 5.2, transformers ignores `is_causal: false` and runs the model causally "
        "without a word: wrong logits. `generate` of this folder refuses to run there.",
        "Without `trust_remote_code=True`, `generate` is the autoregressive one: wrong text and "
        "no error.",
        "`labels=` of the stock class computes the shifted, autoregressive loss.",
        "In 16 bit the stock class rounds rotary cosines and sines before it rotates, LLaDA's "
        "own does not: logits differ by that rounding. In float32 they are equal.",
        *shared,
    ]
