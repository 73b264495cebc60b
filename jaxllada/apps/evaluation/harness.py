"""An engine as lm_eval's language model (EleutherAI/lm-evaluation-harness 0.4.13).

    from lm_eval import simple_evaluate
    from jaxllada.apps.evaluation.harness import harness

    model = harness(engine, tokenizer, sampling={"gen_length": 256, "block_length": 8})
    simple_evaluate(model=model, tasks=["gsm8k"], num_fewshot=4)

lm_eval finds models by name in its own package alone, so `lm_eval --model` cannot know this one:
the verb `eval` and these lines are the ways to it. It is imported when `harness` is called.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jaxllada.apps.evaluation.answers_kept import KeptAnswers
from jaxllada.apps.evaluation.asked import Manner, TooLong, Work, answer
from jaxllada.apps.evaluation.asked_likelihoods import Likelihoods, Rollings
from jaxllada.apps.evaluation.asked_texts import Texts
from jaxllada.common.chat import Message
from jaxllada.common.config.likelihood import LikelihoodConfig
from jaxllada.common.config.model import ModelConfig
from jaxllada.common.engine import Engine
from jaxllada.common.errors import UserError
from jaxllada.common.tokenizer import Tokenizer

if TYPE_CHECKING:
    from lm_eval.api.model import LM

KINDS = {
    "loglikelihood": Likelihoods,
    "loglikelihood_rolling": Rollings,
    "generate_until": Texts,
}
"""Kinds of requests by lm_eval's names."""


def harness(
    engine: Engine,
    tokenizer: Tokenizer,
    *,
    sampling: Mapping[str, Any] | None = None,
    likelihood: LikelihoodConfig | None = None,
    add_bos: bool = False,
    seed: int = 0,
    batch_size: int = 8,
    too_long: TooLong = "error",
    kept: KeptAnswers | None = None,
    origin: str = "",
) -> "LM":
    """Returns the engine as a model of lm_eval.

    Args:
        engine: of either backend.
        tokenizer: that of the model.
        sampling: keys of `SamplingConfig`; a task's `generation_kwargs` fill what they leave open.
        likelihood: how options are scored.
        add_bos: begin the texts of likelihoods with the beginning-of-sequence token.
        seed: of everything that is drawn, masks and tokens.
        batch_size: answers generated at the same time; the results do not depend on it.
        too_long: what happens where a prompt leaves too little room.
        kept: where answers are kept; None: in memory, for this model alone.
        origin: what tells this model from others that answers in the folder of `kept` may be from,
            such as `fingerprint(folder)`.

    Raises:
        UserError: lm_eval is not installed, or (from its methods) requests that cannot be answered.
    """
    kept = KeptAnswers() if kept is None else kept
    if kept.folder is not None and not origin:
        raise UserError("origin='': answers on the disk need the name of what gave them")
    manner = Manner(
        sampling=sampling or {},
        likelihood=dataclasses.replace(likelihood or LikelihoodConfig(), seed=seed),
        add_bos=add_bos,
        seed=seed,
        batch_size=batch_size,
        too_long=too_long,
    )
    return _model_class()(engine, tokenizer, manner, kept, origin)


def works_of(
    instances: Mapping[str, Sequence[Any]],
    tokenizer: Tokenizer,
    model: ModelConfig,
    manner: Manner,
    origin: str,
) -> dict[str, Work]:
    """Lays out the requests of a run, by their kind; `origin` names what answers them."""
    unknown = sorted(instances.keys() - KINDS.keys())
    if unknown:
        raise UserError(f"requests of the kind {unknown[0]} are not answered by diffusion models")
    return {
        kind: KINDS[kind](list(several), tokenizer, model, manner, origin)
        for kind, several in instances.items()
    }


def templated(
    tokenizer: Tokenizer, messages: Sequence[Message], *, add_generation_prompt: bool = True
) -> str:
    """A conversation as text, up to where the model goes on.

    Without `add_generation_prompt` that is inside the last message, which has been begun for the
    model. Where a template refuses system messages, theirs opens the first turn of the user.
    """
    try:
        text = tokenizer.conversation(messages, answered=not add_generation_prompt)
    except UserError:
        if len(messages) < 2 or (messages[0]["role"], messages[1]["role"]) != ("system", "user"):
            raise
        joined = f"{messages[0]['content']}\n\n{messages[1]['content']}"
        merged = [{"role": "user", "content": joined}, *messages[2:]]
        return templated(tokenizer, merged, add_generation_prompt=add_generation_prompt)
    if add_generation_prompt:
        return text
    begun = str(messages[-1]["content"]).strip()
    return text[: text.rindex(begun) + len(begun)]


@functools.cache
def _model_class() -> type:
    try:
        from lm_eval.api.model import LM
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "lm_eval":
            raise
        raise UserError("this needs lm_eval: pip install 'jaxllada[eval]'") from None

    class Harness(LM):
        """Answers lm_eval's requests; those of one call are grouped and batched here."""

        def __init__(
            self,
            engine: Engine,
            tokenizer: Tokenizer,
            manner: Manner,
            kept: KeptAnswers,
            origin: str,
        ):
            super().__init__()
            self.engine, self.manner = engine, manner
            self.kept, self.origin = kept, origin
            self._text = tokenizer

        @property
        def tokenizer_name(self) -> str:
            return f"{self._text.source}-{self._text.digest()}".replace("/", "__")

        def chat_template(self, chat_template: bool | str = False) -> str | None:
            """The template; a tokenizer has one."""
            return self._text.template if chat_template else None

        def apply_chat_template(
            self, chat_history: Sequence[Message], add_generation_prompt: bool = True
        ) -> str:
            """See `templated`."""
            self.manner = dataclasses.replace(self.manner, keeps_blanks=True)
            return templated(self._text, chat_history, add_generation_prompt=add_generation_prompt)

        def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
            return self._answered("loglikelihood", requests)

        def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
            return self._answered("loglikelihood_rolling", requests)

        def generate_until(self, requests: list[Any]) -> list[str]:
            return self._answered("generate_until", requests)

        def _answered(self, kind: str, requests: list[Any]) -> list[Any]:
            instances = {kind: requests}
            model = self.engine.config
            work = works_of(instances, self._text, model, self.manner, self.origin)[kind]
            answer([work], self.engine, self.kept)
            return [work.result(i, self.kept) for i in range(len(requests))]

    return Harness
