"""Finds fast sampling settings for a model and one's own prompts: the verb `tune` of both packages.

Every combination of the swept keys answers all prompts and is compared with the slow reference
decode (one token per model call, no cache, `fixed` selection). The results come as a table, a
picture of the Pareto front and a preset that `sample` and `chat` take by `--preset`.
"""

import hashlib
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxllada.apps.answering import OpenEngine, Options, open_model
from jaxllada.apps.sample import encode, read_prompts
from jaxllada.common.config.sampling import SamplingConfig
from jaxllada.common.engine import check_prompts
from jaxllada.common.errors import UserError

if TYPE_CHECKING:
    from jaxllada.apps.tuning import Outcome, Run
    from jaxllada.common.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class TuneOptions(Options):
    """Keys of tune."""

    prompts_file: str
    """File with one prompt per line."""
    output_dir: str
    """Folder for results.jsonl, table.md, pareto.png, preset.yaml and two traces. What it holds
    from an earlier call with the same model and prompts is not measured again."""
    chat: bool = False
    """Put every prompt into the model's chat template."""
    max_prompts: int = 16
    """Prompts to use, from the beginning of the file."""
    sweep_steps: tuple[int, ...] = ()
    """Model calls to try, such as 32 64 128; empty: as `steps` says."""
    sweep_block_length: tuple[int, ...] = ()
    """Block lengths to try; empty: as `block_length` says."""
    sweep_selection: tuple[str, ...] = ()
    """Selections to try, separated by spaces, such as fixed threshold:0.9 factor:1.0."""
    sweep_cache: tuple[str, ...] = ()
    """Caches to try, separated by spaces, such as none prefix dual."""
    sweep_smoothing: tuple[str, ...] = ()
    """Smoothings to try, separated by spaces, such as none soft soft:0.3,reach=canvas."""
    min_agreement: float = 0.95
    """The preset is the fastest setting that agrees with the reference this far."""
    batch_size: int = 1
    """Prompts answered at the same time."""
    rounds: int = 2
    """Calls per batch; the fastest counts, and the first one has to compile."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("max_prompts", "batch_size", "rounds"):
            if getattr(self, key) < 1:
                raise UserError(f"{key}={getattr(self, key)} must be at least 1")
        if not 0 <= self.min_agreement <= 1:
            raise UserError(f"min_agreement={self.min_agreement} must lie in [0, 1]")

    @property
    def sweeps(self) -> dict[str, tuple[Any, ...]]:
        return {
            "steps": self.sweep_steps,
            "block_length": self.sweep_block_length,
            "selection": self.sweep_selection,
            "cache": self.sweep_cache,
            "smoothing": self.sweep_smoothing,
        }


def run(config: TuneOptions, open_engine: OpenEngine) -> int:
    """Measures every setting, prints the table and writes the files."""
    from jaxllada.apps.tune_report import plot, preset_text, table
    from jaxllada.apps.tuning import answer, choose, reference_config, row, settings
    from jaxllada.common.manifest import write_atomically

    texts = read_prompts(config.prompts_file)[: config.max_prompts]
    engine, tokenizer = open_model(config, open_engine)
    prompts = [encode(text, tokenizer, config.chat) for text in texts]
    room = engine.config.max_sequence_length - max(map(len, prompts))
    base = config.sampling(room, tokenizer)
    check_prompts(prompts, base, engine.config)
    candidates = list(settings(base, config.sweeps))
    for point, found in candidates:
        if isinstance(found, str):
            _tell(f"left out {_words(point)}: {found}")
    out = Path(config.output_dir)
    out.mkdir(parents=True, exist_ok=True)
    results = _Results(out / "results.jsonl", _digest(config, prompts))

    def measure(settings: SamplingConfig) -> "Run":
        return answer(
            engine, tokenizer, prompts, settings,
            seed=config.seed, batch_size=config.batch_size, rounds=config.rounds,
        )  # fmt: skip

    slow = reference_config(base)
    reference = measure(slow)
    truth = reference.responses
    points, configs, outcomes = [_point(slow)], [slow], [reference.against(truth)]
    _tell(f"reference: {_line(outcomes[0])}")
    for point, found in candidates:
        if isinstance(found, str) or found in configs:
            continue
        outcome = results.known(found)
        if outcome is None:
            try:
                outcome = measure(found).against(truth)
            except UserError as error:
                _tell(f"left out {_words(point)}: {error}")
                continue
            results.add(found, row(point, outcome))
        points.append(point)
        configs.append(found)
        outcomes.append(outcome)
        _tell(f"{_words(point)}: {_line(outcome)}")
    best = choose(outcomes, config.min_agreement)
    assert best is not None, "the reference agrees with itself"
    title = f"{config.model_name_or_path}: {len(prompts)} prompts of {config.prompts_file}"
    text = table(points, outcomes, best)
    write_atomically(out / "table.md", f"{text}\n".encode())
    plot(points, outcomes, best, title, out / "pareto.png")
    about = (f"Written by tune: {config.model_name_or_path}, {len(prompts)} prompts.",)
    write_atomically(
        out / "preset.yaml", preset_text(configs[best], outcomes[best], about).encode()
    )
    _save_traces(config, out, tokenizer, prompts[0], (slow, reference), configs[best], measure)
    print(text)
    _tell(f"wrote {out / 'preset.yaml'}: use it with --preset {out / 'preset.yaml'}")
    return 0


class _Results:
    """What has been measured, one line of JSON each, so that an interrupted sweep goes on."""

    def __init__(self, path: Path, digest: str):
        self.path, self.digest = path, digest
        lines = path.read_text("utf-8").splitlines() if path.exists() else []
        self._known = {}
        for line in lines:
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                continue  # the line an interrupted call was writing
            if entry["digest"] == digest:
                self._known[entry["settings"]] = entry

    def known(self, settings: SamplingConfig) -> "Outcome | None":
        from jaxllada.apps.tuning import Outcome

        entry = self._known.get(_key(settings))
        fields = Outcome.__dataclass_fields__
        return None if entry is None else Outcome(**{name: entry[name] for name in fields})

    def add(self, settings: SamplingConfig, row: dict[str, Any]) -> None:
        entry = {"digest": self.digest, "settings": _key(settings), **row}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry, default=str) + "\n")


def _save_traces(
    config: TuneOptions,
    out: Path,
    tokenizer: "Tokenizer",
    prompt: list[int],
    slow: "tuple[SamplingConfig, Run]",
    best: SamplingConfig,
    measure: Any,
) -> None:
    """Writes how the first prompt was answered, slowly and with the chosen setting."""
    from jaxllada.common.trace_text import describe

    settings, reference = slow
    chosen = reference if best == settings else measure(best)
    for name, how, run in (("reference", settings, reference), ("chosen", best, chosen)):
        trace = describe(
            run.generations[0], tokenizer, how, prompt=prompt,
            model=config.model_name_or_path, seed=config.seed,
        )  # fmt: skip
        trace.save(out / f"{name}.npz")


def _digest(config: TuneOptions, prompts: list[list[int]]) -> str:
    """Names what the numbers depend on besides the settings."""
    known = [config.model_name_or_path, config.dtype, config.average, config.seed]
    known += [config.batch_size, prompts]
    return hashlib.sha256(json.dumps(known).encode()).hexdigest()[:16]


def _key(settings: SamplingConfig) -> str:
    return json.dumps(asdict(settings), sort_keys=True, default=str)


def _point(settings: SamplingConfig) -> dict[str, Any]:
    from jaxllada.apps.tuning import SWEPT

    return {key: getattr(settings, key) for key in SWEPT}


def _words(point: dict[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in point.items())


def _line(outcome: "Outcome") -> str:
    return (
        f"agreement {outcome.agreement:.1%}, {outcome.tokens_per_call:.2f} tokens per call,"
        f" {outcome.tokens_per_second:.1f} response tokens/s"
    )


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
