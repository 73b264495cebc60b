"""Writes a checkpoint of this backend as a complete Hugging Face model folder.

    python -m npu_backend export output/run hf/my-model
    python -m npu_backend export hf/my-model hf/my-model-llama --layout llama

The folder holds config.json, tokenizer and chat template, generation settings, safetensors shards
and a model card; the layout `llada` also the code that transformers runs it with. Checkpoints of
JAX are exported by `jaxllada export`.
"""

from jaxllada.apps.export import Config, export

__all__ = ["Config", "run"]


def run(config: Config) -> None:
    """Writes the folder."""
    from pathlib import Path

    from jaxllada.common.partial import check_free_name
    from jaxllada.common.weights.hub import local_folder
    from jaxllada.common.weights.opening import open_folder

    check_free_name(Path(config.target), overwrite=config.overwrite)
    path = local_folder(config.source)
    source = open_folder(path, config.step, adapter=config.adapter or None)
    try:
        recipe = {"checkpoint": int(source.path.name)} if source.kind == "run" else {}
        export(config, source, recipe)
    finally:
        source.close()
