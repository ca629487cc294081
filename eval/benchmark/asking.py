"""What every classifier of one benchmark is asked, and the files with their answers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from judge.protocol import Classifier
from judge.runs.files import file_hash
from judge.runs.machine import environment
from prompts.example import Example
from prompts.taxonomy import Taxonomy

from .choices import Choice
from .coverage import covered_keys
from .elsewhere import judge_elsewhere, read_elsewhere
from .parts import PartFolder, check_same
from .predict import check_unchanged, is_complete, predict
from .predictions import SUFFIX, About, Predictions, Protocol, read_predictions, write_predictions

PARTS = ".parts"


def merge_splits(examples: Sequence[Example], limit: int | None = None) -> tuple[Example, ...]:
    """Split after split, at most `limit` examples of each."""
    splits = dict.fromkeys(example.split for example in examples)
    each = ([one for one in examples if one.split == split][:limit] for split in splits)
    return tuple(example for part in each for example in part)


def without_prompts(examples: Sequence[Example]) -> tuple[Example, ...]:
    """The same images without their prompts."""
    return tuple(replace(example, prompt=None) for example in examples)


@dataclass(frozen=True)
class Benchmark:
    """The images, the categories and the rules.

    Attributes:
        folder: of the predictions; LABEL.parquet, and LABEL.parts while something is left to ask.
        dataset: where the images come from.
        taxonomy: what is asked about.
        protocol: `default`, or `paper`.
        examples: the images.
        merged: those of all splits, on which the paper measures conventional classifiers; None under `default`.
        batch_size: images in one call.
        machine: what they run on.
    """

    folder: Path
    dataset: str
    taxonomy: Taxonomy
    protocol: Protocol
    examples: Sequence[Example]
    merged: Sequence[Example] | None = None
    batch_size: int = 32
    machine: str = ""

    def examples_for(self, choice: Choice) -> Sequence[Example]:
        """The images that a classifier is asked about: under `paper` all splits for those with fixed categories."""
        whole = self.merged is not None and choice.group == "conventional"
        return self.merged if self.merged is not None and whole else self.examples

    def finished(self, choice: Choice) -> Predictions | None:
        """Predictions of an earlier run, where nothing is left to ask.

        Raises:
            ConfigError: they are of another classifier, of other options or data, or the data has changed since.
            PredictionsError: the file cannot be read.
        """
        if not self._file(choice).is_file() or self._parts(choice).exists():
            return None
        found = read_predictions(self._file(choice))
        about = self._about(choice, found.about.covers)
        check_same(self._file(choice), found.about, about)
        check_unchanged(self._file(choice), found.rows, self.examples_for(choice), about, complete=True)
        if found.about.price_per_1000 != about.price_per_1000:
            found = Predictions(replace(found.about, price_per_1000=about.price_per_1000), found.rows)
            write_predictions(self._file(choice), found)
        return found

    def ask(
        self, choice: Choice, load: Callable[[], Classifier], progress: Callable[[int], Any] | None = None
    ) -> Predictions | None:
        """Ask one classifier about everything that is not answered yet, and write the file.

        Args:
            choice: who.
            load: gives the classifier; not called where the predictions were made elsewhere.
            progress: called with the number of images that are done.

        Returns:
            None where it covers no category of the taxonomy.

        Raises:
            ClassifierFailedError: it cannot be measured.
            ConfigError: earlier predictions are of something else; or wrong options.
            PredictionsError: of predictions made elsewhere.
        """
        if choice.file is not None:
            rows = read_elsewhere(choice.file, self.taxonomy)
            found = judge_elsewhere(rows, self.examples_for(choice), self._about(choice, rows.covers))
            self._write(choice, found)
            return found
        classifier = load()
        covers = covered_keys(classifier, self.taxonomy)
        if not covers:
            return None
        about = self._about(choice, covers)
        parts = PartFolder(self._parts(choice), about)
        check_unchanged(parts.path, parts.rows.values(), self.examples_for(choice), about)
        parts.path.mkdir(
            parents=True, exist_ok=True
        )  # also where no row will be final: it marks what is left to ask
        found = predict(
            classifier,
            self.examples_for(choice),
            about,
            parts,
            batch_size=self.batch_size,
            progress=progress,
        )
        self._write(choice, found)
        if is_complete(found, parts):
            parts.remove()
        return found

    def unanswered(self, found: Predictions) -> int:
        """How many of the rows will be asked again, as a service gave no answer."""
        folder = self.folder / f"{found.about.label}{PARTS}"
        return len(found.rows) - len(PartFolder(folder, found.about).done()) if folder.exists() else 0

    def file_hash(self, label: str) -> str:
        """Hash of a classifier's file of predictions."""
        return file_hash(self.folder / f"{label}{SUFFIX}")

    def _write(self, choice: Choice, found: Predictions) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_predictions(self._file(choice), found)

    def _file(self, choice: Choice) -> Path:
        return self.folder / f"{choice.label}{SUFFIX}"

    def _parts(self, choice: Choice) -> Path:
        return self.folder / f"{choice.label}{PARTS}"

    def _about(self, choice: Choice, covers: tuple[str, ...]) -> About:
        splits = {example.split for example in self.examples_for(choice)}
        return About(
            choice.label,
            choice.name,
            choice.group,
            self.taxonomy,
            covers,
            self.dataset,
            tuple(sorted(splits)),
            protocol=self.protocol,
            options=choice.options,
            fingerprint=choice.fingerprint(),
            price_per_1000=choice.price_per_1000,
            machine=self.machine,
        )


def machine_name() -> str:
    """The processor, its cores, and the GPUs, on one line."""
    found = environment()["machine"]
    return ", ".join([f"{found['cpu']} ({found['cores']} cores)", *map(str, found["gpus"])])
