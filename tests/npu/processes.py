"""Starts programs in processes of their own, on the simulated NPUs where the tests use those."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
IS_SIMULATED = os.environ.get("NPU_SIM") == "1"


def simulate_if_asked() -> None:
    """Puts the simulator under torch; has to come before anything imports torch."""
    if IS_SIMULATED:
        import tests.ascend_sim.ascend_sim  # noqa: F401


def environment(**changes: str) -> dict[str, str]:
    """The environment of a child: no torch_npu by itself, this repository on the path."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    fixed = {"PYTHONPATH": path, "TORCH_DEVICE_BACKEND_AUTOLOAD": "0", "OMP_NUM_THREADS": "1"}
    return {**os.environ, **fixed, **changes}


def torchrun(processes: int, *arguments: object, timeout: float = 280) -> str:
    """Runs a script under torchrun and returns what it told; fails the test if it fails."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    done = subprocess.run(
        [sys.executable, *launcher, *map(str, arguments)],
        cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=timeout,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-6000:]
    return done.stdout + done.stderr
