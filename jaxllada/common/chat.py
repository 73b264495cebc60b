"""Conversations as text: LLaDA's chat template and what a list of messages must look like."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from jaxllada.common.errors import UserError, nearest

ROLES = ("system", "user", "assistant")
HEADER_START, HEADER_END, TURN_END = "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"
ANSWER_HEADER = f"{HEADER_START}assistant{HEADER_END}\n\n"

# The text the released template gives, except that the header of the answer is only added when it
# is asked for; the release adds it always, also behind a finished answer.
TEMPLATE = """\
{{- bos_token }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt and messages[-1]['role'] != 'assistant' %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

Message = Mapping[str, Any]


def check_messages(messages: Any, where: str = "messages") -> Sequence[Message]:
    """Returns the messages, or raises a UserError that names the first one that is not right.

    A message is a mapping with a `role` (system, user or assistant) and a text `content`; a
    system message comes first, and the list is not empty.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise UserError(f"{where}: expected a list of messages with role and content")
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
            raise UserError(f"{where}[{i}]: expected a message with role and content")
        role, content = message["role"], message["content"]
        if role not in ROLES:
            hint = nearest(str(role), ROLES)
            raise UserError(f"{where}[{i}].role={role!r}: use {', '.join(ROLES)}{hint}")
        if not isinstance(content, str):
            kind = type(content).__name__
            raise UserError(f"{where}[{i}].content: expected text, got {kind}")
        if role == "system" and i > 0:
            raise UserError(f"{where}[{i}].role='system': only the first message can be one")
    return messages


def render(
    template: str,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool,
    special: Mapping[str, str],
) -> str:
    """Fills a chat template; `special` holds bos_token, eos_token and the like.

    Templates run in jinja's sandbox. A header for an answer behind the last message is removed
    when it was not asked for, so that published templates, which always add it, can be trained on.
    """
    import jinja2

    try:
        text = _compiled(template).render(
            messages=[dict(message) for message in messages],
            add_generation_prompt=add_generation_prompt,
            **special,
        )
    except jinja2.TemplateError as error:
        raise UserError(f"chat template: {error}") from None
    wanted = add_generation_prompt and messages[-1]["role"] != "assistant"
    return text if wanted else text.removesuffix(ANSWER_HEADER)


@functools.lru_cache(maxsize=8)
def _compiled(template: str) -> Any:
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = raise_exception
    return environment.from_string(template)
