"""Column formats: which columns a source has decides what its rows are.

input_ids [+ labels, prompt_len, attention_mask]    tokenised before
<text_field>                                        running text
messages                                            list of {role, content}
conversations                                       ShareGPT: list of {from, value}
instruction, output [, input]                       Alpaca
prompt, response | completion | answer              pairs
"""

from typing import Any, Literal

from jaxllada.common.data.bad_rows import BadRow
from jaxllada.common.errors import UserError, nearest

Format = Literal["ids", "text", "messages", "conversations", "alpaca", "pairs"]
Kind = Literal["auto", "pretrain", "sft"]

_ANSWERS = ("response", "completion", "answer")
_SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "system": "system",
}


def format_of(columns: tuple[str, ...], text_field: str, kind: Kind, source: str) -> Format:
    """Names the format, or raises a UserError that lists the columns.

    A text column comes before conversations unless `kind` is `sft` (some Alpaca files carry the
    rendered text beside the parts).
    """
    chat: list[tuple[Format, bool]] = [
        ("messages", "messages" in columns),
        ("conversations", "conversations" in columns),
        ("alpaca", {"instruction", "output"} <= set(columns)),
        ("pairs", "prompt" in columns and any(name in columns for name in _ANSWERS)),
    ]
    text: list[tuple[Format, bool]] = [("text", text_field in columns)]
    order = {"auto": text + chat, "pretrain": text, "sft": chat}[kind]
    if "input_ids" in columns:
        return "ids"
    for name, present in order:
        if present:
            return name
    wanted = {
        "auto": f"text_field={text_field!r}, input_ids, messages, conversations, "
        "instruction/output or prompt/response",
        "pretrain": f"text_field={text_field!r} or input_ids",
        "sft": "input_ids, messages, conversations, instruction/output or prompt/response",
    }[kind]
    raise UserError(
        f"{source}: has the columns {', '.join(columns) or '(none)'}; expected {wanted}"
        + nearest(text_field, columns)
    )


def messages_of(row: dict[str, Any], form: Format) -> list[dict[str, str]]:
    """Returns a row of a chat format as messages; raises BadRow where a column is missing."""
    if form == "messages":
        return value_of(row, "messages")
    if form == "conversations":
        return _sharegpt(value_of(row, "conversations"))
    if form == "alpaca":
        question, answer = value_of(row, "instruction"), value_of(row, "output")
        if row.get("input"):
            question = f"{question}\n\n{row['input']}"
    else:
        name = next((name for name in _ANSWERS if row.get(name) is not None), _ANSWERS[0])
        question, answer = value_of(row, "prompt"), value_of(row, name)
    if isinstance(question, list):  # prompt and answer that are themselves messages
        tail = answer if isinstance(answer, list) else [{"role": "assistant", "content": answer}]
        return [*question, *tail]
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def value_of(row: dict[str, Any], column: str) -> Any:
    """Returns what a row has in a column, or raises BadRow where that is nothing."""
    if row.get(column) is None:
        raise BadRow(f"without {column}", f"column {column!r} is missing")
    return row[column]


def _sharegpt(turns: Any) -> list[dict[str, str]]:
    messages = []
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise BadRow("malformed", "conversations: expected a list of {from, value}")
    for i, turn in enumerate(turns):
        if "role" in turn and "content" in turn:
            messages.append({"role": turn["role"], "content": turn["content"]})
            continue
        speaker = turn.get("from")
        if speaker not in _SHAREGPT_ROLES:
            known = ", ".join(_SHAREGPT_ROLES)
            raise BadRow("malformed", f"conversations[{i}]: from={speaker!r}, expected {known}")
        messages.append({"role": _SHAREGPT_ROLES[speaker], "content": turn.get("value")})
    return messages
