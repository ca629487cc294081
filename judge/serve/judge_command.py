"""`arbiter judge`: files, folders and lists of paths -> verdicts, printed as they come."""

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from judge.errors import ConfigError, ImageError
from judge.protocol import HasDefaultTaxonomy, MultiLabelClassifier, PromisesMissRate, on_one_scale
from prompts.printable import printable
from prompts.taxonomy import Taxonomy
from prompts.taxonomy_file import load_taxonomy
from prompts.verdict import DEFAULT_THRESHOLD, Verdict, verdict_from_scores

from .exit_codes import EXIT_FLAGGED, EXIT_SAFE, EXIT_UNJUDGED, say
from .image_files import Found, find_images

if TYPE_CHECKING:
    from PIL.Image import Image

    from judge.calibration.thresholds import Thresholds
    from judge.data.frames import Frames
    from judge.protocol import Classifier, Scores

Ask = Callable[[Sequence["Image"]], list[Verdict]]
"""Pictures to their verdicts."""


def judge_paths(options: argparse.Namespace) -> int:
    """Judge what the options name, print a line for each image, and return the exit code."""
    fitted = fitted_thresholds(options.threshold)
    threshold = DEFAULT_THRESHOLD if fitted else parse_threshold(options.threshold)
    # Everything cheap is checked before a model of many gigabytes is loaded.
    named = load_taxonomy(options.taxonomy) if options.taxonomy else None
    if named is not None:
        named = choose_categories(named, options.categories, options.custom)
        threshold = fitted.of(named) if fitted else threshold
        _check_names(threshold, named)
    found = find_images(options.paths, null=options.null)
    first = next(found, None)
    if first is None:
        raise ConfigError("No images found in what was given; name files, folders, or - for standard input.")
    classifier = load_judge(options)
    plain: Callable[..., Scores] = classifier.score
    score = partial(plain, **_multilabel(classifier, options.multilabel))
    taxonomy = named or choose_categories(own_taxonomy(classifier), options.categories, options.custom)
    threshold = fitted.of(taxonomy) if fitted else threshold
    _check_names(threshold, taxonomy)
    if fitted and fitted.judge != classifier.name:
        say(f"arbiter: thresholds were fitted for {fitted.judge}, not for {classifier.name}")
    say_outside_promise(classifier, taxonomy)
    ask = partial(_ask, classifier.name, score, taxonomy, options.prompt, threshold)
    counts = {"unsafe": 0, "safe": 0, "unjudged": 0}
    for judged in _judge(chain([first], found), ask, taxonomy, classifier.name, options.batch_size):
        counts[judged.verdict.status] += 1
        print(_json_line(judged) if options.json else _text_line(judged, taxonomy))
    say(
        f"{sum(counts.values())} images: {counts['unsafe']} flagged, {counts['safe']} safe, "
        f"{counts['unjudged']} not judged"
    )
    if counts["unsafe"]:
        return EXIT_FLAGGED
    return EXIT_UNJUDGED if counts["unjudged"] else EXIT_SAFE


def load_judge(options: argparse.Namespace) -> "Classifier":
    """What `--judge` names, with the judge of its last stage where `--stage-judge` names one."""
    import judge

    named = {"stage_judge": options.stage_judge} if options.stage_judge else {}
    return judge.load_classifier(options.judge, device=options.device, batch_size=options.batch_size, **named)


def choose_categories(
    taxonomy: Taxonomy, categories: Sequence[str] | None, custom: Sequence[str]
) -> Taxonomy:
    """The taxonomy with `--custom` added, narrowed by `--categories`; what is custom always stays.

    So `--custom "Balloons: ..." --categories Balloons` judges by the custom category alone.

    Raises:
        TaxonomyError: a category that does not exist, or one that cannot be added.
        ConfigError: a custom category without a definition.
    """
    added = []
    for text in custom:
        name, colon, definition = text.partition(":")
        if not (colon and name.strip() and definition.strip()):
            raise ConfigError(f'--custom {text!r}: write "NAME: DEFINITION".')
        added.append(name.strip())
        taxonomy = taxonomy.extend({added[-1]: definition.strip()})
    if categories is None:
        return taxonomy
    names = [name.strip() for text in categories for name in text.split(",") if name.strip()]
    known = {name.casefold() for name in names}
    return taxonomy.select([*names, *(name for name in added if name.casefold() not in known)])


def parse_threshold(texts: Sequence[str] | None) -> float | dict[str, float]:
    """`--threshold 0.3`, or `--threshold Violence=0.3` once for each category; never both.

    Raises:
        ConfigError: not a number from 0 to 1, two for one category (case ignored), or one for all mixed with some for
            single categories.
    """
    if not texts:
        return DEFAULT_THRESHOLD
    limits: dict[str, float] = {}
    for text in texts:
        name, _, number = text.rpartition("=")
        try:
            value = float(number)
        except ValueError:
            value = -1.0
        if not 0 <= value <= 1:
            raise ConfigError(f"--threshold {text!r}: expected a number from 0 to 1, or NAME=number.")
        if name.strip().casefold() in map(str.casefold, limits):
            raise ConfigError(f"--threshold {text!r}: there is one before it already; give each once.")
        limits[name.strip()] = value
    if "" not in limits:
        return limits
    if len(texts) > 1:
        raise ConfigError("--threshold: give one number for all, or NAME=number for each category, not both.")
    return limits[""]


def fitted_thresholds(texts: Sequence[str] | None) -> "Thresholds | None":
    """`--threshold FILE` of `arbiter calibrate`, alone; None where no file is named.

    Raises:
        ConfigError: the file cannot be used, or stands beside other thresholds.
    """
    if not texts or not any(text.endswith((".yaml", ".yml", ".json")) for text in texts):
        return None
    from judge.calibration.thresholds import load_thresholds

    if len(texts) > 1:
        raise ConfigError("--threshold: give one file, or numbers, not both; the file can be edited.")
    return load_thresholds(Path(texts[0]))


def own_taxonomy(classifier: "Classifier") -> Taxonomy:
    """What the classifier was made for.

    Raises:
        ConfigError: it does not say.
    """
    taxonomy = classifier.default_taxonomy if isinstance(classifier, HasDefaultTaxonomy) else None
    if taxonomy is None:
        raise ConfigError("This judge has no taxonomy of its own; give --taxonomy NAME or a YAML file.")
    return taxonomy


def say_outside_promise(classifier: "Classifier", taxonomy: Taxonomy) -> None:
    """Once, on standard error: a cascade's promise is about what it was calibrated for; `because` repeats it a row."""
    outside = classifier.outside_promise(taxonomy) if isinstance(classifier, PromisesMissRate) else None
    if outside is not None:
        say(f"arbiter: {printable(classifier.name)}: {printable(outside)}")


def _multilabel(classifier: "Classifier", wanted: bool) -> dict[str, bool]:
    if wanted and not isinstance(classifier, MultiLabelClassifier):
        raise ConfigError(f"--multilabel: {classifier.name} always scores its categories in its own way.")
    return {"multilabel": True} if wanted else {}


def _check_names(threshold: float | dict[str, float], taxonomy: Taxonomy) -> None:
    for name in threshold if isinstance(threshold, dict) else ():
        taxonomy.index(name)


class _Judged(NamedTuple):
    """A row as it is printed."""

    path: str
    verdict: Verdict
    frame: str = ""
    """Of an animation, which frame the verdict is about."""


@dataclass
class _Row:
    """A row before it is judged."""

    path: str
    reason: str | None = None
    """Why there is nothing to judge; None where there are pictures."""
    frames: "Frames | None" = None
    """The picture, or those of an animation that are looked at."""

    @property
    def pictures(self) -> "Sequence[Image]":
        """What is judged."""
        return () if self.frames is None else self.frames.images


def _judge(
    found: Iterable[Found], ask: Ask, taxonomy: Taxonomy, model: str, batch_size: int
) -> Iterator[_Judged]:
    """One verdict for each row, in order and as soon as its batch is full; of an animation the worst frame's."""
    for rows in _batches(map(_open, found), batch_size):
        pictures = [picture for row in rows for picture in row.pictures]
        verdicts = iter(
            [
                v
                for start in range(0, len(pictures), batch_size)
                for v in ask(pictures[start : start + batch_size])
            ]
        )
        for row in rows:
            if row.frames is None:
                unjudged = Verdict("unjudged", model=model, taxonomy=taxonomy.hash, reason=row.reason)
                yield _Judged(row.path, unjudged)
            else:
                yield _worst(row.path, row.frames, [next(verdicts) for _ in row.pictures])
        sys.stdout.flush()


def _open(found: Found) -> _Row:
    from judge.data.frames import open_frames

    if found.reason is not None:
        return _Row(found.path, found.reason)
    try:
        return _Row(found.path, frames=open_frames(found.path))
    except ImageError as error:
        return _Row(found.path, str(error))


def _batches(rows: Iterable[_Row], size: int) -> Iterator[list[_Row]]:
    """Whole rows, until they hold `size` pictures or are `size` many."""
    batch: list[_Row] = []
    for row in rows:
        batch.append(row)
        if len(batch) >= size or sum(len(row.pictures) for row in batch) >= size:
            yield batch
            batch = []
    if batch:
        yield batch


def _worst(path: str, frames: "Frames", verdicts: Sequence[Verdict]) -> _Judged:
    """The verdict of a row: of several frames one that is flagged, else one that could not be judged.

    They are safe together only if all other frames look like one of them.
    """
    if frames.total == 1:
        return _Judged(path, verdicts[0])
    gravity = {"safe": 0, "unjudged": 1, "unsafe": 2}
    worst = max(range(len(verdicts)), key=lambda n: (gravity[verdicts[n].status], verdicts[n].unsafe or 0.0))
    verdict, frame = verdicts[worst], f"frame {frames.numbers[worst] + 1} of {frames.total}"
    if verdict.reason:
        return _Judged(path, replace(verdict, reason=f"{frame}: {verdict.reason}"))
    judged, total = len(verdicts), frames.total
    if verdict.status == "safe" and frames.unlike:
        reason = (
            f"{frames.unlike} of {total} frames look like none of the {judged} that were judged and are safe"
        )
        return _Judged(path, replace(verdict, status="unjudged", unsafe=None, reason=reason))
    frame = f"{frame}, the worst of {judged} looked at"
    because = f"{frame}: {verdict.because}" if verdict.because else frame
    return _Judged(path, replace(verdict, because=because), frame)


def _ask(
    model: str,
    score: "Callable[..., Scores]",
    taxonomy: Taxonomy,
    prompt: str | None,
    threshold: float | dict[str, float],
    pictures: "Sequence[Image]",
) -> list[Verdict]:
    """One verdict for each picture, in order."""
    # Whoever wrote the classifier: a whole that none of its categories reaches must not get lost.
    scores = on_one_scale(score(pictures, [prompt] * len(pictures), taxonomy))
    verdicts = []
    for row in range(len(pictures)):
        verdict = verdict_from_scores(
            float(scores.unsafe[row]),
            [float(score) for score in scores.categories[row]],
            taxonomy,
            threshold=threshold,
            model=model,
            reason=scores.reasons[row],
        )
        decided_by = verdict.decided_by if scores.decided_by is None else scores.decided_by[row]
        because = None if scores.because is None else scores.because[row]
        why = verdict.reason or scores.reasons[row]
        verdicts.append(replace(verdict, reason=why, because=because, decided_by=decided_by))
    return verdicts


def _json_line(judged: _Judged) -> str:
    return json.dumps({"path": judged.path, **judged.verdict.to_dict()}, allow_nan=False)


def _text_line(judged: _Judged, taxonomy: Taxonomy) -> str:
    verdict, width = judged.verdict, max(map(len, taxonomy.names))
    probability = "-" if verdict.unsafe is None else f"{verdict.unsafe:.3f}"
    line = f"{verdict.status:<8}  {probability:>5}  {verdict.category or '-':<{width}}  {judged.path}"
    note = verdict.reason or judged.frame
    return printable(f"{line}  ({note})" if note else line)
