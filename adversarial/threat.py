"""The threat model: the attacker's goal, knowledge and budget.

Epsilon is always in pixels of [0, 1] (written in grey levels: `2/255`), either of the posted file or of the picture at
the model's input; normalisation belongs to the victim.
(UnsafeBench's code perturbs normalised tensors, where its epsilon of 0.01 is less than one grey level.)
"""

import math
import re
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from .errors import AttackError

Norm = Literal["linf", "l2"]
Goal = Literal["opposite", "safe", "force", "hide"]
Space = Literal["file", "input"]
Knowledge = Literal["white_box", "transfer", "queries"]

_AFTER = re.compile(r"8bit|png|jpeg:(\d{1,3})")
_TOLERANCE = 1e-6
"""Rounding error that a projection in float32 may leave."""


@dataclass(frozen=True)
class ThreatModel:
    """One attacker.

    Raises:
        AttackError: a value that does not exist, or an epsilon in grey levels.
    """

    epsilon: float
    """Budget in pixels of [0, 1]: largest change of a value (linf), or L2 norm of the whole change (l2)."""
    norm: Norm = "linf"
    goal: Goal = "opposite"
    """The opposite verdict; a safe verdict for unsafe images; one category forced onto an image, or hidden."""
    category: str | None = None
    """Name of the category to force or hide."""
    space: Space = "file"
    """Pixels of the posted file, or of the picture resized to the model's input."""
    knowledge: Knowledge = "white_box"
    """Gradients of the victim; only of another model; or only query access."""
    after: tuple[str, ...] = ("8bit", "jpeg:75")
    """How the attacked picture is stored before it is scored: 8bit, png, jpeg:QUALITY; each is reported."""

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("norm", self.norm, get_args(Norm)),
            ("goal", self.goal, get_args(Goal)),
            ("space", self.space, get_args(Space)),
            ("knowledge", self.knowledge, get_args(Knowledge)),
        ):
            if value not in allowed:
                raise AttackError(f"{name} is {value!r}; it is one of {', '.join(allowed)}.")
        check_epsilon(self.epsilon, self.norm)
        if (self.goal in ("force", "hide")) != (self.category is not None):
            raise AttackError(
                f"The goal {self.goal!r} with category {self.category!r}: force and hide need a category, "
                "the other goals have none."
            )
        for step in self.after:
            found = _AFTER.fullmatch(step)
            if not found or (found[1] and not 1 <= int(found[1]) <= 100):
                raise AttackError(f"{step!r} is no way of storing a picture; use 8bit, png or jpeg:75.")

    def project(self, pixels: Tensor, clean: Tensor) -> Tensor:
        """(B, 3, H, W) pixels -> the nearest ones within the budget around `clean` (B, 3, H, W), and in [0, 1]."""
        return clip_change(pixels, clean, self.epsilon, self.norm)

    @property
    def can_be_stored(self) -> bool:
        """Whether the budget is at least one grey level; a smaller one vanishes in any file of bytes."""
        return self.norm == "l2" or self.epsilon * 255 >= 1 - _TOLERANCE

    def quantize(self, pixels: Tensor, clean: Tensor) -> Tensor:
        """(B, 3, H, W) pixels rounded to bytes within the budget around `clean`; still floats in [0, 1].

        Rounded to the nearest byte, a change of 2.55 grey levels would become 3. So it is rounded to the nearest whole
        number of levels that the budget allows; below one level nothing is left.
        """
        if self.norm == "l2":
            return round_to_8_bits(pixels)
        # The tolerance keeps a budget of k/255 that is stored slightly too small from becoming k - 1 levels.
        most = math.floor(self.epsilon * 255 + _TOLERANCE)
        base = torch.round(clean * 255.0)
        return (base + (pixels * 255.0 - base).round().clamp(-most, most)).clamp(0.0, 255.0) / 255.0

    def within_budget(self, pixels: Tensor, clean: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B,) bool, whether pixels lie in [0, 1] and within epsilon, up to float32 rounding."""
        inside = ((pixels >= -_TOLERANCE) & (pixels <= 1 + _TOLERANCE)).flatten(1).all(1)
        # Relative for large budgets, such as L2 norms above 0.1.
        allowed = self.epsilon + _TOLERANCE * max(1.0, self.epsilon * 10)
        return inside & (perturbation_norm(pixels - clean, self.norm) <= allowed)


def clip_change(pixels: Tensor, clean: Tensor, epsilon: float, norm: Norm) -> Tensor:
    """Project (B, 3, H, W) pixels into the ball of `epsilon` around `clean` (B, 3, H, W) and into [0, 1]."""
    change = pixels - clean
    if norm == "linf":
        change = change.clamp(-epsilon, epsilon)
    else:
        size = perturbation_norm(change, norm).clamp(min=1e-12)[:, None, None, None]
        change = change * (epsilon / size).clamp(max=1.0)
    return (clean + change).clamp(0.0, 1.0)


def perturbation_norm(change: Tensor, norm: Norm) -> Tensor:
    """(B, ...) changes -> (B,) norms: the largest absolute value (linf), or the Euclidean norm (l2)."""
    flat = change.flatten(1)
    return flat.abs().amax(1) if norm == "linf" else flat.norm(dim=1)


def parse_epsilon(text: str | float, norm: Norm = "linf") -> float:
    """Parse `2/255` or `0.01` into a number in pixels of [0, 1].

    Raises:
        AttackError: not a number, or an L-inf budget above 1, which was meant in grey levels.
    """
    written = str(text).strip()
    try:
        above, _, below = written.partition("/")
        value = float(above) / float(below) if below else float(above)
    except (ValueError, ZeroDivisionError):
        raise AttackError(f"{written!r} is no epsilon; write grey levels as 2/255, or a number.") from None
    check_epsilon(value, norm)
    return value


def check_epsilon(epsilon: float, norm: Norm) -> None:
    """Check that a budget is in pixels of [0, 1].

    Raises:
        AttackError: negative, not finite, or an L-inf budget above 1.
    """
    if not math.isfinite(epsilon) or epsilon < 0:
        raise AttackError(f"epsilon is {epsilon}; it is a finite number from 0.")
    if norm == "linf" and epsilon > 1:
        raise AttackError(
            f"epsilon is {epsilon:g}, but pixels are in [0, 1]; for {epsilon:g} grey levels write {epsilon:g}/255."
        )


def format_epsilon(epsilon: float) -> str:
    """0.00784 -> `2/255`, for tables."""
    return f"{round(epsilon * 255, 3):g}/255"


def round_to_8_bits(pixels: Tensor) -> Tensor:
    """(...) pixels in [0, 1], rounded to the nearest byte; still floats."""
    return torch.round(pixels.clamp(0.0, 1.0) * 255.0) / 255.0
