"""What two processes do in test_distributed.py: `torchrun ... distributed_program.py FOLDER JSON`.

JSON maps names of runs to changes of `make_config`. A run named `X+` goes on from where X ended.
"""

import json
import sys
from pathlib import Path

from tests.npu.processes import simulate_if_asked

simulate_if_asked()

from npu_backend.sharding import initialize_distributed, local  # noqa: E402
from tests.npu.tiny_run import DEVICE, Interrupting, make_config, make_task, run_training  # noqa: E402


def main(folder: Path, runs: dict[str, dict]) -> None:
    device = initialize_distributed(DEVICE.type)
    if DEVICE.type == "npu":
        import torch.distributed as dist

        used = type(dist.group.WORLD._get_backend(device)).__name__
        assert used == "ProcessGroupHCCL", used
    for name, changes in runs.items():
        stop = changes.pop("stop_at", None)
        model = changes.pop("model", None)
        config = make_config(folder / name.rstrip("+"), **changes)
        settings = {"device": device} | ({"start": Path(model)} if model else {})
        if stop is not None:
            settings["source"] = Interrupting(make_task(config, **settings).source, at=stop)
        outcome = run_training(config, **settings)
        whole = sum(param.numel() for param in outcome.params.values())
        held = sum(local(param).numel() for param in outcome.params.values())
        expected = 1 / changes.get("mesh_fsdp", 1)
        assert abs(held / whole - expected) < 0.05, (held, whole)


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
