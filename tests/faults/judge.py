"""One command in a process of its own, with a time limit and its output kept, and what the rule says of it."""

import faulthandler
import fnmatch
import hashlib
import os
import re
import signal
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

from ipu_trainer.cli import main

SECONDS = 120
MEGABYTES = 1500  # more than the undamaged command takes
# Verdicts that the rule allows.
GOOD = ("refused", "unharmed", "said", "no checksum")


@dataclass(frozen=True)
class Outcome:
    """code: of the command, minus the signal that ended it, or None for one that did not end. kilobytes: its largest memory."""

    code: int
    out: str
    err: str
    kilobytes: int


def run(words, log, seconds=SECONDS):
    """The command in a forked process: what is imported need not be imported again."""
    sys.stdout.flush(), sys.stderr.flush()
    child = os.fork()
    if not child:
        code = 70
        try:
            for number, name in ((1, "out"), (2, "err")):
                os.dup2(os.open(f"{log}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            faulthandler.enable()
            code = main(words)
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(code)
    deadline = time.monotonic() + seconds
    while True:
        ended, status, usage = os.wait4(child, os.WNOHANG)
        if ended:
            break
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGABRT)  # faulthandler says where it hangs
            _, _, usage = os.wait4(child, 0)
            status = None
            break
        time.sleep(0.01)
    code = None if status is None else -(status & 127) or status >> 8
    texts = (Path(f"{log}.{name}").read_text(encoding="utf-8", errors="replace") for name in ("out", "err"))
    return Outcome(code, *texts, usage.ru_maxrss)


def digests(folder, left_out=()):
    """Digest of each file below folder, by its name."""
    return {
        str(path.relative_to(folder)): hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(str(path.relative_to(folder)).startswith(name) for name in left_out)
    }


def results(scenario, folder, outcome):
    """What is equal where the damage changed nothing: files, or what was printed."""
    if not scenario.results:
        return {"printed": outcome.out}
    return {name: (folder / name).read_bytes() if (folder / name).is_file() else None for name in scenario.results}


def verdict(scenario, file, outcome, same_result, touched, most_kilobytes):
    """(verdict, cause): the verdict is one of GOOD, or says what is wrong; the cause is a line to group by.

    file: the damaged one, relative to the folder of the case.
    """
    last = (outcome.err.strip().splitlines() or [""])[-1]
    named = _names(file, outcome.err + outcome.out)
    if outcome.code is None:
        return "hang", _raised(outcome.err)
    if outcome.code < 0:
        return "crash", f"signal {-outcome.code}"
    if "Traceback (most recent call last)" in outcome.err:
        return "traceback", _raised(outcome.err)
    if touched:
        return "foreign file touched", touched[0]
    if outcome.kilobytes > most_kilobytes:
        return "memory", f"{outcome.kilobytes // 1024:,} MB"
    if outcome.code == 0:
        if scenario.name.startswith("check"):  # what it cannot see has no checksum
            return "no checksum", ""
        if same_result:
            return "unharmed", ""
        if named:
            return "said", ""
        if any(fnmatch.fnmatch(Path(file).name, pattern) for pattern in scenario.loose):
            return "no checksum", ""
        return "silent change", Path(file).name
    if scenario.name.startswith("check"):
        return ("refused", "") if named else ("file not named", last)
    if outcome.code == 3 and named:
        return "said", ""
    lines = [line for line in outcome.err.splitlines() if line.startswith("ipu-trainer")]
    rejected = scenario.name.startswith("prepare") and outcome.code == 1 and "rejected.csv" in outcome.err
    if rejected:
        return "refused", ""
    if len(lines) != 1:
        return "not one line", last
    return ("refused", "") if named else ("file not named", _general(last))


def _names(file, text):
    """Whether the text names the file, or the folder that it is all of."""
    path = Path(file)
    return path.name in text or any(str(parent) in text for parent in list(path.parents)[:-1])


def _raised(err):
    """The last line of a traceback with the last line of this package in it."""
    lines = err.strip().splitlines()
    error = next((line for line in reversed(lines) if re.match(r"[\w.]+(Error|Exception|Interrupt|Warning)?:? ?", line) and
                  not line.startswith(("ipu-trainer", " "))), "")  # fmt: skip
    places = re.findall(r'ipu_trainer/([\w/]+\.py)", line (\d+)', err)
    where = f"{places[-1][0]}:{places[-1][1]} " if places else ""
    return where + _general(error)


def _general(line):
    """A line without what differs between cases: numbers, paths and quoted values."""
    line = re.sub(r"/[^\s:,]+/", ".../", line)
    return re.sub(r"0x[0-9a-f]+|\d+", "N", line)[:160]
