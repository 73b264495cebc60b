"""The autoregressive twin against Qwen2ForCausalLM of transformers, its sampler included."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxllada.causal_engine import CausalEngine
from jaxllada.common.config.likelihood import LikelihoodConfig
from jaxllada.common.config.qwen2 import CausalConfig, from_qwen2
from jaxllada.common.config.sampling import SamplingConfig
from jaxllada.common.data.next_token import shifted
from jaxllada.common.engine import Update
from jaxllada.common.errors import UserError
from jaxllada.convert import load, save
from jaxllada.models.causal_lm import CausalLM
from jaxllada.models.family import make_model
from tests.qwen2 import SHAPE, reference, tokens, torch, transformers


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("qwen2")


@pytest.fixture(scope="module")
def theirs(home):
    return reference(home)


@pytest.fixture(scope="module")
def ours(home, theirs):
    return load(home)


@pytest.mark.parametrize("tied", [False, True])
def test_logits_are_those_of_transformers(tmp_path, tied):
    their = reference(tmp_path, tie_word_embeddings=tied)
    our = load(tmp_path)
    assert isinstance(our, CausalLM)
    x = tokens()
    expected = their(torch.tensor(x)).logits.detach().numpy()
    np.testing.assert_allclose(our(x), expected, atol=2e-4)
    mask = np.ones_like(x)
    mask[1, :6] = 0
    expected = their(torch.tensor(x), attention_mask=torch.tensor(mask)).logits.detach().numpy()
    seen = mask == 1
    np.testing.assert_allclose(np.asarray(our(x, mask))[seen], expected[seen], atol=2e-4)


def test_weights_and_config_come_back_bit_for_bit(home, ours, tmp_path):
    save(ours, tmp_path / "out")
    before = load_file(home / "model.safetensors")
    after = load_file(tmp_path / "out" / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)
    read = [json.loads((f / "config.json").read_text()) for f in (home, tmp_path / "out")]
    assert read[0] == read[1]
    again = transformers.Qwen2ForCausalLM.from_pretrained(tmp_path / "out")
    x = torch.tensor(tokens())
    np.testing.assert_allclose(ours(tokens()), again(x).logits.detach().numpy(), atol=2e-4)


def test_the_loss_of_a_shifted_row_is_that_of_transformers(ours, theirs):
    row = tokens(1, 24)[0].astype(np.int32)
    seen, counted, rate, _ = shifted(row, np.ones(24, bool), start_id=298)
    log_p = jax.nn.log_softmax(ours(seen[None])[0])
    loss = -np.mean(np.asarray(log_p)[np.arange(24), row])
    whole = torch.tensor(np.concatenate([[298], row])[None])
    expected = theirs(whole, labels=whole).loss.item()
    assert loss == pytest.approx(expected, rel=1e-5)
    assert counted.all()
    assert rate == 1


def test_a_position_does_not_see_those_behind_it(ours):
    x = tokens(1)
    changed = x.copy()
    changed[0, 12:] = 7
    a, b = ours(x), ours(changed)
    np.testing.assert_array_equal(a[0, :12], b[0, :12])
    assert not np.allclose(a[0, 12:], b[0, 12:])


def test_greedy_answers_are_those_of_transformers(ours, theirs):
    prompts = [tokens(1, n, seed=n)[0].tolist() for n in (3, 11, 70)]
    config = SamplingConfig(steps=20, gen_length=20, block_length=20)
    found = CausalEngine(ours).generate(prompts, config)
    for prompt, generation in zip(prompts, found, strict=True):
        x = torch.tensor([prompt])
        expected = theirs.generate(
            x, attention_mask=torch.ones_like(x), max_new_tokens=20, do_sample=False,
            eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
        assert generation.tokens == expected[0, len(prompt) :].tolist()
        assert generation.nfe == 20


def forced(ours, eos):
    """The model with another end token, so that a greedy answer runs into one."""
    config = dataclasses.replace(ours.config, eos_token_id=eos)
    leaves = jax.tree.leaves(ours)
    like = make_model(config, rngs=jax.random.key(0))
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def test_rows_end_on_their_own_and_the_record_says_when(ours):
    prompts = [tokens(1, n, seed=n)[0].tolist() for n in (3, 11)]
    plain = SamplingConfig(steps=16, gen_length=16, block_length=16)
    free = [g.tokens for g in CausalEngine(ours).generate(prompts, plain)]
    eos = free[0][4]
    model = forced(ours, eos)
    stopping = dataclasses.replace(plain, stop_at_eos=True)
    updates: list[Update] = []
    first, other = CausalEngine(model).generate(prompts, stopping, on_update=updates.append)
    end = free[0].index(eos) + 1
    assert first.tokens == free[0][:end] + [eos] * (16 - end)
    assert first.trace.order[0].tolist() == list(range(end)) + [end - 1] * (16 - end)
    assert len(updates) == first.nfe == max(end, other.trace.num_steps)
    assert [u.step for u in updates] == list(range(1, first.nfe + 1))
    np.testing.assert_array_equal(updates[1].tokens[0, 2:], eos)
    alone = CausalEngine(model).generate(prompts[:1], stopping)[0]
    assert (alone.tokens, alone.nfe) == (first.tokens, end)


def test_a_row_draws_the_same_in_any_batch_and_follows_its_distribution(ours):
    config = SamplingConfig(steps=4, gen_length=4, block_length=4, temperature=1.0)
    prompts = [[1, 2, 3], [4] * 9, [1, 2, 3]]
    together = CausalEngine(ours).generate(prompts, config, seed=5)
    alone = CausalEngine(ours).generate(prompts[1:2], config, seed=5, first_row=1)
    assert together[1].tokens == alone[0].tokens
    assert together[0].tokens != together[2].tokens
    drawn = CausalEngine(ours).generate([[1, 2, 3]] * 600, config)
    p = np.asarray(jax.nn.softmax(ours(np.array([[1, 2, 3]]))[0, -1]))
    counts = np.bincount([g.tokens[0] for g in drawn], minlength=300) / 600
    # Four standard errors of a share, and one draw.
    assert np.all(np.abs(counts - p) <= 4 * np.sqrt(p * (1 - p) / 600) + 1 / 600)


def test_the_likelihood_of_an_answer_is_exact(ours, theirs):
    prompt, answer = tokens(1, 9)[0], tokens(1, 6, seed=1)[0]
    both = np.concatenate([prompt, answer])
    logits = theirs(torch.tensor(both[None])).logits[0].log_softmax(-1)
    expected = sum(logits[i - 1, both[i]].item() for i in range(9, 15))
    engine = CausalEngine(ours)
    options = LikelihoodConfig()
    prompt, answer = prompt.tolist(), answer.tolist()
    assert engine.log_likelihood(prompt, answer, options) == pytest.approx(expected, rel=1e-5)
    chained = engine.log_likelihood([], both.tolist(), options)
    parts = [engine.log_likelihood(both[:i].tolist(), both[i:].tolist(), options) for i in (1, 9)]
    assert chained < parts[0] < parts[1] < 0


@pytest.mark.parametrize(
    "change", [{"cfg_scale": 1.0}, {"remasking": "random"}, {"confidence_eos_eot_inf": True}]
)
def test_options_of_diffusion_are_refused_by_name(ours, change):
    config = SamplingConfig(steps=4, gen_length=4, block_length=4, **change)
    with pytest.raises(UserError, match=next(iter(change))):
        CausalEngine(ours).generate([[1]], config)
    few = SamplingConfig(steps=2, gen_length=4, block_length=4)
    with pytest.raises(UserError, match="steps=2"):
        CausalEngine(ours).generate([[1]], few)


def test_bfloat16_decoding_keeps_to_float32(home):
    config = SamplingConfig(steps=8, gen_length=8, block_length=8)
    found = CausalEngine(load(home, "bfloat16")).generate([[5, 6, 7]], config)[0]
    assert len(found.tokens) == 8
    assert np.isfinite(found.trace.confidence).all()


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope_scaling"),
        ({"is_causal": False}, "is_causal"),
        ({"head_dim": 7}, "head_dim"),
        ({"eos_token_id": None}, "eos_token_id"),
        ({"layer_types": ["sliding_attention"]}, "layer_types"),
    ],
)
def test_configs_that_cannot_be_run_are_refused_by_key(change, word):
    with pytest.raises(UserError, match=word):
        from_qwen2({**SHAPE, **change})


def test_a_config_is_written_as_it_was_read():
    given = {**SHAPE, "sliding_window": 2048, "use_cache": True, "torch_dtype": "bfloat16"}
    config = from_qwen2(given)
    assert isinstance(config, CausalConfig)
    assert (config.is_causal, config.start_id) == (True, 298)
    assert config.to_dict() == given
    longer = dataclasses.replace(config, max_sequence_length=512)
    assert longer.to_dict() == {**given, "max_position_embeddings": 512}


def test_initial_weights_are_drawn_alike(ours):
    model = make_model(ours.config, rngs=jax.random.key(1))
    for weight in (model.wte[...], model.blocks.mlp.ff_out.kernel[...]):
        assert float(jnp.std(weight)) == pytest.approx(0.02, rel=0.05)
    assert not np.any(model.blocks.attention.q_proj.bias[...])
