"""`report.html` of a run from what its folder holds, as recipes write it at their end and `arbiter report` anew."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from eval.metrics.judged import JudgedRow
from judge.data.images import open_image
from judge.errors import CheckpointError
from judge.runs.folder import RunDir
from prompts.example import Example

from .cascade_page import write_cascade_report
from .judge_page import write_answers
from .page import Verdict
from .table import Table
from .words import METRICS, plain
from .wrong_verdicts import Images

HEADS = ("linear_probe", "prompt_learning", "pooled_attention")
OTHERS = ("untrained", "undefended", "judge")
"""Files of answers beside a student's own: before training, before hardening, its teacher's."""
HELD_OUT = "held-out-"
"""How ids of questions about held-out categories begin (`eval.questions`); they have a table of their own."""


def write_run_report(run: RunDir, examples: Iterable[Example] = ()) -> Path:
    """Write `report.html` of a finished run, and its figures to `plots/`; returns the path of the report.

    Args:
        run: of a judge, a student, a head with fixed categories, or a cascade.
        examples: the test images; without, the page has none.

    Raises:
        CheckpointError: a run of another kind, or one that is not finished.
    """
    writers: dict[str, Callable[[RunDir, Images], Path]] = {
        "vlm": _judge,
        "student": _student,
        "cascade": write_cascade_report,
        **dict.fromkeys(HEADS, _head),
    }
    if run.kind not in writers:
        raise CheckpointError(
            f"{run.path} is a run of kind {run.kind!r}, of which there is no report to write anew; there is of "
            f"{', '.join(writers)}"
        )
    return writers[run.kind](run, images_of(examples))


def images_of(examples: Iterable[Example]) -> Images:
    """What opens the image of a judged row, or None where it is not among the examples."""
    by_id = {example.id: example for example in examples}
    return lambda row: open_image(by_id[row.image].image) if row.image in by_id else None


def _judge(run: RunDir, images: Images) -> Path:
    metrics = run.metrics
    # A hardened judge has its numbers on clean images beside those under attack.
    parts = {
        name: metrics[name] and metrics[name].get("clean", metrics[name]) for name in ("before", "after")
    }
    stages = {} if parts["before"] is None else {"before training": _flips(run, "before")}
    return write_answers(
        run,
        stages | {"after training": _flips(run, "after")},
        _history(run),
        images=images,
        drawn=metrics.get("drawn"),
        shortcut=metrics.get("shortcut"),
        extra=_robustness(metrics),
        tables=[_held_out(parts), _wordings(metrics)],
        threshold=parts["after"]["threshold"],
        verdict=_verdict(metrics),
    )


def _student(run: RunDir, images: Images) -> Path:
    metrics = run.metrics
    others = {name: _flips(run, name) for name in OTHERS if _has(run, name)}
    about = {
        "seconds in all": metrics.get("seconds"),
        "seconds of the teacher": metrics.get("seconds_teaching"),
        "rows taught": metrics.get("rows_taught"),
        "parameters": metrics.get("parameters"),
    }
    baselines = {f"F1 of {name}": value for name, value in metrics.get("baselines", {}).items()}
    return write_answers(
        run,
        others | {"student": _flips(run, "test")},
        _history(run),
        images=images,
        extra=({"Other heads, on all questions": baselines} if baselines else {})
        | {"Training": {name: value for name, value in about.items() if value is not None}}
        | _robustness(metrics),
        tables=[
            _held_out({name: metrics.get(name) for name in OTHERS} | {"student": metrics}),
            _wordings(metrics),
        ],
        threshold=metrics["threshold"],
        verdict=_verdict(metrics),
    )


def _head(run: RunDir, images: Images) -> Path:
    metrics = run.metrics
    return write_answers(
        run,
        {"after training": _flips(run, "rows")},
        _history(run),
        images=images,
        tables=[_held_out({"after": metrics}), _wordings(metrics)],
        threshold=metrics["threshold"],
        verdict=_verdict(metrics),
    )


def _robustness(metrics: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Robust accuracy before and after hardening, where that was measured."""
    found = {
        "before": metrics.get("undefended_robust_accuracy"),
        "after": metrics.get("defended_robust_accuracy"),
    }
    for name, one in (("before", metrics.get("undefended") or {}), ("after", metrics)):
        found |= {
            f"{name}, at {budget}": value for budget, value in (one.get("robust_accuracy") or {}).items()
        }
    known = {name: value for name, value in found.items() if value is not None}
    return {"Robust accuracy under a quick attack": known} if known else {}


def _has(run: RunDir, name: str) -> bool:
    return (run.path / "rows" / f"{name}.jsonl").is_file()


def _flips(run: RunDir, name: str) -> list[JudgedRow]:
    """A file of judged rows, without those about held-out categories."""
    return [JudgedRow.from_dict(row) for row in run.read_rows(name) if not row["id"].startswith(HELD_OUT)]


def _history(run: RunDir) -> list[dict[str, Any]]:
    return list(run.read_rows("history")) if _has(run, "history") else []


def _verdict(metrics: Mapping[str, Any]) -> Verdict | None:
    """Whether it learned, as the recipe found; None where it did not say."""
    learned = metrics.get("learned")
    if not learned:
        return None
    return Verdict(learned["sentence"], learned["learned"], learned["causes"], learned["limits"])


def _held_out(stages: Mapping[str, Mapping[str, Any] | None]) -> Table:
    """Questions about held-out categories and beside lying prompts, a column for each stage that was asked any."""
    asked = {name: found for name, found in stages.items() if found is not None and "heldout_f1" in found}
    lines = [(about, [found.get(key) for found in asked.values()]) for key, about in METRICS.items()]
    return Table("Held-out categories and lying prompts", list(asked), lines if asked else [])


def _wordings(metrics: Mapping[str, Any]) -> Table:
    """F1 in other wordings (`eval.obedience.quick`), a column for each stage that was asked."""
    stages = {
        name: {"plain wording": record["references"].get("plain", {}), **record["families"]}
        for name, record in (metrics.get("obedience") or {}).items()
        if isinstance(record, dict) and record.get("families")
    }
    names = dict.fromkeys(name for records in stages.values() for name in records)
    lines = [
        (plain(name), [records.get(name, {}).get("f1") for records in stages.values()]) for name in names
    ]
    return Table("F1 under other wordings", list(stages), lines)
