"""Suites of attacks and budgets: the presets `strong` and `unsafebench`.

A preset fixes everything that changes a number (attacks, steps, restarts, budgets, storage), so that a table can be
reproduced from the preset's name and a seed.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from adversarial.errors import AttackError
from adversarial.pixels.apgd import APGD
from adversarial.pixels.boundary import FAB, DeepFool
from adversarial.pixels.pgd import FGSM, PGD, GaussianNoise
from adversarial.pixels.square import Square
from adversarial.search import Attack
from adversarial.threat import ThreatModel, format_epsilon

GRID = tuple(levels / 255 for levels in (0.5, 1, 2, 2.55, 4, 8))
"""Budgets in pixels of [0, 1]. 2.55/255 is UnsafeBench's 0.01, taken as pixels."""
HEADLINE = 2 / 255
UNSAFEBENCH_EPSILON = 0.01 * 0.27
"""0.01 on CLIP's normalised tensors, whose standard deviation is about 0.27: 0.69 grey levels."""


@dataclass(frozen=True)
class Suite:
    """Attacks and budgets.

    Raises:
        AttackError: no budget, no attack, or a headline that is not among the budgets.
    """

    name: str
    threat: ThreatModel
    """Its epsilon is the headline budget, where every attack runs on every image, so that attacks can be compared."""
    epsilons: tuple[float, ...]
    """Budgets, ascending. An image broken at one counts as broken at every larger one. There it is only attacked again
    (by the first attack) while it is robust after some re-encoding, which is so measured at every budget."""
    attacks: tuple[Attack, ...]
    """The ensemble; an image is robust if none of them succeeds."""
    grid: tuple[Attack, ...]
    """The attacks at other budgets, in this order, each on images not broken so far; below one grey level, where bytes
    cannot store the change, the first attack alone."""
    weak: str | None = None
    """Why no robustness claim can rest on it; None for a strong suite."""

    def __post_init__(self) -> None:
        if not self.epsilons or not self.attacks:
            raise AttackError(f"The suite {self.name!r} needs at least one budget and one attack.")
        if list(self.epsilons) != sorted(set(self.epsilons)):
            raise AttackError("Budgets must be in ascending order, without repeats.")
        if self.threat.epsilon not in self.epsilons:
            raise AttackError(f"The headline {self.threat.epsilon} is not among the budgets {self.epsilons}.")
        black_box = self.threat.knowledge == "queries"
        if black_box and (
            wrong := [each.name for each in (*self.attacks, *self.grid) if each.needs_gradients]
        ):
            raise AttackError(
                f"A black-box attacker (knowledge 'queries') has no gradients, but {', '.join(wrong)} take some."
            )

    def attacks_at(self, epsilon: float) -> tuple[Attack, ...]:
        """The attacks that run at a budget."""
        if epsilon == self.threat.epsilon:
            return self.attacks
        # Below one grey level nothing survives as bytes, so one attack on floats is enough.
        stored = not self.threat.after or replace(self.threat, epsilon=epsilon).can_be_stored
        return self.grid if stored else self.grid[:1]

    def describe_attacks(self) -> str:
        """The attacks at each budget with their steps, for captions."""
        headline = self.threat.epsilon
        parts = [f"At {format_epsilon(headline)} every attack runs on every row: {_list(self.attacks)}."]
        by_attacks: dict[tuple[Attack, ...], list[str]] = {}
        for epsilon in self.epsilons:
            if epsilon != headline:
                by_attacks.setdefault(self.attacks_at(epsilon), []).append(format_epsilon(epsilon))
        parts += [
            f"At {', '.join(budgets)}, on rows not broken so far, in turn: {_list(attacks)}."
            for attacks, budgets in by_attacks.items()
        ]
        return " ".join(parts)

    def describe(self) -> dict[str, Any]:
        """The suite as plain data, to reproduce its numbers."""
        threat = self.threat
        budgets = ", ".join(map(format_epsilon, self.epsilons))
        about = (
            f"Suite {self.name}: {threat.norm}, budgets {budgets}, headline {format_epsilon(threat.epsilon)}, in "
            f"pixels of the {threat.space}." + (f" WEAK: {self.weak}." if self.weak else "")
        )
        return {
            "name": self.name,
            "about": about,
            "ran": self.describe_attacks(),
            "threat": asdict(threat),
            "attacks": [repr(attack) for attack in self.attacks],
            "grid": [repr(attack) for attack in self.grid],
        }


def strong(
    threat: ThreatModel | None = None,
    epsilons: tuple[float, ...] = GRID,
    *,
    steps: int = 100,
    restarts: int = 5,
    queries: int = 5000,
    everywhere: bool = True,
) -> Suite:
    """The ensemble for robustness claims: the worst case of each image over APGD on two losses, PGD, FAB and Square.

    Follows AutoAttack (Croce and Hein 2020) where two classes allow it: no DLR loss, which needs three.

    Args:
        threat: the attacker; its epsilon is the headline.
        epsilons: budgets; the headline is added.
        steps: of each gradient attack and restart.
        restarts: of PGD and of APGD on the margin; the first starts at the clean image, the others at random points.
        queries: of Square, which is there in L-inf only.
        everywhere: run all attacks at all budgets; else only APGD on the margin at budgets other than the headline.
    """
    threat = threat or ThreatModel(HEADLINE)
    pgd, apgd = PGD(steps=steps, restarts=restarts), APGD(steps=steps, restarts=restarts)
    entropy, fab = APGD(steps=steps, loss="cross_entropy"), FAB(steps=steps)
    square: tuple[Attack, ...] = (Square(queries=queries),) if threat.norm == "linf" else ()
    attacks: tuple[Attack, ...] = (FGSM(), pgd, apgd, entropy, fab, *square)
    # The strongest first, as the others skip what it breaks.
    in_turn: tuple[Attack, ...] = (apgd, fab, pgd, *square, entropy, FGSM())
    # A set: the headline may be one of the given budgets.
    budgets = tuple(sorted({*epsilons, threat.epsilon}))
    return Suite("strong", threat, budgets, attacks, in_turn if everywhere else (apgd,))


def unsafebench(steps: int = 100) -> Suite:
    """UnsafeBench's protocol (sections 3.4 and A.3) as its released code ran it; a weak attack, for comparison only.

    Its epsilon of 0.01 lies on normalised tensors, its noise has an L2 length of 0.01 (2e-5 a value at 336 pixels), its
    PGD steps are 3.33 epsilon so that each forgets the one before, and success is checked at the last step only. Two
    things differ here: pixels stay valid, and the target is the judge's own answer under its policy and prompt.
    """
    linf = ThreatModel(UNSAFEBENCH_EPSILON, space="input", after=())
    attacks: tuple[Attack, ...] = (
        GaussianNoise(sigma=2e-5, draws=1),
        FGSM(),
        PGD(
            steps=steps,
            alpha=1 / 0.3,
            allow_large_steps=True,
            last_iterate=True,
        ),
        DeepFool(steps=steps),
    )
    weak = (
        "below one grey level, PGD without memory, success checked at the first and last step: upper bounds "
        "of the robustness, not comparable with `strong`"
    )
    return Suite("unsafebench", linf, (linf.epsilon,), attacks, attacks, weak)


def queries_only(suite: Suite) -> Suite:
    """The black-box attacks of a suite, for victims without gradients; recorded as knowledge `queries`.

    Raises:
        AttackError: the suite has none.
    """
    attacks = tuple(attack for attack in suite.attacks if not attack.needs_gradients)
    if not attacks:
        raise AttackError(f"Every attack of the suite {suite.name!r} needs gradients.")
    weak = "attacks without gradients only: an upper bound of the robustness"
    threat = replace(suite.threat, knowledge="queries")
    return replace(suite, threat=threat, attacks=attacks, grid=attacks, weak=suite.weak or weak)


def _list(attacks: Sequence[Attack]) -> str:
    """`fgsm, apgd (30 steps, 2 restarts), square (150 queries)`."""
    found = []
    for attack in attacks:
        counts = [(name, getattr(attack, name, None)) for name in ("steps", "restarts", "queries", "draws")]
        counted = ", ".join(
            f"{count} {name if count != 1 else name[:-1]}" for name, count in counts if count is not None
        )
        found.append(f"{attack.name} ({counted})" if counted else attack.name)
    return ", ".join(found)
