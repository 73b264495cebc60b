"""The torch training run: one global loss however the batch is cut, and the loop's promises.

The oracle of the step is the loss of full logits differentiated by autograd over the whole batch.
On a simulated NPU the same tests run over torch_npu's own kernels.
"""

import dataclasses
import signal

import numpy as np
import pytest
import torch

from jaxllada.common.config.compute import ComputeConfig
from jaxllada.common.config.lora import LoraConfig
from jaxllada.common.config.train import TrainConfig
from jaxllada.common.data.batches import BatchSource
from jaxllada.common.data.rows import RaggedRows, Row
from jaxllada.common.errors import UserError
from jaxllada.common.run.guard import TrainingDivergedError
from jaxllada.common.run.metrics import BINS
from jaxllada.common.run.run_folder import RunFolder
from jaxllada.common.run.samples import Samples
from npu_backend.diffusion.loss import masked_diffusion_loss
from npu_backend.models.lora import add_adapters
from npu_backend.sharding import Mesh
from npu_backend.train.optim import decays, make_optimizer
from npu_backend.train.start import make_network, set_random_weights
from npu_backend.train.state import initial_state
from npu_backend.train.step import loss_and_gradient, train_step
from tests.npu.tiny_run import (
    DEVICE,
    DROPPING,
    TINY,
    Interrupting,
    Poisoned,
    losses,
    make_config,
    make_rows,
    make_task,
    read_log,
    run_training,
)

TRAIN = TrainConfig(max_grad_norm=0.3)
MESH = Mesh(DEVICE)
ROWS = np.random.default_rng(0).integers(0, TINY.vocab_size - 2, (40, 16))


def source(accumulation=1, micro_batch=8, **settings):
    return BatchSource(
        ROWS, seed=1, micro_batch=micro_batch, accumulation=accumulation, max_length=16,
        mask_id=TINY.mask_token_id, pad_id=TINY.pad_token_id,
        **{"random_length_ratio": 0.3} | settings,
    )  # fmt: skip


def started(config=TINY, *, param_dtype="float32", dtype="float32", with_ema=False):
    """Returns (network, objective, state) with the same random weights every time."""
    compute = ComputeConfig(param_dtype=param_dtype, dtype=dtype)
    network, objective = make_network(config, compute, MESH)
    set_random_weights(network, MESH, seed=0)
    return network, objective, initial_state(network, with_ema=with_ema)


def gradient(batch, norm="token", config=TINY, **changes):
    _, objective, state = started(config, **changes)
    loss, counts, grads = loss_and_gradient(objective, state, batch, MESH, loss_norm=norm)
    return float(loss), counts, {name: grad.cpu() for name, grad in grads.items()}


def oracle(batch, norm="token"):
    """Loss and gradient on full logits, row by row, the denominators written out."""
    network, _, state = started()
    flat = [None if x is None else torch.from_numpy(x.reshape(-1, *x.shape[2:])) for x in batch]
    tokens, noisy, is_masked, rate, maskable, visible = (
        None if x is None else x.to(DEVICE) for x in flat[:6]
    )
    logits = network(noisy, visible)
    counted = maskable.sum(dim=1)
    weights = {"token": 1 / counted.sum(), "sequence": 1 / counted / 8, "batch": 1 / 8}[norm]
    weights = torch.as_tensor(weights, device=DEVICE).expand(8)
    loss = sum(
        weights[r]
        * masked_diffusion_loss(logits[r, None], tokens[r, None], is_masked[r, None], rate[r, None])
        for r in range(8)
    )
    loss.backward()
    return loss.item(), {name: param.grad.cpu() for name, param in state.params.items()}


CUTS = [("token", 1), ("token", 2), ("token", 8), ("sequence", 2), ("batch", 2)]


@pytest.mark.parametrize(("norm", "accumulation"), CUTS)
def test_loss_and_gradient_do_not_depend_on_the_cut(norm, accumulation):
    expected_loss, expected = oracle(source().batch(0), norm)
    loss, _, grads = gradient(source(accumulation, 8 // accumulation).batch(0), norm)
    # Float32 sums in another order.
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    for name, grad in expected.items():
        assert (grads[name] - grad).norm() < 1e-5 * grad.norm(), name


def test_counts_tell_content_first_eos_and_padding_apart():
    """The end token is the model's own favourite here, so that it is guessed often."""
    network, objective, state = started()
    with torch.no_grad():
        logits = network(torch.full((1, 16), TINY.mask_id, device=DEVICE))
    favourite = int(logits[0, 0].argmax())
    network.config = dataclasses.replace(TINY, pad_token_id=favourite)
    rows = RaggedRows([Row(row[: 5 + i], np.arange(5 + i) > 1) for i, row in enumerate(ROWS[:8])])
    batch = BatchSource(
        rows, seed=1, micro_batch=4, accumulation=2, max_length=16, pad_to_multiple=1,
        mask_id=TINY.mask_token_id, pad_id=favourite,
    ).batch(0)  # fmt: skip
    _, counts, _ = loss_and_gradient(objective, state, batch, MESH, loss_norm="sequence")
    found = np.zeros((4, 3))
    for a in range(2):
        with torch.no_grad():
            logits = network(torch.from_numpy(batch.noisy[a]).to(DEVICE)).cpu().double()
        log_p = logits.log_softmax(dim=-1).numpy()
        for b, i in zip(*np.nonzero(batch.is_masked[a]), strict=True):
            row, target = batch.tokens[a, b], batch.tokens[a, b, i]
            kind = 0 if (row[i:] != favourite).any() else 1 if row[i - 1] != favourite else 2
            guess = log_p[b, i].argmax()
            found[:, kind] += [-log_p[b, i, target], guess == target, 1, guess == favourite]
    assert (found[2] > 0).all()
    assert found[3, 0] > 0
    assert counts.classes is not None
    np.testing.assert_allclose(torch.stack(counts.classes).cpu(), found, rtol=1e-5)
    sums = torch.stack(counts[:3]).cpu().sum(dim=1)
    np.testing.assert_allclose(sums, found[:3].sum(axis=1), rtol=1e-5)


def test_bfloat16_weights_accumulate_their_gradient_in_float32():
    """Sixteen equal micro-batches give the gradient of one, exactly; a bfloat16 sum would not."""
    one = source(1, 4).batch(0)
    many = type(one)(*(None if x is None else np.concatenate([x] * 16) for x in one))
    _, _, single = gradient(one, "batch", param_dtype="bfloat16", dtype="bfloat16")
    _, _, summed = gradient(many, "batch", param_dtype="bfloat16", dtype="bfloat16")
    for name, grad in summed.items():
        assert grad.dtype == torch.float32
        # The denominators differ by a power of two, so nothing else rounds differently.
        torch.testing.assert_close(grad, single[name], rtol=1e-6, atol=0, msg=name)


def test_counts_are_sums_over_masked_tokens_by_mask_rate():
    batch = source(2, 4).batch(3)
    network, _, _ = started()
    _, counts, _ = gradient(batch)
    nll, correct, masked = np.zeros(BINS), np.zeros(BINS), np.zeros(BINS)
    for a in range(2):
        noisy, visible = (torch.from_numpy(x[a]).to(DEVICE) for x in (batch.noisy, batch.visible))
        with torch.no_grad():
            logits = (
                network(noisy, visible).double().cpu()
                if DEVICE.type == "cpu"
                else (network(noisy, visible).cpu().double())
            )
        log_p = logits.log_softmax(dim=-1).numpy()
        for r, rate in enumerate(batch.mask_rate[a]):
            b = min(int(rate * BINS), BINS - 1)
            for i in np.flatnonzero(batch.is_masked[a, r]):
                nll[b] -= log_p[r, i, batch.tokens[a, r, i]]
                correct[b] += log_p[r, i].argmax() == batch.tokens[a, r, i]
                masked[b] += 1
    np.testing.assert_allclose(counts.nll.cpu(), nll, rtol=1e-5)
    np.testing.assert_array_equal(counts.correct.cpu(), correct)
    np.testing.assert_array_equal(counts.masked.cpu(), masked)


def make_step(config=TINY, **changes):
    _, objective, state = started(config, **{"with_ema": True} | changes)
    objective.train()

    def step(batch, rate, cursor):
        return train_step(
            state, batch, rate, cursor, objective=objective, optimizer=make_optimizer(TRAIN),
            mesh=MESH, loss_norm="token", ema_decay=0.9,
            dropout_seed=5 if config is DROPPING else None,
        )  # fmt: skip

    return step, state


def snapshot(state):
    groups = {"params": state.params, "mu": state.mu, "nu": state.nu, "ema": state.ema}
    return {
        (group, name): tensor.detach().cpu().clone()
        for group, tensors in groups.items()
        for name, tensor in tensors.items()
    }


def test_a_step_is_one_adamw_update_of_the_oracle_gradient():
    batch = source().batch(0)
    step, state = make_step()
    params = {
        name: torch.nn.Parameter(p.detach().cpu().clone()) for name, p in state.params.items()
    }
    loss, grads = oracle(batch)
    for name, param in params.items():
        param.grad = grads[name].clone()
    norm = torch.nn.utils.clip_grad_norm_(params.values(), 0.3)
    groups = [
        {"params": [p for n, p in params.items() if decays(n) is decay], "weight_decay": rate}
        for decay, rate in ((True, TRAIN.weight_decay), (False, 0.0))
    ]
    torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.95), eps=1e-8, foreach=False).step()
    metrics = step(batch, 0.01, 0)
    assert metrics.loss == pytest.approx(loss, rel=1e-5)
    assert metrics.grad_norm == pytest.approx(float(norm), rel=1e-5)
    assert metrics.maskable == batch.maskable.sum()
    for name, param in params.items():
        moved = state.params[name].detach().cpu()
        # The first Adam step is rate * sign(g) but for tiny g, where it magnifies rounding.
        assert ((moved - param).abs() > 1e-5).float().mean() < 0.01, name


def test_norms_and_biases_do_not_decay():
    assert decays("blocks.0.attention.q_proj.weight")
    assert decays("wte")
    assert not any(map(decays, ("blocks.0.attn_norm.weight", "ln_f.weight", "ff_out.bias")))


def poisoned(batch, where):
    """A batch whose loss is infinite (a mask rate of zero), or whose weights are NaN."""
    rates, masked = batch.mask_rate.copy(), batch.is_masked.copy()
    rates[0, 0] = {"inf": 0.0, "nan": np.nan}[where]
    masked[0, 0, 0] = True
    return batch._replace(mask_rate=rates, is_masked=masked)


@pytest.mark.parametrize("where", ["inf", "nan"])
def test_a_step_that_is_not_finite_changes_nothing_but_its_counters(where):
    step, state = make_step()
    good = source(2, 4).batch(0)
    step(good, 1e-3, 0)
    before = snapshot(state)
    metrics = step(poisoned(good, where), 1e-3, 1)
    assert not np.isfinite(metrics.loss)
    after = snapshot(state)
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert (state.step, state.count, state.skipped, state.skipped_total) == (2, 1, 1, 1)
    step(poisoned(good, where), 1e-3, 2)
    step(good, 1e-3, 3)
    assert (state.step, state.count, state.skipped, state.skipped_total) == (4, 2, 0, 2)


def test_dropout_is_a_function_of_seed_and_batch_number():
    step, _ = make_step(DROPPING)
    batch = source(2, 4).batch(0)
    first, again, other = (step(batch, 0.0, cursor).loss for cursor in (7, 7, 8))
    assert first == again != other


def test_the_average_follows_the_weights():
    step, state = make_step()
    before = snapshot(state)
    step(source().batch(0), 1e-2, 0)
    for name, param in state.params.items():
        # The decay of the first step is min(0.9, 1/10).
        expected = 0.1 * before["params", name] + 0.9 * param.detach().cpu()
        torch.testing.assert_close(state.ema[name].cpu(), expected, rtol=0, atol=1e-6)


def test_adapters_are_trained_and_what_is_below_them_is_not():
    network, objective, _ = started()
    add_adapters(network, LoraConfig(r=4, lora_alpha=8.0), seed=0)
    network.to(DEVICE)
    state, before = initial_state(network, with_ema=False), dict(network.state_dict())
    before = {name: tensor.cpu().clone() for name, tensor in before.items()}
    assert {name.split(".")[-1] for name in state.params} == {"lora_a", "lora_b"}
    objective.train()
    batch = source(2, 4).batch(0)
    found = [
        train_step(
            state, batch, 1e-2, 0, objective=objective, optimizer=make_optimizer(TRAIN),
            mesh=MESH, loss_norm="token", ema_decay=0.0, dropout_seed=5,
        ).loss
        for _ in range(10)
    ]  # fmt: skip
    assert found[-1] < found[0]
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor.cpu(), before[name]) is (name not in state.params), name


@pytest.fixture
def _no_picture(monkeypatch):
    monkeypatch.setattr(RunFolder, "draw_losses", lambda self: None)


CASES = {
    "plain": (TINY, {}),
    "everything": (
        DROPPING,
        {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4, "ema_decay": 0.9,
         "logging_steps": 3, "time_sampling": "stratified", "gradient_checkpointing": True},
    ),
}  # fmt: skip


def same_weights(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name].detach().cpu(), b[name].detach().cpu()), name


@pytest.mark.usefixtures("_no_picture")
@pytest.mark.parametrize("case", CASES)
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path, case):
    model, changes = CASES[case]
    expected = run_training(make_config(tmp_path / "whole", **changes), model)
    cut = make_config(tmp_path / "cut", **changes)
    interrupting = Interrupting(make_task(cut, model).source, at=8)
    stopped = run_training(cut, model, source=interrupting)
    assert stopped.signal == signal.SIGTERM
    assert 0 < stopped.step < 12
    again = run_training(dataclasses.replace(cut, resume="auto"), model)
    assert again.step == 12
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    same_weights(again.params, expected.params)


@pytest.mark.usefixtures("_no_picture")
def test_bfloat16_runs_follow_the_float32_one(tmp_path):
    """Products in bfloat16; with bfloat16 weights as well, gradients and moments stay float32."""
    kinds = {"float32": {}, "mixed": {"bf16": True}}
    kinds["stored"] = {"bf16": True, "param_dtype": "bfloat16"}
    for name, changes in kinds.items():
        remat = {"gradient_checkpointing": True} if changes else {}
        run_training(make_config(tmp_path / name, **changes, **remat))
    expected = list(losses(tmp_path / "float32").values())
    for name in ("mixed", "stored"):
        # Eight bits of mantissa, through 12 updates; stored weights round every update too.
        np.testing.assert_allclose(list(losses(tmp_path / name).values()), expected, rtol=2e-2)


@pytest.mark.usefixtures("_no_picture")
def test_a_run_that_breaks_rolls_back_lowers_the_rate_and_passes_the_bad_data(tmp_path):
    config = make_config(
        tmp_path, max_skipped_steps=2, rollback_lr_factor=0.5, lr_scheduler_type="constant",
        warmup_steps=0,
    )  # fmt: skip
    poisoned_source = Poisoned(make_task(config).source, bad={6, 7, 8, 9})
    assert run_training(config, source=poisoned_source).step == 12
    log = read_log(tmp_path)
    events = [row for row in log if row.get("event") == "rollback"]
    assert (events[0]["step"], events[0]["lr_scale"]) == (4, 0.5)
    rates = {row["step"]: row["learning_rate"] for row in log if "loss" in row}
    assert rates[12] == 3e-3 * events[-1]["lr_scale"]
    assert list(losses(tmp_path)) == list(range(1, 13))


@pytest.mark.usefixtures("_no_picture")
def test_a_run_that_cannot_be_saved_stops_with_advice(tmp_path):
    config = make_config(tmp_path, max_skipped_steps=1, max_rollbacks=1, save_steps=0)
    source = Poisoned(make_task(config).source, bad=set(range(100)))
    with pytest.raises(TrainingDivergedError, match="still not finite after 1 rollbacks"):
        run_training(config, source=source)


@pytest.mark.usefixtures("_no_picture")
def test_a_run_of_the_other_package_is_not_gone_on_from(tmp_path):
    config = make_config(tmp_path, max_steps=2)
    run_training(config)
    folder = RunFolder(config, type(make_folder(config).checkpoints))
    meta = folder.checkpoints.meta(2)
    folder.checkpoints.update_meta(2, {"identity": meta["identity"] | {"backend": "jax"}})
    with pytest.raises(UserError, match="backend='torch': the run in output_dir has 'jax'"):
        run_training(dataclasses.replace(config, resume="auto", max_steps=4))


def make_folder(config):
    from npu_backend.train.checkpoint import Checkpoints

    return RunFolder(config, Checkpoints)


def test_a_run_learns_evaluates_and_leaves_a_complete_folder(tmp_path):
    config = make_config(
        tmp_path, max_steps=60, eval_strategy="steps", eval_steps=0.5, learning_rate=1e-2,
        save_steps=0, ema_decay=0.8,
    )  # fmt: skip
    outcome = run_training(config, write_sample=lambda: Samples("a sample\n"), rows=make_rows())
    assert outcome.last.bound < outcome.first.bound - 1
    bounds = {row["step"]: row["eval_bound"] for row in read_log(tmp_path) if "eval_bound" in row}
    assert list(bounds) == [0, 30, 60]
    assert (tmp_path / "samples" / "step-60.txt").read_text() == "a sample\n"
    for name in ("config.yaml", "config.json", "metrics.jsonl"):
        assert (tmp_path / name).stat().st_size > 0


def test_a_profile_window_leaves_a_trace(tmp_path):
    if DEVICE.type == "npu":
        pytest.skip("the profiler of torch_npu needs a device")
    run_training(make_config(tmp_path, max_steps=4, profile="2:3"))
    assert list((tmp_path / "profile").glob("*.json*"))
