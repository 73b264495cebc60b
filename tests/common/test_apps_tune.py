"""The sweep behind the verb `tune`, on an engine whose speed and mistakes are known."""

import json

import numpy as np
import pytest

from jaxllada.apps import tune
from jaxllada.apps.tune_report import preset_text, table
from jaxllada.apps.tuning import (
    Outcome,
    answer,
    choose,
    pareto_front,
    reference_config,
    settings,
)  # fmt: skip
from jaxllada.common.config.model import ModelConfig
from jaxllada.common.config.sampling import SamplingConfig
from jaxllada.common.config.sampling_presets import sampling_preset
from jaxllada.common.engine import Generation, check_prompts
from jaxllada.common.trace import Trace
from jaxllada.common.trace_text import told
from tests.word_decoder import EOS, MASK, Words

BASE = SamplingConfig(steps=8, gen_length=8, block_length=8)
TRUTH = [1, 2, 3, 4, 5, 1, EOS, EOS]


class FallibleEngine:
    """Writes `TRUTH`; with fewer steps than tokens the last ones come out wrong. Each model call
    takes a second, and the first answer of a setting ten more."""

    config = ModelConfig(
        rope=True, activation_type="silu", block_type="llama", max_sequence_length=64,
        vocab_size=100, embedding_size=100, mask_token_id=MASK, eos_token_id=EOS,
        pad_token_id=EOS,
    )  # fmt: skip

    def __init__(self):
        self.calls = []

    def generate(self, prompts, config, seed=0, on_update=None, *, first_row=0):
        check_prompts(prompts, config, self.config)
        seconds = float(config.steps) + (0 if config in self.calls else 10)
        self.calls.append(config)
        tokens = list(TRUTH)
        wrong = (config.gen_length - config.steps) // 3
        for i in range(wrong):
            tokens[5 - i] = 0
        trace = Trace(
            prompt=np.full((1, 3), EOS),
            tokens=np.array([tokens]),
            order=np.arange(8)[None] * config.steps // 8,
            confidence=np.ones((1, 8)),
            mask_token_id=MASK,
        )
        return [Generation(tokens, trace, config.steps, seconds) for _ in prompts]


def run(steps, **options):
    config = SamplingConfig(steps=steps, gen_length=8, block_length=8)
    return answer(FallibleEngine(), Words(), [[1], [2, 3]], config, **options)


def test_outcomes_count_response_tokens_and_leave_compilation_out():
    reference = run(8)
    outcome = run(4).against(reference.responses)
    assert reference.responses == [TRUTH[:6]] * 2
    assert outcome.tokens == 12, "end tokens do not count"
    assert outcome.nfe == 8
    assert outcome.seconds == 4 + 4, "the round that compiled is not the fastest"
    assert outcome.tokens_per_second == 1.5
    assert outcome.tokens_per_call == 1.5
    assert outcome.agreement == pytest.approx(10 / 12)
    assert outcome.exact == 0.0
    assert reference.against(reference.responses).agreement == 1.0


def test_a_response_that_ends_early_disagrees_on_what_is_missing():
    reference = run(8)
    short = run(8)
    short.responses[0] = short.responses[0][:3]
    assert short.against(reference.responses).agreement == pytest.approx(9 / 12)


def test_calls_of_a_batch_count_for_each_of_its_rows():
    assert run(8, batch_size=2).against([[1]] * 2).nfe == run(8).against([[1]] * 2).nfe
    assert run(8, batch_size=2).seconds == run(8).seconds / 2


def outcome(agreement, speed):
    return Outcome(agreement, agreement, int(speed * 10), 10, 10.0)


def test_the_front_holds_what_nothing_beats_in_both():
    outcomes = [outcome(1.0, 1), outcome(0.9, 3), outcome(0.8, 2), outcome(0.5, 4), outcome(0.9, 2)]
    assert pareto_front(outcomes) == [3, 1, 0]
    assert choose(outcomes, 0.85) == 1
    assert choose(outcomes, 0.95) == 0
    assert choose(outcomes, 0.0) == 3
    assert choose(outcomes[1:], 0.95) is None


def test_combinations_that_cannot_run_say_why():
    found = list(settings(BASE, {"steps": (2, 3), "block_length": (4,)}))
    assert [point["steps"] for point, _ in found] == [2, 3]
    assert found[0][1].block_length == 4
    assert "steps=3 cannot be shared equally by 2 blocks" in found[1][1]


def test_the_reference_is_the_slow_decode_of_the_same_answer():
    fast = SamplingConfig(steps=2, gen_length=8, block_length=4, temperature=0.5)
    slow = reference_config(fast)
    assert (slow.steps, slow.block_length, slow.temperature) == (8, 4, 0.5)
    assert (slow.selection, slow.cache, slow.canvas) == ("fixed", "none", "fixed")
    smooth = SamplingConfig(
        steps=2, gen_length=8, block_length=4, start_block_align=True, smoothing="soft"
    )
    slow = reference_config(smooth)
    assert (slow.steps, slow.smoothing, slow.start_block_align) == (4, "none", True)
    growing = SamplingConfig(steps=2, gen_length=8, block_length=4, canvas="grow", cache="dual")
    slow = reference_config(growing)
    assert (slow.steps, slow.cache, slow.canvas) == (4, "none", "grow"), "steps of one block"


def test_a_preset_file_reads_back_as_the_settings(tmp_path):
    config = SamplingConfig(steps=4, gen_length=8, block_length=8, eot_token_id=5, stop_at_eos=True)
    file = tmp_path / "p.yaml"
    file.write_text(preset_text(config, outcome(0.9, 3), ["Written by a test."]))
    assert file.read_text().startswith("# Written by a test.\n# 90.0% of the reference's tokens")
    assert sampling_preset(str(file)) == {
        "steps": 4, "gen_length": 8, "block_length": 8, "stop_at_eos": True,
    }  # fmt: skip


def test_the_table_shows_what_varies_and_marks_the_choice():
    fixed = {"block_length": 8, "selection": "fixed", "cache": "none", "smoothing": "none"}
    points = [{"steps": n, **fixed} for n in (8, 4, 2)]
    text = table(points, [outcome(1.0, 1), outcome(0.9, 3), outcome(0.8, 2)], 1)
    lines = text.splitlines()
    assert "block_length" not in lines[0]
    cells = [cell.strip() for cell in lines[2].split("|")[1:5]]
    assert cells == ["->", "4", "90.0%", "90%"]
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["->", "", "*"]


class Speaking(Words):
    eos_id, eot_id, mask_id = EOS, None, MASK

    def encode(self, text):
        return [len(word) % 6 for word in text.split()]


@pytest.fixture
def tuned(tmp_path, monkeypatch):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("one two\nthree four five\n")
    engine = FallibleEngine()
    monkeypatch.setattr(tune, "open_model", lambda config, open_engine: (engine, Speaking()))

    def call(**changes):
        engine.calls.clear()
        options = tune.TuneOptions(
            model_name_or_path="some/model", prompts_file=str(prompts),
            output_dir=str(tmp_path / "out"), gen_length=8, block_length=8,
            sweep_steps=(2, 4, 8), **changes,
        )  # fmt: skip
        return tune.run(options, None), engine.calls, tmp_path / "out"

    return call


def test_a_sweep_writes_table_picture_preset_and_traces(tuned, capsys):
    code, _, out = tuned(min_agreement=0.8)
    assert code == 0
    text = capsys.readouterr()
    assert text.out == (out / "table.md").read_text()
    assert sampling_preset(str(out / "preset.yaml"))["steps"] == 4
    assert (out / "pareto.png").read_bytes().startswith(b"\x89PNG")
    chosen, reference = (Trace.load(out / f"{name}.npz") for name in ("chosen", "reference"))
    assert (chosen.num_steps, reference.num_steps) == (4, 8)
    assert told(chosen).end == 6
    assert chosen.about["settings"]["steps"] == 4
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert [row["steps"] for row in rows] == [2, 4]
    assert "reference: agreement 100.0%" in text.err


def test_an_interrupted_sweep_goes_on_where_it_was(tuned):
    _, _, out = tuned()
    lines = (out / "results.jsonl").read_text().splitlines()
    (out / "results.jsonl").write_text(lines[0] + "\n" + lines[1][:20])
    _, calls, _ = tuned()
    assert {config.steps for config in calls} == {8, 4}, "the reference, and what was lost"
    _, calls, _ = tuned(seed=7)
    assert {config.steps for config in calls} == {2, 4, 8}, "another seed is another measurement"


def test_without_enough_agreement_the_preset_is_the_reference(tuned):
    _, _, out = tuned(min_agreement=1.0)
    assert sampling_preset(str(out / "preset.yaml"))["steps"] == 8
