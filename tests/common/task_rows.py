"""Small data with the columns that the published data sets have, and how each is answered.

`TASKS` holds for each task of lm_eval: its data set, configuration, {split: rows}, and the right
answer to a row, which for code and texts is one that its own scoring accepts.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple


class Known(NamedTuple):
    path: str
    name: str | None
    rows: dict[str, list[dict[str, Any]]]
    right: Callable[[dict[str, Any]], str]


def _abcd(i: int) -> dict[str, str]:
    return {letter: f"{letter.lower()}{i}" for letter in "ABCD"}


def _cmmlu(subject: str, split: str, n: int) -> list[dict[str, Any]]:
    return [
        {"Question": f"{subject} {split} {i}", **_abcd(i), "Answer": "ABCD"[i % 4]}
        for i in range(n)
    ]


def _ceval(subject: str, split: str, n: int) -> list[dict[str, Any]]:
    return [
        {
            "id": i,
            "question": f"{subject} {split} {i}____",
            **_abcd(i),
            "answer": "DCBA"[i % 4],
            "explanation": "",
        }
        for i in range(n)
    ]


def _mmlu(subject: str, split: str, n: int) -> list[dict[str, Any]]:
    return [
        {
            "question": f"{subject} {split} {i}?",
            "subject": subject,
            "choices": list(_abcd(i).values()),
            "answer": (i + 1) % 4,
        }
        for i in range(n)
    ]


GSM8K = [
    {"question": f"{i} + {i}?", "answer": f"{i}+{i}=<<{i}+{i}={2 * i}>>{2 * i}\n#### {2 * i}"}
    for i in range(6)
]
HELLASWAG = [
    {
        "ind": i,
        "activity_label": "Cooking",
        "ctx_a": "A man stirs.",
        "ctx_b": "he",
        "ctx": "A man stirs. he",
        "endings": [f"adds {k}." for k in range(4)],
        "source_id": f"activitynet~{i}",
        "split": "val",
        "split_type": "indomain",
        "label": str(i % 4),
    }
    for i in range(3)
]
ARC = [
    {
        "id": f"Mercury_{i}",
        "question": f"Which gas {i}?",
        "choices": {"text": ["air", "helium", "neon"], "label": ["A", "B", "C"]},
        "answerKey": "ABC"[i],
    }
    for i in range(3)
]
PIQA = [
    {"goal": f"Open jar {i}", "sol1": "Twist it", "sol2": "Bite it", "label": i % 2}
    for i in range(3)
]
WINOGRANDE = [
    {
        "sentence": "The cup fell off the desk as _ was small.",
        "option1": "the cup",
        "option2": "the desk",
        "answer": str(i % 2 + 1),
    }
    for i in range(3)
]
TRUTHFUL = [
    {
        "question": f"What is {i}?",
        "mc1_targets": {"choices": ["a number", "a bird"], "labels": [1, 0]},
        "mc2_targets": {"choices": ["a number", "a digit", "a bird"], "labels": [1, 1, 0]},
    }
    for i in range(2)
]
GPQA = [
    {
        "Question": f"Why {i}?",
        "Correct Answer": f"true {i}",
        "Incorrect Answer 1": f"false {i}",
        "Incorrect Answer 2": f"wrong {i}",
        "Incorrect Answer 3": f"no {i}",
    }
    for i in range(4)
]
HUMANEVAL = [
    {
        "task_id": f"HumanEval/{i}",
        "prompt": f"def add{i}(a, b):\n",
        "canonical_solution": f"    return a + b + {i}\n",
        "test": f"def check(candidate):\n    assert candidate(1, 2) == {3 + i}\n",
        "entry_point": f"add{i}",
    }
    for i in range(2)
]
MBPP = [
    {
        "task_id": i,
        "text": f"Write a function to add {i}.",
        "code": f"def f(x):\n    return x + {i}",
        "test_list": [f"assert f({k}) == {k + i}" for k in range(3)],
        "test_setup_code": "",
        "challenge_test_list": [],
    }
    for i in range(2)
]
MATH = [
    {
        "problem": f"Compute ${i} + 1$.",
        "level": "Level 1",
        "type": "Algebra",
        "solution": f"It is $\\boxed{{{i + 1}}}$.",
    }
    for i in range(2)
]
BBH = [{"input": f"not ( {v} ) is", "target": t} for v, t in (("True", "False"), ("False", "True"))]
IFEVAL = [
    {
        "key": 1000,
        "prompt": "Answer without any commas.",
        "instruction_id_list": ["punctuation:no_comma"],
        "kwargs": [{"num_words": None}],
    }
]


def _letter(key: str) -> Callable[[dict[str, Any]], str]:
    return lambda row: f" {row[key]}"


def _mmlu_right(row: dict[str, Any]) -> str:
    return " " + "ABCD"[row["answer"]]


TASKS: dict[str, Known] = {
    "gsm8k": Known(
        "openai/gsm8k", "main", {"train": GSM8K, "test": GSM8K[:3]}, lambda row: row["answer"]
    ),
    **{
        f"mmlu_{subject}": Known(
            "cais/mmlu",
            subject,
            {"test": _mmlu(subject, "test", 4), "dev": _mmlu(subject, "dev", 5)},
            _mmlu_right,
        )
        for subject in ("anatomy", "high_school_physics")
    },
    "cmmlu_anatomy": Known(
        "haonan-li/cmmlu",
        "anatomy",
        {"test": _cmmlu("anatomy", "test", 4), "dev": _cmmlu("anatomy", "dev", 5)},
        _letter("Answer"),
    ),
    "ceval-valid_law": Known(
        "ceval/ceval-exam",
        "law",
        {"val": _ceval("law", "val", 4), "dev": _ceval("law", "dev", 5)},
        _letter("answer"),
    ),
    "hellaswag": Known(
        "Rowan/hellaswag",
        None,
        {"train": HELLASWAG, "validation": HELLASWAG},
        lambda row: " " + row["endings"][int(row["label"])],
    ),
    "arc_challenge": Known(
        "allenai/ai2_arc",
        "ARC-Challenge",
        {"train": ARC, "test": ARC},
        lambda row: " " + row["choices"]["text"][row["choices"]["label"].index(row["answerKey"])],
    ),
    "piqa": Known(
        "baber/piqa",
        None,
        {"train": PIQA, "validation": PIQA},
        lambda row: " " + row[f"sol{row['label'] + 1}"],
    ),
    "winogrande": Known(
        "allenai/winogrande",
        "winogrande_xl",
        {"train": WINOGRANDE, "validation": WINOGRANDE},
        lambda row: row[f"option{row['answer']}"],
    ),
    "truthfulqa_mc1": Known(
        "truthfulqa/truthful_qa", "multiple_choice", {"validation": TRUTHFUL}, lambda _: " a number"
    ),
    "gpqa_main_zeroshot": Known(
        "Idavidrein/gpqa", "gpqa_main", {"train": GPQA}, lambda row: f" {row['answer']}"
    ),
    "humaneval": Known(
        "openai/openai_humaneval", None, {"test": HUMANEVAL}, lambda row: row["canonical_solution"]
    ),
    "mbpp": Known(
        "google-research-datasets/mbpp", "full", {"test": MBPP}, lambda row: row["code"] + "\n"
    ),
    "minerva_math_algebra": Known(
        "EleutherAI/hendrycks_math",
        "algebra",
        {"train": MATH, "test": MATH},
        lambda row: f"Final Answer: The final answer is ${row['answer']}$. I hope it is correct.",
    ),
    "bbh_cot_fewshot_boolean_expressions": Known(
        "SaylorTwift/bbh",
        "boolean_expressions",
        {"test": BBH},
        lambda row: f"So the answer is {row['target']}.",
    ),
    "ifeval": Known("google/IFEval", None, {"train": IFEVAL}, lambda _: "none at all"),
}
PRO = [
    {
        "question_id": i,
        "question": f"{category} {i}?",
        "options": [f"{letter} of ten" for letter in "abcdefghij"],
        "answer": "ABCDEFGHIJ"[i],
        "answer_index": i,
        "cot_content": f"A: Let's think step by step. The answer is ({'ABCDEFGHIJ'[i]}).",
        "category": category,
        "src": "made",
    }
    for i in range(6)
    for category in ("math", "law")
]
TASKS |= {
    # The same data asked in other ways, as the instruct models are.
    "mmlu_anatomy_generative": TASKS["mmlu_anatomy"]._replace(right=_mmlu_right),
    "mmlu_pro_math": Known(
        "TIGER-Lab/MMLU-Pro",
        None,
        {"test": PRO, "validation": PRO[:10]},
        lambda row: f"So the answer is ({row['answer']}).",
    ),
    "gsm8k_cot": TASKS["gsm8k"]._replace(
        right=lambda row: f"The answer is {row['answer'].split()[-1]}."
    ),
    "gpqa_main_n_shot": TASKS["gpqa_main_zeroshot"],
    "arc_challenge_chat": TASKS["arc_challenge"]._replace(right=lambda row: row["answerKey"]),
    "humaneval_instruct": TASKS["humaneval"],
    # Its scoring takes a word right behind the opening ``` for the name of the language.
    "mbpp_instruct": TASKS["mbpp"]._replace(right=lambda row: f"\n{row['code']}\n```"),
}
NEEDS = {
    "minerva_math_algebra": ("math_verify", "antlr4"),
    "ifeval": ("langdetect", "immutabledict", "nltk"),
}
"""Packages that a task's own scoring imports."""


def write_words(folder: Path) -> None:
    """The place of NLTK's data for sentences; the answers of these tests need none of it."""
    (folder / "nltk_data" / "tokenizers" / "punkt_tab").mkdir(parents=True)
