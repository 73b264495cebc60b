"""What has to stay float32 stays so when weights are split and travel in bfloat16."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from jaxllada.common.config.compute import ComputeConfig
from jaxllada.common.config.presets import preset
from npu_backend.models.mask_predictor import MaskPredictor
from npu_backend.sharding import DATA, FSDP, Mesh, shard
from tests.npu.devices import DEVICE, get, put

TINY = dataclasses.replace(preset("tiny"), attention_layer_norm=True)
TOKENS = put(np.random.default_rng(0).integers(0, TINY.vocab_size, (2, 12)))


@pytest.fixture
def mesh():
    backend = "cpu:gloo,npu:hccl" if DEVICE.type == "npu" else "gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        layout = init_device_mesh(DEVICE.type, (1, 1), mesh_dim_names=(DATA, FSDP))
        yield Mesh(DEVICE, data=1, fsdp=2, layout=layout)  # wraps as for two, gathers from one
    finally:
        dist.destroy_process_group()


def test_angles_and_norm_weights_are_not_rounded_on_the_way_into_a_block(mesh):
    compute = ComputeConfig(dtype="bfloat16")
    plain, split = (
        MaskPredictor(TINY, compute=compute, generator=torch.Generator().manual_seed(0)).to(DEVICE)
        for _ in range(2)
    )
    seen = []
    split.block(1).attention.register_forward_pre_hook(
        lambda module, args: seen.append([part.dtype for part in args[1]])
    )
    wrapped = shard(split, list(split.blocks), mesh, compute)
    # Far out, where a bfloat16 angle would be off by whole turns.
    position_ids = 3000 + torch.arange(12, device=DEVICE)[None]
    with torch.no_grad():
        expected = plain(TOKENS, position_ids=position_ids)
        found = wrapped(TOKENS, position_ids=position_ids)
    assert seen == [[torch.float32, torch.float32]]
    np.testing.assert_array_equal(get(found), get(expected))
