"""Interrupted runs: they are resumed with the options they were started with, and say what was saved.

A resumed run with another seed, other data or other rates could not be reproduced, so its options are compared with
those it was started with. Options on where and how work is done, saved, logged and measured may differ (`MAY_DIFFER`).
Under a constant learning rate a run may also be made longer; any other schedule depends on the number of steps.
"""

import errno
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from judge.errors import CheckpointError, ConfigError

from .checkpoint import CHECKPOINT
from .folder import MANIFEST, RunDir

MAY_DIFFER = (
    *("output_dir", "resume_from_checkpoint", "changed", "cache", "use_cpu", "keep_features", "local_rank"),
    *("disable_tqdm", "log_level", "log_level_replica", "log_on_each_node", "run_name", "project"),
    *("test_rows", "threshold", "judge_batch_size", "activation_checkpointing", "gradient_checkpointing"),
    *("baselines", "obedience_rows", "attack_rows", "attack_steps", "attack_epsilons"),
    *("dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers"),
    *("dataloader_prefetch_factor", "skip_memory_metrics", "push_to_hub"),
)
"""Options that do not change the trained weights; so do all that start with one of the following."""
MAY_DIFFER_FAMILIES = ("logging_", "save_", "eval_", "report_", "hub_", "trackio_", "ddp_")
MAY_GROW = ("max_steps", "num_train_epochs")
"""May be larger in the resumed run, if the learning rate is constant."""
_FULL = (errno.ENOSPC, errno.EDQUOT)
_FULL_WORDS = ("no space left on device", "disk quota exceeded", "pytorchstreamwriter failed writing")
"""Messages of libraries that do not write through Python, and raise other errors."""


def check_options(
    path: str | Path,
    options: Mapping[str, Any],
    *,
    checkpoint: str | None = None,
    may_differ: Sequence[str] = (),
) -> None:
    """Check that a run is resumed with the options it was started with; a folder without a run passes.

    Args:
        path: the run folder.
        options: as `RunDir.write_config` will write them.
        checkpoint: what to resume from; if it belongs to another run, that run must have had the same options.
        may_differ: further options that may.

    Raises:
        CheckpointError: options differ, each named with both values.
        ConfigError: the folder is no checkpoint, or an incomplete one.
    """
    folders = [Path(path)]
    if checkpoint is not None:
        if not _is_complete(Path(checkpoint)):
            raise ConfigError(
                f"{checkpoint} is no checkpoint, or one that was not written to its end; give a folder "
                "checkpoint-STEP of a run, or `true` for the newest whole one of this run."
            )
        # A checkpoint of another run: its options must agree too, as its optimizer state depends on them.
        folders.append(Path(checkpoint).resolve().parent)
    for folder in folders:
        if not (folder / MANIFEST).is_file() or not (folder / "config.yaml").is_file():
            continue
        differing = _differing(RunDir(folder).config, options, may_differ)
        if differing:
            training = (
                " How often it saves, logs and evaluates may differ, and under a constant learning rate it may be "
                "longer."
            )
            raise CheckpointError(
                f"{folder} was started with {'; '.join(differing)}. Resume it with the options it was started with, or "
                f"choose another output_dir.{training if 'lr_scheduler_type' in options else ''}"
            )


def _differing(
    started: Mapping[str, Any], options: Mapping[str, Any], may_differ: Sequence[str]
) -> list[str]:
    """`name 1, not 2` for each option that has changed and may not."""
    # Through JSON, so that tuples and other types compare equal to what the file holds.
    now = json.loads(json.dumps(dict(options), default=_json))
    found = []
    for name in sorted(
        started.keys() & now.keys()
    ):  # options that only one of two versions of a library has are skipped
        before, after = started[name], now[name]
        if before == after or name in (*MAY_DIFFER, *may_differ) or name.startswith(MAY_DIFFER_FAMILIES):
            continue
        if name in MAY_GROW and now.get("lr_scheduler_type") == "constant" and after > before:
            continue
        found.append(f"{name} {before!r}, not {after!r}")
    return found


def _json(value: Any) -> Any:
    return sorted(value) if isinstance(value, set | frozenset) else str(value)


def newest_checkpoint(path: str | Path) -> Path | None:
    """The complete checkpoint of a run with the most steps; None where there is none."""
    found = [folder for folder in Path(path).glob("checkpoint-*") if _is_complete(folder)]
    return max(found, key=_step, default=None)


def _is_complete(folder: Path) -> bool:
    """Whether a checkpoint is complete: its state is written last, and is truncated where the disk was full."""
    try:
        state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(state, dict)


def _step(folder: Path) -> int:
    # By number: as text, checkpoint-900 would come after checkpoint-1000.
    number = folder.name.rpartition("-")[2]
    return int(number) if number.isdecimal() else -1


@contextmanager
def explain_interruption(path: str | Path) -> Iterator[None]:
    """Turn Ctrl-C and a full disk into one line: what the run saved, and how to resume it.

    Args:
        path: the run folder.

    Raises:
        SystemExit: with the status that a shell expects, 130 after Ctrl-C and 2 for a full disk; other errors pass.
    """
    try:
        yield
    except KeyboardInterrupt:
        _stop(f"Stopped by Ctrl-C. {describe_saved(path)}", 130)
    except Exception as error:
        if not _disk_is_full(error):
            raise
        _stop(
            f"The disk is full: {path} could not be written. {describe_saved(path)} Free some space first.", 2
        )


def _stop(line: str, status: int) -> None:
    if os.environ.get("RANK", "0") == "0":
        print(f"\n{line}", file=sys.stderr, flush=True)
    raise SystemExit(status) from None


def describe_saved(path: str | Path) -> str:
    """One or two sentences on what an interrupted run saved."""
    if not Path(path).exists():  # withdrawn, as it held nothing
        return "Nothing was saved yet; the same command starts anew."
    newest = newest_checkpoint(path)
    cut = sorted(
        (f.name for f in Path(path).glob("checkpoint-*") if not _is_complete(f)), key=lambda n: (len(n), n)
    )
    rest = f" {', '.join(cut)} was not written to its end and can be deleted." if cut else ""
    if newest is None and (Path(path) / CHECKPOINT).is_file():
        newest = Path(path) / CHECKPOINT
    if newest is None:
        return (
            f"No checkpoint was saved; the same command with --resume_from_checkpoint true starts anew.{rest}"
        )
    return f"Saved: {newest}; the same command with --resume_from_checkpoint true continues from there.{rest}"


def _disk_is_full(error: BaseException | None) -> bool:
    """Whether an error, or one that led to it, is about a disk without space."""
    seen: set[int] = set()  # exceptions may form a cycle
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        if any(word in str(error).lower() for word in _FULL_WORDS):
            return True
        # Libraries wrap the error of the operating system in their own.
        error = error.__cause__ or error.__context__
    return False
