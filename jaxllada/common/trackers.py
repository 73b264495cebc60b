"""TensorBoard, Weights & Biases, SwanLab and MLflow behind the `Tracker` protocol.

Each library is imported when its run starts and a missing one names its pip command. A mode set in
the environment (`WANDB_MODE`, `SWANLAB_MODE`, `MLFLOW_TRACKING_URI`) is respected; without one, and
without a login, nothing leaves the machine and nobody is asked to type a key.
"""

import importlib
import json
import netrc
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from jaxllada.common.errors import UserError

PROJECT = "jaxllada"


class Tracker(Protocol):
    """What every backend does. Any exception it raises costs only the backend itself."""

    def start(self, config: Mapping[str, Any], run_id: str) -> None:
        """Opens the run, or continues the one of the same `run_id`, and stores `config`."""
        ...

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Stores numbers of one step."""
        ...

    def text(self, name: str, text: str, step: int) -> None:
        """Stores a text, such as a sample."""
        ...

    def finish(self, status: str) -> None:
        """Closes the run; `status` is `finished`, `failed` or `interrupted`."""
        ...


def make_tracker(name: str, folder: Path, run_name: str, resume_step: int | None) -> Tracker:
    """Returns the tracker of that name; nothing is imported or written before its `start`."""
    if name == "tensorboard":
        return TensorBoard(folder, resume_step)
    return {"wandb": Wandb, "swanlab": SwanLab, "mlflow": MLflow}[name](folder, run_name)


def _import(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is not installed (pip install {package})") from None


def _has_login(host: str) -> bool:
    """Whether ~/.netrc holds a key for a host."""
    try:
        return netrc.netrc().authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


class TensorBoard:
    """Event files in `folder/tensorboard`, written without TensorFlow or torch."""

    def __init__(self, folder: Path, resume_step: int | None = None):
        self._folder = folder / "tensorboard"
        self._resume_step = resume_step

    def start(self, config: Mapping[str, Any], run_id: str) -> None:
        files = _import("tensorboard.summary.writer.event_file_writer", "tensorboard")
        self._events = importlib.import_module("tensorboard.compat.proto.event_pb2")
        self._summaries = importlib.import_module("tensorboard.compat.proto.summary_pb2")
        self._tensors = importlib.import_module("tensorboard.compat.proto.tensor_pb2")
        self._types = importlib.import_module("tensorboard.compat.proto.types_pb2")
        self._writer = files.EventFileWriter(str(self._folder))
        if self._resume_step is not None:
            # A start mark makes TensorBoard forget what an earlier process wrote past this step.
            mark = self._events.SessionLog(status=self._events.SessionLog.START)
            self._add(self._resume_step + 1, session_log=mark)
        rows = "\n".join(f"| {key} | {value} |" for key, value in config.items())
        self.text("config", f"| key | value |\n|---|---|\n{rows}", 0)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        values = [self._summaries.Summary.Value(tag=k, simple_value=v) for k, v in metrics.items()]
        self._add(step, summary=self._summaries.Summary(value=values))

    def text(self, name: str, text: str, step: int) -> None:
        plugin = self._summaries.SummaryMetadata.PluginData(plugin_name="text")
        tensor = self._tensors.TensorProto(
            dtype=self._types.DT_STRING, string_val=[text.encode("utf-8", "replace")]
        )
        value = self._summaries.Summary.Value(
            tag=name, tensor=tensor, metadata=self._summaries.SummaryMetadata(plugin_data=plugin)
        )
        self._add(step, summary=self._summaries.Summary(value=[value]))

    def finish(self, status: str) -> None:
        self._writer.close()

    def _add(self, step: int, **content: Any) -> None:
        self._writer.add_event(self._events.Event(wall_time=time.time(), step=step, **content))


class Wandb:
    """Weights & Biases; offline runs lie in `folder/wandb`, `wandb sync` uploads them."""

    def __init__(self, folder: Path, run_name: str):
        self._folder, self._name = folder, run_name

    def start(self, config: Mapping[str, Any], run_id: str) -> None:
        wandb = _import("wandb", "wandb")
        url = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
        host = url.split("://")[-1].split("/")[0].split(":")[0]
        is_known = bool(os.environ.get("WANDB_API_KEY")) or _has_login(host)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=self._name,
            id=run_id,
            resume="allow",
            dir=str(self._folder),
            config=dict(config),
            mode=os.environ.get("WANDB_MODE") or ("online" if is_known else "offline"),
            settings=wandb.Settings(init_timeout=60, console="off", silent=True),
        )
        self._html = wandb.Html
        # A step of our own may go back after a rollback; wandb's own counter may not.
        self._run.define_metric("*", step_metric="step")

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._run.log({**metrics, "step": step})

    def text(self, name: str, text: str, step: int) -> None:
        escaped = text.replace("&", "&amp;").replace("<", "&lt;")
        self._run.log({name: self._html(f"<pre>{escaped}</pre>", inject=False), "step": step})

    def finish(self, status: str) -> None:
        self._run.finish(exit_code=0 if status == "finished" else 1)


class SwanLab:
    """SwanLab; offline runs lie in `folder/swanlog`, `swanlab sync` uploads them."""

    def __init__(self, folder: Path, run_name: str):
        self._folder, self._name = folder, run_name

    def start(self, config: Mapping[str, Any], run_id: str) -> None:
        self._swanlab = _import("swanlab", "swanlab")
        is_known = (
            bool(os.environ.get("SWANLAB_API_KEY"))
            or (
                Path(os.environ.get("SWANLAB_SAVE_DIR", "~/.swanlab")).expanduser() / ".netrc"
            ).is_file()
        )
        mode = os.environ.get("SWANLAB_MODE") or ("online" if is_known else "offline")
        folder = os.environ.get("SWANLAB_LOG_DIR") or str(self._folder / "swanlog")
        Path(folder).mkdir(parents=True, exist_ok=True)
        settings = {
            "project": os.environ.get("SWANLAB_PROJ_NAME", PROJECT),
            "experiment_name": os.environ.get("SWANLAB_EXP_NAME", self._name),
            "config": dict(config),
            "mode": mode,
        }
        # Only the cloud can continue a run by its id.
        resume = {"id": run_id, "resume": "allow"} if mode in ("online", "cloud") else {}
        try:
            self._swanlab.init(**settings, **resume, log_dir=folder)
        except TypeError:  # before 0.10 the folder was called logdir
            self._swanlab.init(**settings, **resume, logdir=folder)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._swanlab.log(dict(metrics), step=step)

    def text(self, name: str, text: str, step: int) -> None:
        self._swanlab.log({name: self._swanlab.Text(text)}, step=step)

    def finish(self, status: str) -> None:
        if status == "finished":
            self._swanlab.finish()
        else:
            self._swanlab.finish(state="crashed", error=status)


class MLflow:
    """MLflow at `MLFLOW_TRACKING_URI`, else in a database file in the run folder."""

    def __init__(self, folder: Path, run_name: str):
        self._folder, self._name = folder, run_name

    def start(self, config: Mapping[str, Any], run_id: str) -> None:
        _import("mlflow", "mlflow")
        tracking = importlib.import_module("mlflow.tracking")
        self._metric = importlib.import_module("mlflow.entities").Metric
        address = os.environ.get("MLFLOW_TRACKING_URI")
        local = self._folder.resolve()
        self._client = tracking.MlflowClient(address or f"sqlite:///{local / 'mlflow.db'}")
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        found = self._client.get_experiment_by_name(name)
        place = None if address else (local / "mlruns").as_uri()
        experiment = found.experiment_id if found else self._client.create_experiment(name, place)
        earlier = self._client.search_runs([experiment], f"tags.jaxllada_run_id = '{run_id}'")
        if earlier:
            self._run = earlier[0].info.run_id
            self._client.update_run(self._run, status="RUNNING")
            return
        tags = {"mlflow.runName": self._name, "jaxllada_run_id": run_id}
        self._run = self._client.create_run(experiment, tags=tags).info.run_id
        for key, value in config.items():
            self._client.log_param(self._run, key, str(value)[:500])
        self._client.log_text(self._run, json.dumps(dict(config), indent=2), "config.json")

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        now = int(time.time() * 1000)
        self._client.log_batch(
            self._run, metrics=[self._metric(k, v, now, step) for k, v in metrics.items()]
        )

    def text(self, name: str, text: str, step: int) -> None:
        self._client.log_text(self._run, text, f"{name}/{step:08d}.txt")

    def finish(self, status: str) -> None:
        word = {"finished": "FINISHED", "interrupted": "KILLED"}.get(status, "FAILED")
        self._client.set_terminated(self._run, word)
