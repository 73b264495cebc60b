"""`model.generate` of exported folders is the diffusion sampler, in both layouts."""

import json

import numpy as np
import pytest
import torch
import transformers
from transformers import GenerationConfig

from jaxllada.common.weights.folder import REMOTE
from tests.hf.table_model import TableModel, load_generation
from tests.jax.golden import DENSE, dense_values

VALUES = dense_values()
CASES = json.loads((DENSE / "golden.json").read_text())
EOT, EOS, MASK = (CASES[f"{name}_token_id"] for name in ("eot", "eos", "mask"))
MAJOR = int(transformers.__version__.split(".")[0])
PROMPTS = torch.tensor([[17, 301, 44, 5, 9, 260, 8], [0, 0, 0, 77, 12, 400, 3]])
VISIBLE = torch.tensor([[1, 1, 1, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1, 1]])
OPTIONS = {"gen_length": 12, "block_length": 4, "steps": 6}
generation = load_generation(REMOTE)


@pytest.fixture(scope="module", params=["bound", "method", "llama"])
def model(request, exported):
    """The three ways to get at it: bound by the loader, method of our class, stock class."""
    if request.param == "llama" and MAJOR < 5:
        pytest.skip("transformers before 5.2 runs this layout causally")
    folder = exported("llama" if request.param == "llama" else "llada")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    if request.param == "method":
        del model.generate  # what the loader has bound over the method
    return model


@pytest.mark.parametrize("case", range(len(CASES["generate_cases"])))
def test_golden_answers_are_token_exact(model, case):
    options = dict(CASES["generate_cases"][case])
    mask = torch.tensor(VALUES["gen_attention_mask"]) if options.pop("attention_mask") else None
    prompts = torch.tensor(VALUES["gen_prompts"])
    tokens = model.generate(
        prompts, attention_mask=mask, **options, eot_token_id=EOT, compat="official-2025"
    )
    np.testing.assert_array_equal(tokens, VALUES[f"gen_{case}"])


@pytest.mark.parametrize("options", [{}, {"cfg_scale": 1.5}, {"confidence_eos_eot_inf": True}])
def test_each_row_of_a_ragged_batch_equals_its_solo_run(model, options):
    both = model.generate(PROMPTS, attention_mask=VISIBLE, **OPTIONS, **options)
    for row in range(2):
        alone = model.generate(PROMPTS[row : row + 1, VISIBLE[row] == 1], **OPTIONS, **options)
        assert torch.equal(alone[0, -12:], both[row, -12:])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"gen_length": 12, "block_length": 12, "steps": 5, "cfg_scale": 1.5},
        {"gen_length": 24, "block_length": 8, "steps": 12, "stop_at_eos": True},
        {"confidence_eos_eot_inf": True, "logits_eos_inf": False},
        {"logits_eos_inf": True, "steps": 27},
    ],
)
def test_answers_are_those_of_the_flax_sampler(exported, options):
    if MAJOR < 5:
        pytest.skip("compiles as long as the rest takes; the golden answers run in both")
    from jaxllada.common.config.sampling import SamplingConfig
    from jaxllada.convert import load
    from jaxllada.sampling.generate import sample

    options = OPTIONS | options
    model = transformers.AutoModelForCausalLM.from_pretrained(
        exported("llada"), trust_remote_code=True
    )
    tokens = model.generate(PROMPTS, attention_mask=VISIBLE, **options, eot_token_id=EOT)
    config = SamplingConfig(**options, eot_token_id=EOT)
    expected = sample(load(exported("llada")), PROMPTS.numpy(), config, VISIBLE.numpy())
    np.testing.assert_array_equal(tokens, expected)


def test_without_trust_the_llama_layout_is_autoregressive(exported):
    """The caveat of the card: nothing stops transformers from answering wrongly."""
    if MAJOR < 5:
        pytest.skip("transformers 4 binds the code of a local folder without asking")
    model = transformers.AutoModelForCausalLM.from_pretrained(exported("llama"))
    assert model.generate.__func__ is transformers.GenerationMixin.generate


def test_old_releases_refuse_to_run_a_llama_layout(exported, monkeypatch):
    folder = exported("llama")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    if MAJOR >= 5:
        library = model.generate.func.__globals__["transformers"]
        monkeypatch.setattr(library, "__version__", "5.1.3")
    with pytest.raises(ValueError, match="ignores is_causal=false"):
        model.generate(PROMPTS[:1], **OPTIONS)


def test_a_causal_llama_is_refused():
    table = TableModel()
    table.config.model_type = "llama"
    with pytest.raises(ValueError, match="it is autoregressive"):
        generation.generate(PROMPTS % 32, model=table)


def test_settings_come_from_the_generation_config_unless_passed(model):
    told = model.generate(PROMPTS[:1], **OPTIONS)
    config = GenerationConfig(**OPTIONS)
    assert torch.equal(model.generate(PROMPTS[:1], generation_config=config), told)
    assert torch.equal(model.generate(PROMPTS[:1], config), told)
    longer = GenerationConfig(**OPTIONS | {"gen_length": 24})
    assert torch.equal(model.generate(PROMPTS[:1], longer, gen_length=12), told)
    # Its temperature is one for sampling, which is off.
    hot = GenerationConfig(**OPTIONS, temperature=5.0)
    hot.do_sample = False
    assert torch.equal(model.generate(PROMPTS[:1], hot), told)


def test_names_of_other_projects_mean_the_same(model):
    told = model.generate(PROMPTS[:1], **OPTIONS)
    others = {"max_new_tokens": 12, "block_size": 4, "max_denoising_steps": 6}
    assert torch.equal(model.generate(input_ids=PROMPTS[:1], **others), told)
    ignored = {"token_type_ids": torch.zeros_like(PROMPTS[:1]), "num_beams": 1, "use_cache": False}
    assert torch.equal(model.generate(PROMPTS[:1], **OPTIONS, **ignored), told)
    with pytest.raises(ValueError, match="say the same thing and differ"):
        model.generate(PROMPTS[:1], gen_length=8, max_new_tokens=12)


def test_by_default_one_token_is_committed_per_call():
    table = TableModel()
    out = generation.generate(
        PROMPTS[:1] % 32, model=table, gen_length=9, return_dict_in_generate=True
    )
    assert out.sequences.shape == (1, 7 + 9)
    assert (out.num_calls, out.tokens_per_call) == (9, 1.0)
    assert table.calls == 9
    assert generation.generate(PROMPTS[:1] % 32, model=table).shape == (1, 7 + 128)


def test_a_table_of_logits_is_followed_exactly():
    """Against the rule written as a plain loop, on a model whose sums are exact."""
    for seed in range(3):
        table = TableModel(seed)
        prompt = torch.tensor(np.random.default_rng(seed).integers(0, 29, (3, 5)))
        for options in (OPTIONS, {"gen_length": 12, "block_length": 12, "steps": 5}):
            tokens = generation.generate(prompt, model=table, **options)
            expected = plain_loop(table, prompt.numpy(), **options)
            np.testing.assert_array_equal(tokens, expected)


def plain_loop(table, prompt, gen_length, block_length, steps):
    mask = table.config.mask_token_id
    x = np.concatenate([prompt, np.full((len(prompt), gen_length), mask)], axis=1)
    per_block = steps * block_length // gen_length
    for start in range(prompt.shape[1], x.shape[1], block_length):
        block = slice(start, start + block_length)
        masks = (x[:, block] == mask).sum(axis=1)
        for j in range(per_block):
            logits = table(torch.tensor(x)).logits.double().numpy()
            weights = np.exp(logits - logits.max(-1, keepdims=True))
            p = weights / weights.sum(-1, keepdims=True)
            logits[..., mask] = -np.inf
            best = logits.argmax(-1)
            for row in range(len(x)):
                count = masks[row] // per_block + (j < masks[row] % per_block)
                open_ = [i for i in range(start, start + block_length) if x[row, i] == mask]
                open_.sort(key=lambda i: (-np.float32(p[row, i, best[row, i]]), i))
                for i in open_[:count]:
                    x[row, i] = best[row, i]
    return x


def test_end_tokens_are_committed_last():
    table = TableModel(favourite=30)  # predicts the end everywhere, most of all
    order = []

    class Watch:
        def put(self, value):
            pass

        def put_draft(self, value):
            order.append(value[0].clone())

        def end(self):
            order.append("end")

    table.table[::2, 4] = 9  # half of the positions have something else to say
    generation.generate(
        PROMPTS[:1] % 29, model=table, gen_length=8, confidence_eos_eot_inf=True, streamer=Watch()
    )
    assert order.pop() == "end"
    ends = [(draft == 30).sum().item() for draft in order]
    assert ends == [0, 0, 0, 0, 1, 2, 3, 4]


def test_a_streamer_gets_the_prompt_and_every_block(model):
    got = []

    class Streamer:
        def put(self, value):
            got.append(value)

        def end(self):
            got.append(None)

    tokens = model.generate(PROMPTS[:1], **OPTIONS, streamer=Streamer())
    assert got.pop() is None
    assert [part.shape[1] for part in got] == [7, 4, 4, 4]
    assert torch.equal(torch.cat(got, dim=1), tokens)


def test_a_row_ends_after_the_block_with_its_end_token():
    table = TableModel()
    table.table[10, 30] = 99  # the fourth token of the answer
    out = generation.generate(
        PROMPTS[:1] % 29, model=table, **OPTIONS, stop_at_eos=True, return_dict_in_generate=True
    )
    assert (out.sequences[0, 11:] == 30).all()
    assert (out.sequences[0, 7:11] != MASK).all()
    assert out.num_calls == 2


def test_noise_draws_from_the_softmax_at_that_temperature():
    """Frequencies of 40,000 draws; 4.5 standard deviations each way for 30 tokens."""
    table, draws = TableModel(3), 40_000
    generator = torch.Generator().manual_seed(0)
    prompt = torch.full((draws, 1), 7)
    tokens = generation.generate(
        prompt, model=table, gen_length=1, temperature=0.7, generator=generator
    )
    logits = table(torch.tensor([[7, 31]])).logits[0, 1].double()
    logits[31] = -torch.inf
    p = (logits / 0.7).softmax(0)
    share = torch.bincount(tokens[:, 1], minlength=32).double() / draws
    assert ((share - p).abs() <= 4.5 * (p * (1 - p) / draws).sqrt() + 1e-12).all()
    again = generation.generate(
        prompt, model=table, gen_length=1, temperature=0.7, generator=generator.manual_seed(0)
    )
    assert torch.equal(again, tokens)


def test_gumbel_noise_is_right_in_its_upper_tail():
    """Of 2e7 draws 2e7 exp(-16) = 2.25 exceed 16; one float32 uniform ends at 16.6."""
    generator = torch.Generator().manual_seed(1)
    noise = generation._gumbel(torch.empty(5_000_000), generator)
    assert noise.isfinite().all()
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.003)
    assert noise.var().item() == pytest.approx(np.pi**2 / 6, rel=0.005)
    for bound in (2.0, 5.0, 8.0, 10.0):
        expected = 5e6 * -np.expm1(-np.exp(-bound))
        assert abs((noise > bound).sum().item() - expected) < 4.5 * expected**0.5
    # The smallest number it can draw, from all leading bits zero.
    smallest = torch.tensor(2.0**-24 * 2.0**-24)
    assert -torch.log(-torch.log1p(-smallest)) == pytest.approx(33.27, abs=0.01)


def test_random_order_ignores_confidence():
    table = TableModel(5)
    first = []
    for seed in range(40):
        order = []

        class Watch:
            def put(self, value):
                pass

            def put_draft(self, value, order=order):
                order.append(value[0].clone())

            def end(self):
                pass

        generation.generate(
            PROMPTS[:1] % 29, model=table, gen_length=4, remasking="random", streamer=Watch(),
            generator=torch.Generator().manual_seed(seed),
        )  # fmt: skip
        first.append(int((order[0] != 31).nonzero()))
    assert set(first) == {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 4}, "num_beams: unknown to a diffusion model"),
        ({"top_k": 5, "penalty": 1}, "penalty, top_k: unknown"),
        ({"use_cache": True}, "use_cache: unknown"),
        ({"do_sample": True}, "say how much with temperature="),
        ({"gen_length": 10, "block_length": 4}, "not a whole number of blocks"),
        ({"gen_length": 12, "block_length": 4, "steps": 5}, "cannot be shared equally by 3"),
        ({"gen_length": -1}, "gen_length=-1 must be a whole number"),
        ({"temperature": -1.0}, "temperature=-1.0 must be"),
        ({"remasking": "topk"}, "remasking='topk'"),
        ({"compat": "2024"}, "compat='2024'"),
        ({"attention_mask": torch.ones(1, 3)}, r"attention_mask has shape \(1, 3\)"),
        ({"attention_mask": torch.tensor([[1] * 6 + [0]])}, "padded on the right"),
        ({"input_ids": PROMPTS[:1]}, "either inputs or input_ids"),
        ({"inputs": PROMPTS[0]}, "as a tensor"),
        ({"inputs": torch.full((1, 7), MASK)}, "a prompt holds the mask token"),
    ],
)
def test_wrong_options_are_refused(model, options, message):
    with pytest.raises(ValueError, match=message):
        model.generate(**{"inputs": PROMPTS[:1], **options})


def test_masks_in_prompts_are_filled_as_in_the_release(model):
    prompt = PROMPTS[:1].clone()
    prompt[0, 2] = MASK
    tokens = model.generate(prompt, **OPTIONS, compat="official-2025")
    assert (tokens != MASK).sum() >= 12  # the mask in the prompt uses up a step's budget
    assert torch.equal(tokens[0, :2], prompt[0, :2])
