"""Access to the golden values of `tests/golden` (see the README there)."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

ROOT = Path(__file__).parents[1] / "golden"
DENSE = ROOT / "dense"
VARIANT_CONFIGS: dict[str, dict[str, Any]] = json.loads(
    (ROOT / "variants" / "configs.json").read_text()
)


def dense_values() -> dict[str, np.ndarray]:
    """Returns the arrays of the dense checkpoint."""
    with np.load(DENSE / "golden.npz") as file:
        return dict(file)


def write_variant(name: str, folder: Path) -> dict[str, np.ndarray]:
    """Writes one variant as a model folder and returns its inputs and outputs."""
    with np.load(ROOT / "variants" / "golden.npz") as file:
        mine = {
            key.removeprefix(name + "/"): file[key] for key in file if key.startswith(f"{name}/")
        }
    weights = {k.removeprefix("weights/"): v for k, v in mine.items() if k.startswith("weights/")}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(VARIANT_CONFIGS[name]))
    return {key: value for key, value in mine.items() if not key.startswith("weights/")}
