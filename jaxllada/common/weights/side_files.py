"""The files of a model folder beside its weights and config: tokenizer, template, generation."""

import shutil
from pathlib import Path

TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("tokenizer.model", "vocab.json", "vocab.txt", "merges.txt"),
    *("chat_template.jinja", "chat_template.json"),
)
SIDE_FILES = (*TOKENIZER_FILES, "generation_config.json")
# Further chat templates, by name (transformers 4.50 and later).
TEMPLATES = "additional_chat_templates"


def side_files(folder: Path, names: tuple[str, ...] = SIDE_FILES) -> dict[str, Path]:
    """Returns the files of those names that `folder` has, and its further templates."""
    found = {name: folder / name for name in names if (folder / name).is_file()}
    templates = sorted((folder / TEMPLATES).glob("*.jinja"))
    return found | {f"{TEMPLATES}/{path.name}": path for path in templates}


def copy_side_files(source: Path, target: Path) -> None:
    """Copies them byte for byte, and the model card, whose licence and origin stay true."""
    for name, path in side_files(source, (*SIDE_FILES, "README.md")).items():
        (target / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(path, target / name)
