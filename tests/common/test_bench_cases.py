"""What the workloads of `bench` count, and how a matrix product is measured."""

import types
from dataclasses import replace

import pytest

from jaxllada.apps import bench_cases
from jaxllada.apps.bench import BenchConfig
from jaxllada.apps.bench_cases import best_gemm, check_family, random_shape, training_batch
from jaxllada.common.config.presets import PRESETS
from jaxllada.common.config.qwen2 import twin_of
from jaxllada.common.errors import UserError

TINY = PRESETS["tiny"]
OPTIONS = BenchConfig(model_name_or_path="tiny", length=24)


@pytest.mark.parametrize(
    ("flops", "sizes", "calls"),
    [(1e12, [2048, 4096], 6), (1e15, [2048, 4096, 8192], 6), (1e10, [2048], 2)],
)
def test_a_product_grows_until_it_fills_the_machine(monkeypatch, flops, sizes, calls):
    """On a machine of known speed; slow products are not repeated more than a second long."""
    now, made = [0.0], {}

    def product(size):
        def multiply():
            made[size] = made.get(size, 0) + 1
            now[0] += 2 * size**3 / flops

        return multiply

    clock = types.SimpleNamespace(perf_counter=lambda: now[0])
    monkeypatch.setattr(bench_cases, "time", clock)
    assert best_gemm(product) == pytest.approx(flops)
    assert list(made) == sizes
    assert made[sizes[-1]] == calls


def test_a_batch_has_about_half_its_tokens_masked_and_is_drawn_from_the_seed():
    batch = training_batch(OPTIONS, TINY)
    assert batch.tokens.shape == (1, 2, 24)
    assert 0.4 < batch.is_masked.mean() < 0.6
    assert batch.digest() == training_batch(OPTIONS, TINY).digest()
    assert batch.digest() != training_batch(replace(OPTIONS, seed=1), TINY).digest()


def test_shapes_come_from_presets_and_files_and_hold_the_longest_row(tmp_path):
    assert random_shape(OPTIONS) == replace(TINY, max_sequence_length=192)
    assert random_shape(replace(OPTIONS, gen_length=8)).max_sequence_length == 72
    replace(TINY, n_layers=1).save(tmp_path)
    file = replace(OPTIONS, model_name_or_path=str(tmp_path / "config.json"))
    found = random_shape(file)
    assert (found.n_layers, found.max_sequence_length) == (1, 192)
    assert random_shape(replace(OPTIONS, model_name_or_path=str(tmp_path))) is None


def test_the_autoregressive_twin_is_refused():
    with pytest.raises(UserError, match="model_name_or_path=tiny: bench measures mask predictors"):
        check_family(OPTIONS, twin_of(TINY))
    check_family(OPTIONS, TINY)
