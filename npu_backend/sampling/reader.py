"""One model call of the sampler up to the head, and what it keeps for later calls.

A reader turns a canvas into the hidden rows of the active window. What it keeps travels through the
loop as a value, `memory`; the plain reader keeps nothing.

Shape letters: G rows of a model call (twice the batch under guidance), L canvas length,
S positions of the window, D model width.
"""

from typing import Any, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Bool, Float, Int
from torch import Tensor

from jaxllada.common.policy import Policy
from npu_backend.sampling.caches.sight import Sight
from npu_backend.sampling.inputs import Inputs


class Body(NamedTuple):
    """The model, and what all calls of a run share."""

    model: Any
    turn: Any
    """Rotary angles of the canvas."""
    visible: Bool[Tensor, "G L"] | None
    """Keys that may be attended to; None shows everything."""
    sight: Sight
    """Which of them each position may attend to."""
    prompt_length: int
    """First position of the first block."""
    end: int
    """First position behind the answer."""

    @classmethod
    def of(cls, model: Any, inputs: Inputs, policy: Policy) -> "Body":
        """Computes once what calls can share."""
        passes = 2 if policy.is_guided else 1
        visible = None if inputs.visible is None else inputs.visible.repeat(passes, 1)
        return cls(
            model=model,
            turn=model.rotation(inputs.positions.repeat(passes, 1)),
            visible=visible,
            sight=Sight.of_run(visible, inputs.known, inputs.prompt_length, policy),
            prompt_length=inputs.prompt_length,
            end=inputs.end,
        )


class Call(NamedTuple):
    """What one model call is to read."""

    canvas: Int[Tensor, "G L"]
    """Under guidance the rows come twice, with and without their prompt."""
    start: int
    """First position of the window, which has `policy.window` positions."""
    block_start: int
    """First position of the active block."""
    number: int
    """Calls of this block that came before."""
    age: int
    """Calls that the memory has seen; 0: it is empty."""
    soft: Float[Tensor, "G L D"] | None = None
    """What is added to the embeddings of masks (`sampling/smoothing.py`)."""


@runtime_checkable
class Reader(Protocol):
    """Stateless: what it keeps is in the memory."""

    def start(self, body: Body, policy: Policy) -> Any:
        """Returns an empty memory."""
        ...

    def read(
        self, body: Body, memory: Any, call: Call, policy: Policy
    ) -> tuple[Float[Tensor, "G S D"], Any]:
        """Returns the hidden rows of the window, and the memory, which may have been written to."""
        ...


class PlainReader:
    """Computes the whole canvas in every call."""

    def start(self, body: Body, policy: Policy) -> tuple[()]:
        return ()

    def read(
        self, body: Body, memory: tuple[()], call: Call, policy: Policy
    ) -> tuple[Float[Tensor, "G S D"], tuple[()]]:
        window = (call.start, policy.window)
        own = {"attention_bias": body.sight.of_all()} if policy.is_block_causal else {}
        own |= {} if call.soft is None else {"soft": call.soft}
        rows = body.model.hidden(call.canvas, body.visible, window=window, turn=body.turn, **own)
        return rows, memory
