"""Where the tasks of an evaluation take their data: the Hub, a folder, or the Hub into a folder.

lm_eval's tasks fetch their data in `download`, while they are made. A source overrides it in a
subclass of the task's own class, so that YAML tasks and those written in Python go the same way.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

from jaxllada.apps.local_data import LocalData
from jaxllada.apps.task_needs import needs_of
from jaxllada.common.errors import UserError

BUILDERS = ("json", "csv", "parquet", "arrow", "text")
"""Dataset paths that name a reader of files, not a data set."""


class Place(NamedTuple):
    """What a task says about its data."""

    task: str
    path: str
    """The data set, such as cais/mmlu."""
    name: str | None
    """Its configuration, such as anatomy."""
    names: tuple[str, ...]
    """Further names its folder may have: `metadata: {local_names: [...]}` in the task's YAML."""

    def __str__(self) -> str:
        return self.path + (f" ({self.name})" if self.name else "")


class TaskSource(ABC):
    """Gives tasks their data."""

    def __init__(self, num_fewshot: int | None = None) -> None:
        self.num_fewshot = num_fewshot
        """Examples that will be asked of the tasks; None: what each says itself."""
        self.where = ""
        """The data of the task that is being made, for messages."""

    @abstractmethod
    def load(self, task: Any, place: Place, real: Callable[[], None]) -> None:
        """Sets `task.dataset` to {split: Dataset}; `real` does what lm_eval does."""

    def reading(self, kind: Any, name: str) -> type:
        """A subclass of a task's class that takes its data from here."""
        from lm_eval.api.task import ConfigurableTask

        source, yaml = self, kind is None
        base: Any = ConfigurableTask if yaml else kind

        def download(task: Any, *args: Any, **kwargs: Any) -> None:
            real = lambda: base.download(task, *args, **kwargs)  # noqa: E731
            config = task.config
            path = task.DATASET_PATH
            own = callable(config.custom_dataset) or path in BUILDERS or not path
            named = (config.metadata or {}).get("local_names", ())
            place = Place(name, path or "", task.DATASET_NAME, tuple(named))
            source.where = str(place)
            if own:
                real()
            else:
                source.load(task, place, real)
            needs_of(task, source.num_fewshot).check(task.dataset, name, source.where)

        def init(task: Any, config: Any = None, **kwargs: Any) -> None:
            config = {key: value for key, value in config.items() if key != "class"}
            base.__init__(task, config=config, **kwargs)

        changed: dict[str, Any] = {"download": download, "__module__": base.__module__}
        return type(base.__name__, (base,), changed | ({"__init__": init} if yaml else {}))


class Hub(TaskSource):
    """The Hugging Face Hub, or what is cached of it."""

    def load(self, task: Any, place: Place, real: Callable[[], None]) -> None:
        try:
            real()
        except UserError:
            raise
        except Exception as error:  # the Hub's client and every reader raise their own kinds
            reason = " ".join(str(error.__cause__ or error).split())[:200]
            raise UserError(
                f"tasks: {place.task}: {place} is not cached and cannot be had from the Hub"
                f" ({reason}); set HF_ENDPOINT to a mirror, or run `jaxllada eval --download DIR"
                f" --tasks {place.task}` where there is a network and give --data DIR here"
                " (HF_HUB_OFFLINE=1 uses the cache alone)"
            ) from error


class Folder(TaskSource):
    """A folder that holds the data of tasks."""

    def __init__(self, data: LocalData, num_fewshot: int | None = None):
        super().__init__(num_fewshot)
        self.data = data

    def load(self, task: Any, place: Place, real: Callable[[], None]) -> None:
        needs = needs_of(task, self.num_fewshot)
        found = self.data.find(place.task, place.path, place.name, place.names)
        self.where = str(found.folder)
        task.dataset = found.splits(needs)
