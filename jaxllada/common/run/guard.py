"""The guard against divergence: when to roll back, and what a rollback changes.

LLaDA's 8B run turned NaN at 1.2T tokens and was resumed from a checkpoint with a lower learning
rate (arXiv:2502.09992v3, section 2.2). The guard does the same without being asked. The compiled
step leaves weights and optimiser untouched when its loss or gradient is not finite, and counts it.
"""

import dataclasses
from typing import Any


def is_sound(meta: dict[str, Any]) -> bool:
    """Whether the run was in order when it saved a checkpoint with this meta data."""
    return meta["skipped_in_a_row"] == 0 and not meta.get("spikes", {}).get("streak", 0)


class TrainingDivergedError(RuntimeError):
    """The run stayed non-finite after as many rollbacks as `max_rollbacks` allows."""


@dataclasses.dataclass
class Guard:
    """What rollbacks have done to a run; saved in every checkpoint.

    `lr_scale` multiplies the schedule. `data_offset` is how far the data is ahead of the step: a
    rollback rewinds weights, optimiser and schedule but not the data, so that the run does not
    meet the batches again on which it broke.
    """

    max_skipped_steps: int
    lr_factor: float
    max_rollbacks: int
    lr_scale: float = 1.0
    rollbacks: int = 0
    data_offset: int = 0

    def is_broken(self, skipped_in_a_row: int) -> bool:
        """Whether a run of skipped steps is long enough to give up on these weights."""
        return skipped_in_a_row >= self.max_skipped_steps

    @property
    def is_spent(self) -> bool:
        """Whether there is no rollback left."""
        return self.rollbacks >= self.max_rollbacks

    def roll_back(self, step: int, restored: int) -> None:
        """Records a return from `step` to the checkpoint of step `restored`."""
        if self.is_spent:
            raise TrainingDivergedError(
                f"step {step}: still not finite after {self.rollbacks} rollbacks with the learning "
                f"rate scaled by {self.lr_scale:g}; look at the data around this step, lower "
                "learning_rate or raise warmup_steps"
            )
        self.rollbacks += 1
        self.lr_scale *= self.lr_factor
        self.data_offset += step - restored

    def state(self) -> dict[str, Any]:
        """What a checkpoint needs to carry."""
        return {
            "lr_scale": self.lr_scale,
            "rollbacks": self.rollbacks,
            "data_offset": self.data_offset,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Takes up the state of a checkpoint."""
        self.lr_scale = float(state["lr_scale"])
        self.rollbacks = int(state["rollbacks"])
        self.data_offset = int(state["data_offset"])
