"""The folder of a run: what lies in it, who may write it, what may change when a run goes on.

output_dir/
  config.yaml              merged training settings      config.json   model
  tokenizer.json, ...      tokenizer                     metrics.jsonl, loss.png
  checkpoints/{step}/      training state                samples/step-{step}.txt
  summary.txt              what it learnt
"""

import contextlib
import shutil
from pathlib import Path
from typing import Any

from jaxllada.common.config.load import to_yaml
from jaxllada.common.config.model import ModelConfig
from jaxllada.common.config.train import TrainConfig
from jaxllada.common.errors import UserError
from jaxllada.common.manifest import step_folders, write_atomically
from jaxllada.common.plots import plot_losses
from jaxllada.common.run.checkpoints import CHECKPOINTS, Checkpoints
from jaxllada.common.tokenizer import Tokenizer

# Settings that a run may not change on its way: they decide the data, the objective or the arrays.
FIXED = (
    *("seed", "dataset_args", "text_field", "streaming", "drop_tail", "max_length", "repeat_data"),
    *("load_preprocessed_data", "insert_eos", "random_length_ratio", "random_length_mode"),
    *("loss_norm", "time_sampling", "time_epsilon", "param_dtype", "ema_decay"),
    *("truncation", "mask_prompt_loss", "dialogue_turns", "on_bad_row"),
    *("pad_policy", "group_by_length"),
)
LORA = (*("model_name_or_path", "r", "lora_alpha", "use_rslora", "lora_dropout", "target_modules"),)
"""The same for runs that train adapters."""
_OWN = (
    *("config.yaml", "config.json", "metrics.jsonl", "loss.png", "summary.txt"),
    *("samples", "profile"),
)


class RunFolder:
    """Paths and rules of one run folder; `checkpoints` holds its training states.

    `kind` is the backend's class of them.
    """

    def __init__(self, config: TrainConfig, kind: type[Checkpoints]):
        self.path = Path(config.output_dir)
        self.metrics = self.path / "metrics.jsonl"
        self.checkpoints = kind(
            self.path / CHECKPOINTS, keep=config.save_total_limit, keep_best=config.save_best
        )

    def holds_a_run(self) -> bool:
        """Whether an earlier run has left something here."""
        return (self.path / "config.yaml").exists() or bool(step_folders(self.checkpoints.folder))

    def resume_step(self, config: TrainConfig) -> int | None:
        """Step to continue from, or None for a new run.

        Raises UserError where `resume` and what is in the folder do not go together. Writes
        nothing.
        """
        if config.resume == "never":
            if self.holds_a_run() and not config.overwrite_output_dir:
                raise UserError(
                    f"output_dir={config.output_dir}: holds a run already; continue it with "
                    "resume=auto, replace it with overwrite_output_dir=true, or choose another"
                )
            return None
        if config.overwrite_output_dir:
            raise UserError(f"resume={config.resume}: does not go with overwrite_output_dir=true")
        if config.resume == "auto":
            return self.checkpoints.latest()
        wanted = Path(config.resume).absolute()
        inside = {path: step for step, path in step_folders(self.checkpoints.folder).items()}
        if wanted not in inside:
            raise UserError(
                f"resume={config.resume}: expected auto, never or a checkpoint folder in "
                f"{self.checkpoints.folder}; to start from other weights set model_name_or_path"
            )
        return inside[wanted]

    def begin(
        self,
        config: TrainConfig,
        model: ModelConfig,
        tokenizer: Tokenizer | None,
        resume_step: int | None,
    ) -> None:
        """Clears what a new run replaces and writes the settings of this one."""
        if resume_step is None:
            for name in _OWN:
                target = self.path / name
                if target.is_dir():
                    shutil.rmtree(target)
                else:
                    target.unlink(missing_ok=True)
            shutil.rmtree(self.checkpoints.folder, ignore_errors=True)
        else:
            self.checkpoints.set_aside_after(resume_step)
        self.path.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path / "config.yaml", to_yaml(config).encode())
        model.save(self.path)
        if tokenizer is not None:
            tokenizer.save(self.path)

    def draw_losses(self) -> None:
        """Draws loss.png; without matplotlib, or with nothing to draw, it leaves that for later."""
        with contextlib.suppress(ModuleNotFoundError, UserError):
            plot_losses(self.metrics, self.path / "loss.png")

    def save_sample(self, step: int, text: str) -> None:
        """Writes samples/step-{step}.txt."""
        (self.path / "samples").mkdir(exist_ok=True)
        write_atomically(self.path / "samples" / f"step-{step}.txt", text.encode())


def identity(
    config: TrainConfig, model: ModelConfig, global_batch: int, backend: str
) -> dict[str, Any]:
    """What must be the same when a run goes on; kept in every checkpoint."""
    fixed = {key: getattr(config, key) for key in FIXED}
    fixed["lora"] = config.lora or None
    if config.lora:
        fixed |= {key: getattr(config, key) for key in LORA}
    if config.repeat_data:
        fixed["max_steps"] = config.max_steps  # which decides the rows
    return {
        "backend": backend,
        **fixed,
        "global batch size": global_batch,
        "model": model.to_dict(),
    }


def check_same(old: dict[str, Any], new: dict[str, Any]) -> None:
    """Raises UserError naming the first setting that differs, its old and its new value.

    How the global batch is cut, the mesh, the rate and the intervals may change. A setting that
    the checkpoint's version did not have yet was at its default.
    """
    defaults = {key: getattr(TrainConfig, key) for key in FIXED}
    for key in new:
        before, now = old.get(key, defaults.get(key)), new[key]
        if key == "model" and before and before != now:
            fields = sorted(before.keys() | now.keys())
            field = next(name for name in fields if before.get(name) != now.get(name))
            before, now, key = before.get(field), now.get(field), f"model {field}"
        if before != now:
            raise UserError(
                f"{key}={now!r}: the run in output_dir has {before!r}; put it back, or start a new "
                "run in another output_dir"
            )
