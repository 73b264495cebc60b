"""Answers on the disk: found again, shared between processes, whole lines only."""

import subprocess
import sys

import pytest

from jaxllada.apps.evaluation.answers_kept import KeptAnswers, key_of
from jaxllada.common.errors import UserError

A, B, C = {"text": "é\n one"}, {"values": [-1.5, -0.25]}, {"text": "three"}


def test_answers_are_found_again_by_a_later_run(tmp_path):
    first = KeptAnswers(tmp_path / "answers")
    first.add({"a": A, "b": B})
    first.close()
    second = KeptAnswers(tmp_path / "answers")
    assert "a" in second
    assert "c" not in second
    assert (second["a"], second["b"]) == (A, B)


def test_processes_read_what_the_others_have_written(tmp_path):
    one, other = (KeptAnswers(tmp_path, f"part-{i}-of-2") for i in range(2))
    one.add({"a": A})
    assert "a" not in other
    other.add({"b": B})
    for kept in (one, other):
        kept.refresh()
        assert (kept["a"], kept["b"]) == (A, B)
    one.add({"c": C})
    other.refresh()
    assert other["c"] == C


def test_a_line_that_a_killed_process_began_is_dropped(tmp_path):
    kept = KeptAnswers(tmp_path)
    kept.add({"a": A, "b": B})
    kept.close()
    path = tmp_path / "answers.jsonl"
    whole = path.read_bytes()
    begun = whole.splitlines(keepends=True)
    for cut in range(len(begun[0]) + 1, len(whole)):  # anywhere inside the second line
        path.write_bytes(whole[:cut])
        again = KeptAnswers(tmp_path)
        assert "a" in again
        assert "b" not in again
        again.add({"c": C})
        again.close()
        assert path.read_bytes() == begun[0] + b'{"key": "c", "text": "three"}\n'


def test_a_line_that_is_still_being_written_is_read_when_it_is_whole(tmp_path):
    writer = (tmp_path / "part-1-of-2.jsonl").open("ab")
    writer.write(b'{"key": "a", "te')
    writer.flush()
    reader = KeptAnswers(tmp_path)
    assert len(reader) == 0
    writer.write(b'xt": "whole"}\n')
    writer.close()
    reader.refresh()
    assert reader["a"] == {"text": "whole"}


def test_damaged_lines_are_told_and_passed_over(tmp_path, capsys):
    (tmp_path / "answers.jsonl").write_text('{"key": "a", "text": "x"}\n{"key": \n[1]\n{"no": 1}\n')
    kept = KeptAnswers(tmp_path)
    assert kept["a"] == {"text": "x"}
    assert len(kept) == 1
    assert "3 damaged lines" in capsys.readouterr().err


def test_two_processes_cannot_append_to_one_file(tmp_path):
    holder = KeptAnswers(tmp_path / "answers")
    holder.add({"a": A})
    code = (
        "from pathlib import Path; from jaxllada.apps.evaluation.answers_kept import KeptAnswers;"
        f"KeptAnswers(Path({str(tmp_path / 'answers')!r})).add({{'b': {{}}}})"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "is being written by another process" in found.stderr
    holder.close()
    subprocess.run([sys.executable, "-c", code], check=True)  # free again


def test_keys_tell_apart_what_determines_an_answer():
    assert key_of("text", [1, 2], {"b": 1, "a": 2}) == key_of("text", [1, 2], {"a": 2, "b": 1})
    others = [("text", [1, 2], {"a": 2}), ("text", [12], {}), ("score", [1, 2], {}), ("text", [1])]
    assert len({key_of(*parts) for parts in others}) == len(others)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="output=.*file: Not a directory"):
        KeptAnswers(tmp_path / "file" / "answers").add({"a": A})
