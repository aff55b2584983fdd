"""Which checkpoint a run may go on from: each damage of each file is told, with digests and without them."""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from ipu_trainer.training.state.checkpoints import (
    DIGESTS_FILE,
    WritesDigests,
    complete_checkpoints,
    find_checkpoint,
    why_not_whole,
)

FILES = ["model.safetensors", "optimizer.pt", "rng_state.pth", "scheduler.pt", "trainer_state.json"]


def checkpoint(run, step, digests=True):
    folder = run / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(step)
    save_file({"weight": torch.randn(40, generator=generator)}, str(folder / "model.safetensors"))
    for name in ("optimizer.pt", "rng_state.pth", "scheduler.pt"):
        torch.save({"state": torch.randn(40, generator=generator)}, folder / name)
    state = {"global_step": step, "best_model_checkpoint": None, "log_history": []}
    (folder / "trainer_state.json").write_text(json.dumps(state))
    if digests:
        args = SimpleNamespace(output_dir=str(run), should_save=True)
        WritesDigests().on_save(args, SimpleNamespace(global_step=step), None)
    return folder


def cut(path):
    path.write_bytes(path.read_bytes()[:-7])


def flip(path):
    content = bytearray(path.read_bytes())
    content[2 * len(content) // 3] ^= 4
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("damage", [cut, flip, lambda path: path.unlink(), lambda path: path.write_bytes(b"")])
@pytest.mark.parametrize("name", [*FILES, DIGESTS_FILE])
def test_a_damaged_checkpoint_is_passed_over_with_its_reason(tmp_path, name, damage):
    whole, newest = checkpoint(tmp_path, 2), checkpoint(tmp_path, 10)
    assert find_checkpoint(tmp_path) == (str(newest), ())
    damage(newest / name)
    found = find_checkpoint(tmp_path)
    if name == DIGESTS_FILE and not (newest / name).exists():
        assert found == (str(newest), ())  # as an earlier release left it
        return
    assert found.path == str(whole) and found.step == 2
    assert len(found.passed_over) == 1 and found.passed_over[0].startswith("checkpoint-10: ")
    assert name in found.passed_over[0]


@pytest.mark.parametrize("name", FILES)
def test_without_digests_a_file_that_was_cut_short_is_told_and_so_is_a_flipped_bit_of_a_state(tmp_path, name):
    folder = checkpoint(tmp_path, 4, digests=False)
    assert why_not_whole(folder) is None
    kept = (folder / name).read_bytes()
    cut(folder / name)
    assert name in why_not_whole(folder)
    (folder / name).write_bytes(kept)
    if name.startswith(("optimizer", "rng", "scheduler")):
        # In the tensor's bytes: torch's archives hold a CRC-32 of each member.
        at = kept.index(torch.load(folder / name, weights_only=True)["state"].numpy().tobytes())
        (folder / name).write_bytes(kept[:at] + bytes([kept[at] ^ 1]) + kept[at + 1 :])
        assert f"{name} is damaged" in why_not_whole(folder)


def test_random_states_of_other_processes_are_no_part_of_the_digests_and_are_held_against_their_format(tmp_path):
    folder = checkpoint(tmp_path, 4, digests=False)
    torch.save({"cpu": torch.zeros(9)}, folder / "rng_state_1.pth")
    (folder / ".optimizer.pt.abcd1234.tmp").write_text("half")
    WritesDigests().on_save(
        SimpleNamespace(output_dir=str(tmp_path), should_save=True), SimpleNamespace(global_step=4), None
    )
    assert set(json.loads((folder / DIGESTS_FILE).read_text())["files"]) == set(FILES)
    assert why_not_whole(folder) is None
    cut(folder / "rng_state_1.pth")
    assert "rng_state_1.pth" in why_not_whole(folder)


def test_a_run_that_was_moved_finds_its_best_checkpoint(tmp_path):
    here = checkpoint(tmp_path / "new", 2)
    args = SimpleNamespace(output_dir=str(tmp_path / "new"))
    for best, step in ((str(tmp_path / "old" / "checkpoint-2"), None), (None, 2)):  # 5.x forgets a path that is gone
        state = SimpleNamespace(best_model_checkpoint=best, best_global_step=step)
        WritesDigests().on_train_begin(args, state, None)
        assert state.best_model_checkpoint == str(here)
    elsewhere = checkpoint(tmp_path / "other", 2)
    state = SimpleNamespace(best_model_checkpoint=str(elsewhere))
    WritesDigests().on_train_begin(args, state, None)
    assert state.best_model_checkpoint == str(elsewhere)


def test_what_a_killed_run_left_undone_is_done(tmp_path):
    """It was removing an old checkpoint, or had not written the digests of a new one."""
    for step in (2, 4, 6, 8):
        checkpoint(tmp_path, step)
    (tmp_path / "checkpoint-2" / "optimizer.pt").unlink()
    (tmp_path / "checkpoint-8" / "optimizer.pt").unlink()  # half written: the run writes it again
    (tmp_path / "checkpoint-own").mkdir()
    (tmp_path / "checkpoint-6" / DIGESTS_FILE).unlink()
    complete_checkpoints(find_checkpoint(tmp_path / "nowhere"))
    complete_checkpoints(find_checkpoint(tmp_path))
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["checkpoint-4", "checkpoint-6", "checkpoint-8", "checkpoint-own"]
    assert set(json.loads((tmp_path / "checkpoint-6" / DIGESTS_FILE).read_text())["files"]) == set(FILES)


def test_a_training_that_ended_inside_of_an_epoch_is_not_resumed_from_its_end(tmp_path):
    """Trainer looks for its last step after a step: it would train one more, and end with other weights."""
    whole, last = checkpoint(tmp_path, 2), checkpoint(tmp_path, 4, digests=False)
    for epoch, taken in ((1.5, whole), (2.0, last)):
        (last / "trainer_state.json").write_text(json.dumps({"global_step": 4, "max_steps": 4, "epoch": epoch}))
        assert find_checkpoint(tmp_path, to_resume=True).path == str(taken)
        assert find_checkpoint(tmp_path).path == str(last)
