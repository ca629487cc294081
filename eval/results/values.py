"""The numbers in a metrics.json, by the kind of run: which classifiers it measured, and every value of each."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

Metrics = Mapping[str, Any]


@dataclass(frozen=True)
class Value:
    """A measured number, with its 95 % interval where the run holds one."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Part:
    """One classifier that a run measured, on one set of questions."""

    name: str
    """Beside the run's own name; empty where the run is about one classifier."""
    values: Mapping[str, Value]
    rows: int | None = None
    """Questions asked."""
    images: int | None = None
    """Different images among them."""
    answers: str | None = None
    """Name of the file under rows/ with the questions, where the run keeps them."""
    asked: Mapping[str, Any] = field(default_factory=dict)
    """What else decides which questions these were, as JSON values."""
    before: bool = False
    """Whether this was the classifier before the run's training, or the one to compare with."""


_COUNTS = ("rows", "images", "unsafe_rows", "threshold", "unjudged", "flags_lost", "parameters")
"""Numbers of a summary that are no results."""


def summary_values(summary: Metrics) -> dict[str, Value]:
    """Every number on the first level of a summary, with its interval; undefined ones (None) are left out."""
    intervals = summary.get("intervals") or {}
    found = {}
    for name, number in summary.items():
        if isinstance(number, bool) or not isinstance(number, int | float) or name in _COUNTS:
            continue
        found[name] = with_interval(number, intervals.get(name, summary.get(f"{name}_interval")))
    return found


def with_interval(number: float, interval: Any) -> Value:
    """A number and its interval, [low, high]; one that is undefined ([None, None]) or missing is none."""
    if not interval or None in interval:
        return Value(float(number))
    return Value(float(number), float(interval[0]), float(interval[1]))


def _of_judge(metrics: Metrics) -> Iterator[Part]:
    """`lora_llava`, and `adversarial_lora`, whose summaries stand beside robust accuracy."""
    for name, before in (("before", True), ("after", False)):
        found = metrics.get(name)
        if found is None:
            continue
        if "clean" in found:
            part = _of_summary(found["clean"], None)
            robust = _robust_values(found["attacked"])
            yield Part("", {**part.values, **robust}, part.rows, part.images, None, part.asked, before)
        else:
            yield _of_summary(found, name, before=before)


def _of_student(metrics: Metrics) -> Iterator[Part]:
    part = _of_summary(metrics, "test")
    robust = {
        f"robust_accuracy@{budget}": Value(float(share))
        for budget, share in metrics.get("robust_accuracy", {}).items()
    }
    yield Part(part.name, {**part.values, **robust}, part.rows, part.images, part.answers, part.asked)
    for name in ("untrained", "undefended"):
        if name in metrics:
            yield _of_summary(metrics[name], "test", before=True)


def _of_head(metrics: Metrics) -> Iterator[Part]:
    yield _of_summary(metrics, "rows")


def _of_cascade(metrics: Metrics) -> Iterator[Part]:
    yield _of_summary(metrics, "test")


def _of_summary(found: Metrics, answers: str | None, *, before: bool = False) -> Part:
    asked = {"threshold": found["threshold"]} if "threshold" in found else {}
    return Part("", summary_values(found), found.get("rows"), found.get("images"), answers, asked, before)


def _of_attack(metrics: Metrics) -> Iterator[Part]:
    """Each victim, and each deployment that was attacked in image and prompt."""
    suite = {"suite": metrics["suite"]}
    for name, found in metrics["pixels"].items():
        values = {**summary_values(found), **_robust_values(found)}
        if (clean := metrics.get("clean", {}).get(name)) is not None:
            values["clean_f1_more_rows"] = Value(float(clean))
        asked = {**suite, "knowledge": found.get("knowledge", suite["suite"]["threat"]["knowledge"])}
        yield Part(name, values, found["rows"], found["images"], None, asked)
    for name, found in metrics.get("deployments", {}).items():
        values, rows = {"clean_f1_more_rows": Value(float(found["clean_f1"]))}, None
        for budget, ways in found["adaptive"].items():
            rates = ways["both"]
            success = rates["asr_n"]
            rows = rates["missed_clean"]["total"]
            if success["rate"] is not None:
                interval = [success["low"], success["high"]]
                values[f"attack_success@{budget}"] = with_interval(success["rate"], interval)
        yield Part(name, values, rows, None, None, {**suite, "attacked": "image and prompt"})


def _robust_values(found: Metrics) -> dict[str, Value]:
    """Robust accuracy at the headline budget, and at each."""
    values = {"robust_accuracy": with_interval(found["robust_accuracy"], found.get("interval"))}
    for budget, each in found.get("by_epsilon", {}).items():
        values[f"robust_accuracy@{budget}"] = with_interval(each["robust_accuracy"], each.get("interval"))
    return values


def _of_obedience(metrics: Metrics) -> Iterator[Part]:
    """The numbers of the plain wording, and those that stand for all families."""
    for found, answers in ((metrics, "judge"), (metrics.get("before"), "before")):
        if found is None:
            continue
        plain = found["references"]["plain"]
        values = {**summary_values(plain), **summary_values(found)}
        for group in ("lesson_families", "unseen_families"):
            values |= {
                f"{group}_{name}": value for name, value in summary_values(found.get(group) or {}).items()
            }
        values.pop("seconds", None)
        asked = {"families": sorted(found["families"])}
        yield Part("", values, plain["rows"], plain["images"], answers, asked, answers == "before")


def _of_benchmark(metrics: Metrics) -> Iterator[Part]:
    """Each classifier on all rows; one that covers some categories only, on the rows about those."""
    keys = ("dataset", "protocol", "threshold", "sources", "images", "categories")
    about = {key: metrics.get(key) for key in keys}
    for name, found in metrics["classifiers"].items():
        whole = found.get("overall")
        over = (whole or found["covered"])["all"]
        values = summary_values(over)
        values |= {
            key: value for key, value in summary_values(found).items() if key not in values
        }  # AUC and others, of the same rows
        policies = metrics.get("policies", {}).get(name) or {}
        values |= {key: value for key, value in summary_values(policies).items() if key not in values}
        covered = {} if whole else {"covers": found["covers"]}
        yield Part(name, values, over["rows"], None, None, {**about, **covered})


def _of_signs(metrics: Metrics) -> Iterator[Part]:
    """Everybody who was asked about pictograms; a metric is a set of questions."""
    asked = {name: metrics[name] for name in ("student", "judge") if name in metrics}
    for name, found in {**asked, **metrics["baselines"]}.items():
        yield Part(name, summary_values(found), asked={"questions": sorted(found)})


KINDS: dict[str, tuple[str, Callable[[Metrics], Iterator[Part]]]] = {
    "vlm": ("judge", _of_judge),
    "student": ("student", _of_student),
    "linear_probe": ("linear probe", _of_head),
    "prompt_learning": ("prompt learning", _of_head),
    "pooled_attention": ("pooled attention", _of_head),
    "cascade": ("cascade", _of_cascade),
    "attack": ("attack", _of_attack),
    "obedience": ("obedience", _of_obedience),
    "benchmark": ("benchmark", _of_benchmark),
    "signs": ("signs", _of_signs),
}
"""Kind of run -> what a table calls it, and what finds its classifiers in metrics.json."""
