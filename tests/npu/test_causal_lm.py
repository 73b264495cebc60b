"""The autoregressive twin in torch: transformers' own numbers, its sampler, training, files."""

import dataclasses

import numpy as np
import pytest
import torch

from jaxllada.common.config.likelihood import LikelihoodConfig
from jaxllada.common.config.sampling import SamplingConfig
from jaxllada.common.errors import UserError
from tests.npu.devices import DEVICE

pytest.importorskip("transformers")

from npu_backend.causal_engine import CausalEngine, engine_of
from npu_backend.convert import load, save
from npu_backend.models.causal_lm import CausalLM
from npu_backend.models.family import make_model
from tests.qwen2 import reference, tokens


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("qwen2")


@pytest.fixture(scope="module")
def theirs(home):
    return reference(home)


@pytest.fixture(scope="module")
def ours(home, theirs):
    return load(home, device=DEVICE)


@pytest.mark.parametrize("tied", [False, True])
def test_logits_and_files_are_those_of_transformers(tmp_path, tied):
    their = reference(tmp_path, tie_word_embeddings=tied)
    our = load(tmp_path, device=DEVICE)
    assert isinstance(our, CausalLM)
    x = torch.from_numpy(tokens())
    mask = torch.ones_like(x)
    mask[1, :6] = 0
    with torch.no_grad():
        plain, padded = our(x.to(DEVICE)), our(x.to(DEVICE), mask.to(DEVICE))
        expected = their(x).logits, their(x, attention_mask=mask).logits
    torch.testing.assert_close(plain.cpu(), expected[0], atol=1e-5, rtol=1e-5)
    seen = mask == 1
    torch.testing.assert_close(padded.cpu()[seen], expected[1][seen], atol=1e-4, rtol=1e-4)
    save(our, tmp_path / "out")
    files = [tmp_path / "model.safetensors", tmp_path / "out" / "model.safetensors"]
    from safetensors.numpy import load_file

    before, after = map(load_file, files)
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert (tmp_path / "config.json").read_text().strip() == (
        tmp_path / "out" / "config.json"
    ).read_text().strip()


def test_greedy_answers_are_those_of_transformers_row_by_row(ours, theirs):
    prompts = [tokens(1, n, seed=n)[0].tolist() for n in (3, 11, 30)]
    config = SamplingConfig(steps=12, gen_length=12, block_length=12)
    found = engine_of(ours).generate(prompts, config)
    for prompt, generation in zip(prompts, found, strict=True):
        x = torch.tensor([prompt])
        expected = theirs.generate(
            x, attention_mask=torch.ones_like(x), max_new_tokens=12, do_sample=False,
            eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
        assert generation.tokens == expected[0, len(prompt) :].tolist()
        assert generation.nfe == 12


def test_rows_end_on_their_own_and_stream(ours):
    prompts = [tokens(1, n, seed=n)[0].tolist() for n in (3, 11)]
    plain = SamplingConfig(steps=10, gen_length=10, block_length=10)
    free = [g.tokens for g in CausalEngine(ours).generate(prompts, plain)]
    eos = free[0][4]
    stopping = dataclasses.replace(plain, stop_token_ids=(eos,))
    updates = []
    first, other = CausalEngine(ours).generate(prompts, stopping, on_update=updates.append)
    end, filler = free[0].index(eos) + 1, ours.config.eos_token_id
    assert first.tokens == free[0][:end] + [filler] * (10 - end)
    assert first.trace.order[0].tolist() == list(range(end)) + [end - 1] * (10 - end)
    assert len(updates) == max(end, other.trace.num_steps)
    alone = CausalEngine(ours).generate(prompts[:1], stopping)[0]
    assert (alone.tokens, alone.nfe) == (first.tokens, end)


def test_a_row_draws_the_same_in_any_batch(ours):
    config = SamplingConfig(steps=4, gen_length=4, block_length=4, temperature=1.0)
    together = CausalEngine(ours).generate([[1, 2, 3], [4] * 9], config, seed=5)
    alone = CausalEngine(ours).generate([[4] * 9], config, seed=5, first_row=1)
    assert together[1].tokens == alone[0].tokens


def test_the_likelihood_is_exact_and_options_of_diffusion_are_refused(ours, theirs):
    prompt, answer = tokens(1, 9)[0].tolist(), tokens(1, 6, seed=1)[0].tolist()
    both = prompt + answer
    logits = theirs(torch.tensor([both])).logits[0].log_softmax(-1)
    expected = sum(logits[i - 1, both[i]].item() for i in range(9, 15))
    engine = CausalEngine(ours)
    found = engine.log_likelihood(prompt, answer, LikelihoodConfig())
    assert found == pytest.approx(expected, rel=1e-5)
    with pytest.raises(UserError, match="cfg_scale"):
        engine.log_likelihood(prompt, answer, LikelihoodConfig(cfg_scale=1.0))
    guided = SamplingConfig(steps=4, gen_length=4, block_length=4, cfg_scale=1.0)
    with pytest.raises(UserError, match="cfg_scale"):
        engine.generate([prompt], guided)


def test_bfloat16_products_of_float32_weights_keep_the_gradient(ours):
    from jaxllada.common.config.compute import ComputeConfig

    compute = ComputeConfig(param_dtype="float32", dtype="bfloat16")
    model = make_model(ours.config, compute=compute, generator=torch.Generator().manual_seed(0)).to(
        DEVICE
    )
    exact = make_model(ours.config, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    x = torch.from_numpy(tokens()).to(DEVICE)
    hidden, expected = model.hidden(x), exact.hidden(x)
    assert hidden.dtype == torch.bfloat16
    # Eight bits of mantissa, over two blocks.
    torch.testing.assert_close(hidden.float(), expected, atol=0.1, rtol=0.05)
    model.head(hidden).logsumexp(-1).sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())
