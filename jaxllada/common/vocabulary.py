"""LLaDA's special tokens by name, and vocabularies learned here that end with them."""

from collections.abc import Iterable
from typing import Any

from jaxllada.common import chat
from jaxllada.common.errors import UserError

MASK_NAMES = ("<|mdm_mask|>", "<|mask|>", "<[MASK]>")
BOS, EOS = "<|startoftext|>", "<|endoftext|>"
CHAT_TOKENS = (chat.HEADER_START, chat.HEADER_END, chat.TURN_END)
# In the order of the release, behind all learned tokens.
SPECIAL_TOKENS = (BOS, EOS, MASK_NAMES[0], *CHAT_TOKENS)
ROLES = {
    "bos_token": BOS,
    "cls_token": BOS,
    "eos_token": EOS,
    "mask_token": MASK_NAMES[0],
    "pad_token": EOS,
}
"""What the special tokens are for."""

# Words with their leading space, single digits, runs of punctuation, runs of white space.
_PIECES = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def learned(texts: Iterable[str], vocab_size: int, *, show_progress: bool = False) -> Any:
    """Returns a `tokenizers.Tokenizer`: a byte-level BPE of `vocab_size` ids, special ones last.

    Every text can be encoded and comes back byte for byte. Little text may give fewer ids. Raises
    UserError where there is no room for all bytes and special tokens.
    """
    from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
    from tokenizers import Tokenizer as Core

    smallest = 256 + len(SPECIAL_TOKENS)
    if vocab_size < smallest:
        raise UserError(f"vocab_size={vocab_size}: must be at least {smallest}")
    core: Any = Core(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=show_progress,
    )  # pyright: ignore[reportCallIssue]
    core.train_from_iterator(texts, trainer)
    core.add_special_tokens(list(SPECIAL_TOKENS))
    return core
