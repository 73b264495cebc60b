"""Objectives in torch: worked numbers, invariances, and the chunked loss against its oracle."""

import numpy as np
import pytest
import torch

from jaxllada.common.errors import UserError
from npu_backend.convert import load
from npu_backend.diffusion.chunked import chunked_cross_entropy
from npu_backend.diffusion.loss import cross_entropy, loss_weights, masked_diffusion_loss, sft_loss
from tests.jax.golden import DENSE, dense_values
from tests.npu.devices import DEVICE, KERNELS, get, put

GOLDEN = dense_values()


@pytest.fixture(params=KERNELS)
def model(request):
    loaded = load(DENSE, device=DEVICE)
    loaded.use(KERNELS[request.param])
    return loaded


def logits_costing(nll, vocab=5):
    """Logits whose cross-entropy against token 0 is `nll`, the rest being equally likely."""
    p = np.exp(-np.asarray(nll, np.float64))
    rest = np.repeat(((1 - p) / (vocab - 1))[..., None], vocab - 1, axis=-1)
    return put(np.log(np.concatenate([p[..., None], rest], axis=-1)).astype(np.float32))


def zeros(*shape):
    return torch.zeros(shape, dtype=torch.int64, device=DEVICE)


def test_pretraining_worked_example():
    """B=1, L=4, p=1/2, masked {0, 2} with cross-entropies 1 and 3: (1/.5 + 3/.5) / 4 = 2."""
    is_masked = put(np.array([[True, False, True, False]]))
    logits, targets = logits_costing([[1.0, 2.0, 3.0, 0.5]]), zeros(1, 4)
    rate = put(np.array([0.5], np.float32))
    total = masked_diffusion_loss(logits, targets, is_masked, rate)
    assert float(total / 4) == pytest.approx(2.0, rel=1e-6)
    everything = torch.ones_like(is_masked)
    for norm, expected in {"token": 2.0, "sequence": 2.0, "batch": 8.0}.items():
        weights = loss_weights(is_masked, rate, everything, norm)
        loss = (weights * cross_entropy(logits, targets)).sum()
        assert float(loss) == pytest.approx(expected, rel=1e-6)


def test_fine_tuning_worked_example():
    """Prompts of 2 and 4, p = .5 and .25, masked {2, 4} and {5}, cross-entropy 1 everywhere."""
    is_masked = np.zeros((2, 6), bool)
    is_masked[0, [2, 4]] = is_masked[1, 5] = True
    is_masked = put(is_masked)
    rate, lengths = put(np.array([0.5, 0.25], np.float32)), put(np.array([2, 4]))
    logits, targets = logits_costing(np.ones((2, 6))), zeros(2, 6)
    total = sft_loss(logits, targets, is_masked, rate, lengths)
    assert float(total / 2) == pytest.approx(1.5, rel=1e-6)
    maskable = torch.arange(6, device=DEVICE) >= lengths[:, None]
    for norm, expected in {"sequence": 1.5, "token": 8 / 6, "batch": 4.0}.items():
        weights = loss_weights(is_masked, rate, maskable, norm)
        loss = (weights * cross_entropy(logits, targets)).sum()
        assert float(loss) == pytest.approx(expected, rel=1e-6)


def test_prompt_positions_never_count():
    rng = np.random.default_rng(0)
    logits = put(rng.normal(size=(2, 6, 5)).astype(np.float32))
    rate, lengths = put(np.array([0.5, 0.25], np.float32)), put(np.array([2, 4]))
    everywhere = torch.ones((2, 6), dtype=torch.bool, device=DEVICE)
    answers = torch.arange(6, device=DEVICE) >= lengths[:, None]
    rest = (rate, lengths)
    assert sft_loss(logits, zeros(2, 6), everywhere, *rest) == sft_loss(
        logits, zeros(2, 6), answers, *rest
    )


def noisy(seed, rows):
    rng = np.random.default_rng(seed)
    maskable = rng.random((rows, 9)) < 0.7
    is_masked = maskable & (rng.random((rows, 9)) < 0.5)
    return put(is_masked), put(rng.uniform(0.1, 1, rows).astype(np.float32)), put(maskable)


@pytest.mark.parametrize("norm", ["token", "sequence", "batch"])
def test_a_row_without_maskable_positions_counts_nowhere(norm):
    is_masked, rate, maskable = noisy(0, 4)
    alone = loss_weights(is_masked, rate, maskable, norm)
    nothing = torch.zeros((1, 9), dtype=torch.bool, device=DEVICE)
    padded = loss_weights(
        torch.cat([is_masked, nothing]),
        torch.cat([rate, rate[:1]]),
        torch.cat([maskable, nothing]),
        norm,
    )
    assert torch.equal(padded[:4], alone)
    assert not padded[4].any()


@pytest.mark.parametrize("norm", ["token", "sequence", "batch"])
def test_denominators_do_not_depend_on_the_cut(norm):
    is_masked, rate, maskable = noisy(1, 8)
    whole = loss_weights(is_masked, rate, maskable, norm)
    cut = loss_weights(is_masked.view(4, 2, 9), rate.view(4, 2), maskable.view(4, 2, 9), norm)
    assert torch.equal(cut.view(8, 9), whole)


def test_an_unknown_normalisation_is_refused():
    some = torch.ones((1, 2), dtype=torch.bool)
    with pytest.raises(UserError, match="loss_norm='tokens' is unknown"):
        loss_weights(some, torch.ones(1), some, "tokens")


N, D, V = 50, 16, 37


def rows(dtype=torch.float32, share=3):
    rng = np.random.default_rng(0)
    hidden, head, bias = (
        put(rng.normal(size=shape).astype(np.float32)) for shape in ((N, D), (V, D), (V,))
    )
    weights = rng.random(N).astype(np.float32) * (np.arange(N) % share == 0)
    leaves = [x.to(dtype).requires_grad_() for x in (hidden, head, bias)]
    return *leaves, put(rng.integers(0, V, N)), put(weights)


@pytest.mark.parametrize("chunk", [1, 7, 16, 64])
@pytest.mark.parametrize("share", [1, 3, 10**6])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("tells_count", [False, True])
def test_chunked_loss_and_gradients_equal_the_full_logits(chunk, share, with_bias, tells_count):
    hidden, head, bias, targets, weights = rows(share=share)
    leaves = [hidden, head, bias] if with_bias else [hidden, head]
    logits = hidden @ head.T + (bias if with_bias else 0)
    expected = 3 * (weights * cross_entropy(logits, targets)).sum()
    counted = int((weights != 0).sum()) if tells_count else None
    out = chunked_cross_entropy(
        hidden, head, targets, weights,
        head_bias=bias if with_bias else None, chunk=chunk, counted=counted,
    )  # fmt: skip
    assert (3 * out.loss).item() == pytest.approx(expected.item(), rel=1e-5)
    found = torch.autograd.grad(3 * out.loss, leaves)
    for a, b in zip(found, torch.autograd.grad(expected, leaves), strict=True):
        np.testing.assert_allclose(get(a), get(b), rtol=1e-5, atol=1e-5)


def test_without_gradients_the_value_is_the_same():
    hidden, head, bias, targets, weights = rows()
    graded = chunked_cross_entropy(hidden, head, targets, weights, head_bias=bias)
    with torch.no_grad():
        value = chunked_cross_entropy(hidden, head, targets, weights, head_bias=bias)
    assert graded.loss.requires_grad
    assert not value.loss.requires_grad
    for a, b in zip(graded, value, strict=True):
        assert torch.equal(a, b)


def test_a_count_that_is_too_large_costs_time_only():
    hidden, head, bias, targets, weights = rows()
    results = []
    for counted in (None, N):
        out = chunked_cross_entropy(
            hidden, head, targets, weights, head_bias=bias, chunk=7, counted=counted
        )
        results.append([*out, *torch.autograd.grad(out.loss, [hidden, head, bias])])
    assert not results[1][1][weights == 0].any()
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(get(a), get(b), rtol=1e-5, atol=1e-6)


def test_frozen_parts_get_no_gradient_and_change_no_other():
    hidden, head, bias, targets, weights = rows()
    out = chunked_cross_entropy(hidden, head, targets, weights, head_bias=bias)
    whole = torch.autograd.grad(out.loss, [hidden, head])
    only_rows = chunked_cross_entropy(
        hidden, head.detach(), targets, weights, head_bias=bias.detach()
    )
    assert torch.equal(torch.autograd.grad(only_rows.loss, hidden)[0], whole[0])
    only_head = chunked_cross_entropy(hidden.detach(), head, targets, weights, head_bias=bias)
    assert torch.equal(torch.autograd.grad(only_head.loss, head)[0], whole[1])


def test_a_second_backward_pass_is_refused():
    hidden, head, bias, targets, weights = rows()
    loss = chunked_cross_entropy(hidden, head, targets, weights, head_bias=bias).loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="already used up"):
        loss.backward()


def test_row_losses_and_hits_are_those_of_the_full_logits():
    hidden, head, bias, targets, weights = rows()
    logits = hidden @ head.T + bias
    even = torch.arange(N, device=DEVICE) % 2 == 0
    targets = torch.where(even, logits.argmax(dim=1), targets)
    out = chunked_cross_entropy(hidden, head, targets, weights, head_bias=bias, chunk=8)
    counts = weights != 0
    nll = torch.where(counts, cross_entropy(logits, targets), 0)
    np.testing.assert_allclose(get(out.nll), get(nll), rtol=1e-5, atol=1e-5)
    assert torch.equal(out.is_correct, counts & (logits.argmax(dim=1) == targets))


@pytest.mark.parametrize("with_gradients", [False, True])
def test_a_watched_token_is_found_where_it_is_the_most_likely(with_gradients):
    hidden, head, bias, targets, weights = rows()
    guesses = get((hidden @ head.T + bias).argmax(dim=1)).astype(int)
    token = int(np.bincount(guesses[get(weights) != 0]).argmax())
    with torch.set_grad_enabled(with_gradients):
        out = chunked_cross_entropy(
            hidden, head, targets, weights, head_bias=bias, chunk=8, watched=token
        )
    expected = (guesses == token) & (get(weights) != 0)
    assert expected.any()
    np.testing.assert_array_equal(get(out.is_watched), expected)
    plain = chunked_cross_entropy(hidden, head, targets, weights, head_bias=bias, chunk=8)
    assert not plain.is_watched.any()


def test_bfloat16_rows_have_float32_losses():
    hidden, head, bias, targets, weights = rows(torch.bfloat16, share=1)
    out = chunked_cross_entropy(hidden, head, targets, weights, head_bias=bias)
    logits = hidden.float() @ head.float().T + bias.float()
    expected = (weights * cross_entropy(logits, targets)).sum()
    assert out.loss.dtype == torch.float32
    # On an NPU each logit is rounded to bfloat16; errors of single rows mostly cancel.
    close = 1e-5 if DEVICE.type == "cpu" else 2e-3
    assert out.loss.item() == pytest.approx(expected.item(), rel=close)
    leaves = [hidden, head, bias]
    found, wanted = torch.autograd.grad(out.loss, leaves), torch.autograd.grad(expected, leaves)
    for a, b in zip(found, wanted, strict=True):
        assert a.dtype == torch.bfloat16
        assert float((a.float() - b.float()).norm() / b.float().norm()) < 2e-2


def test_autocast_does_not_round_the_loss():
    hidden, head, bias, targets, weights = rows()
    plain = chunked_cross_entropy(hidden, head, targets, weights, head_bias=bias).loss
    with torch.autocast(DEVICE.type, torch.bfloat16):
        cast = chunked_cross_entropy(hidden, head, targets, weights, head_bias=bias).loss
    assert torch.equal(plain, cast)


@pytest.mark.skipif(DEVICE.type != "npu", reason="needs an allocator that counts")
def test_memory_follows_the_chunk_and_not_the_rows():
    vocab, width, count, chunk = 5000, 8, 2048, 64

    def peak():
        rng = torch.Generator().manual_seed(0)
        hidden, head = (torch.randn(n, width, generator=rng) for n in (count, vocab))
        hidden, head = (x.to(DEVICE).requires_grad_() for x in (hidden, head))
        targets, weights = torch.zeros(count, dtype=torch.int64), torch.ones(count)
        torch.npu.reset_peak_memory_stats()
        before = torch.npu.memory_allocated()
        chunked_cross_entropy(
            hidden, head, targets.to(DEVICE), weights.to(DEVICE), chunk=chunk
        ).loss.backward()
        return torch.npu.max_memory_allocated() - before

    logits, gradients = 4 * chunk * vocab, 4 * width * (vocab + count)
    # Rows of a chunk twice at most, gradients, and 32 bytes here and there; not 4 * count * vocab.
    assert peak() < 2 * logits + 2 * gradients + (1 << 18) < count * vocab


def noisy_logits(model):
    tokens, is_masked = put(GOLDEN["loss_x0"]), put(GOLDEN["loss_masked"])
    return model(torch.where(is_masked, model.config.mask_id, tokens)), tokens, is_masked


def test_pretraining_loss_equals_the_published_one(model):
    logits, tokens, is_masked = noisy_logits(model)
    total = masked_diffusion_loss(logits, tokens, is_masked, put(GOLDEN["loss_p"]))
    assert (total / tokens.numel()).item() == pytest.approx(
        GOLDEN["pretrain_loss"].item(), rel=1e-5
    )


def test_fine_tuning_loss_equals_the_published_one(model):
    lengths, rate = put(GOLDEN["sft_prompt_lengths"]), put(GOLDEN["loss_p"])
    tokens, is_masked = put(GOLDEN["loss_x0"]), put(GOLDEN["loss_masked"])
    answer = torch.arange(tokens.shape[1], device=DEVICE) >= lengths[:, None]
    logits = model(torch.where(is_masked & answer, model.config.mask_id, tokens))
    published = pytest.approx(float(GOLDEN["sft_loss"]), rel=1e-5)
    total = sft_loss(logits, tokens, is_masked, rate, lengths)
    assert (total / len(tokens)).item() == published
    weights = loss_weights(is_masked, rate, answer, "sequence")
    assert (weights * cross_entropy(logits, tokens)).sum().item() == published


def test_production_loss_equals_the_published_one(model):
    tokens, is_masked = put(GOLDEN["loss_x0"]), put(GOLDEN["loss_masked"])
    hidden = model.hidden(torch.where(is_masked, model.config.mask_id, tokens))
    weights = loss_weights(is_masked, put(GOLDEN["loss_p"]), torch.ones_like(is_masked))
    out = chunked_cross_entropy(
        hidden.flatten(0, 1), model.head_weight, tokens.flatten(), weights.flatten(), chunk=48
    )
    assert out.loss.item() == pytest.approx(GOLDEN["pretrain_loss"].item(), rel=1e-5)
