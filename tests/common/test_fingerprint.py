"""The hash of a model's weights: of what is loaded, wherever it lies, and of all of it."""

import shutil

import pytest

from jaxllada.apps.evaluation.fingerprint import SAMPLES, SIZE, fingerprint
from jaxllada.common.manifest import write_manifest


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * (4 * SAMPLES * SIZE // 256))
    (folder / "README.md").write_text("about it")
    return folder


def test_a_copy_has_the_same_hash_and_what_is_not_loaded_does_not_count(folder, tmp_path):
    before = fingerprint(folder)
    copy = shutil.copytree(folder, tmp_path / "elsewhere" / "copy")
    (copy / "README.md").write_text("about something else")
    assert fingerprint(copy) == before
    assert fingerprint(folder, "adapter") != before


@pytest.mark.parametrize("place", [0.0, 0.3, 0.7, 1.0])
def test_training_anywhere_in_a_large_file_changes_it(folder, place):
    """An optimiser moves whole tensors, not single bytes."""
    before = fingerprint(folder)
    data = bytearray((folder / "model.safetensors").read_bytes())
    tensor = len(data) // 16
    first = int(place * (len(data) - tensor))
    data[first : first + tensor] = bytes(255 - byte for byte in data[first : first + tensor])
    (folder / "model.safetensors").write_bytes(data)
    assert fingerprint(folder) != before


def test_every_byte_of_a_small_file_counts(folder):
    before = fingerprint(folder)
    (folder / "config.json").write_text("[]")
    assert fingerprint(folder) != before


def test_of_a_run_it_is_the_newest_whole_checkpoint(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    hashes = []
    for step, text in ((1, "one"), (2, "two")):
        checkpoint = tmp_path / "checkpoints" / str(step)
        checkpoint.mkdir(parents=True)
        (checkpoint / "weights").write_text(text)
        hashes.append(fingerprint(tmp_path))  # without a manifest it is no checkpoint yet
        write_manifest(checkpoint, {})
        hashes.append(fingerprint(tmp_path))
    none, first, unfinished, second = hashes
    assert first == unfinished
    assert len({none, first, second}) == 3
