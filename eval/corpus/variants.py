"""Adversarial variants of a corpus's rows: attacks that adapt to the defence asked for.

A row that the corpus labels unsafe and that the defence flags is changed until the defence calls it safe, or the budget
is spent. Each attack gives one new row of it, with the attack's name, the defence, the budget, the row it was made of,
and whether the defence was evaded. Its labels are not taken over: the builder judges it anew on its own picture, which
for an attack on the prompt alone is drawn anew.

A defence that labels its own adversarial rows labels those that evade it wrong: let another classifier label, or go by
`outcome["unsafe_before"]`, the score of the row before the attack. The card of such a corpus says so.

What is evaded is the defence as deployed: success is asked again by `score`, of pictures as bytes. The published
corpus attacked fixed targets of other people instead (docs/diffusion.md).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from adversarial.joint import JointAttack, run_joint_verified
from adversarial.pixels.apgd import APGD
from adversarial.pixels.square import Square
from adversarial.problem import AttackResult, Problem
from adversarial.search import Attack, run_verified
from adversarial.storing import is_misjudged, to_images, to_pixels
from adversarial.texts.attack import TextAttack
from adversarial.texts.families import FAMILIES
from adversarial.texts.result import TextResult, verify_prompts
from adversarial.texts.token_attack import TokenAttack
from adversarial.texts.tokens import TokenSearch
from adversarial.threat import ThreatModel
from adversarial.victim import Context
from eval.robustness.victims import ClassifierVictim
from judge.classifiers import load_classifier
from judge.corpus.pictures import encode_picture
from judge.corpus.rows import FLAGGED_FROM, CorpusRow, Variant, with_id
from judge.corpus.stages import Result, Task
from judge.data.images import open_image
from judge.encoders.soft_text import SoftText
from judge.errors import ConfigError
from judge.protocol import Classifier
from judge.runs.references import fingerprint
from judge.standins.shipped import run_path
from judge.student.student import Student, student_margin
from prompts.taxonomy import Taxonomy

KINDS = ("families", "tokens", "pixels", "joint")
"""Prompts made by rule, tokens found by gradient, pixels of the finished picture, pixels with a prompt of the rules."""
_TEXTS = {name: maker for name, maker in FAMILIES.items() if name != "deletion"}
"""Without a prompt there is nothing to draw."""

Booleans = NDArray[np.bool_]


@dataclass
class AdversarialVariants:
    """The stage `variants` of a corpus.

    Args:
        defence: the classifier to evade, by the name that `load_classifier` takes.
        taxonomy: what it is asked.
        kinds: some of `KINDS`; each gives at most one variant of a row.
        share: of the unsafe rows, 0 to 1, that are attacked; which ones follows from their ids.
        epsilon: largest change of a pixel, in [0, 1].
        steps: of the attack on pixels, and of the token search.
        queries: of the attack on pixels where the defence has no gradients.
        threshold: score from which a row is unsafe, and from which the defence flags it.
        seed: of every random draw.
        load: opens the classifier by its name.

    Raises:
        ConfigError: an unknown kind, or a number outside its range; from a call, tokens against another classifier than
            a student, which alone has gradients in the prompt.
    """

    defence: str
    taxonomy: Taxonomy
    kinds: Sequence[str] = ("families", "pixels", "joint")
    share: float = 1.0
    epsilon: float = 8 / 255
    steps: int = 20
    queries: int = 500
    threshold: float = FLAGGED_FROM
    seed: int = 0
    load: Callable[[str], Classifier] = load_classifier
    name: str = field(default="variants", init=False)

    def __post_init__(self) -> None:
        unknown = [kind for kind in self.kinds if kind not in KINDS]
        if unknown or not self.kinds:
            raise ConfigError(f"No kind of variant {unknown}; choose some of {', '.join(KINDS)}.")
        if not 0 < self.share <= 1 or not 1 / 255 <= self.epsilon <= 1 or self.steps < 1 or self.queries < 1:
            raise ConfigError(
                f"share is {self.share}, epsilon {self.epsilon}, steps {self.steps}, queries {self.queries}; a share "
                "is above 0, an epsilon at least 1/255, as files hold whole grey levels, and the others at least 1."
            )

    @property
    def about(self) -> Mapping[str, Any]:
        """The attacker, and the defence with a hash of its weights where it is a folder."""
        path = Path(run_path(self.defence))
        return {
            "defence": self.defence,
            "fingerprint": fingerprint(path)[:16] if path.exists() else None,
            "kinds": list(self.kinds),
            "budget": [self.share, self.epsilon, self.steps, self.queries, self.threshold, self.seed],
        }

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "victim"}

    @cached_property
    def victim(self) -> ClassifierVictim:
        """The defence under attack, loaded at first use."""
        return ClassifierVictim(self.load(self.defence), threshold=self.threshold)

    def __call__(self, task: Task) -> Result:
        """The variants of a chunk's rows, kind by kind."""
        rows: list[CorpusRow] = []
        pictures: dict[str, bytes] = {}
        chosen = [row for row in task.rows if self._is_chosen(row)]
        images = {row.id: open_image(task.pictures[row.id]) for row in chosen}
        for size in dict.fromkeys(image.size for image in images.values()):
            some = [row for row in chosen if images[row.id].size == size]
            contexts = [Context(row.prompt, self.taxonomy) for row in some]
            scores = self.victim.score([images[row.id] for row in some], contexts)
            flagged = np.flatnonzero(
                scores >= 0.5
            ).tolist()  # neither what it misses already, nor what is unjudged
            if not flagged:
                continue
            some = [some[place] for place in flagged]
            problem = self._problem(some, [images[row.id] for row in some], [contexts[p] for p in flagged])
            for kind in self.kinds:
                for row, picture in self._attack(kind, some, problem):
                    rows.append(row)
                    if picture is not None:
                        pictures[row.id] = picture
        return Result(task.chunk, tuple(rows), pictures)

    def _is_chosen(self, row: CorpusRow) -> bool:
        unsafe = row.unsafe is not None and row.unsafe >= self.threshold
        return unsafe and row.variant is None and int(row.id[:8], 16) < self.share * 2**32

    def _problem(self, rows: Sequence[CorpusRow], images: Sequence[Any], contexts: list[Context]) -> Problem:
        threat = ThreatModel(self.epsilon, goal="safe", after=("8bit",))
        return Problem(
            self.victim, to_pixels(images), contexts, torch.ones(len(rows)), threat,
            seed=self.seed, ids=[row.id for row in rows],
        )  # fmt: skip

    def _attack(
        self, kind: str, rows: Sequence[CorpusRow], problem: Problem
    ) -> list[tuple[CorpusRow, bytes | None]]:
        """New rows, each with its picture; None where one has to be drawn."""
        if kind in ("families", "tokens"):
            return self._texts(kind, rows, problem)
        attack = self._on_pixels()
        budget = {"epsilon": self.epsilon, "norm": "linf", attack.name: _effort(attack)}
        prompts = [row.prompt for row in rows]
        if kind == "joint":
            joint = run_joint_verified(JointAttack(attack, self._candidates), problem)
            pixels, contexts = joint.pixels, joint.contexts
            prompts = [context.prompt for context in contexts]
            budget["families"] = len(_TEXTS)
        else:
            found: AttackResult = run_verified(attack, problem)
            pixels, contexts = found.pixels, list(problem.contexts)
        stored = to_images(problem.threat.quantize(pixels, problem.images))
        evaded = is_misjudged(self.victim.score(stored, contexts), np.ones(len(rows)))
        made = []
        for place, row in enumerate(rows):
            outcome = {"evaded": bool(evaded[place]), "asked_with": "its own picture"}
            base = self._variant(row, kind, budget, outcome, prompts[place])
            made.append(encode_picture(base, np.asarray(stored[place])))
        return made

    def _texts(
        self, kind: str, rows: Sequence[CorpusRow], problem: Problem
    ) -> list[tuple[CorpusRow, bytes | None]]:
        """Rows with other prompts, where the attack found a better one, to be drawn."""
        search: TextAttack | TokenAttack = TextAttack(_TEXTS) if kind == "families" else self._token_search()
        found: TextResult = verify_prompts(search.run(problem), problem)
        scores = self.victim.score(to_images(problem.images), found.contexts(problem))
        evaded = is_misjudged(scores, np.ones(len(rows)))
        made: list[tuple[CorpusRow, bytes | None]] = []
        for place, row in enumerate(rows):
            prompt = found.prompts[place]
            if not prompt or not prompt.strip() or prompt == row.prompt:
                continue
            outcome = {"evaded": bool(evaded[place]), "asked_with": "the picture of the row it was made from"}
            budget = {"families": len(_TEXTS)} if kind == "families" else {"steps": self.steps}
            variant = self._variant(row, kind, {**budget, "text": found.family[place]}, outcome, prompt)
            made.append((variant, None))
        return made

    def _variant(
        self,
        row: CorpusRow,
        kind: str,
        budget: Mapping[str, Any],
        outcome: Mapping[str, Any],
        prompt: str | None,
    ) -> CorpusRow:
        """A row about nothing but what it was made of; picture and labels are its own."""
        bare = replace(
            row, prompt=prompt, prompt_cut=None, sha256=None, phash=None, labelled_by=None, scores={}, unsafe=None,
            decided_by=None,
            variant=Variant(kind, self.defence, budget, row.id, {**outcome, "unsafe_before": row.unsafe}),
        )  # fmt: skip
        return with_id(bare)

    def _on_pixels(self) -> Attack:
        if self.victim.no_gradients is None:
            return APGD(steps=self.steps)
        return Square(queries=self.queries)

    def _token_search(self) -> TokenAttack:
        classifier = self.victim.classifier
        if not isinstance(classifier, Student):
            raise ConfigError(
                f"{self.defence} has no gradients in the prompt, so no tokens can be searched; leave the kind out."
            )
        soft = SoftText(classifier.encoder)

        def margin(pixels: torch.Tensor, context: Context) -> Callable[[torch.Tensor], torch.Tensor]:
            return student_margin(classifier, soft, pixels, self.taxonomy)

        search = TokenSearch(length=8, top_k=64, candidates=64, steps=self.steps, stop_below=0.0)
        return TokenAttack(soft, margin, search)

    def _candidates(self, row: int, context: Context) -> list[Context]:
        """The prompts of all families for one row."""
        texts = [text for maker in _TEXTS.values() for text in maker(context.prompt, "safe", self.seed)]
        return [replace(context, prompt=text) for text in texts if text and text.strip()]


def _effort(attack: Any) -> int:
    """Its steps, or its queries."""
    return int(getattr(attack, "steps", None) or attack.queries)
