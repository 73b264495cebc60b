"""Sizes are read as people write them."""

import pytest

from jaxllada.common.errors import UserError
from jaxllada.common.sizes import parse_bytes, show_bytes


@pytest.mark.parametrize(
    ("text", "size"),
    [("5GB", 5 * 10**9), ("512MiB", 2**29), ("1.5g", 1_500_000_000), ("2 Gi", 2**31),
     ("100_000", 10**5), ("7B", 7), ("1kb", 1000), ("2TiB", 2**41)],
)  # fmt: skip
def test_sizes_are_read(text, size):
    assert parse_bytes(text, "size") == size


@pytest.mark.parametrize("text", ["", "GB", "0", "-1GB", "5XB", "five", "1.2.3GB", "0.1"])
def test_other_words_are_refused(text):
    with pytest.raises(UserError, match="shard_size=.*: expected a size such as 5GB"):
        parse_bytes(text, "shard_size")


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (16_031_162_368, "16 GB"), (1.5e6, "1.5 MB"),
     (2.5e12, "2.5 TB"), (3e15, "3000 TB")],
)  # fmt: skip
def test_sizes_are_shown(size, text):
    assert show_bytes(size) == text
