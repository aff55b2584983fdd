"""The campaign's parts, in process: its damages and its judgement. The campaign itself runs by hand (python -m tests.faults)."""

import json
import random

import pytest

from ipu_trainer.cli import main

from .damage import KINDS, damaged
from .judge import Outcome, verdict
from .scenarios import SCENARIOS

RECORD = json.dumps({"a": {"b": [1, 2, {"c": None}]}, "d": "text"}).encode()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "content", [RECORD, b"a,b\n1,2\n", bytes(range(256)), b""], ids=["json", "csv", "binary", "empty"]
)
def test_a_damage_is_drawn_from_its_seed_and_differs_from_the_file(kind, content):
    first, second = (damaged(kind, content, b"other", random.Random(3)) for _ in range(2))
    assert first == second
    assert first != content or not content or kind == "zeroed block" or kind == "other types"
    if kind == "other types" and content == RECORD:
        json.loads(first)


ONE_LINE = "ipu-trainer: /case/run/metrics.json is not JSON: it is cut. Restore it.\n"
TRACEBACK = 'Traceback (most recent call last):\n  File "/a/ipu_trainer/cli.py", line 7\nKeyError: 3\nipu-trainer: this is a fault\n'


@pytest.mark.parametrize(
    ("outcome", "same", "touched", "found"),
    [
        (Outcome(1, "", ONE_LINE, 1), False, [], "refused"),
        (Outcome(1, "", "ipu-trainer: something is wrong\n", 1), False, [], "file not named"),
        (Outcome(1, "", ONE_LINE * 2, 1), False, [], "not one line"),
        (Outcome(1, "", TRACEBACK, 1), False, [], "traceback"),
        (Outcome(-11, "", "", 1), False, [], "crash"),
        (Outcome(None, "", "", 1), False, [], "hang"),
        (Outcome(0, "", "", 1), True, [], "unharmed"),
        (Outcome(0, "", "", 1), False, [], "silent change"),
        (Outcome(0, "", "warning: metrics.json lacks a value\n", 1), False, [], "said"),
        (Outcome(0, "", "", 1), True, ["files/a.png"], "foreign file touched"),
        (Outcome(0, "", "", 9), True, [], "memory"),
    ],
)
def test_the_rule_as_the_campaign_judges_it(outcome, same, touched, found):
    report = next(item for item in SCENARIOS if item.name == "report")
    assert verdict(report, "run/metrics.json", outcome, same, touched, 8)[0] == found


def test_a_handful_of_damaged_prepared_folders_is_found(prepared, tmp_path, capsys):
    import shutil

    for number, kind in enumerate(("cut", "removed", "emptied", "null", "another file")):
        folder = tmp_path / kind
        shutil.copytree(prepared, folder)
        generator = random.Random(number)
        file = generator.choice(
            sorted(path for path in folder.rglob("*.*") if path.suffix in (".json", ".u8", ".arrow"))
        )
        content = damaged(kind, file.read_bytes(), (folder / "metadata.jsonl").read_bytes(), generator)
        file.unlink() if content is None else file.write_bytes(content)
        assert main(["check", str(folder)]) == 1, (kind, file)
        told = capsys.readouterr()
        assert "not whole" in told.out and not told.err
