"""How answers are padded: which of the EOS behind an answer are trained on.

`eos_supervised`  all up to the longest row of the batch (LLaDA, arXiv:2502.09992v3, section 2.3)
`eos_capped:N`    at most N behind each answer; what is left is neither counted nor seen
`ignore`          none
"""

import re

from jaxllada.common.errors import UserError, nearest

PadPolicy = str
POLICIES = ("eos_supervised", "eos_capped:N", "ignore")


def trained_padding(policy: PadPolicy) -> int | None:
    """Returns how many padding tokens behind a row are trained on; None: all of them.

    Raises UserError for anything but `eos_supervised`, `eos_capped:N` (N of 1 or more), `ignore`.
    """
    if policy == "eos_supervised":
        return None
    if policy == "ignore":
        return 0
    capped = re.fullmatch(r"eos_capped:([1-9]\d*)", policy)
    if capped is None:
        raise UserError(
            f"pad_policy={policy}: expected {', '.join(POLICIES[:2])} (N of 1 or more) or "
            f"{POLICIES[2]}{nearest(policy, ('eos_supervised', 'eos_capped:8', 'ignore'))}"
        )
    return int(capped[1])
