"""Gradient attacks on the margin: Gaussian noise as their baseline, FGSM, and PGD.

All of them minimise the signed margin and count steps alike: the clean image is step 0, and each further point at
which the victim is queried is one step.

**Two losses.** With two classes, the cross-entropy of the right one is `softplus(-margin)`. Its gradient in the
pixels is that of the margin times `sigmoid(-margin)`: same direction, other length. Sign steps and normalised steps
ignore the length, so cross-entropy leads exactly where the margin does, until the factor (or its product with the
gradient) underflows in float32, at a margin of about 104. Then the attack stands still and the victim looks robust.
The papers use cross-entropy, so it is offered; the margin never saturates and is the default.
"""

from dataclasses import dataclass, field, replace

from torch import Tensor

from adversarial.errors import AttackError
from adversarial.problem import AttackResult, Problem
from adversarial.search import Search
from adversarial.threat import ThreatModel

from .steps import Loss, attack_name, check_counts, check_loss, direction, loss_gradient, starting_points


@dataclass(frozen=True)
class GaussianNoise:
    """Random noise, best of a few draws; the baseline of all attacks.

    UnsafeBench scales its noise to an L2 length of 0.01 over the whole image, 2e-5 a value, which does nothing.
    Here sigma is the standard deviation of one value in pixels, and the noise is then brought into the budget.

    Raises:
        AttackError: less than one draw, a sigma or length that is not positive, or both of them.
    """

    sigma: float | None = None
    """Of one value, in pixels of [0, 1]. None: half of epsilon (L-inf, where 5% of the values are then clipped), or
    epsilon divided by the root of the number of values (L2, where the noise is then about as long as the budget)."""
    draws: int = 10
    length: float | None = None
    """Instead of sigma, UnsafeBench's way: scale each draw to this Euclidean length over the whole image."""
    early_stop: bool = True

    name = "gaussian_noise"
    needs_gradients = False

    def __post_init__(self) -> None:
        check_counts(draws=self.draws)
        if self.sigma is not None and self.length is not None:
            raise AttackError("Give sigma, of one value, or length, of the noise in a whole image; not both.")
        for name, size in (("sigma", self.sigma), ("length", self.length)):
            if size is not None and not size > 0:
                raise AttackError(f"{name} is {size}; it is a positive number in pixels of [0, 1], as 4/255.")

    def run(self, problem: Problem) -> AttackResult:
        """Draw noise for every image until it is misjudged or the draws are used up."""
        search = Search(problem, self.draws, self.early_stop)
        while batches := search.batches():
            for rows in batches:
                clean = problem.images[rows]
                noise = problem.draw_noise(rows, f"{self.name}/{int(search.steps_taken[rows[0]])}", "normal")
                pixels = problem.threat.project(clean + self._scaled(noise, problem.threat), clean)
                search.update(rows, pixels, problem.signed_margins(pixels, rows))
        return search.result

    def _scaled(self, noise: Tensor, threat: ThreatModel) -> Tensor:
        if self.length is not None:
            return self.length * direction(noise, "l2")
        if self.sigma is not None:
            return self.sigma * noise
        return noise * threat.epsilon / (2.0 if threat.norm == "linf" else float(noise[0].numel()) ** 0.5)


@dataclass(frozen=True)
class FGSM:
    """One step of length epsilon along the sign of the gradient (L-inf), or along the gradient (L2).

    Goodfellow et al. 2015, "Explaining and harnessing adversarial examples", section 4. Exact where the margin is
    linear in the pixels; elsewhere the baseline of iterative attacks.

    Raises:
        AttackError: a loss that does not exist.
    """

    loss: Loss = "margin"

    needs_gradients = True

    def __post_init__(self) -> None:
        check_loss(self.loss)

    @property
    def name(self) -> str:
        """Its name in tables."""
        return attack_name("fgsm", self.loss)

    def run(self, problem: Problem) -> AttackResult:
        """Take the step from every clean image, and query the point reached."""
        return PGD(steps=1, loss=self.loss).run(problem)


@dataclass(frozen=True)
class PGD:
    """Projected gradient descent on the margin, with restarts, keeping the best point of all.

    Madry et al. 2018, "Towards deep learning models resistant to adversarial attacks", section 2.1; L2 with normalised
    gradients. The first run starts at the clean image (or at `start`), later ones at random points of the ball, and
    only images without success are run again. The margin of the clean image is known, so the first step is already a
    move; any other start is queried and costs one of its run's steps. A run's last point needs no gradient.

    With `last_iterate`, `check_every=steps` and a step of 3.33 epsilon it is UnsafeBench's protocol. There a step
    leads from anywhere in the ball beyond its far side, so the projection forgets where it came from: each iterate is
    the FGSM point of the one before. So a step of epsilon or more needs `allow_large_steps`.

    Raises:
        AttackError: counts below 1, a step that is not positive, or too large; options that contradict each other.
    """

    steps: int = 100
    """Points queried in each run."""
    alpha: float | None = None
    """Step in units of epsilon. None: 2.5 / steps, enough to cross the ball (2 epsilon) with a quarter to spare, and
    at most 0.5 for few steps; a single step goes all the way (FGSM)."""
    restarts: int = 1
    """Runs for each image, the first included."""
    loss: Loss = "margin"
    early_stop: bool = True
    """Whether an image is done once it is misjudged; otherwise all steps go into the lowest margin."""
    last_iterate: bool = False
    """Return the last point instead of the best; weak, to reproduce published figures."""
    check_every: int | None = None
    """With `last_iterate`: check for success only every so many steps, and stop there. None: at the end only."""
    allow_large_steps: bool = False
    """Permit a step of epsilon or more."""
    start: Tensor | None = field(default=None, compare=False, repr=False)
    """(N, 3, H, W) where the first run begins, brought into the budget; None: the clean images."""

    needs_gradients = True

    def __post_init__(self) -> None:
        check_counts(
            steps=self.steps,
            restarts=self.restarts,
            check_every=1 if self.check_every is None else self.check_every,
        )
        check_loss(self.loss)
        if self.alpha is not None and not self.alpha > 0:
            raise AttackError(f"alpha is {self.alpha}; it is a positive number, in units of epsilon.")
        # A single step may cross the ball: that is FGSM.
        if self.step >= 1 and self.steps > 1 and not self.allow_large_steps:
            raise AttackError(
                f"alpha is {self.step:.4g} times epsilon: steps that large jump from edge to edge of the budget, and "
                "from 2 on each forgets all before it. Use less than 1 (2.5 / steps is usual; alpha is relative to "
                "epsilon, not in pixels), or set allow_large_steps to reproduce such an attack."
            )
        if self.last_iterate and self.restarts > 1:
            raise AttackError(
                "last_iterate keeps no best point, so restarts would be lost; use one of the two."
            )
        if self.check_every is not None and not self.last_iterate:
            raise AttackError("check_every needs last_iterate; otherwise every step is checked.")

    @property
    def name(self) -> str:
        """Its name in tables."""
        return attack_name("pgd", self.loss) + ("_last_iterate" if self.last_iterate else "")

    def starting_at(self, pixels: Tensor) -> "PGD":
        """The same attack with its first run at (N, 3, H, W) pixels."""
        return replace(self, start=pixels)

    @property
    def step(self) -> float:
        """Length of a step in units of epsilon."""
        if self.alpha is not None:
            return self.alpha
        return 1.0 if self.steps == 1 else min(0.5, 2.5 / self.steps)

    def run(self, problem: Problem) -> AttackResult:
        """Descend for every image until it is misjudged or the steps are used up."""
        search = Search(problem, self.steps * self.restarts, self.early_stop and not self.last_iterate)
        points = starting_points(problem, self.start)
        # The margins of the clean images are known, so this first move costs no step.
        if self.start is None:
            for rows in search.batches():
                _, gradient = problem.gradient(points[rows], rows)
                points[rows] = self._step_from(
                    problem, rows, points[rows], problem.clean_margins()[rows], gradient
                )
        while batches := search.batches():
            for rows in batches:
                # Active rows take one step per round, so all of them are at the same step.
                run, place = divmod(int(search.steps_taken[rows[0]]), self.steps)
                here = points[rows]
                if place < self.steps - 1:
                    margin, gradient = problem.gradient(here, rows)
                    points[rows] = self._step_from(problem, rows, here, margin, gradient)
                else:
                    margin = problem.signed_margins(here, rows)
                    if run + 1 < self.restarts:
                        points[rows] = problem.restart_points(rows, run + 1, "pgd")
                search.update(rows, here, margin)
                if self.last_iterate:
                    self._keep_last(search, rows, here, margin)
        return search.result

    def _step_from(
        self, problem: Problem, rows: Tensor, here: Tensor, margin: Tensor, gradient: Tensor
    ) -> Tensor:
        # Gradient descent on the signed margin, so the step is subtracted.
        ahead = direction(loss_gradient(problem, margin, gradient, self.loss), problem.threat.norm)
        return problem.threat.project(here - self.step * problem.threat.epsilon * ahead, problem.images[rows])

    def _keep_last(self, search: Search, rows: Tensor, here: Tensor, margin: Tensor) -> None:
        search.result.pixels[rows], search.result.margin[rows] = here, margin
        search.result.steps[rows] = search.steps_taken[rows]
        if self.check_every is not None and int(search.steps_taken[rows[0]]) % self.check_every == 0:
            search.active[rows] &= margin >= 0
