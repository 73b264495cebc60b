"""The golden model, made surer of what it says, so that rules that ask how sure it is disagree.

As it was recorded, its likeliest tokens have probabilities of 0.03 to 0.14: no threshold that
anybody uses is ever reached, and every adaptive rule would do what the fixed one does.
"""

import shutil
from pathlib import Path

from safetensors import safe_open
from safetensors.numpy import save_file

SCALE = 3
"""Of all logits. The first call then sees probabilities of 0.17 to 0.93."""
ENDS = ((510, 52), (509, 499))
"""Rows of the head that change places: it often says the latter, and hardly ever its end tokens."""


def write_sharp(dense: Path, folder: Path) -> Path:
    """Writes the model folder with the weight of its last norm scaled, and end tokens it says."""
    shutil.copytree(dense, folder)
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "numpy") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        for name, tensor in tensors.items():
            if name.endswith("ln_f.weight"):
                tensor *= SCALE
            for end, word in ENDS if name.endswith("transformer.ff_out.weight") else ():
                tensor[[end, word]] = tensor[[word, end]]
        save_file(tensors, file)
    return folder
