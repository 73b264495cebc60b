"""What `tune` leaves behind: a table, a picture of the Pareto front, a preset."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxllada.apps.tuning import SWEPT, Outcome, pareto_front
from jaxllada.common.config.sampling import SamplingConfig

Point = Mapping[str, Any]
HEADS = ("agree", "exact", "tok/call", "tok/s", "calls")


def table(points: Sequence[Point], outcomes: Sequence[Outcome], chosen: int | None) -> str:
    """A Markdown table, the fastest first; `*` marks the Pareto front, `->` the chosen setting."""
    shown = [key for key in SWEPT if len({str(point[key]) for point in points}) > 1] or ["steps"]
    front = set(pareto_front(outcomes))
    rows = [["", *shown, *HEADS]]
    for i in sorted(range(len(points)), key=lambda i: -outcomes[i].tokens_per_second):
        outcome = outcomes[i]
        sign = "->" if i == chosen else "*" if i in front else ""
        rows.append(
            [
                sign,
                *(str(points[i][key]) for key in shown),
                f"{outcome.agreement:.1%}",
                f"{outcome.exact:.0%}",
                f"{outcome.tokens_per_call:.2f}",
                f"{outcome.tokens_per_second:.1f}",
                str(outcome.nfe),
            ]
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    # Settings stand to the left, numbers to the right.
    lines = [
        "| "
        + " | ".join(
            cell.ljust(width) if i <= len(shown) else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        + " |"
        for row in rows
    ]
    rule = [
        "-" * width if i <= len(shown) else "-" * (width - 1) + ":"
        for i, width in enumerate(widths)
    ]
    return "\n".join([lines[0], "| " + " | ".join(rule) + " |", *lines[1:]])


def preset_text(config: SamplingConfig, outcome: Outcome, about: Sequence[str]) -> str:
    """A preset file: what differs from the defaults, below what was measured."""
    import yaml

    usual = SamplingConfig()
    always = ("gen_length", "steps", "block_length")
    values = {
        key: getattr(config, key)
        for key in config.__dataclass_fields__
        if key in always or getattr(config, key) != getattr(usual, key)
    }
    values.pop("eot_token_id", None)  # of the tokenizer, not of the settings
    measured = (
        f"{outcome.agreement:.1%} of the reference's tokens, {outcome.tokens_per_second:.1f}"
        f" response tokens/s, {outcome.tokens_per_call:.2f} per model call"
    )
    lines = [f"# {line}" for line in (*about, measured)]
    plain = {key: list(v) if isinstance(v, tuple) else v for key, v in values.items()}
    return "\n".join([*lines, yaml.safe_dump(plain, sort_keys=False)])


def plot(
    points: Sequence[Point], outcomes: Sequence[Outcome], chosen: int | None, title: str, out: Path
) -> None:
    """Draws agreement over response tokens per second, with the Pareto front."""
    import matplotlib

    from jaxllada.common.figures import STYLE, save_figure

    with matplotlib.rc_context(STYLE):
        save_figure(_figure(points, outcomes, chosen, title), out)


def _figure(
    points: Sequence[Point], outcomes: Sequence[Outcome], chosen: int | None, title: str
) -> Any:
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    from jaxllada.common.figures import COLORS

    figure = Figure(figsize=(8, 5), dpi=130, layout="constrained")
    axes = figure.add_subplot()
    front = pareto_front(outcomes)
    axes.plot(
        [outcomes[i].tokens_per_second for i in front], [outcomes[i].agreement for i in front],
        color="#c5c9cf", linewidth=1.4, zorder=1, drawstyle="steps-post", label="Pareto front",
    )  # fmt: skip
    caches = list(dict.fromkeys(str(point["cache"]) for point in points))
    kinds = list(dict.fromkeys(_kind(point) for point in points))
    for cache, kind in dict.fromkeys((str(p["cache"]), _kind(p)) for p in points):
        own = [
            outcomes[i]
            for i, p in enumerate(points)
            if (str(p["cache"]), _kind(p)) == (cache, kind)
        ]
        axes.scatter(
            [o.tokens_per_second for o in own], [o.agreement for o in own], s=42, zorder=3,
            color=COLORS[caches.index(cache) % len(COLORS)], edgecolor="white", linewidth=0.7,
            marker="osD^vP*X"[kinds.index(kind) % 8],
            label=f"{kind}, cache {cache}",
        )  # fmt: skip
    _name(axes, points, outcomes, front, chosen)
    axes.set_xlabel("response tokens per second")
    axes.set_ylabel("agreement with the reference decode")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    low = min(outcome.agreement for outcome in outcomes)
    axes.set_ylim(max(-0.03, low - 0.08), 1.05)
    axes.set_xlim(left=0)
    axes.margins(x=0.12)
    axes.set_title(title, pad=10)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=3, fontsize=8.5)
    return figure


def _name(
    axes: Any,
    points: Sequence[Point],
    outcomes: Sequence[Outcome],
    front: Sequence[int],
    chosen: int | None,
) -> None:
    """Writes the settings beside the points of the front; the chosen one bold."""
    shown = [key for key in SWEPT if len({str(point[key]) for point in points}) > 1]
    low = min(outcome.agreement for outcome in outcomes)
    fastest = max(outcome.tokens_per_second for outcome in outcomes)
    named: list[tuple[float, float]] = []
    # By its definition nothing lies above the front on the right: there is room for the names.
    for i in sorted(front, key=lambda i: i != chosen):
        x, y = outcomes[i].tokens_per_second / fastest, outcomes[i].agreement
        if any(abs(y - b) < 0.05 * (1.1 - low) and abs(x - a) < 0.4 for a, b in named):
            continue
        named.append((x, y))
        parts = [
            str(points[i][key]) if key in ("selection", "cache", "smoothing")
            else f"{key.removesuffix('_length')} {points[i][key]}"
            for key in shown
            if points[i][key] not in ("fixed", "none")
        ]  # fmt: skip
        axes.annotate(
            ", ".join(parts), (outcomes[i].tokens_per_second, y), xytext=(5, 5),
            textcoords="offset points", ha="right" if x > 0.75 else "left", fontsize=7.5,
            color="#30343b", fontweight="bold" if i == chosen else "normal",
        )  # fmt: skip


def _kind(point: Point) -> str:
    selection, smoothing = (str(point[key]).partition(":")[0] for key in ("selection", "smoothing"))
    return selection if smoothing == "none" else f"{selection} + {smoothing}"
