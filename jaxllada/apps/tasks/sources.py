"""Where the tasks of an evaluation take their data: the Hub or a folder.

lm_eval's tasks fetch their data in `download`, while they are made. A source overrides it in a
subclass of the task's own class, so that YAML tasks and those written in Python go the same way.
"""

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jaxllada.apps.tasks.local_data import LocalData
from jaxllada.apps.tasks.needs import needs_of
from jaxllada.apps.tasks.trouble import asking
from jaxllada.apps.tasks.words import check_words, use_words
from jaxllada.common.errors import UserError

BUILDERS = ("json", "csv", "parquet", "arrow", "text")
"""Dataset paths that name a reader of files, not a data set."""
MIRROR = (
    "set HF_ENDPOINT to a mirror, or HF_HUB_OFFLINE=1 to use the cache alone, or where there is a"
    " network run `eval --download DIR --tasks {task}` and then give --data DIR here"
)
_SCRIPT = (
    "such scripts are not run: `eval --download DIR --tasks {task}` fetches its files for"
    " --data DIR, or put them into DIR/{last} yourself"
)


class Place(NamedTuple):
    """What a task says about its data."""

    task: str
    path: str
    """The data set, such as cais/mmlu."""
    name: str | None
    """Its configuration, such as anatomy."""
    names: tuple[str, ...]
    """Further names its folder may have: `metadata: {local_names: [...]}` in the task's YAML."""
    origin: str | None
    """Where data that is not on the Hub comes from: `metadata: {origin: ...}`."""

    @property
    def title(self) -> str:
        """The data set and its configuration."""
        return self.path + (f" ({self.name})" if self.name else "")


class TaskSource(ABC):
    """Gives tasks their data."""

    is_local = False
    """Whether plain words in a task's definition are held to be columns, and missing ones told."""

    def __init__(self, num_fewshot: int | None = None) -> None:
        self.num_fewshot = num_fewshot
        """Examples that will be asked of the tasks; None: what each says itself."""
        self.begin("")

    def begin(self, task: str) -> None:
        """Forgets the data of the task before."""
        self.task, self.title = task, ""
        self.names: dict[str, str] = {}
        """Files by split."""
        self.columns: list[str] = []

    def where(self, split: str = "") -> str:
        """Names task and data for a message."""
        title = self.names.get(split, f"{self.title}, {split}" if split else self.title)
        return f"tasks: {self.task}: {title}"

    def told(self) -> str:
        """The data with its columns; empty while none was asked for."""
        title = " and ".join(dict.fromkeys(self.names.values())) or self.title
        return title + (f" (columns {', '.join(self.columns)})" if self.columns else "")

    @abstractmethod
    def load(self, task: Any, place: Place, real: Callable[[], None]) -> None:
        """Sets `task.dataset` to {split: Dataset}; `real` does what lm_eval does."""

    def check(self, task: Any) -> None:  # noqa: B027 (most need nothing else)
        """Raises `UserError` where something else that a task needs is not there."""

    def reading(self, kind: Any = None, name: str = "") -> type:
        """A subclass of a task's class that takes its data from here; `kind` None: a YAML task.

        Without a name it goes by what its configuration says.
        """
        from lm_eval.api.task import ConfigurableTask

        source, is_yaml = self, kind is None
        base: Any = ConfigurableTask if is_yaml else kind

        def download(task: Any, *args: Any, **kwargs: Any) -> None:
            config, path = task.config, task.DATASET_PATH
            told = config.metadata or {}
            named = tuple(told.get("local_names", ()))
            here = name or config.task
            place = Place(here, path or "", task.DATASET_NAME, named, told.get("origin"))
            source.title = place.title or "its data"
            if callable(config.custom_dataset) or path in BUILDERS or not path:
                _find_files(config)
                base.download(task, *args, **kwargs)
            else:
                source.load(task, place, lambda: base.download(task, *args, **kwargs))
            _process_once(config)
            needs = needs_of(task, source.num_fewshot)
            task.data_title = source.names.get(needs.asked or "", source.title)
            if isinstance(task.dataset, Mapping):
                table = task.dataset.get(needs.asked)
                source.columns = list(getattr(table, "column_names", None) or ())
                needs.check(task.dataset, source.where, strict=source.is_local)

        def build_all_requests(task: Any, **keys: Any) -> None:
            with asking(task, name or task.config.task, task.data_title):
                base.build_all_requests(task, **keys)

        def init(task: Any, config: Any = None, **kwargs: Any) -> None:
            config = {key: value for key, value in config.items() if key != "class"}
            if not name:
                source.begin(config["task"])
            base.__init__(task, config=config, **kwargs)
            if source.is_local:
                needs = needs_of(task)
                needs.check_made(task.features, source.where(needs.asked or ""))
                _judge_once(task)
                source.check(task)

        changed: dict[str, Any] = {"download": download, "__module__": base.__module__}
        changed |= {"build_all_requests": build_all_requests}
        return type(base.__name__, (base,), changed | ({"__init__": init} if is_yaml else {}))


class Hub(TaskSource):
    """The Hugging Face Hub, or what is cached of it."""

    advice = MIRROR
    """What helps where it cannot be reached."""

    def load(self, task: Any, place: Place, real: Callable[[], None]) -> None:
        from jaxllada.common.data.tables import offline_where_unreachable

        if place.origin:
            raise UserError(
                f"tasks: {place.task}: its data is not on the Hub: put {place.origin} into a folder"
                " DIR and give --data DIR"
            )
        try:
            with offline_where_unreachable():
                real()
        except Exception as error:  # the Hub's client and every reader raise their own kinds
            reason, advice = reason_of(error), self.advice.format(task=place.task)
            if is_of_script(error):
                advice = _SCRIPT.format(task=place.task, last=place.path.rsplit("/", 1)[-1])
            raise UserError(
                f"tasks: {place.task}: {place.title} could not be had from the Hub: {reason};"
                f" {advice}"
            ) from error


class Folder(TaskSource):
    """A folder that holds the data of tasks."""

    is_local = True

    def __init__(self, data: LocalData, num_fewshot: int | None = None):
        super().__init__(num_fewshot)
        self.data = data
        self._read: dict[Any, Any] = {}
        use_words(data.folder)

    def check(self, task: Any) -> None:
        check_words(task, self.task, self.data.folder)

    def load(self, task: Any, place: Place, real: Callable[[], None]) -> None:
        needs = needs_of(task, self.num_fewshot)
        found = self.data.find(place.task, place.path, place.name, place.names)
        self.title = str(found.folder)
        # Subtasks such as those of MMLU-Pro choose their rows from the same files.
        key = (found._replace(task=""), needs._replace(columns=frozenset(), words=frozenset()))
        if key not in self._read:
            self._read[key] = found.splits(needs)
        splits, self.names = self._read[key]
        task.dataset = dict(splits)


def _process_once(config: Any) -> None:
    """Rows are made once: some definitions shuffle the options, anew each time they are asked."""
    made: dict[int, Any] = {}

    def once(process: Callable[[Any], Any]) -> Callable[[Any], Any]:
        @functools.wraps(process)
        def processed(table: Any) -> Any:
            if id(table) not in made:
                made[id(table)] = (table, process(table))  # the table is held: ids come again
            return made[id(table)][1]

        return processed

    own, examples = config.process_docs, config.fewshot_config
    if own is not None:
        config.process_docs = once(own)
        if examples and examples.process_docs is own:
            examples.process_docs = config.process_docs


def _judge_once(task: Any) -> None:
    """Scores an empty answer to the first row, so that columns that scoring reads are missed now.

    Raises the `KeyError` of such a column.
    """
    if not callable(task.config.process_results) or task.OUTPUT_TYPE != "generate_until":
        return
    try:
        task.process_results(task.task_docs[0], [""])
    except KeyError:
        raise
    except Exception:  # an empty answer need not have a score
        return


def reason_of(error: Exception) -> str:
    """What a failed download says, in one line."""
    cause = error if isinstance(error, ConnectionError) else error.__cause__ or error
    return " ".join(str(cause).split())[:200]


def is_of_script(error: BaseException) -> bool:
    """Whether a data set was refused because a script makes it."""
    return "scripts are no longer supported" in str(error)


def _find_files(config: Any) -> None:
    """Files that a task's YAML names are looked for beside it, where they are not here."""
    origin = (config.metadata or {}).get("config_source", "")
    files = (config.dataset_kwargs or {}).get("data_files")
    if files is None or not origin.endswith((".yaml", ".yml")):
        return

    def found(file: Any) -> Any:
        if isinstance(file, Mapping):
            return {split: found(one) for split, one in file.items()}
        if isinstance(file, list | tuple):
            return [found(one) for one in file]
        beside = Path(origin).parent / file
        return str(beside) if not Path(file).exists() and beside.exists() else file

    config.dataset_kwargs["data_files"] = found(files)  # the dictionary that lm_eval hands on
