"""Puts the simulated NPU under torch before a test imports it, where NPU_SIM=1 asks for it."""

import os

if os.environ.get("NPU_SIM") == "1":
    import tests.ascend_sim.ascend_sim  # noqa: F401
