"""A recipe's run: how it starts and ends, its folder, what it prints, and what it is resumed from."""

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from tqdm.auto import tqdm  # type: ignore[import-untyped]
from transformers import TrainingArguments

from adversarial.errors import AttackError
from judge.errors import ConfigError
from judge.publish.card import write_card
from judge.runs.folder import MANIFEST, RunDir
from judge.runs.machine import environment
from judge.runs.resume import check_options, newest_checkpoint
from prompts import Taxonomy
from prompts.errors import ArbiterError
from prompts.printable import error_line, printable_lines

from .start import begins, check_trackers, clean_start


@dataclass
class RecipeTrainingArguments(TrainingArguments):  # type: ignore[misc]
    """transformers' own arguments for batches made of policies: `per_device_train_batch_size` counts policies."""

    obedience_rows: int = field(
        default=24,
        metadata={
            "help": "Questions in each of a few other wordings, before and after training; 0 asks none."
        },
    )

    def __post_init__(self) -> None:
        self.remove_unused_columns = False  # our collators need fields that no model's forward names
        if not torch.cuda.is_available():
            self.dataloader_pin_memory = False
            if int(os.environ.get("WORLD_SIZE", "1")) > 1:
                # Otherwise accelerate would wrap no model, or find no backend for DeepSpeed.
                self.use_cpu, self.ddp_backend = True, "gloo"
        try:
            super().__post_init__()
        except (ValueError, ImportError, RuntimeError, OSError) as error:  # such as bf16 without a GPU
            raise ConfigError(f"These options cannot be used here: {error_line(error)}") from error
        check_trackers(self.report_to)


def run_recipe(main: Callable[[], None]) -> None:
    """Run a recipe as a script: our own errors end it with one line and exit code 1, others with a traceback.

    The folder of a run that failed before anything was saved is taken away again (`clean_start`).
    """
    try:
        clean_start(main)()
    except (ArbiterError, AttackError) as error:
        raise SystemExit(f"error: {error_line(error)}") from None
    except KeyboardInterrupt:
        log("\nStopped by Ctrl-C.", stderr=True)
        raise SystemExit(130) from None


def create_run(
    path: str | Path,
    kind: str,
    taxonomy: Taxonomy,
    options: Sequence[object],
    *,
    resume: bool = False,
    may_differ: Sequence[str] = (),
    **about: Any,
) -> RunDir:
    """Make the run folder with what is known beforehand, or check that the run in it can be resumed.

    Args:
        path: a folder that does not exist or is empty, or the run to resume.
        kind: what loads the run again, such as `vlm`.
        taxonomy: the run's categories.
        options: for config.yaml: dataclasses and mappings, later ones over earlier ones. TrainingArguments among
            them make the run resumable, under the same options.
        resume: of a recipe that trains nothing, whether to go on with the run that is there.
        may_differ: options that may differ from those it was started with.
        about: further values for the manifest, such as the base model.

    Raises:
        CheckpointError: the folder is in use, or its run was started with other options.
        ConfigError: the checkpoint to resume from is none, or incomplete.
    """
    config: dict[str, Any] = {}
    checkpoint = None
    for part in options:
        if isinstance(part, TrainingArguments):
            config |= {**part.to_dict(), "processes": part.world_size}
            resume, checkpoint = resumes(part), resume_from(part)
        else:
            config |= part if isinstance(part, Mapping) else asdict(part)  # type: ignore[call-overload]
    if resume:
        RunDir(path).check_resumable(taxonomy, **about)
        check_options(path, config, checkpoint=checkpoint, may_differ=may_differ)
    there = (Path(path) / MANIFEST).is_file()
    run = RunDir.create(path, kind=kind, resume=resume, **about)
    if not there:  # else another start's, which may still be at work
        begins(run)
    run.write_taxonomy(taxonomy)
    run.write_environment()
    run.write_config(config)
    return run


def open_run(
    path: str | Path, kind: str, taxonomy: Taxonomy, options: Sequence[object], **about: Any
) -> RunDir:
    """`create_run` in the first process, while the others wait for it; every process has to call this."""
    state = PartialState()
    if state.is_main_process:
        create_run(path, kind, taxonomy, options, **about)
    state.wait_for_everyone()
    return RunDir.open(path, kind=kind)


def resumes(args: TrainingArguments) -> bool:
    """Whether a run is to be resumed, from its beginning if it has no checkpoint yet."""
    return str(args.resume_from_checkpoint).lower() not in ("none", "", "false")


def resume_from(args: TrainingArguments) -> str | None:
    """The checkpoint to resume from: the folder given, or for `true` the newest whole one of this run, if any."""
    if not resumes(args):
        return None
    if str(args.resume_from_checkpoint).lower() != "true":
        return str(args.resume_from_checkpoint)
    newest = newest_checkpoint(args.output_dir)
    return None if newest is None else str(newest)


def write_metrics(run: RunDir, metrics: Mapping[str, Any]) -> None:
    """Write metrics.json, with the machine, versions and commit that the numbers come from, and the run's card."""
    place = environment()
    about = {"machine": place["machine"], "versions": place["packages"], "commit": place["git"]}
    run.write_metrics({**metrics, **about})
    write_card(run)


def log(text: str = "", *, stderr: bool = False) -> None:
    """Print once, not once a process, with control characters escaped."""
    if PartialState().is_main_process:
        print(printable_lines(text), file=sys.stderr if stderr else None, flush=True)


@contextmanager
def progress_bar(description: str, total: int) -> Iterator[Callable[..., None]]:
    """A progress bar of the first process, on standard error; gives the function that moves it.

    That takes how many are done, and further numbers by name to show beside. What ends within a second shows no bar.
    """
    with tqdm(total=total, desc=description, disable=not PartialState().is_main_process, delay=1) as bar:

        def progress(done: int, **numbers: float) -> None:
            bar.update(done - bar.n)
            if numbers:
                bar.set_postfix({name: f"{value:.3f}" for name, value in numbers.items()}, refresh=False)

        yield progress
