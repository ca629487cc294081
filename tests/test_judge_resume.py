"""judge/runs/resume.py: a run goes on only as itself, and whoever is stopped is told what was kept."""

import errno
import json

import pytest

from judge.errors import CheckpointError, ConfigError
from judge.runs.folder import RunDir
from judge.runs.resume import check_options, explain_interruption, newest_checkpoint

BEGUN = {
    "seed": 42,
    "learning_rate": 1e-3,
    "lora_r": 4,
    "flip": {"group_size": 4},
    "held_out": ["four", "eight"],
    "max_steps": 6,
    "lr_scheduler_type": "constant",
    "save_steps": 2,
    "eval_rows": 20,
    "changed": {},
}


@pytest.fixture
def begun(tmp_path):
    """`begun(**options)` -> the folder of a run that was begun with them."""

    def make(name="run", **options):
        run = RunDir.create(tmp_path / name)
        run.write_config(BEGUN | options)
        return run.path

    return make


def save(run, step, state='{"global_step": 1}'):
    folder = run / f"checkpoint-{step}"
    folder.mkdir()
    if state is not None:
        (folder / "trainer_state.json").write_text(state)
    return folder


def test_the_same_options_pass_and_so_does_a_new_folder(begun, tmp_path):
    check_options(begun(), dict(BEGUN))
    check_options(tmp_path / "new", dict(BEGUN))


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("seed", 7, "seed 42, not 7"),
        ("learning_rate", 2e-3, "learning_rate 0.001, not 0.002"),
        ("lora_r", 8, "lora_r 4, not 8"),
        ("flip", {"group_size": 2}, "flip {'group_size': 4}, not {'group_size': 2}"),
        ("held_out", [], r"held_out \['four', 'eight'\], not \[\]"),
        ("max_steps", 5, "max_steps 6, not 5"),
        ("lr_scheduler_type", "cosine", "lr_scheduler_type 'constant', not 'cosine'"),
    ],
)
def test_other_options_are_refused_by_name(begun, name, value, said):
    with pytest.raises(
        CheckpointError, match=rf"was started with {said}\. Resume it with.*another output_dir"
    ):
        check_options(begun(), BEGUN | {name: value})


def test_all_that_differs_is_named_at_once(begun):
    with pytest.raises(CheckpointError, match=r"learning_rate 0\.001, not 0\.1; seed 42, not 1"):
        check_options(begun(), BEGUN | {"seed": 1, "learning_rate": 0.1})


@pytest.mark.parametrize(
    "changed", [{"save_steps": 50, "eval_rows": 8}, {"changed": {"a": 1}}, {"option_of_a_newer_library": 1}]
)
def test_what_teaches_nothing_else_may_differ(begun, changed):
    check_options(begun(), BEGUN | changed)


def test_a_run_may_grow_only_where_the_rate_does_not_depend_on_its_end(begun):
    check_options(begun(), BEGUN | {"max_steps": 60})
    linear = {"lr_scheduler_type": "linear"}
    with pytest.raises(CheckpointError, match="max_steps 6, not 60"):
        check_options(begun("linear", **linear), BEGUN | linear | {"max_steps": 60})


def test_a_checkpoint_of_another_run_must_have_had_the_same_options(begun):
    other, mine = begun("other", lora_r=8), begun()
    checkpoint = str(save(other, 2))
    with pytest.raises(CheckpointError, match="other was started with lora_r 8, not 4"):
        check_options(mine, dict(BEGUN), checkpoint=checkpoint)
    check_options(mine, dict(BEGUN), checkpoint=str(save(mine, 2)))


@pytest.mark.parametrize("state", [None, "", '{"global_step": ', "[]"])
def test_a_checkpoint_that_was_cut_is_no_checkpoint(begun, state):
    run = begun()
    whole, cut = save(run, 9), save(run, 10, state)
    assert newest_checkpoint(run) == whole
    with pytest.raises(ConfigError, match="not written to its end"):
        check_options(run, dict(BEGUN), checkpoint=str(cut))


def test_the_newest_is_the_one_with_most_steps(begun):
    run = begun()
    assert newest_checkpoint(run) is None
    folders = [save(run, step) for step in (9, 10)]
    assert newest_checkpoint(run) == folders[1]


def wrapped(error):
    """As torch raises it: another type, the system's error behind it or only in words."""
    try:
        raise OSError(errno.ENOSPC, "No space left on device")
    except OSError as cause:
        error.__context__ = cause
        return error


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        wrapped(RuntimeError("unexpected position")),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
    ids=str,
)
def test_a_full_disk_is_one_line_with_what_was_kept(begun, capsys, error):
    run = begun()
    kept = save(run, 4)
    save(run, 6, state=None)
    with pytest.raises(SystemExit) as stopped, explain_interruption(run):
        raise error
    assert stopped.value.code == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"The disk is full: {run} could not be written. Saved: {kept};")
    assert "--resume_from_checkpoint true continues from there" in line
    assert "checkpoint-6 was not written to its end and can be deleted" in line


def test_ctrl_c_is_one_line_with_what_was_kept(begun, capsys):
    run = begun()
    with pytest.raises(SystemExit) as stopped, explain_interruption(run):
        raise KeyboardInterrupt
    assert stopped.value.code == 130
    [line] = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("Stopped by Ctrl-C. No checkpoint was saved; the same command with --resume")


def test_one_process_speaks_for_all(begun, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit), explain_interruption(begun()):
        raise KeyboardInterrupt
    assert capsys.readouterr().err == ""


def test_other_errors_are_left_alone(begun):
    with pytest.raises(FileNotFoundError), explain_interruption(begun()):
        raise FileNotFoundError(errno.ENOENT, "gone")
    with pytest.raises(json.JSONDecodeError), explain_interruption(begun("other")):
        json.loads("{")
