"""The verb `export` of both packages: the folder that `convert flax-to-hf` writes."""

import pytest

import jaxllada.__main__
import npu_backend.__main__
from tests.jax.golden import DENSE


def contents(folder) -> dict[str, bytes]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.mark.parametrize("layout", ["llada", "llama"])
def test_both_packages_export_what_convert_writes(tmp_path, layout):
    flags = ["--layout", layout, "--shard_size", "300kB", "--dtype", "bfloat16"]
    written = []
    for name, main, verb in (
        ("convert", jaxllada.__main__.main, ["convert", "flax-to-hf"]),
        ("jax", jaxllada.__main__.main, ["export"]),
        ("torch", npu_backend.__main__.main, ["export"]),
    ):
        target = tmp_path / name / "model"  # the last part is the title of the card
        assert main([*verb, str(DENSE), str(target), *flags]) == 0
        written.append(contents(target))
    assert "model-00002-of-00002.safetensors" in written[0]
    assert written[0] == written[1] == written[2]


@pytest.mark.parametrize("main", [jaxllada.__main__.main, npu_backend.__main__.main])
def test_an_existing_folder_is_kept(tmp_path, capsys, main):
    (tmp_path / "mine.txt").write_text("mine")
    assert main(["export", str(DENSE), str(tmp_path)]) == 2
    assert "overwrite" in capsys.readouterr().err
    assert contents(tmp_path) == {"mine.txt": b"mine"}
