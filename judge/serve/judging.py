"""`arbiter judge`: files, folders and lists of paths -> verdicts, printed as they come."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from inspect import signature
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from judge.errors import ConfigError, ImageError
from judge.protocol import on_one_scale
from prompts.taxonomy import Taxonomy
from prompts.taxonomy_file import load_taxonomy
from prompts.verdict import DEFAULT_THRESHOLD, Verdict, verdict_from_scores

from .cli import EXIT_FLAGGED, EXIT_SAFE, EXIT_UNJUDGED

if TYPE_CHECKING:
    from judge.protocol import Classifier, Scores
    from judge.thresholds import Thresholds


def judge_paths(options: argparse.Namespace) -> int:
    """Judge what the options name, print a line for each image, and return the exit code."""
    import judge

    fitted = fitted_thresholds(options.threshold)
    threshold = DEFAULT_THRESHOLD if fitted else parse_threshold(options.threshold)
    # Everything cheap is checked before a model of many gigabytes is loaded.
    named = load_taxonomy(options.taxonomy) if options.taxonomy else None
    if named is not None:
        named = choose_categories(named, options.categories, options.custom)
        threshold = fitted.of(named) if fitted else threshold
        _check_names(threshold, named)
    paths = find_images(options.paths)
    first = list(islice(paths, options.batch_size))
    if not first:
        raise ConfigError("No images found in what was given; name files, folders, or - for standard input.")
    classifier = judge.load_classifier(options.judge, device=options.device, batch_size=options.batch_size)
    plain: Callable[..., Scores] = classifier.score
    score = partial(plain, **_multilabel(classifier, options.multilabel))
    taxonomy = named or choose_categories(own_taxonomy(classifier), options.categories, options.custom)
    threshold = fitted.of(taxonomy) if fitted else threshold
    _check_names(threshold, taxonomy)
    if fitted and fitted.judge != classifier.name:
        told = f"thresholds were fitted for {fitted.judge}, not for {classifier.name}"
        print(f"arbiter: {_printable(told)}", file=sys.stderr)
    say_outside_promise(classifier, taxonomy)
    counts = {"unsafe": 0, "safe": 0, "unjudged": 0}
    batch = first
    while batch:
        for path, verdict in _judge_batch(batch, classifier.name, score, taxonomy, options.prompt, threshold):
            counts[verdict.status] += 1
            print(_json_line(path, verdict) if options.json else _text_line(path, verdict, taxonomy))
        sys.stdout.flush()
        batch = list(islice(paths, options.batch_size))
    print(
        f"{sum(counts.values())} images: {counts['unsafe']} flagged, {counts['safe']} safe, "
        f"{counts['unjudged']} not judged",
        file=sys.stderr,
    )
    if counts["unsafe"]:
        return EXIT_FLAGGED
    return EXIT_UNJUDGED if counts["unjudged"] else EXIT_SAFE


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
    """`--threshold 0.3`, or `--threshold Violence=0.3` as often as needed; never both.

    Raises:
        ConfigError: not a number from 0 to 1, or one for all mixed with some for single categories.
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
    from judge.thresholds import load_thresholds

    if len(texts) > 1:
        raise ConfigError("--threshold: give one file, or numbers, not both; the file can be edited.")
    return load_thresholds(Path(texts[0]))


def find_images(paths: Iterable[str]) -> Iterator[str]:
    """The files to judge: those named, those in folders that start like images, and those listed on stdin.

    A file that is named is always judged, whatever it is; what a folder holds beside images is counted on
    standard error, so that nothing goes missing unsaid.
    """
    from judge.images import format_of

    for path in paths:
        if path == "-":
            # As bytes: a file name need not be text in the terminal's encoding.
            lines = (os.fsdecode(line.rstrip(b"\r\n")) for line in sys.stdin.buffer)
            yield from find_images(line for line in lines if line not in ("", "-"))
        elif not os.path.isdir(path):
            yield path
        else:
            others = 0
            for file in _files(path):
                if format_of(_head(file)) is None:
                    others += 1
                else:
                    yield file
            if others:
                print(
                    f"arbiter: {_printable(path)}: {others} files are no images, not judged", file=sys.stderr
                )


def _files(folder: str) -> Iterator[str]:
    def refuse(error: OSError) -> None:
        # An unreadable folder may hold anything, so its images must not be passed over.
        raise ConfigError(f"Cannot look into {error.filename}: {error.strerror}")

    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders.sort()
        for name in sorted(names):
            yield os.path.join(parent, name)


def _head(path: str) -> bytes:
    """The first bytes, or those of some image where they cannot be read, so that the file is reported."""
    try:
        if not os.path.isfile(path):
            return b"" if os.path.exists(path) else b"BM"
        with open(path, "rb") as file:
            return file.read(16)
    except OSError:
        return b"BM"


def own_taxonomy(classifier: "Classifier") -> Taxonomy:
    """What the classifier was made for.

    Raises:
        ConfigError: it does not say.
    """
    taxonomy = getattr(classifier, "default_taxonomy", None)
    if not isinstance(taxonomy, Taxonomy):
        raise ConfigError("This judge has no taxonomy of its own; give --taxonomy NAME or a YAML file.")
    return taxonomy


def say_outside_promise(classifier: "Classifier", taxonomy: Taxonomy) -> None:
    """Once, on standard error: a cascade's promise is about what it was calibrated for; `because` repeats it a row."""
    outside = getattr(classifier, "outside_promise", lambda asked: None)(taxonomy)
    if outside is not None:
        print(f"arbiter: {_printable(classifier.name)}: {_printable(outside)}", file=sys.stderr)


def _multilabel(classifier: "Classifier", wanted: bool) -> dict[str, bool]:
    if wanted and "multilabel" not in signature(classifier.score).parameters:
        raise ConfigError(f"--multilabel: {classifier.name} always scores its categories in its own way.")
    return {"multilabel": True} if wanted else {}


def _check_names(threshold: float | dict[str, float], taxonomy: Taxonomy) -> None:
    for name in threshold if isinstance(threshold, dict) else ():
        taxonomy.index(name)


def _judge_batch(
    paths: Sequence[str],
    model: str,
    score: "Callable[..., Scores]",
    taxonomy: Taxonomy,
    prompt: str | None,
    threshold: float | dict[str, float],
) -> Iterator[tuple[str, Verdict]]:
    """One verdict for each path, in order; what cannot be opened is unjudged, the rest is judged."""
    from judge.images import open_image

    opened: dict[int, Any] = {}
    failed: dict[int, ImageError] = {}
    for index, path in enumerate(paths):
        try:
            opened[index] = open_image(path)
        except ImageError as error:
            failed[index] = error
    # Whoever wrote the classifier: a whole that none of its categories reaches must not get lost.
    scores = on_one_scale(score(list(opened.values()), [prompt] * len(opened), taxonomy)) if opened else None
    rows = {index: row for row, index in enumerate(opened)}
    for index, path in enumerate(paths):
        if index in failed or scores is None:
            reason = str(failed[index])
            yield path, Verdict("unjudged", model=model, taxonomy=taxonomy.hash, reason=reason)
            continue
        row = rows[index]
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
        yield path, replace(verdict, reason=why, because=because, decided_by=decided_by)


def _json_line(path: str, verdict: Verdict) -> str:
    return json.dumps({"path": path, **verdict.to_dict()}, allow_nan=False)


def _text_line(path: str, verdict: Verdict, taxonomy: Taxonomy) -> str:
    width = max(map(len, taxonomy.names))
    probability = "-" if verdict.unsafe is None else f"{verdict.unsafe:.3f}"
    line = f"{verdict.status:<8}  {probability:>5}  {verdict.category or '-':<{width}}  {_printable(path)}"
    return f"{line}  ({_printable(verdict.reason)})" if verdict.reason else line


def _printable(text: str) -> str:
    """A name of somebody's choice, without control characters that could rewrite the terminal's lines."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
