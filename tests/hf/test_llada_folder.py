"""Exported `llada` folders run in transformers by the code they carry, and give our numbers."""

import json
import os

import numpy as np
import pytest
import torch
import transformers

from jaxllada.common.config.opening import read_config
from jaxllada.common.weights.folder import complete_folder
from jaxllada.common.weights.layouts import LLADA
from jaxllada.common.weights.opening import open_folder
from tests.jax.golden import VARIANT_CONFIGS, dense_values, write_variant

GOLDEN = dense_values()
# As in tests/jax: float32 sums in another order, logits up to about 20.
CLOSE = {"atol": 3e-5, "rtol": 1e-5}
CLASSES = ("AutoModel", "AutoModelForCausalLM", "AutoModelForMaskedLM")


def read(folder, name="AutoModelForCausalLM", **options):
    kind = getattr(transformers, name)
    return kind.from_pretrained(folder, trust_remote_code=True, **options)


def logits(model, *args, **kwargs):
    with torch.no_grad():
        args = [torch.tensor(array) for array in args]
        kwargs = {key: torch.tensor(array) for key, array in kwargs.items()}
        return model(*args, **kwargs).logits.numpy()


@pytest.fixture(scope="module")
def model(exported):
    return read(exported("llada"))


@pytest.fixture
def variant(tmp_path):
    """Writes and completes the folder of one variant."""

    def make(name, **changes):
        golden = write_variant(name, tmp_path / name)
        file = tmp_path / name / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))
        complete_folder(tmp_path / name, config=read_config(tmp_path / name))
        return tmp_path / name, golden

    return make


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", CLASSES)
def test_logits_are_those_of_the_released_model(exported, name, attention):
    model = read(exported("llada"), name, attn_implementation=attention)
    assert type(model).__name__ == "LLaDAModelLM"
    assert model.config._attn_implementation == attention
    np.testing.assert_allclose(
        logits(model, GOLDEN["fwd_ids"]), GOLDEN["fwd_logits"], atol=2e-4, rtol=0
    )
    mask = GOLDEN["fwdmask_attention_mask"]
    seen = mask.astype(bool)
    np.testing.assert_allclose(
        logits(model, GOLDEN["fwd_ids"], mask)[seen],
        GOLDEN["fwdmask_logits"][seen],
        atol=2e-4,
        rtol=0,
    )


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", VARIANT_CONFIGS)
def test_every_supported_field_computes_what_the_released_class_computes(name, attention, variant):
    folder, golden = variant(name)
    model = read(folder, attn_implementation=attention)
    ids, mask, bias = golden["ids"], golden["mask"], golden["bias"]
    seen = mask.astype(bool)
    np.testing.assert_allclose(logits(model, ids), golden["logits"], **CLOSE)
    padded = logits(model, ids, attention_mask=mask)
    np.testing.assert_allclose(padded[seen], golden["logits_mask"][seen], **CLOSE)
    np.testing.assert_allclose(
        logits(model, ids, attention_bias=bias), golden["logits_bias"], **CLOSE
    )
    both = logits(model, ids, attention_mask=mask, attention_bias=bias > -1)
    np.testing.assert_allclose(both[seen], golden["logits_both"][seen], **CLOSE)


@pytest.mark.parametrize("name", ["tied", "seqswiglu", "groups", "noaff"])
def test_what_transformers_saves_is_the_same_model(name, variant, tmp_path):
    folder, golden = variant(name)
    before = read(folder)
    before.save_pretrained(tmp_path / "again")
    after = read(tmp_path / "again")
    assert before.state_dict().keys() == after.state_dict().keys()
    for key, value in before.state_dict().items():
        assert torch.equal(after.state_dict()[key], value), key
    assert np.array_equal(logits(after, golden["ids"]), logits(before, golden["ids"]))
    # jaxllada reads it too: names, shapes and every field.
    source = open_folder(tmp_path / "again")
    assert source.config == read_config(folder)
    assert source.layout is LLADA
    for entry in source.entries:
        np.testing.assert_array_equal(source.read(entry), open_folder(folder).read(entry))


def test_a_tied_head_that_is_stored_too_is_accepted(variant):
    from safetensors.numpy import load_file, save_file

    folder, golden = variant("tied")
    weights = load_file(folder / "model.safetensors")
    weights["model.transformer.ff_out.weight"] = weights["model.transformer.wte.weight"].copy()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    model, found = read(folder, output_loading_info=True)
    assert not found["unexpected_keys"]
    assert not found["missing_keys"]
    np.testing.assert_allclose(logits(model, golden["ids"]), golden["logits"], **CLOSE)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_gradients_reach_every_weight_and_checkpointing_keeps_them(exported):
    ids = torch.tensor(GOLDEN["loss_x0"])
    masked = torch.tensor(GOLDEN["loss_masked"])
    labels = ids.masked_fill(~masked, -100)
    found = {}
    for checkpointing in (False, True):
        model = read(exported("llada")).train()
        if checkpointing and hasattr(model, "activation_checkpointing_enable"):
            model.activation_checkpointing_enable()
        elif checkpointing:
            model.gradient_checkpointing_enable()
        assert model.model.gradient_checkpointing is checkpointing
        loss = model(ids.masked_fill(masked, model.config.mask_token_id), labels=labels).loss
        loss.backward()
        found[checkpointing] = {key: p.grad for key, p in model.named_parameters()}
    for key, gradient in found[False].items():
        assert gradient.abs().max() > 0, key
        assert torch.allclose(gradient, found[True][key], rtol=1e-5, atol=1e-8), key


def test_the_loss_is_the_mean_over_labelled_positions(model):
    ids = torch.tensor(GOLDEN["fwd_ids"])
    labels = ids.masked_fill(torch.arange(ids.shape[1]) % 3 > 0, -100)
    with torch.no_grad():
        out = model(ids, labels=labels)
    chosen = out.logits.log_softmax(-1).gather(-1, ids[..., None])[..., 0]
    assert torch.allclose(out.loss, -chosen[labels != -100].mean(), rtol=1e-5)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_rows_without_a_visible_key_stay_finite_in_16_bit(exported, attention):
    ids = torch.tensor(GOLDEN["fwd_ids"][:2])
    mask = torch.ones_like(ids)
    mask[1] = 0
    for options in ({"dtype": torch.bfloat16}, {}):
        model = read(exported("llada"), attn_implementation=attention, **options)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=not options):
            out = model(ids, mask).logits
        assert out.isfinite().all()
        error = (out[0].float().numpy() - GOLDEN["fwd_logits"][0]).std()
        # The Flax model in bfloat16 is 0.034 standard deviations off.
        assert error < 0.04 * GOLDEN["fwd_logits"].std()


def test_rows_can_be_selected_before_the_head(model):
    ids, every = GOLDEN["fwd_ids"], logits(model, GOLDEN["fwd_ids"])
    with torch.no_grad():
        last = model(torch.tensor(ids), logits_to_keep=3).logits.numpy()
        some = model(torch.tensor(ids), logits_to_keep=torch.tensor([5, 2])).logits.numpy()
    np.testing.assert_allclose(last, every[:, -3:], atol=1e-5)
    np.testing.assert_allclose(some, every[:, [5, 2]], atol=1e-5)


def test_positions_can_be_given(model):
    """Attention knows distances only: moving all positions by the same number changes nothing."""
    ids = torch.tensor(GOLDEN["fwd_ids"])
    with torch.no_grad():
        moved = model(ids, position_ids=torch.arange(ids.shape[1])[None] + 7).logits
        spread = model(ids, position_ids=torch.arange(ids.shape[1])[None] * 2).logits
    np.testing.assert_allclose(moved.numpy(), GOLDEN["fwd_logits"], atol=2e-4)
    assert not np.allclose(spread.numpy(), GOLDEN["fwd_logits"], atol=0.1)


def test_hidden_states_and_tuples_come_as_transformers_has_them(model):
    ids = torch.tensor(GOLDEN["fwd_ids"])
    with torch.no_grad():
        out = model(ids, output_hidden_states=True)
        values = model(ids, return_dict=False)
        from_embeddings = model(inputs_embeds=model.get_input_embeddings()(ids)).logits
    assert len(out.hidden_states) == model.config.num_hidden_layers + 1
    assert torch.equal(model.project(out.hidden_states[-1]), out.logits)
    assert torch.equal(values[0], out.logits)
    assert torch.equal(from_embeddings, out.logits)


def test_what_cannot_be_done_is_refused(model, variant):
    ids = torch.tensor(GOLDEN["fwd_ids"])
    with pytest.raises(ValueError, match="use_cache"):
        model(ids, use_cache=True)
    with pytest.raises(ValueError, match="output_attentions"):
        model(ids, output_attentions=True)
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        model()
    folder, _ = variant("base")
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"alibi": True}))
    with pytest.raises(ValueError, match="alibi=True is not supported"):
        read(folder)


@pytest.mark.parametrize("name", ["gqa", "seqswiglu"])
@pytest.mark.parametrize("scheme", ["mitchell", "normal", "kaiming_normal", "fan_in"])
def test_a_model_made_from_its_config_is_initialised_by_its_scheme(scheme, name, variant):
    """Standard deviations by hand, from models.md's table of the released class."""
    folder, _ = variant(name, init_fn=scheme, d_model=64, mlp_hidden_size=96, vocab_size=512,
                        embedding_size=512)  # fmt: skip
    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=True)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=True)
    blocks = model.model.transformer["blocks"]
    width, inner = 64, blocks[1].ff_out.weight.shape[1]
    expected = {
        "mitchell": (width**-0.5, width**-0.5, inner**-0.5 / 2, width**-0.5 / 2),
        "normal": (0.02, 0.02, 0.02 / 2, 0.02),
        "kaiming_normal": (*[(2 / width) ** 0.5] * 2, (2 / inner) ** 0.5, (2 / width) ** 0.5),
        "fan_in": (width**-0.5, width**-0.5, inner**-0.5, width**-0.5),
    }[scheme]
    found = (
        model.model.transformer["wte"], blocks[1].ff_proj, blocks[1].ff_out, blocks[1].attn_out
    )  # fmt: skip
    for module, std in zip(found, expected, strict=True):
        # Cutting at three standard deviations takes 1.4 % off; 4096 draws vary by 1.1 %.
        assert module.weight.std().item() == pytest.approx(std, rel=0.06)
    assert (model.model.transformer["ln_f"].weight == 1).all()
    for key, value in model.named_parameters():
        assert not key.endswith("bias") or (value == 0).all()


def test_growing_the_vocabulary_keeps_the_old_rows(exported, tmp_path):
    model = read(exported("llada"))
    before = logits(model, GOLDEN["fwd_ids"])
    model.resize_token_embeddings(520)
    np.testing.assert_allclose(logits(model, GOLDEN["fwd_ids"])[..., :512], before, atol=1e-6)
    model.save_pretrained(tmp_path / "grown")
    assert read(tmp_path / "grown").get_output_embeddings().weight.shape == (520, 64)
    assert read_config(tmp_path / "grown").rows == 520


def test_loading_needs_no_network_and_no_package_of_ours(exported):
    """The exported code imports torch and transformers alone."""
    for file in exported("llada").rglob("*.py"):
        assert "jaxllada." not in file.read_text()
    code = exported("llada") / "custom_generate" / "generate.py"
    assert code.read_bytes() == (exported("llada") / "generation_llada.py").read_bytes()
    assert os.environ["HF_HUB_OFFLINE"] == "1"


def test_adapters_leave_the_head_alone(exported):
    """The block's output projection and the head have one leaf name; only the first is adapted."""
    peft = pytest.importorskip("peft", exc_type=ImportError)
    if transformers.__version__ < "5":
        pytest.skip("this peft is made for transformers 5")
    model = read(exported("llada"))
    before = logits(model, GOLDEN["fwd_ids"])
    adapted = peft.get_peft_model(
        model, peft.LoraConfig(target_modules="all-linear", r=4, task_type="CAUSAL_LM")
    )
    names = {name.split(".lora_")[0] for name, _ in adapted.named_parameters() if "lora_" in name}
    assert len(names) == 3 * 7
    assert not any(name.endswith("transformer.ff_out") for name in names)
    with torch.no_grad():
        after = adapted(torch.tensor(GOLDEN["fwd_ids"])).logits.numpy()
    np.testing.assert_allclose(after, before, atol=1e-6)
