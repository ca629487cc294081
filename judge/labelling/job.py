"""A whole labelling run: from the name of a judge and an input to a finished folder of labels."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from judge.errors import ConfigError, LabellingError
from judge.lessons.evidence import evidence_of
from judge.lessons.outside import KnowsItsLessons
from judge.protocol import Classifier, PromisesMissRate
from judge.publish.hub import model_hash
from judge.verdicts.from_scores import unjudged
from judge.verdicts.rows import Judging, verdict_row
from prompts.reading import PromptMode
from prompts.taxonomy import Taxonomy

from .inputs.files import is_url
from .inputs.locate import find_sources, root_of
from .opening import Opening
from .plan import Plan
from .rows import Engine, Status
from .run import Progress, Tally, label_shards, locked
from .scoring import Scorer
from .writer import Part, parts_in, remove_parts

_COMMON = ("row_format", "thresholds", "taxonomy", "model", "evidence", "promise", "arbiter")
"""Keys of a verdict row that are the same for all images of a run."""


@dataclass(frozen=True)
class Scoring:
    """How a `Scorer` is made; it is pickled to get to other processes."""

    judge: str
    """As `judge.load_classifier` takes it."""
    judgings: tuple[Judging, ...]
    """A taxonomy and its thresholds each."""
    stage_judge: str | None = None
    device: str | None = None
    batch_size: int = 64
    prompt_mode: PromptMode = "max"

    def load(self) -> Scorer:
        """Load the classifier."""
        from judge.classifiers import load_classifier

        stage = {"stage_judge": self.stage_judge} if self.stage_judge else {}
        classifier = load_classifier(
            self.judge, device=self.device, batch_size=self.batch_size, prompt_mode=self.prompt_mode, **stage
        )
        return Scorer(classifier, self.judgings, self.batch_size)


@dataclass(frozen=True)
class Job:
    """What is labelled, under which question, and where the labels go."""

    where: str
    """A folder, a file, or an fsspec URL."""
    folder: Path
    """The output."""
    scoring: Scoring
    opening: Opening
    columns: Mapping[str, str] = field(default_factory=dict)
    """`image`, `prompt`, `id` -> columns of tables, where they are named otherwise."""
    again: frozenset[Status] = frozenset()
    """Statuses whose rows are done again."""
    renew: bool = False
    """Whether shards of which a file changed are done again; else a changed file is an error."""


def check_question(classifier: Classifier, taxonomies: Sequence[Taxonomy]) -> None:
    """Refuse, before millions of images are read, what would leave all of them unjudged.

    Raises:
        ConfigError: two taxonomies of one name, or one outside of the classifier's lessons.
    """
    names = [taxonomy.name for taxonomy in taxonomies]
    double = next((name for name in names if names.count(name) > 1), None)
    if double is not None:
        raise ConfigError(f"Two taxonomies are named {double!r}; labels are told apart by it, so rename one.")
    for taxonomy in taxonomies:
        outside = classifier.outside_lessons(taxonomy) if isinstance(classifier, KnowsItsLessons) else None
        if outside is not None:
            raise ConfigError(f"Under {taxonomy.name!r} every image would be unjudged: {outside}")


def run_job(
    job: Job,
    classifier: Classifier,
    engine: Engine,
    *,
    tell: Callable[[str], None] = lambda remark: None,
    progress: Callable[[Mapping[int, int]], Progress] = lambda sizes: lambda tally, scored: None,
) -> Tally:
    """Label what is missing.

    Args:
        job: what is asked.
        classifier: the one of `job.scoring`; read only.
        engine: opens and scores.
        tell: prints a remark on files that are not labelled.
        progress: makes, from shard -> bytes of the whole plan, what is told of every block.

    Raises:
        ConfigError: no input; or the folder holds labels of another question or of other files.
        LabellingError: see `label_shards`.
    """
    # As other processes and a later run from another folder find it.
    where = job.where if is_url(job.where) else os.path.abspath(job.where)
    root = root_of(where)
    if not is_url(where) and os.path.realpath(where) == os.path.realpath(job.folder):
        raise ConfigError(f"{job.where} is the input and the output; label into a folder of its own.")
    with locked(job.folder), Plan(job.folder) as plan:
        check_parts(plan, parts := parts_in(job.folder))
        _begin(plan, {"input": where, **_about(job, classifier)})
        found = find_sources(where, job.columns, tell, leave_out=job.folder)
        renew = partial(remove_parts, job.folder, parts) if job.renew else None
        changed = plan.extend(found, job.opening.part_rows, renew)
        if changed.other:
            raise LabellingError(
                f"{', '.join(changed.other)} changed since {job.folder} was begun, so labels there may be of other "
                "images. `--again changed` replaces them; or label into another folder."
            )
        sizes = plan.sizes()
        if not sizes:
            raise ConfigError(f"{job.where} holds nothing to label: no image, .tar, .parquet or .jsonl.")
        return label_shards(
            plan.shards(root, job.columns),
            job.folder,
            job.opening.part_rows,
            engine,
            {"plan": plan.identity, "taxonomies": _common(job.scoring, classifier)},
            progress=progress(sizes),
            again=job.again,
        )


def _about(job: Job, classifier: Classifier) -> dict[str, Any]:
    """What labels depend on; a run goes on only with the same."""
    about: dict[str, Any] = {
        "columns": dict(job.columns),
        "part_rows": job.opening.part_rows,
        "prompt_mode": job.scoring.prompt_mode,
    }
    for name, common in _common(job.scoring, classifier).items():
        about[f"taxonomy {name}"] = common["taxonomy"]["hash"]
        about[f"thresholds of {name}"] = common["thresholds"]
        about["judge"] = common["model"]["sha256"] or common["model"]["name"]
    if job.scoring.stage_judge is not None:  # it is no part of a cascade's hash
        about["stage judge"] = model_hash(job.scoring.stage_judge) or job.scoring.stage_judge
    return about


def check_parts(plan: Plan, parts: Sequence[Part]) -> None:
    """Refuse labels of shards that the plan does not know, as it would plan other files under their numbers."""
    if parts and parts[-1].shard >= plan.shard_count:
        raise LabellingError(
            f"{plan.path.parent} holds {parts[-1].name}, of which {plan.path.name} knows nothing: the plan was "
            "deleted, or is an older copy. Put the newest one back, or label into another folder."
        )


def _begin(plan: Plan, about: Mapping[str, Any]) -> None:
    """Write down what a run is started with, or compare it with what it was started with."""
    started = plan.about()
    if not started:
        plan.set_about(about)
    changed = [name for name in {**started, **about} if started and started.get(name) != about.get(name)]
    if changed:
        told = "; ".join(f"{name}: {started.get(name)!r}, now {about.get(name)!r}" for name in changed)
        raise LabellingError(
            f"{plan.path.parent} holds labels of another run ({told}). Ask the same, or label into another folder."
        )


def _common(scoring: Scoring, classifier: Classifier) -> dict[str, dict[str, Any]]:
    """Taxonomy -> what its verdict rows have in common."""
    found = {}
    for judging in scoring.judgings:
        taxonomy = judging.taxonomy
        promise = classifier.promise(taxonomy) if isinstance(classifier, PromisesMissRate) else None
        row = verdict_row(unjudged("nothing yet", taxonomy, judging.model), judging, time="")
        row |= {"evidence": evidence_of(classifier).of_policy(taxonomy), "promise": promise}
        found[taxonomy.name] = {name: row[name] for name in _COMMON}
    return found
