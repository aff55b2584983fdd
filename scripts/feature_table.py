"""Write the table of Trainer's features into README.md, or with --check say whether it is current.

    python scripts/feature_table.py [--check]

Each row names the test that proves it; a row whose test is not there is an error.
"""

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- feature table -->", "<!-- end of the feature table -->"
FEATURES = "tests/training/test_trainer_features.py"
DEVICE = "tests/training/test_on_device.py"
SEQ2SEQ = "tests/training/test_seq2seq.py"
SEARCH = "tests/training/test_hyperparameter_search.py"
# feature, Trainer 5.x, optimum-graphcore's IPUTrainer 0.7.1, here on the host, here on a device, file, test
ROWS = [
    ("`set_dataloader`, `set_optimizer`, `set_lr_scheduler`", "yes", "no", "yes", "yes", FEATURES, "test_set_methods_say_the_same_as_arguments"),
    ("persistent loading processes, prefetch factor", "yes", "no", "yes", "yes", FEATURES, "test_loading_processes_are_as_asked_for"),
    ("sample order by `data_seed`", "yes", "yes", "yes", "yes", FEATURES, "test_the_order_of_samples_is_a_function_of_the_sampler_seed"),
    ("columns that `forward` does not take are removed", "yes", "yes", "yes", "yes", FEATURES, "test_columns_that_forward_does_not_take_are_removed"),
    ("data sets without a length", "yes", "no", "yes", "whole host steps", FEATURES, "test_a_stream_trains_and_evaluates_as_the_same_rows_in_order"),
    ("dict of evaluation sets", "yes", "last one's metrics only", "yes", "yes", FEATURES, "test_a_dict_of_evaluation_sets_is_evaluated_by_name"),
    ("last, smaller batch of evaluation counted exactly", "yes", "padded or dropped", "yes", "yes", DEVICE, "test_the_ragged_last_batch_of_evaluation_counts_each_sample_once"),
    ("`auto_find_batch_size`", "shrinks the global batch", "no", "keeps the global batch", "keeps the global batch", DEVICE, "test_auto_find_batch_size_keeps_the_global_batch"),
    ("`ignore_data_skip`, exact resume", "yes", "yes", "yes", "yes", FEATURES, "test_data_that_were_seen_are_skipped_on_resuming_unless_asked_not_to"),
    ("`optimizers=(optimizer, scheduler)`", "yes", "converted", "yes", "yes", DEVICE, "test_optimizers_and_schedulers_that_are_given_are_used"),
    ('`optimizers=("adamw_torch", {"lr": 1e-4})`', "no", "no", "yes", "yes", FEATURES, "test_an_optimizer_by_name_and_settings_trains_as_one_that_is_made"),
    ("optimizers without a counterpart on a device", "-", "`optim` is no field", "-", "refused, with those that have one", FEATURES, "test_an_optimizer_without_a_counterpart_is_refused_on_a_device_with_those_that_have_one"),
    ("`max_grad_norm`", "yes", "ignored", "yes", "honoured or refused", DEVICE, "test_what_a_device_cannot_honour_is_refused"),
    ("`create_optimizer` overridden", "yes", "yes", "yes", "yes", FEATURES, "test_create_optimizer_may_be_overridden"),
    ("`compute_loss` overridden", "yes", "inside the model's class", "yes", "yes", FEATURES, "test_compute_loss_may_be_overridden"),
    ("overrides with the signatures of 4.29", "no", "yes", "yes", "yes", DEVICE, "test_subclasses_with_old_signatures_work_on_both_backends"),
    ("`get_optimizer_cls_and_kwargs`", "yes", "no", "yes", "yes", FEATURES, "test_get_optimizer_cls_and_kwargs_is_the_stock_table"),
    ("seq2seq: `predict_with_generate`, `max_length`, `num_beams`", "yes", "yes", "yes", "on the device, in fixed shapes", SEQ2SEQ, "test_generation_on_a_device_writes_the_hosts_tokens"),
    ("seq2seq: `metric_key_prefix`, `ignore_keys`, generation settings", "yes", "yes", "yes", "yes", SEQ2SEQ, "test_evaluation_takes_generation_settings_and_the_arguments_defaults"),
    ("search: studies that resume after a kill", "no", "no search", "yes", "yes", SEARCH, "test_a_study_resumes_after_a_kill_without_repeating_finished_trials"),
    ("search: a failed or out-of-memory trial is one trial", "ends the study", "no search", "yes", "yes", SEARCH, "test_a_trial_out_of_memory_fails_alone"),
    ("search: several directions", "yes", "no search", "yes", "yes", SEARCH, "test_several_directions_give_the_pareto_front"),
    ("search: batch geometry at a fixed global batch", "no", "no search", "yes", "yes", SEARCH, "test_geometry_is_searched_at_a_fixed_global_batch_and_what_cannot_be_is_skipped"),
    ("search: a command, its table, plots and best run as a config", "no", "no search", "yes", "yes", "tests/tasks/test_search_command.py", "test_a_search_leaves_a_table_plots_and_a_config_that_train_takes"),
]  # fmt: skip


def table() -> str:
    lines = [
        "| feature | Trainer 5.x | optimum-graphcore 0.7.1 | here, host | here, device | test |",
        "|---|---|---|---|---|---|",
    ]
    for *cells, file, test in ROWS:
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        if test not in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}:
            raise SystemExit(f"{file} has no {test}: write the test, or take the row out.")
        lines.append(f"| {' | '.join(cells)} | [test]({file} '{test}') |")
    return "\n".join(lines)


def main() -> int:
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    made = f"{before}{BEGIN}\n{table()}\n{END}{after}"
    if "--check" in sys.argv[1:]:
        return int(made != text)
    readme.write_text(made, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
