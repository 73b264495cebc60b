"""Exported folders for the tests, and a cache of their code that goes away with them."""

import pytest
import torch

from jaxllada.common.weights.export import to_hugging_face
from jaxllada.common.weights.layouts import find_layout
from jaxllada.common.weights.opening import open_folder
from tests.jax.golden import DENSE

torch.set_num_threads(1)  # tiny models; threads would wait for each other


@pytest.fixture(scope="session", autouse=True)
def _own_code_cache(tmp_path_factory):
    from transformers import dynamic_module_utils

    patch = pytest.MonkeyPatch()
    patch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
    yield
    patch.undo()


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """Folder of the golden checkpoint in a layout, by its name."""
    made = {}

    def folder(layout):
        if layout not in made:
            made[layout] = tmp_path_factory.mktemp("exported") / layout
            to_hugging_face(open_folder(DENSE), made[layout], find_layout(layout))
        return made[layout]

    return folder
