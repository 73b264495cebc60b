"""Model folders with random weights, and what is in them: for the tests of `convert`."""

import json

import ml_dtypes
import numpy as np

from jaxllada.__main__ import main
from jaxllada.common.config.presets import PRESETS
from jaxllada.common.weights.folder import AUTO_MAP
from jaxllada.common.weights.index import WeightFolder
from jaxllada.common.weights.layouts import LAYOUTS
from jaxllada.common.weights.shards import Tensor, plan_shards, write_shards

TINY = PRESETS["tiny"]
DTYPES = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}


def write_model(folder, config=TINY, *, layout="llada", dtype="float32", shard_bytes=10**9, seed=0):
    """Writes a model folder with random weights, without making a model."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    kind = DTYPES[dtype]
    tensors = []
    for stored in LAYOUTS[layout].tensors(config):
        array = rng.standard_normal(stored.shape, np.float32).astype(kind)
        tensors.append(Tensor(stored.name, kind, stored.shape, lambda array=array: [array]))
    write_shards(folder, plan_shards(tensors, shard_bytes))
    (folder / "config.json").write_text(json.dumps(LAYOUTS[layout].write_config(config)))
    return folder


def convert(*arguments):
    assert main(["convert", *map(str, arguments)]) == 0


def tensors(folder):
    files = WeightFolder(folder)
    return {name: (files.dtype(name), files.shape(name), files.read(name).tobytes())
            for name in files.names}  # fmt: skip


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


def snapshot(folder):
    """Every file and its bytes, but not when it was written."""
    skipped = ("_CHECKPOINT_METADATA", "manifest.json")
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in skipped
    }


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def with_code(config):
    """The config.json of an exported folder of the `llada` layout names its modeling file."""
    return {"auto_map": AUTO_MAP, **config} if config["model_type"] == "llada" else config


def assert_same_model(exported, source):
    assert tensors(exported) == tensors(source)
    assert config_of(exported) == with_code(config_of(source))
