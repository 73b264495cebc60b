"""Text to ids and back: released tokenizer folders, and small ones trained here.

Special ids are read from the files, never assumed. The mask token is found as LLaDA's releases
require, since none of them declares it: the model's config, the tokenizer's own declaration, then
the known names of the token; all that are present must agree.
"""

import functools
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from typing import Any

from jaxllada.common import chat
from jaxllada.common.errors import UserError
from jaxllada.common.tokenizer_files import TokenizerFiles, read_tokenizer, write_tokenizer
from jaxllada.common.vocabulary import BOS, CHAT_TOKENS, EOS, MASK_NAMES, ROLES, learned

NO_MASK = -1
"""Mask id of the tokenizer of an autoregressive model: no token has it."""


class Tokenizer:
    """A byte-level BPE tokenizer with LLaDA's special tokens.

    `core` is a `tokenizers.Tokenizer`; `special` maps bos_token, eos_token, pad_token and, where
    declared, mask_token to their texts; `config_mask_id` is what a config.json in the folder says.
    `mask_id` is `NO_MASK` where there is none and `needs_mask` is False.
    """

    def __init__(
        self,
        core: Any,
        special: dict[str, str],
        *,
        template: str = chat.TEMPLATE,
        config_mask_id: int | None = None,
        needs_mask: bool = True,
        source: str = "tokenizer",
    ):
        self.core, self.special, self.template, self.source = core, special, template, source
        self.mask_id = self._find_mask(config_mask_id, needs_mask)
        self.eos_id = self._known(special.get("eos_token", EOS), "eos_token")
        self.bos_id = core.token_to_id(special.get("bos_token", BOS))
        pad = core.token_to_id(special["pad_token"]) if "pad_token" in special else None
        self.pad_id: int = self.eos_id if pad is None else pad
        self.eot_id = core.token_to_id(chat.TURN_END)
        if self.mask_id in (self.pad_id, self.eos_id):
            raise UserError(f"{source}: mask and padding share the id {self.mask_id}")

    def _known(self, token: str, key: str) -> int:
        number = self.core.token_to_id(token)
        if number is None:
            raise UserError(f"{self.source}: {key}={token!r} is not in the vocabulary")
        return number

    def _find_mask(self, config_mask_id: int | None, needs_mask: bool) -> int:
        found: dict[str, int] = {}
        if config_mask_id is not None:
            found["config.json mask_token_id"] = config_mask_id
        if declared := self.special.get("mask_token"):
            found["mask_token"] = self._known(declared, "mask_token")
        for name in MASK_NAMES:
            if (number := self.core.token_to_id(name)) is not None:
                found[name] = number
                break
        if not found and not needs_mask:
            return NO_MASK
        if not found:
            raise UserError(
                f"{self.source}: no mask token; expected one of {', '.join(MASK_NAMES)}"
            )
        if len(set(found.values())) > 1:
            told = ", ".join(f"{key} = {number}" for key, number in found.items())
            raise UserError(f"{self.source}: the mask ids disagree: {told}")
        return next(iter(found.values()))

    @functools.cached_property
    def vocab_size(self) -> int:
        """Number of ids: one more than the largest."""
        return max(self.core.get_vocab(with_added_tokens=True).values()) + 1

    def encode(self, text: str) -> list[int]:
        """Returns the ids of `text`; nothing is put before or behind it."""
        return self.core.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str], *, parallel: bool = True) -> list[list[int]]:
        """Returns the ids of each text, found on all cores (RAYON_NUM_THREADS limits them)."""
        if not parallel:
            return [self.encode(text) for text in texts]
        found = self.core.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in found]

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = False) -> str:
        """Returns the text of `ids`; bytes that are no UTF-8 become U+FFFD."""
        return self.core.decode([int(i) for i in ids], skip_special_tokens=skip_special_tokens)

    @functools.cached_property
    def byte_lengths(self) -> list[int] | None:
        """Bytes of text each id stands for; 0 for special tokens, which are no text.

        None where tokens are not made of bytes, so that only whole texts have a length.
        """
        if type(self.core.decoder).__name__ != "ByteLevel":
            return None
        special = {i for i, token in self.core.get_added_tokens_decoder().items() if token.special}
        # Every letter of a token stands for one byte.
        return [
            0 if i in special else len(self.core.id_to_token(i) or "")
            for i in range(self.vocab_size)
        ]

    def render(self, messages: Sequence[chat.Message], add_generation_prompt: bool = True) -> str:
        """Returns a conversation as text, see `common/chat.py`."""
        chat.check_messages(messages)
        return chat.render(
            self.template,
            messages,
            add_generation_prompt=add_generation_prompt,
            special=self.special,
        )

    def conversation(self, messages: Sequence[chat.Message], *, answered: bool = False) -> str:
        """Returns a conversation as text that may be tokenised, up to where the answer begins.

        Raises UserError where the tokens of the template are not in the vocabulary.
        """
        missing = [token for token in CHAT_TOKENS if self.core.token_to_id(token) is None]
        if missing and self.template == chat.TEMPLATE:
            raise UserError(
                f"{self.source}: {', '.join(missing)} are not in the vocabulary; "
                "add them with with_chat_tokens()"
            )
        return self.render(messages, add_generation_prompt=not answered)

    def chat(
        self, messages: Sequence[chat.Message], add_generation_prompt: bool = True
    ) -> list[int]:
        """Returns the ids of a conversation, by default up to where the answer begins."""
        return self.encode(self.conversation(messages, answered=not add_generation_prompt))

    def with_chat_tokens(self) -> "Tokenizer":
        """Returns a tokenizer that has the header and end-of-turn tokens.

        LLaDA-8B-Base lacks them; added behind its vocabulary they get the ids of the Instruct
        model (126346 to 126348).
        """
        import tokenizers

        core = tokenizers.Tokenizer.from_str(self.core.to_str())
        core.add_special_tokens(list(CHAT_TOKENS))
        return Tokenizer(
            core,
            self.special,
            template=self.template,
            config_mask_id=None if self.mask_id == NO_MASK else self.mask_id,
            needs_mask=self.mask_id != NO_MASK,
            source=self.source,
        )

    def agree_with(self, model_config: Any) -> None:
        """Raises a UserError where a model of this ModelConfig could not use these ids."""
        rows, mask = model_config.rows, model_config.mask_token_id
        if self.vocab_size > rows:
            raise UserError(
                f"{self.source}: the ids go up to {self.vocab_size - 1}, but the model has "
                f"embedding_size={rows}"
            )
        if mask is None and model_config.is_causal:
            return
        if mask != self.mask_id:
            raise UserError(
                f"mask_token_id={mask}: the tokenizer {self.source} has the mask id {self.mask_id}"
            )

    def digest(self) -> str:
        """Hash of everything that decides how text becomes ids."""
        text = json.dumps([self.core.to_str(), self.special, self.template], sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    @classmethod
    def from_folder(cls, path: str | os.PathLike[str], *, needs_mask: bool = True) -> "Tokenizer":
        """Reads a Hugging Face tokenizer folder: tokenizer.json and the small files beside it.

        Raises `UserError` where it has no mask token, unless that is not needed.
        """
        files = read_tokenizer(path)
        return cls(
            files.core,
            files.special,
            template=files.template,
            config_mask_id=files.mask_id,
            needs_mask=needs_mask,
            source=str(path),
        )

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes the folder in the layout of the release; transformers reads it too."""
        write_tokenizer(folder, TokenizerFiles(self.core, self.special, self.template))

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        vocab_size: int,
        folder: str | os.PathLike[str] | None = None,
        *,
        show_progress: bool = False,
    ) -> "Tokenizer":
        """Learns a byte-level BPE of `vocab_size` ids, the special tokens at the end among them.

        Every text can be encoded and comes back byte for byte. Little text may give fewer ids.
        """
        core = learned(texts, vocab_size, show_progress=show_progress)
        tokenizer = cls(core, dict(ROLES), source="trained tokenizer")
        if folder is not None:
            tokenizer.save(folder)
            tokenizer.source = str(folder)
        return tokenizer
