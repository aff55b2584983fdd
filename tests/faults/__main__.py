"""The campaign: `python -m tests.faults --cases 200 --seed 7`. One line for each case that breaks the rule, then a summary.

The same seed gives the same damages; --case N runs one of them alone and shows what it printed. Exit code 1 where the rule was
broken. It takes one to four seconds a case on one core.
"""

import argparse
import collections
import os
import random
import shutil
import sys
import tempfile
import traceback
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch

from . import judge
from .damage import KINDS, damaged
from .scenarios import SCENARIOS, make

torch.set_num_threads(1)


def campaign(cases, seed, work, only=None, commands=()):
    """Counts by verdict, and by (verdict, scenario, damage, cause) for those that break the rule."""
    scenarios = [item for item in SCENARIOS if not commands or item.name in commands]
    folder, whole, log = work / "case", work / "whole", work / "log"
    folder.mkdir(parents=True)
    _in_child(lambda: make(folder), log)
    folder.rename(whole)
    reference = {}
    for scenario in scenarios:
        _fresh(whole, folder)
        outcome = judge.run(scenario.words.format(folder).split(), log)
        if outcome.code != 0:
            raise SystemExit(f"{scenario.name} fails undamaged:\n{outcome.out}{outcome.err}")
        reference[scenario.name] = judge.results(scenario, folder, outcome), outcome.kilobytes
    verdicts, causes = collections.Counter(), collections.Counter()
    for number in range(cases) if only is None else [only]:
        generator = random.Random(f"{seed} {number}")
        scenario = scenarios[number % len(scenarios)]
        _fresh(whole, folder)
        files = sorted({path for pattern in scenario.reads for path in folder.glob(pattern) if path.is_file()})
        file, other, kind = generator.choice(files), generator.choice(files), generator.choice(KINDS)
        before = file.read_bytes()
        content = damaged(kind, before, other.read_bytes(), generator)
        if content == before:
            verdicts["unharmed"] += 1
            continue
        if content is None:
            file.unlink()
        else:
            file.write_bytes(content)
        kept = ("out", *scenario.writes)
        state = judge.digests(folder, kept)
        outcome = judge.run(scenario.words.format(folder).split(), log)
        now = judge.digests(folder, kept)
        touched = sorted(name for name in {*state, *now} if state.get(name) != now.get(name))
        expected, kilobytes = reference[scenario.name]
        same = outcome.code == 0 and judge.results(scenario, folder, outcome) == expected
        name = str(file.relative_to(folder))
        found, cause = judge.verdict(scenario, name, outcome, same, touched, kilobytes + 1024 * judge.MEGABYTES)
        verdicts[found] += 1
        if found not in judge.GOOD:
            causes[found, scenario.name, cause] += 1
            print(f"case {number}: {found}: {scenario.name}, {kind} of {name}: {cause}", flush=True)
        if only is not None:
            print(f"case {number}: {found}: {scenario.name}, {kind} of {name}, exit code {outcome.code}")
            print(f"{outcome.out}{outcome.err}")
    return verdicts, causes


def _fresh(whole, folder):
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole, folder)


def _in_child(work, log):
    """This process forks later, so it runs nothing itself that starts threads."""
    child = os.fork()
    if not child:
        code = 1
        try:
            output = os.open(f"{log}.make", os.O_WRONLY | os.O_CREAT)
            os.dup2(output, 1), os.dup2(output, 2)
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(code)
    if os.waitpid(child, 0)[1]:
        raise SystemExit(f"the files to damage cannot be made:\n{Path(f'{log}.make').read_text()[-3000:]}")


def _import_everything():
    """What each case would import again."""
    import matplotlib.figure  # noqa: F401
    import optuna  # noqa: F401

    from ipu_trainer.tasks.checking import check_command  # noqa: F401
    from ipu_trainer.tasks.chest_xray import evaluate, export, predict, train  # noqa: F401


def main(words=None):
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--case", type=int, help="run this one alone and show what it printed")
    parser.add_argument("--command", action="append", default=[], help=", ".join(item.name for item in SCENARIOS))
    namespace = parser.parse_args(words)
    _import_everything()
    with tempfile.TemporaryDirectory() as work:
        verdicts, causes = campaign(namespace.cases, namespace.seed, Path(work), namespace.case, namespace.command)
    total = ", ".join(f"{count} {name}" for name, count in verdicts.most_common())
    print(f"\n{sum(verdicts.values())} cases, seed {namespace.seed}: {total}")
    for (found, command, cause), count in causes.most_common():
        print(f"{count:5}  {found}  {command}: {cause}")
    print(
        "the rule holds"
        if not causes
        else f"the rule is broken in {sum(causes.values())} cases, by {len(causes)} causes"
    )
    return 1 if causes else 0


if __name__ == "__main__":
    raise SystemExit(main())
