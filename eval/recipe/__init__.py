"""What all recipes share: options, data, the run folder, progress, and the commands printed at the end."""

from .data import (
    DataOptions,
    check_own_data,
    config_by_data,
    judge_targets_distributed,
    load_splits,
    predict_distributed,
)
from .learned import Learned, judge_hardening, judge_training
from .lessons import continue_lessons, keep_answers, record_labels, record_lessons, record_measured
from .next_steps import command, data_words, recipe_beside, save_examples, try_it
from .options import RecipeOptions, check_mapping, parse_options
from .run import (
    RecipeTrainingArguments,
    create_run,
    log,
    open_run,
    progress_bar,
    resume_from,
    resumes,
    run_recipe,
    write_metrics,
)
from .start import clean_start, hide_known_warnings

__all__ = [
    "DataOptions",
    "Learned",
    "RecipeOptions",
    "RecipeTrainingArguments",
    "check_mapping",
    "check_own_data",
    "clean_start",
    "command",
    "config_by_data",
    "continue_lessons",
    "create_run",
    "data_words",
    "hide_known_warnings",
    "judge_hardening",
    "judge_targets_distributed",
    "judge_training",
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
