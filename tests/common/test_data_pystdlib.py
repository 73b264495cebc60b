"""Properties of the built-in text."""

import ast
import hashlib
import importlib
import inspect
import os
import subprocess
import sys

import pytest

from jaxllada.common.data import pystdlib, pystdlib_pairs, pystdlib_texts


@pytest.fixture(scope="module")
def both():
    return pystdlib.documents("train"), pystdlib.documents("test")


def test_there_is_enough_real_text_of_every_kind(both):
    train, test = both
    assert {d.kind for d in train} == {"topic", "docstrings", "source"}
    assert sum(len(d.text) for d in train) > 3_000_000
    share = sum(len(d.text) for d in test) / sum(len(d.text) for d in train + test)
    assert 0.01 < share < 0.2


def test_no_text_of_a_module_is_on_both_sides(both):
    def modules(documents):
        names = (d.name.partition(":")[2] for d in documents if d.kind != "topic")
        names = (n.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for n in names)
        return {
            n.lstrip("_").removeprefix("py") if n.startswith("_py") else n.lstrip("_")
            for n in names
        }

    train, test = both
    assert not modules(train) & modules(test)
    assert not {d.name for d in train} & {d.name for d in test}


def test_validation_texts_are_new_text(both):
    """Line by line, what a model could have learnt by heart is at most a fifth."""
    train, test = both
    known = {line.strip() for d in train for line in d.text.splitlines()}
    for document in test:
        lines = {line.strip() for line in document.text.splitlines() if len(line.strip()) >= 30}
        assert len(lines & known) <= 0.2 * len(lines), document.name


def test_no_text_stands_there_twice(both):
    texts = [" ".join(d.text.split()) for split in both for d in split]
    assert len(texts) == len(set(texts))


def test_sources_still_parse_without_their_docstrings(both):
    for document in both[0] + both[1]:
        if document.kind == "source":
            ast.parse(document.text)
    textwrap = {d.name: d.text for split in both for d in split}
    assert "Object for wrapping/filling text" in textwrap["docstrings:textwrap"]
    assert "Object for wrapping/filling text" not in textwrap["source:textwrap.py"]
    assert "def _wrap_chunks" in textwrap["source:textwrap.py"]


def test_another_process_reads_the_same_text(both):
    code = (
        "import sys; sys.excepthook = sys.displayhook = print\n"
        "import builtins; builtins.extra = lambda: 0\n"
        "from jaxllada.common.data import pystdlib; import hashlib\n"
        "both = pystdlib.documents('train'), pystdlib.documents('test')\n"
        "print(hashlib.sha256(repr(both).encode()).hexdigest(), pystdlib.fingerprint())"
    )
    environment = os.environ | {"PYTHONHASHSEED": "77"}
    out = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment
    )
    own = hashlib.sha256(repr(both).encode()).hexdigest()
    assert out.stdout.split() == [own, pystdlib.fingerprint()]


def test_titles_read_like_calls():
    titles = [t for t, _ in pystdlib_texts.members("math", __import__("math"))]
    assert "math.acos(x, /)" in titles
    builtin = [t for t, _ in pystdlib_texts.members("builtins", __import__("builtins"))]
    assert "str.isalpha()" in builtin
    assert "len(obj, /)" in builtin


def test_pairs_ask_for_functions_and_answer_with_what_they_do():
    """Against docstrings of the objects themselves, imported."""
    train, test = pystdlib_pairs.pairs("train"), pystdlib_pairs.pairs("test")
    assert len(train) > 3000
    assert len(test) > 100
    known = {pair.prompt.partition("(")[0]: pair for pair in (*train, *test)}
    for name in ("textwrap.dedent", "bisect.insort_right", "shutil.copymode"):
        module, function = name.split(".")
        documented = inspect.getdoc(getattr(importlib.import_module(module), function)) or ""
        assert " ".join(documented.split("\n\n")[0].split()) == known[name].response
        assert known[name].prompt.endswith(")")


def test_pairs_of_a_module_are_on_the_side_of_its_text():
    sides = {split: {d.group for d in pystdlib.documents(split)} for split in ("train", "test")}
    for split, other in (("train", "test"), ("test", "train")):
        groups = {pystdlib_texts.group_of(pair.module) for pair in pystdlib_pairs.pairs(split)}
        assert groups <= sides[split]
        assert not groups & sides[other]
