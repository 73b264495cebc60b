"""The verb `eval` of both packages on a small model and small tasks, run as a user runs it."""

import dataclasses
import json
import shutil

import jax
import pytest

import jaxllada.__main__ as ours_
import npu_backend.__main__ as npu
from jaxllada import convert
from jaxllada.apps.evaluation.answers_kept import KeptAnswers
from jaxllada.apps.evaluation.harness import harness
from jaxllada.apps.evaluation.jobs import build, jobs_of
from jaxllada.apps.evaluation.keys import EvalOptions
from jaxllada.apps.tasks.local_tasks import task_manager
from jaxllada.common.config.likelihood import LikelihoodConfig
from jaxllada.common.config.presets import PRESETS
from jaxllada.common.errors import UserError
from jaxllada.common.tokenizer import Tokenizer
from jaxllada.models.mask_predictor import MaskPredictor

TEXT = "the cat sat on the mat and the dog sat on the log\n\nQuestion: is it? Answer: no"
CHOICES = [
    {"prompt": "the cat sat on ", "options": ["the mat", "the dog", "a log"], "answer": 0},
    {"prompt": "the dog", "options": [" sat", " cat"], "answer": " cat"},
    {"prompt": "and", "options": [" the dog", " the"], "answer": 1},
]
TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{file}"}}}}
test_split: test
num_fewshot: 0
output_type: {kind}
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
metadata: {{version: 1.0}}
"""
WRITES = (
    TASK
    + """
generation_kwargs: {{until: ["z", "Question:"], max_gen_toks: 16}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""
)
READS = (
    TASK
    + """
metric_list: [{{metric: bits_per_byte}}]
"""
)
ENDS = (
    TASK
    + """
metric_list: [{{metric: acc}}, {{metric: perplexity}}]
"""
)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A model, a file of questions, and three tasks."""
    home = tmp_path_factory.mktemp("home")
    tokenizer = Tokenizer.train([TEXT] * 20, 300, home / "model")
    rows = tokenizer.vocab_size
    config = dataclasses.replace(
        PRESETS["tiny"], vocab_size=rows, embedding_size=rows, mask_token_id=tokenizer.mask_id,
        eos_token_id=tokenizer.eos_id, pad_token_id=tokenizer.pad_id,
    )  # fmt: skip
    model = MaskPredictor(config, rngs=jax.random.key(0))
    convert.save(model, home / "model")
    (home / "choose.jsonl").write_text("\n".join(json.dumps(row) for row in CHOICES))
    asked = ["the cat", "the dog sat on", "on", "mat and the dog", "log"]
    rows = [{"question": text, "answer": "sat on the log"} for text in asked]
    (home / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    for name, task, kind in (
        ("writes", WRITES, "generate_until"),
        ("reads", READS, "loglikelihood_rolling"),
        ("ends", ENDS, "loglikelihood"),
    ):
        file = home / "rows.jsonl"
        (home / f"{name}.yaml").write_text(task.format(name=name, file=file, kind=kind))
    return home


def words(home, *names, **keys):
    tasks = ",".join(str(home / name) for name in names)
    given = {"mc_num": 4, "temperature": 0.8, "steps": 8, "seed": 3} | keys
    return ["eval", str(home / "model"), "--tasks", tasks] + [
        word for key, value in given.items() for word in (f"--{key}", str(value))
    ]


ALL = ("choose.jsonl", "writes.yaml", "reads.yaml")


def run(given, output, package=npu):
    device = ["--device", "cpu"] if package is npu else []
    assert package.main([*given, *device, "--output", str(output)]) == 0
    return found(output)


def found(output):
    """Answers of every document and metrics of every task; the cost."""
    (run,) = json.loads((output / "results.json").read_text())["runs"]
    metrics = {task: entry["metrics"] for task, entry in run["results"].items()}
    samples = {
        path.stem: [json.loads(line) for line in path.read_text().splitlines()]
        for path in sorted((output / "samples").rglob("*.jsonl"))
    }
    return metrics, samples, run["cost"]


@pytest.fixture(scope="module")
def whole(home, tmp_path_factory):
    return run(words(home, *ALL), tmp_path_factory.mktemp("whole"))


@pytest.mark.slow
def test_both_packages_find_the_same(home, tmp_path):
    """Without noise: generators of random numbers differ between the packages."""
    given = words(home, "choose.jsonl", "writes.yaml", temperature=0.0)
    theirs, ours = (run(given, tmp_path / package.__name__, package) for package in (npu, ours_))
    assert ours[1]["writes"] == theirs[1]["writes"]
    assert len({row["resps"][0][0] for row in ours[1]["writes"]}) > 1
    for task, metrics in theirs[0].items():
        for name, metric in metrics.items():
            assert ours[0][task][name]["value"] == pytest.approx(metric["value"], rel=1e-5)
    for name in ("response_tokens", "model_calls", "requests"):
        assert ours[2][name] == theirs[2][name]


def test_accuracy_and_values_are_those_of_score(home, tmp_path, capsys, whole):
    scores = tmp_path / "scores.jsonl"
    assert npu.main([
        "score", str(home / "model"), "--questions_file", str(home / "choose.jsonl"),
        "--mc_num", "4", "--batch_size", "4", "--seed", "3", "--device", "cpu",
        "--output", str(scores),
    ]) == 0  # fmt: skip
    lines = [json.loads(line) for line in scores.read_text().splitlines()]
    rows = whole[1]["choose"]
    for line, row in zip(lines, rows, strict=True):
        expected = [option["value"] for option in line["options"]]
        assert [value for ((value, _),) in row["resps"]] == pytest.approx(expected, rel=1e-5)
    right = sum(line["best"] == answer for line, answer in zip(lines, (0, 1, 1), strict=True)) / 3
    assert whole[0]["choose"]["acc,none"]["value"] == right
    assert f"accuracy           {right:.4f}" in capsys.readouterr().out


def test_batch_size_and_the_order_of_tasks_change_nothing(home, tmp_path, whole):
    given = words(home, *reversed(ALL), batch_size=1, rows_per_call=2)
    metrics, samples, _ = run(given, tmp_path)
    assert samples["writes"] == whole[1]["writes"]
    for task in metrics:
        for name, metric in metrics[task].items():
            assert metric["value"] == pytest.approx(whole[0][task][name]["value"], rel=1e-6)


def test_a_run_that_was_cut_goes_on_and_finds_the_same(home, tmp_path, whole):
    given = words(home, *ALL, batch_size=2)
    first = run(given, tmp_path / "a")
    answers = tmp_path / "a" / "answers" / "answers.jsonl"
    lines = answers.read_bytes().splitlines(keepends=True)
    assert len(lines) == first[2]["requests"] == 13
    (tmp_path / "b" / "answers").mkdir(parents=True)
    torn = b"".join(lines[:6]) + lines[6][:20]
    (tmp_path / "b" / "answers" / "answers.jsonl").write_bytes(torn)
    metrics, samples, cost = run(given, tmp_path / "b")
    assert (metrics, samples) == first[:2]
    assert samples["writes"] == whole[1]["writes"]
    assert (cost["kept"], cost["requests"]) == (6, 13)
    # What is all there is scored without reading the model.
    shutil.copytree(home / "model", tmp_path / "model")
    given[1] = str(tmp_path / "model")
    again = run(given, tmp_path / "b")
    assert again[:2] == first[:2]
    assert again[2]["kept"] == 13


def test_answers_of_other_weights_or_settings_are_not_taken(home, tmp_path):
    given = words(home, "choose.jsonl", "writes.yaml")
    run(given, tmp_path / "out")
    for change in ({"seed": 4}, {"steps": 4}, {"mc_num": 2}):
        changed = words(home, "choose.jsonl", "writes.yaml", **change)
        assert run(changed, tmp_path / "out")[2]["kept"] < 8
    narrow = words(home, "choose.jsonl", "writes.yaml", dtype="bfloat16")
    assert run(narrow, tmp_path / "out")[2]["kept"] == 0
    shutil.copytree(home / "model", tmp_path / "model")
    (weights,) = (tmp_path / "model").glob("*.safetensors")
    data = bytearray(weights.read_bytes())
    data[-3] ^= 1
    weights.write_bytes(data)
    given[1] = str(tmp_path / "model")
    assert run(given, tmp_path / "out")[2]["kept"] == 0


def test_parts_find_what_one_run_finds(home, tmp_path, capsys, whole):
    given = words(home, *ALL, batch_size=2)
    for index in (1, 0):
        part = [*given, "--device", "cpu", "--output", str(tmp_path), "--part", f"{index}/2"]
        assert npu.main(part) == 0
        assert not (tmp_path / "results.json").exists()
    assert capsys.readouterr().out == ""
    metrics, samples, cost = run(given, tmp_path)
    assert (metrics, samples["writes"]) == (whole[0], whole[1]["writes"])
    assert cost["kept"] == cost["requests"] == 13
    assert len(list((tmp_path / "answers").glob("part-*-of-2.jsonl"))) == 2


def test_lm_eval_itself_finds_the_same_with_the_harness(home, whole, monkeypatch):
    """`simple_evaluate(model=harness(...))`, as its docstring says."""
    # It asks every tool on the machine for its version, which takes longest.
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda _: None)
    from lm_eval import simple_evaluate

    from npu_backend.engine import TorchEngine

    engine = TorchEngine.from_folder(home / "model", device="cpu")
    model = harness(
        engine,
        Tokenizer.from_folder(home / "model"),
        sampling={"temperature": 0.8, "steps": 8},
        likelihood=LikelihoodConfig(mc_num=4, batch_size=4),
        seed=3,
    )
    with pytest.raises(UserError, match="origin=''"):
        harness(engine, Tokenizer.from_folder(home / "model"), kept=KeptAnswers(home / "kept"))
    tasks = [str(home / "writes.yaml"), str(home / "reads.yaml")]
    results = simple_evaluate(
        model=model, tasks=tasks, task_manager=task_manager(), bootstrap_iters=0
    )
    answers = [row["resps"] for row in results["samples"]["writes"]]
    assert answers == [row["resps"] for row in whole[1]["writes"]]
    bits = results["results"]["reads"]["bits_per_byte,none"]
    assert bits == pytest.approx(whole[0]["reads"]["bits_per_byte,none"]["value"], rel=1e-6)


def test_greedy_accuracy_is_counted_when_it_is_asked_for(home, tmp_path):
    given = words(home, "ends.yaml")
    metrics, samples, _ = run([*given, "--is_check_greedy"], tmp_path)
    checked = [row["resps"][0][0][1] for row in samples["ends"]]
    assert metrics["ends"]["acc,none"]["value"] == sum(checked) / len(checked)
    lines = (tmp_path / "answers" / "answers.jsonl").read_text().splitlines()
    assert all(json.loads(line)["greedy"] in ([True], [False]) for line in lines)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "tasks and recipe are not given: name tasks (gsm8k), or a recipe (gsm8k@"),
        ([], "the bound on a validation set is measured by the verb evaluate"),
        (["--tasks", "gsm9k"], "'gsm9k' is no task, group, tag or pattern, and no file"),
        (["--recipe", "gsm8k@llada-instuct"], "recipe=gsm8k@llada-instuct is unknown"),
        (["--tasks", "{ends}"], "greedy_check=false with task ends: its metric acc asks"),
        (["--tasks", "{writes}", "--num_fewshot", "2"], "task writes takes none, by its own def"),
        (["--tasks", "{writes}", "--part", "0/2"], "part=0/2 needs output"),
        (["--tasks", "{writes}", "--part", "2/2", "--output", "{out}"], "part=2/2: expected i/n"),
        (["--tasks", "{writes}", "--gen_length", "64"], "question 0: the prompt has"),
        (["--tasks", "{writes}", "--infill"], "infill=true: the prompts of tasks have no gaps"),
        (["--tasks", "{writes}", "--cfg", "1", "--cfg_scale", "2"], "cfg_scale=2.0 and cfg=1.0"),
        (["--tasks", "{writes}", "--limit", "1.5"], "limit=1.5 must be a number of questions"),
        (["--tasks", "{writes}", "--output", "{writes}"], "is a file: expected a folder"),
        (["--tasks", "{reads}", "--mc_num", "10", "--mc_batch_size", "4"], "mc_num=10 cannot be"),
        (["--tasks", "{writes}", "--chat", "false", "--fewshot_as_multiturn"], "turns need the t"),
    ],
)
def test_mistakes_are_told_before_the_weights_are_read(home, tmp_path, capsys, given, message):
    shape = tmp_path / "model"
    shutil.copytree(home / "model", shape)
    for weights in shape.glob("*.safetensors"):
        weights.write_bytes(b"")
    names = {path.stem: path for path in home.glob("*.yaml")} | {"out": tmp_path / "out"}
    given = [word.format(**names) for word in given]
    assert npu.main(["eval", str(shape), *given]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_recipes_are_listed_without_a_model(capsys):
    assert ours_.main(["recipes"]) == 0
    assert "gsm8k@llada-instruct" in capsys.readouterr().out


def test_keys_without_use_and_cut_prompts_are_told(home, tmp_path, capsys):
    model, writes = str(home / "model"), str(home / "writes.yaml")
    keys = ["--gen_length", "62", "--block_size", "62", "--steps", "2", "--mc_num", "4"]
    run(["eval", model, "--tasks", writes, "--too_long", "cut", *keys], tmp_path / "writes")
    rows = [json.loads(line) for line in (home / "rows.jsonl").read_text().splitlines()]
    tokenizer = Tokenizer.from_folder(home / "model")
    long = sum(len(tokenizer.encode(row["question"])) > 2 for row in rows)
    assert 0 < long < len(rows)
    told = capsys.readouterr().err
    assert "not used, as no task compares options: mc_num" in told
    assert f"writes: the front of {long} prompts was cut off" in told
    (found,) = json.loads((tmp_path / "writes" / "results.json").read_text())["runs"]
    assert found["protocol"]["cut_prompts"] == long
    sampling = found["protocol"]["sampling"]["writes"]
    assert (sampling["gen_length"], sampling["block_length"]) == (62, 62)
    assert sampling["until"] == ["z", "Question:"]
    choose = ["eval", model, "--tasks", str(home / "choose.jsonl"), "--mc_num", "1"]
    run([*choose, "--steps", "4"], tmp_path / "choose")
    assert "not used, as no task samples: steps" in capsys.readouterr().err


def test_weights_of_the_hub_are_not_downloaded_for_a_command_that_is_wrong(
    home, monkeypatch, capsys
):
    asked = []

    def folder_of(name, *, weights=True):
        asked.append(weights)
        return home / "model"

    monkeypatch.setattr("jaxllada.common.run.origin.local_folder", folder_of)
    assert npu.main(["eval", "owner/name", "--tasks", "gsm9k"]) == 2
    assert asked == [False]
    assert npu.main(["eval", "owner/name", "--tasks", str(home / "choose.jsonl"), "--mc_num", "1",
                     "--device", "cpu"]) == 0  # fmt: skip
    assert asked == [False, False, True]


SHOTS = (
    TASK.replace("num_fewshot: 0", "fewshot_split: test")
    + """
process_docs: !function drawn.shuffled
fewshot_config: {{sampler: default}}
generation_kwargs: {{until: ["z"]}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""
)
SHUFFLED = """
import numpy as np

def shuffled(rows):
    return rows.select(np.random.permutation(len(rows)))
"""


def test_prompts_depend_on_their_seed_alone(home, tmp_path):
    """Tasks draw their examples, and some the order of their rows, while they are made."""
    (home / "shots.yaml").write_text(
        SHOTS.format(name="shots", file=home / "rows.jsonl", kind="generate_until")
    )
    (home / "drawn.py").write_text(SHUFFLED)
    tokenizer = Tokenizer.from_folder(home / "model")

    def prompts(**keys):
        options = EvalOptions(
            model_name_or_path="x", tasks=(str(home / "shots.yaml"),), num_fewshot=2, **keys
        )
        (job,) = jobs_of(options)
        built = build(job, options, tokenizer)
        return [instance.args[0] for instance in built.instances["generate_until"]]

    first, again = prompts(), prompts()
    assert first == again
    assert len(set(first)) == 5
    assert {prompt.count("sat on the log") for prompt in first} == {2}
    others = prompts(fewshot_seed=7)
    assert others != first
    ends = [[prompt.rpartition("\n\n")[2] for prompt in several] for several in (first, others)]
    assert ends[0] == ends[1]  # the same questions in the same order
    _, samples, _ = run(words(home, "shots.yaml", num_fewshot=2), tmp_path)
    assert [row["arguments"][0][0] for row in samples["shots"]] == first
