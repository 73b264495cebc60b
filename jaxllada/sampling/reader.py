"""One model call of the sampler up to the head, and what it keeps for later calls.

A reader turns a canvas into the hidden rows of the active window. What it keeps travels through the
loop as a value, `memory`; the plain reader keeps nothing.

Shape letters: G rows of a model call (twice the batch under guidance), L canvas length,
S positions of the window, D model width.
"""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxllada.common.policy import Policy
from jaxllada.models.packed import Packed
from jaxllada.sampling.caches.sight import Sight
from jaxllada.sampling.inputs import Inputs


class Body(NamedTuple):
    """The model, and what all calls of a run share."""

    model: Any
    blocks: Any
    """Packed blocks where there is a kernel, single ones on other CPUs; None elsewhere."""
    turn: Any
    """Rotary angles of the canvas."""
    visible: Bool[Array, "G L"]
    """Keys that may be attended to."""
    sight: Sight
    """Which of them each position may attend to."""
    prompt_length: Int[Array, ""]
    """First position of the first block."""
    end: Int[Array, ""]
    """First position behind the answer."""

    @classmethod
    def of(cls, model: Any, packed: Packed, inputs: Inputs, policy: Policy) -> "Body":
        """Computes once what calls can share."""
        passes = 2 if policy.is_guided else 1
        visible = jnp.tile(inputs.visible, (passes, 1))
        blocks = packed.blocks
        if blocks is None and jax.default_backend() == "cpu":
            blocks = model.unstacked()
        return cls(
            model=model,
            blocks=blocks,
            turn=model.rotation(jnp.tile(inputs.positions, (passes, 1))),
            visible=visible,
            sight=Sight.of_run(visible, inputs.prompt_length, policy),
            prompt_length=inputs.prompt_length,
            end=inputs.end,
        )


class Call(NamedTuple):
    """What one model call is to read."""

    canvas: Int[Array, "G L"]
    """Under guidance the rows come twice, with and without their prompt."""
    start: Int[Array, ""]
    """First position of the window, which has `policy.window` positions."""
    block_start: Int[Array, ""]
    """First position of the active block."""
    number: Int[Array, ""]
    """Calls of this block that came before."""
    age: Int[Array, ""]
    """Calls that the memory has seen; 0: it is empty."""
    soft: Float[Array, "G L D"] | None = None
    """What is added to the embeddings of masks (`sampling/smoothing.py`)."""


@runtime_checkable
class Reader(Protocol):
    """Static and hashable: the compiled loop depends on it."""

    def start(self, body: Body, policy: Policy) -> Any:
        """Returns an empty memory: a pytree whose shapes never change."""
        ...

    def read(
        self, body: Body, memory: Any, call: Call, policy: Policy
    ) -> tuple[Float[Array, "G S D"], Any]:
        """Returns the hidden rows of the window, and the memory after the call."""
        ...


class PlainReader:
    """Computes the whole canvas in every call."""

    def start(self, body: Body, policy: Policy) -> tuple[()]:
        return ()

    def read(
        self, body: Body, memory: tuple[()], call: Call, policy: Policy
    ) -> tuple[Float[Array, "G S D"], tuple[()]]:
        window = (call.start, policy.window)
        own = {"attention_bias": body.sight.of_all()} if policy.is_block_causal else {}
        own |= {} if call.soft is None else {"soft": call.soft}
        rows = body.model.hidden(
            call.canvas, body.visible, window=window, turn=body.turn, blocks=body.blocks, **own
        )
        return rows, memory
