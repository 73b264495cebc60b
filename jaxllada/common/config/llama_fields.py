"""Single fields of the config.json of Llama-like models, checked as they are read."""

from collections.abc import Mapping
from typing import Any

from jaxllada.common.errors import UserError

ACTIVATIONS = {"silu": "silu", "swish": "silu", "relu": "relu", "gelu": "gelu"}
"""Names in such files, and ours."""


def activation(values: Mapping[str, Any]) -> str:
    """Activation of the feed-forward part, as `ModelConfig` names it."""
    found = values.get("hidden_act", "silu")
    if found not in ACTIVATIONS:
        raise UserError(f"hidden_act={found!r} is not supported: use silu, relu or gelu")
    return ACTIVATIONS[found]


def rope_theta(values: Mapping[str, Any]) -> float:
    """Base of the angles; newer files say it in `rope_parameters` beside the kind of scaling."""
    theta: Any = values.get("rope_theta")
    for key in ("rope_scaling", "rope_parameters"):
        rules = values.get(key)
        if rules is None:
            continue
        if not isinstance(rules, Mapping):
            raise UserError(f"{key}={rules!r}: expected null or an object")
        kind = rules.get("rope_type", rules.get("type", "default"))
        partial = rules.get("partial_rotary_factor", 1)
        if (kind != "default" and rules.get("factor") != 1) or partial != 1:
            raise UserError(f"{key}={dict(rules)} is not supported: use null or the default kind")
        theta = rules.get("rope_theta", theta)
    return number({"rope_theta": theta}, "rope_theta", 10000.0)


def integer(values: Mapping[str, Any], key: str, default: Any = 0) -> Any:
    """Returns an integer field, or the default where it is missing or null."""
    value = values.get(key)
    if key == "eos_token_id" and isinstance(value, list) and value:
        value = value[0]  # several ends are allowed there; the first is the end of text
    if value is None:
        return default
    if type(value) is not int:
        raise UserError(f"{key}={value!r} has the wrong type, expected int")
    return value


def number(values: Mapping[str, Any], key: str, default: float) -> float:
    """Returns a number field, or the default where it is missing or null."""
    value = values.get(key)
    if value is None:
        return default
    if type(value) not in (int, float):
        raise UserError(f"{key}={value!r} has the wrong type, expected float")
    return value
