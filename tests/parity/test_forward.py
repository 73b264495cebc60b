"""The same weights and tokens give the same logits in JAX and in torch."""

import jax
import numpy as np
import pytest
import torch

from jaxllada.common.config.compute import ComputeConfig
from tests.jax.golden import DENSE, dense_values, write_variant
from tests.parity.models import both, tensor

GOLDEN = dense_values()


# Each backend on its own is compared with golden values of every variant.
@pytest.mark.parametrize("name", ["dense", "gqa", "gemma", "seqswiglu"])
def test_logits_and_windows_agree(name, tmp_path):
    if name == "dense":
        folder, ids, mask = DENSE, GOLDEN["fwd_ids"], GOLDEN["fwdmask_attention_mask"]
    else:
        folder, golden = tmp_path, write_variant(name, tmp_path)
        ids, mask = golden["ids"], golden["mask"]
    ours, mirror = both(folder)
    run = jax.jit(lambda m: (m(ids), m(ids, mask), m.hidden(ids, window=(3, 4))))
    plain, masked, rows = map(np.asarray, run(ours))
    seen, x = mask.astype(bool), tensor(ids)
    with torch.no_grad():
        pairs = [
            (plain, mirror(x)),
            (masked[seen], mirror(x, tensor(mask))[tensor(seen)]),
            (rows, mirror.hidden(x, window=(3, 4))),
        ]
    for a, b in pairs:
        # About fifty float32 roundings of the largest value, far below the golden tolerance.
        np.testing.assert_allclose(a, b.numpy(), atol=3e-6 * np.abs(a).max(), rtol=0)


@pytest.mark.parametrize("name", ["gemma", "rope16"])
def test_bfloat16_differs_no_more_between_frameworks_than_from_float32(name, tmp_path):
    golden = write_variant(name, tmp_path)
    ids, compute = golden["ids"], ComputeConfig(dtype="bfloat16")
    ours, mirror = both(tmp_path, compute=compute)
    with torch.no_grad():
        found = mirror(tensor(ids))
    assert found.dtype == torch.bfloat16
    a, b = np.asarray(jax.jit(lambda m: m(ids))(ours), np.float32), found.float().numpy()
    rounding = np.linalg.norm(a - golden["logits"])
    assert np.linalg.norm(a - b) <= 1.5 * rounding
    assert np.linalg.norm(b - golden["logits"]) <= 1.5 * rounding
