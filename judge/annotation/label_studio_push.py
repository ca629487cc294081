"""A finished labelling -> predictions in an existing project of Label Studio, each of them there once.

Its API has no key that would make a list sent twice be stored once, and a gateway's timeout says nothing of what the
server behind it goes on doing. So predictions go in small batches; before each try whose forerunner may have arrived,
and at a new start, it is looked up what is there; and what a slow server stored twice all the same is taken back.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from judge.errors import ConfigError
from judge.integrations.http_json import NoAnswerError, pauses

from .label_studio_api import BusyError, LabelStudio, UncertainError
from .project_questions import Questions, read_questions
from .task_matching import Matches, image_name, match_tasks
from .verdict_suggestions import Finished, Suggestion

BATCH = 50
"""Predictions of a request; thousands take longer than the minute that gateways wait."""
Count = Callable[[Sequence[int]], Iterable[int]]
"""Passes on what it is given, and shows how far it is."""


@dataclass
class Pushed:
    """What became of a finished labelling."""

    sent: int = 0
    """Predictions that were stored."""
    there: int = 0
    """Predictions that were there already, of the same judge, taxonomy and thresholds."""
    taken_back: int = 0
    """Copies that a slow server had stored, and that were deleted again."""
    unjudged: int = 0
    """Rows left out because their images were not judged."""
    without_task: tuple[str, ...] = ()
    """Images without a task in the project."""
    ambiguous: tuple[str, ...] = ()
    """Images whose names fit several tasks; they are left out."""
    untold: int = 0
    """Unsafe images for which the project has no choice to say so."""
    versions: tuple[str, ...] = ()
    """`model_version` of what was pushed."""


@dataclass
class _Push:
    """A push under way."""

    studio: LabelStudio
    project: int
    done: Pushed
    uncertain: dict[int, set[str]] = field(default_factory=dict)
    """Task -> versions that may have been stored twice."""

    def send(self, batch: Sequence[dict[str, Any]]) -> None:
        """Store a batch, all of it once.

        Raises:
            ConfigError: Label Studio refuses it.
            NoAnswerError: it gave no answer within its patience.
        """
        left, why = list(batch), ""
        for pause in pauses(self.studio.patience):
            if self._is_uncertain(left):
                left = self._missing(left)
            if not left:
                break
            try:
                created = self.studio.add(self.project, left)
            except BusyError as error:
                why, pause.seconds = str(error), error.wait or pause.seconds
            except UncertainError as error:
                why = str(error)
                for one in left:
                    self.uncertain.setdefault(one["task"], set()).add(one["model_version"])
            else:
                if created != len(left):
                    raise ConfigError(
                        f"Label Studio stored {created} of {len(left)} predictions of tasks "
                        f"{left[0]['task']} to {left[-1]['task']}; its log says why."
                    )
                break
        else:
            raise NoAnswerError(
                f"{why} It was tried for {self.studio.patience:g} s; {self.done.sent} predictions are stored. "
                "Run the command again: it sends what is missing.",
                sent=True,
            )
        self.done.sent += len(batch)

    def _is_uncertain(self, batch: Sequence[dict[str, Any]]) -> bool:
        return any(one["model_version"] in self.uncertain.get(one["task"], ()) for one in batch)

    def _missing(self, batch: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The predictions of a batch that Label Studio does not have."""
        there = {
            task: {one.version for one in self.studio.predictions(task)}
            for task in {one["task"] for one in batch}
        }
        return [one for one in batch if one["model_version"] not in there[one["task"]]]

    def take_back_copies(self) -> None:
        """Delete all but the oldest of what was stored twice."""
        for task, versions in self.uncertain.items():
            stored = self.studio.predictions(task)
            for version in versions:
                for copy in [one for one in stored if one.version == version][1:]:
                    self.studio.delete(copy.id)
                    self.done.taken_back += 1


def push(
    studio: LabelStudio,
    project: int,
    finished: Finished,
    *,
    batch: int = BATCH,
    dry_run: bool = False,
    count: Count = lambda things: things,
) -> Pushed:
    """Store what a labelling suggests as predictions of a project's tasks.

    Safe to run again, whether the last run ended or was killed: what is there is not sent.

    Args:
        studio: where.
        project: its number, as in the address of its page.
        finished: the labelling.
        batch: predictions of a request.
        dry_run: only look up what would be sent; `sent` counts that.
        count: told of each batch, before it is sent.

    Raises:
        ConfigError: no such project, one that asks other questions, or no task for any image.
        NoAnswerError: Label Studio did not answer within its patience; what was stored stays.
    """
    questions = read_questions(studio.project(project).config, finished.categories)
    versions, names = _list_tasks(studio, project, questions)
    matches = match_tasks(finished.suggestions, names)
    if finished.suggestions and not matches.tasks:
        raise ConfigError(_nothing_matches(matches, names, len(versions), project))
    done = Pushed(
        unjudged=finished.unjudged,
        without_task=matches.without_task,
        ambiguous=matches.ambiguous,
        versions=tuple(sorted({one for some in finished.suggestions.values() for one in some})),
    )
    under_way = _Push(studio, project, done)
    wanted = _plan(finished, matches, versions, questions, under_way)
    if dry_run:
        done.sent = len(wanted)
        return done
    for start in count(range(0, len(wanted), batch)):
        chosen = [
            (task, version, finished.suggestions[matches.tasks[task]][version])
            for task, version in wanted[start : start + batch]
        ]
        under_way.send([_prediction(task, version, one, questions) for task, version, one in chosen])
    under_way.take_back_copies()
    return done


def _plan(
    finished: Finished,
    matches: Matches,
    versions: Mapping[int, Sequence[str]],
    questions: Questions,
    under_way: _Push,
) -> list[tuple[int, str]]:
    """Tasks and versions that are to be sent, in the order of tasks; what is not is counted."""
    done, wanted = under_way.done, []
    for task, path in sorted(matches.tasks.items()):
        for version, suggestion in finished.suggestions[path].items():
            stored = versions[task].count(version)
            if stored:
                done.there += 1
            elif suggestion.unsafe and not questions.result(suggestion):
                # Sent without a choice, it would look like an image that nobody objects to.
                done.untold += 1
            else:
                wanted.append((task, version))
            if stored > 1:  # of a run that was killed before it could look
                under_way.uncertain.setdefault(task, set()).add(version)
    return wanted


def _prediction(task: int, version: str, suggestion: Suggestion, questions: Questions) -> dict[str, Any]:
    return {
        "task": task,
        "result": questions.result(suggestion),
        "score": suggestion.sureness,
        "model_version": version,
    }


def _list_tasks(
    studio: LabelStudio, project: int, questions: Questions
) -> tuple[dict[int, tuple[str, ...]], dict[int, str]]:
    """The versions that every task has, and the names of those images that have one; there may be millions."""
    versions: dict[int, tuple[str, ...]] = {}
    names: dict[int, str] = {}
    for task in studio.tasks(project):
        versions[task.id] = task.versions
        name = image_name(task.data, questions.image)
        if name is not None:
            names[task.id] = name
    return versions, names


def _nothing_matches(matches: Matches, names: Mapping[int, str], tasks: int, project: int) -> str:
    row = next(iter((*matches.without_task, *matches.ambiguous)), "")
    task = next(iter(names.values()), None)
    known = "no task names an image" if task is None else f"a task is named {task!r}"
    return (
        f"No image of the rows is one of the {tasks} tasks of project {project}: a row is named {row!r}, {known}. "
        "Both must end alike."
    )
