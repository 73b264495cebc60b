"""Builds the HTML player: one file with the traces in it, which loads nothing from anywhere."""

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxllada.common.trace import Trace
from jaxllada.common.trace_text import told

HOME = Path(__file__).parent


def player_page(traces: Mapping[str, Trace], *, title: str = "") -> str:
    """Returns the page for the first row of one or two described traces, by name."""
    data = json.dumps(
        [track(name, trace) for name, trace in traces.items()],
        ensure_ascii=False,
        separators=(",", ":"),
    )
    parts = {
        "TITLE": html.escape(title or " and ".join(traces)),
        "STYLE": (HOME / "player.css").read_text("utf-8"),
        "SCRIPT": (HOME / "player.js").read_text("utf-8"),
        # Text of a model must not end the script element, nor open a comment in it.
        "DATA": data.replace("<", "\\u003c"),
    }
    page = (HOME / "page.html").read_text("utf-8")
    # The data come last: what a model wrote is never searched for a placeholder.
    for name, text in parts.items():
        page = page.replace(f"@{name}@", text)
    return page


def track(name: str, trace: Trace) -> dict[str, Any]:
    """What the player needs of one trace, ready for JSON."""
    text = told(trace)
    about = trace.about
    settings = about.get("settings", {})
    return {
        "name": name,
        "prompt": text.prompt,
        "pieces": [list(piece) for piece in text.pieces],
        "end": text.end,
        "steps": trace.num_steps,
        "block": int(settings.get("block_length", 0)),
        "settings": _facts(about, settings),
        "tokens": trace.tokens[0].tolist(),
        "order": trace.order[0].tolist(),
        "confidence": [round(value, 4) for value in trace.confidence[0].tolist()],
    }


def _facts(about: Mapping[str, Any], settings: Mapping[str, Any]) -> Sequence[tuple[str, str]]:
    known = [("model", Path(str(about["model"])).name)] if about.get("model") else []
    known += [(key, _shown(value)) for key, value in settings.items()]
    known += [("seed", str(about["seed"]))] if settings.get("temperature") else []
    known += [("model calls", str(about["nfe"]))] if "nfe" in about else []
    return known + ([("seconds", f"{about['seconds']:.3g}")] if "seconds" in about else [])


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
