"""What all recipes share: options, data, the run folder, progress, and the commands printed at the end."""

from .data import DataOptions, load_splits, predict_distributed
from .lessons import continue_lessons, keep_answers, record_labels, record_lessons, record_measured
from .next_steps import command, data_words, recipe_beside, save_examples, try_it
from .options import RecipeOptions, check_mapping, parse_options
from .run import (
    RecipeTrainingArguments,
    create_run,
    hide_known_warnings,
    log,
    open_run,
    progress_bar,
    resume_from,
    resumes,
    run_recipe,
    write_metrics,
)

__all__ = [
    "DataOptions",
    "RecipeOptions",
    "RecipeTrainingArguments",
    "check_mapping",
    "command",
    "continue_lessons",
    "create_run",
    "data_words",
    "hide_known_warnings",
    "keep_answers",
    "load_splits",
    "log",
    "open_run",
    "parse_options",
    "predict_distributed",
    "progress_bar",
    "recipe_beside",
    "record_labels",
    "record_lessons",
    "record_measured",
    "resume_from",
    "resumes",
    "run_recipe",
    "save_examples",
    "try_it",
    "write_metrics",
]
