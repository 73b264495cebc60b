"""The tables that `jaxllada inspect` prints."""

from typing import Any

from rich.console import Console
from rich.table import Table

from jaxllada.common.config.model import ModelConfig

_PARTS = ("embedding", "attention", "mlp", "norms", "head")


def print_report(report: dict[str, Any], model: ModelConfig) -> None:
    """Prints the shape of a model, its sizes, and how its weight files compare."""
    # Output of a pipe is not 80 columns wide: nothing may wrap or be cut.
    console = Console(highlight=False, soft_wrap=True, width=160)
    console.print(f"[bold]{report['model']}[/bold]  {_shape(model)}\n")
    console.print(_parameters(report["parameters"]))
    console.print()
    console.print(_compute(report["flops_per_token"], report["length"]))
    console.print()
    console.print(_bytes(report["bytes"]))
    if "adapter" in report:
        found = report["adapter"]
        console.print()
        console.print(
            f"adapter of rank {found['r']}, scale {found['scale']:g}, on "
            f"{', '.join(found['modules'])} of every block: {found['parameters']:,} numbers\n"
            f"  its base is {found['base']}"
        )
    if "weights" in report:
        console.print()
        _print_weights(console, report["weights"])


def size(count: float, unit: str = "B") -> str:
    """Writes 1500000 as 1.50 M, in steps of 1000."""
    for factor, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= factor:
            return f"{count / factor:.3g} {prefix}{unit}"
    return f"{count:.0f} {unit}"


def _shape(model: ModelConfig) -> str:
    heads = f"{model.n_heads} heads of {model.head_dim}"
    if model.kv_heads != model.n_heads:
        heads += f" ({model.kv_heads} for keys and values)"
    rows = f"vocabulary {model.vocab_size}"
    if model.rows != model.vocab_size:
        rows += f" in {model.rows} rows"
    return ", ".join(
        [
            f"{model.n_layers} {model.block_type} blocks",
            f"width {model.d_model}",
            heads,
            f"feed-forward {model.ffn_width} ({model.activation_type})",
            rows + (", tied head" if model.weight_tying else ""),
            f"context {model.max_sequence_length}",
        ]
    )


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
    for i, name in enumerate(columns):
        table.add_column(name, justify="right" if i else "left", no_wrap=True)
    return table


def _parameters(count: dict[str, int]) -> Table:
    table = _table("parameters", "", "share")
    for part in _PARTS:
        table.add_row(part, f"{count[part]:,}", f"{100 * count[part] / count['total']:.1f} %")
    table.add_row("[bold]total[/bold]", f"[bold]{count['total']:,}[/bold]", "")
    table.add_row("without embedding and head", f"{count['body']:,}", "")
    return table


def _compute(flops: dict[str, float], length: int) -> Table:
    table = _table(f"FLOPs per token at length {length}", "")
    table.add_row("forward", size(flops["forward"], "FLOP"))
    table.add_row("training step", size(flops["training"], "FLOP"))
    masked = "training step, logits of masked tokens only"
    table.add_row(masked, size(flops["training_masked_only"], "FLOP"))
    return table


def _bytes(count: dict[str, int]) -> Table:
    table = _table("size", "")
    table.add_row("checkpoint, bfloat16", size(count["checkpoint_bfloat16"]))
    table.add_row("checkpoint, float32", size(count["checkpoint_float32"]))
    table.add_row("training state (float32 weights, AdamW)", size(count["training_state"]))
    table.add_row("gradients during a step", size(count["gradient"]))
    return table


def _print_weights(console: Console, weights: dict[str, Any]) -> None:
    kinds = ", ".join(f"{n} {kind}" for kind, n in weights["types"].items())
    files = f"{weights['files']} file" + "s" * (weights["files"] != 1)
    console.print(
        f"[bold]weights[/bold]  {weights['loader']}: {kinds} tensors in {files}, ", end=""
    )
    console.print(f"{size(weights['bytes'])}\n")
    table = _table("stored tensor", "number", "shape", "type", "size")
    for row in weights["kinds"]:
        shape = " x ".join(map(str, row["shape"]))
        table.add_row(row["name"], str(row["count"]), shape, row["dtype"], size(row["bytes"]))
    console.print(table)
    console.print()
    for word in ("missing", "unexpected", "misshaped"):
        names = weights[word]
        if names:
            console.print(f"  [red]{len(names)} {word}[/red]: {', '.join(names[:6])}", end="")
            console.print(f" and {len(names) - 6} more" if len(names) > 6 else "")
    if weights["complete"]:
        console.print("  every tensor is there, none is left over")
    for note in weights["notes"]:
        console.print(f"  {note}")
