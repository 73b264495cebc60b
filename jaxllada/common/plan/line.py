"""The planned memory of a run in one line, told before it starts."""

from jaxllada.common.config.model import ModelConfig
from jaxllada.common.config.train import TrainConfig
from jaxllada.common.plan.search import Predict
from jaxllada.common.plan.setup import setup_of
from jaxllada.common.sizes import show_bytes


def memory_line(config: TrainConfig, model: ModelConfig, devices: int, predict: Predict) -> str:
    """Predicts the peak of one of `devices` devices and says what takes most of it."""
    footprint = predict(setup_of(config, model, devices))
    terms = sorted(footprint.terms.items(), key=lambda term: -term[1])
    shown = ", ".join(f"{name} {show_bytes(size)}" for name, size in terms if size)
    where = f" of each of {devices} devices" if devices > 1 else ""
    return (
        f"planned memory{where}: {show_bytes(footprint.total)} at the peak, "
        f"in the {footprint.phase} ({shown})"
    )
