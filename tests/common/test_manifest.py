"""A checkpoint folder is sound only when every byte is as it was when it was sealed."""

import json

import pytest

from jaxllada.common.manifest import (
    MANIFEST,
    fault,
    read_meta,
    step_folders,
    update_meta,
    write_manifest,
)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "7" / "deep").mkdir(parents=True)
    (tmp_path / "7" / "weights").write_bytes(b"0123456789")
    (tmp_path / "7" / "deep" / "moments").write_bytes(b"abc")
    write_manifest(tmp_path / "7", {"step": 7, "metric": 1.5})
    return tmp_path / "7"


def test_a_sealed_folder_is_sound_and_carries_its_meta_data(folder):
    assert fault(folder) == ""
    assert read_meta(folder) == {"step": 7, "metric": 1.5}
    update_meta(folder, {"step": 7, "metric": 2.5})
    assert fault(folder) == ""
    assert read_meta(folder)["metric"] == 2.5
    assert not list(folder.glob(".*tmp"))


def _no_manifest(folder):
    (folder / MANIFEST).unlink()


def _torn_manifest(folder):
    (folder / MANIFEST).write_text((folder / MANIFEST).read_text()[:-20])


def _edited_manifest(folder):
    content = json.loads((folder / MANIFEST).read_text())
    content["meta"]["step"] = 8
    (folder / MANIFEST).write_text(json.dumps(content))


def _missing_file(folder):
    (folder / "deep" / "moments").unlink()


def _short_file(folder):
    (folder / "weights").write_bytes(b"012345678")


def _flipped_bit(folder):
    (folder / "weights").write_bytes(b"0123456788")


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (_no_manifest, "incomplete"),
        (_torn_manifest, "manifest.json is unreadable"),
        (_edited_manifest, "does not agree with its own hash"),
        (_missing_file, "deep/moments is missing"),
        (_short_file, "weights has 9 bytes instead of 10"),
        (_flipped_bit, "content of weights has changed"),
    ],
)
def test_every_kind_of_damage_is_found_and_named(folder, harm, told):
    harm(folder)
    assert told in fault(folder)


def test_only_step_numbers_are_checkpoints(folder):
    for name in ("12", "3", "9.before-return-to-7", "tmp"):
        (folder.parent / name).mkdir()
    assert list(step_folders(folder.parent)) == [3, 7, 12]
    assert step_folders(folder.parent / "absent") == {}
