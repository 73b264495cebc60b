"""The alarm for floods of end tokens is given once, when there is one, with what would help."""

import json

import pytest

from jaxllada.common.run.alarm import LINES, EosAlarm
from jaxllada.common.run.progress import Progress
from jaxllada.common.run.run_log import RunLog
from jaxllada.common.run.samples import Samples
from jaxllada.common.tracking import Tracking
from tests.common.sft_sums import Counted, Step


def lines(*shares):
    return [{"content_as_eos": share} for share in shares]


def test_it_needs_a_mean_over_some_lines_and_is_given_once():
    alarm = EosAlarm()
    quiet = [alarm.look(line) for line in lines(0.9, 0.1, 0.2, 0.3, 0.4, 0.4, None, 0.4)]
    assert quiet == [None] * 8
    told = [alarm.look(line) for line in lines(0.9, 0.9, 0.9)]
    # The means are 0.48, 0.6 and then nothing more is said.
    assert [text is not None for text in told] == [False, True, False]
    assert "EOS is the first choice for 60 % of the masked content" in told[1]
    assert alarm.look({}) is None


@pytest.mark.parametrize(
    ("settings", "has", "lacks"),
    [
        ({}, ["group_by_length=true", "pad_policy=eos_capped:8"], []),
        ({"group_by_length": True}, ["pad_policy"], ["group_by_length"]),
        ({"group_by_length": True, "pad_policy": "ignore"}, ["confidence_eos"], ["Train with"]),
    ],
)
def test_it_names_what_is_not_done_yet(settings, has, lacks):
    text = EosAlarm(**settings).hear(Samples("", 3, 2))
    assert "2 of 3 probe answers begin with an end token" in text
    assert all(word in text for word in has)
    assert not any(word in text for word in lacks)


def test_texts_and_answers_with_words_are_no_flood():
    alarm = EosAlarm()
    assert alarm.hear(Samples("a text")) is None
    assert alarm.hear(Samples("", 4, 2)) is None


def test_it_stands_in_the_metrics_and_survives_a_checkpoint(tmp_path, capsys):
    def log(folder):
        return RunLog(Tracking(folder), Progress(10))

    first, step = log(tmp_path / "a"), Step(Counted(masked=[10, 1, 1], ended=[8, 0, 0]))
    for number in range(1, LINES):
        first.add(number, step)
        first.line(number, 0.1, None)
    second = log(tmp_path / "b")
    second.load(json.loads(json.dumps(first.state())))
    for number in range(LINES, LINES + 3):
        second.add(number, step)
        second.line(number, 0.1, None)
    told = capsys.readouterr().err
    assert told.count(f"warning: step {LINES}: the model starts to answer with end tokens") == 1
    rows = [json.loads(x) for x in (tmp_path / "b" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row.get("event") == "eos_flood"] == [LINES]
    assert second.state()["alarm"]["is_given"]
