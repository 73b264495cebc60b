"""The keys of the verb `eval`, and how they combine with recipes.

Published names stand beside ours where they differ: cfg, block_size, is_check_greedy,
apply_chat_template. A key that is given wins over the recipe, a recipe over the task.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxllada.apps.answering import Options, check_seed
from jaxllada.apps.evaluation.asked import TooLong
from jaxllada.apps.evaluation.estimate_keys import EstimateKeys, one_of_two
from jaxllada.common.config.sampling import SamplingConfig
from jaxllada.common.errors import UserError

GROUP = "What is measured, by which protocol, and where results go"


@dataclass(frozen=True, kw_only=True)
class TaskKeys:
    """What is measured, by which protocol, and where results go."""

    model_name_or_path: str = field(default="", metadata={"positional": True})
    """Model folder: a released one, or the output_dir of a training run."""
    recipe: tuple[str, ...] = ()
    """Published protocols: TASK@FAMILY, a family for all of its tasks, or a file (.yaml) of one's
    own; the verb recipes lists them."""
    tasks: tuple[str, ...] = ()
    """Tasks or groups of lm_eval, task files (.yaml), or questions (.jsonl) as `score` reads.
    Length and temperature of answers are the task's where no key, preset or recipe sets them."""
    num_fewshot: int | None = None
    """Examples in the prompt; those of the recipe or the task by default."""
    limit: float = 0.0
    """First questions of each task, or a share of them below 1; 0: all."""
    chat: bool | None = None
    """Put every prompt into the model's chat template; as the recipe says, else off."""
    apply_chat_template: bool | None = None
    """Another name for chat."""
    fewshot_as_multiturn: bool | None = None
    """Make every example a turn of the conversation; as the recipe says, else off."""
    system_instruction: str = ""
    """Text that begins every prompt: the system message of a chat."""
    data: str = ""
    """Folder with the data of the tasks, for machines without network; `download` writes one."""
    download: str = ""
    """Save the data of the tasks to this folder, and do nothing else."""
    output: str = ""
    """Folder for results, samples and finished answers: a run that was cut goes on from them."""
    part: str = ""
    """i/n: answer part i (0 to n-1) of the requests into `output` and score nothing. A run without
    it finds the answers of all parts. auto: as srun or mpirun numbers this process, which waits for
    the others and scores if it is 0; so do ranks of torchrun."""
    batch_size: int = 8
    """Answers generated at the same time; the results do not depend on it."""
    too_long: TooLong = "error"
    """Where a prompt leaves too little room: error, before anything is run; cut drops its front;
    shorten gives answers fewer blocks."""
    fewshot_seed: int = 1234
    """Seed of the choice of examples, where a task draws them."""
    confirm_run_unsafe_code: bool = False
    """Run tasks that execute what the model wrote, such as HumanEval."""

    cfg: float | None = None
    """Another name for cfg_scale."""
    block_size: int | None = None
    """Another name for block_length."""


@dataclass(frozen=True, kw_only=True)
class EvalOptions(Options, EstimateKeys, TaskKeys):
    """Keys of eval."""

    # `ModelKeys` wants one always; `--download` does without.
    model_name_or_path: str = field(default="", metadata={"positional": True, "group": GROUP})
    """Model folder: a released one, or the output_dir of a training run."""

    def __post_init__(self) -> None:
        self.check_names()  # what is given is checked with each recipe and task
        check_seed(self.seed)
        for name, other in (
            ("cfg_scale", "cfg"),
            ("block_length", "block_size"),
            ("greedy_check", "is_check_greedy"),
            ("chat", "apply_chat_template"),
        ):
            one_of_two(self, name, other)
        if not self.recipe and not self.tasks:
            raise UserError(
                "tasks and recipe are not given: name tasks (gsm8k), or a recipe"
                " (gsm8k@llada-instruct; the verb recipes lists all); the bound on a validation"
                " set is measured by the verb evaluate"
            )
        if not self.model_name_or_path and not self.download:
            raise UserError("model_name_or_path is not given: name a model folder or a run")
        if self.batch_size < 1:
            raise UserError(f"batch_size={self.batch_size} must be at least 1")
        if self.limit < 0 or (self.limit > 1 and self.limit != int(self.limit)):
            raise UserError(
                f"limit={self.limit:g} must be a number of questions, a share below 1, or 0"
            )
        if self.num_fewshot is not None and self.num_fewshot < 0:
            raise UserError(f"num_fewshot={self.num_fewshot} must be 0 or larger")
        if self.output and Path(self.output).is_file():
            raise UserError(f"output={self.output} is a file: expected a folder")
        if self.part and not self.output:
            raise UserError(f"part={self.part} needs output, a folder that all parts write to")
        if self.data and self.download:
            raise UserError("data and download are two ends of one thing: give one of them")
        if self.uses_chat is False and self.fewshot_as_multiturn:
            raise UserError("fewshot_as_multiturn=true with chat=false: turns need the template")

    @property
    def uses_chat(self) -> bool | None:
        """Whether the template is asked for; None: as the recipe says."""
        return one_of_two(self, "chat", "apply_chat_template")

    def given(self) -> dict[str, Any]:
        """The keys of `SamplingConfig` that the preset and the user set."""
        values = super().given()
        for name, other in (("cfg_scale", "cfg"), ("block_length", "block_size")):
            value = one_of_two(self, name, other)
            if value is not None:
                values[name] = value
        return values

    def shared(self) -> dict[str, Any]:
        """The keys that the user set and that likelihoods share with sampling."""
        return {
            "cfg_scale": one_of_two(self, "cfg_scale", "cfg"),
            "attention": self.attention,
            "block_length": one_of_two(self, "block_length", "block_size"),
            "seed": self.seed,
        }

    def sampling(self, room: int, tokenizer: Any = None) -> SamplingConfig:
        """Not asked here: every task completes the keys by itself."""
        raise AssertionError("settings of tasks differ")
