"""docs/flags.md from ipu_trainer/tasks/recipe/flag_table.py, whose rows tests/tasks/test_flag_table.py holds against what happens.

python scripts/flag_table.py > docs/flags.md
"""

from __future__ import annotations

from typing import Iterator, Sequence

from ipu_trainer.tasks.recipe.flag_table import ALWAYS, EFFECTIVE, HARMLESS, NEEDS, RANGES, REFUSED, TASKS

TOP = """# Flags of the tasks

`ipu-trainer train TASK` and `ipu-trainer search TASK` take every field of transformers' `TrainingArguments`
(`Seq2SeqTrainingArguments` for seq2seq), those of `IPUTrainingArguments`, and flags of their own. None is taken and ignored,
and none ends a run after its training: what a task does not read is refused before work. Names of other releases of
transformers are taken too: [migration.md](migration.md).

This page is made by `scripts/flag_table.py`.
"""


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield ""
    yield f"| {' | '.join(head)} |"
    yield "|" + "---|" * len(head)
    yield from (f"| {' | '.join(row)} |" for row in rows)
    yield ""


def page() -> Iterator[str]:
    yield TOP
    yield "## Refused unless left at their defaults"
    yield from table(
        ("flag", "task", "why"),
        [
            (f"`--{name}`", "all" if row.tasks == TASKS else ", ".join(row.tasks), row.why)
            for name, row in sorted(REFUSED.items())
        ],
    )
    yield "`train_sampling_strategy sequential` is read by all tasks, `prediction_loss_only` by seq2seq without generation, and"
    yield "`non_blocking` of `accelerator_config` by chest-xray.\n"
    yield "## Read in some circumstances, and refused in others"
    yield from table(("flag", "rule"), [(f"`--{name}`", need.rule) for name, need in sorted(NEEDS.items())])
    yield "## Harmless"
    yield from table(
        ("flag", "why"),
        [
            *((f"`--{name}`", why) for name, (_, why) in sorted(HARMLESS.items())),
            *((f"`--{name} True`", f"{why}; False is refused") for name, why in ALWAYS.items()),
        ],
    )
    yield "## Read"
    yield ""
    yield "As transformers documents them, or [performance.md](performance.md), [ipu.md](ipu.md) and `--help` do:"
    yield ", ".join(f"`{name}`" for name in sorted(EFFECTIVE)) + "."
    yield ""
    yield (
        "Out of range, these are refused before work: "
        + ", ".join(f"`{name}`" for name in sorted(RANGES))
        + ", `max_steps`."
    )
    yield "So are a `metric_for_best_model` (or a search's `--objective`) that the task does not compute, an `optim` whose package"
    yield "is not installed, and `lr_scheduler_kwargs` that the schedule does not take."


if __name__ == "__main__":
    print("\n".join(page()))
