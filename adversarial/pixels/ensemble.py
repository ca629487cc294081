"""Several attacks as one: each runs on the images that withstood the ones before, and the best of each image counts.

The worst case over an ensemble is what a robust accuracy should be taken over (Croce and Hein 2020, section 5): an
attack that is stuck on an image says little about another one.
"""

from dataclasses import dataclass, replace

from adversarial.errors import AttackError
from adversarial.problem import AttackResult, Problem
from adversarial.search import Attack


@dataclass(frozen=True)
class Ensemble:
    """Run attacks in turn, each on the images without success so far.

    Raises:
        AttackError: no attacks.
    """

    attacks: tuple[Attack, ...]
    """Cheap ones first, as the others skip what they break."""
    name: str = "ensemble"

    def __post_init__(self) -> None:
        if not self.attacks:
            raise AttackError("An ensemble needs at least one attack.")

    @property
    def needs_gradients(self) -> bool:
        """Whether any of the attacks does."""
        return any(attack.needs_gradients for attack in self.attacks)

    def run(self, problem: Problem) -> AttackResult:
        """The best of all attacks for every image."""
        best = self.attacks[0].run(problem)
        # Copies, as rows are overwritten below.
        best = replace(best, pixels=best.pixels.clone(), margin=best.margin.clone(), steps=best.steps.clone())
        for attack in self.attacks[1:]:
            # Only images on which no attack has succeeded yet.
            rows = ((best.margin >= 0) & ~best.misjudged).nonzero().flatten()
            if not len(rows):
                break
            found = attack.run(problem.subset(rows))
            better = found.margin < best.margin[rows]
            chosen = rows[better]
            best.pixels[chosen], best.margin[chosen] = found.pixels[better], found.margin[better]
            best.steps[chosen] = found.steps[better]
        return best
