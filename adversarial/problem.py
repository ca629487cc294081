"""What an attack is given: images, what the victim is asked about each, and a budget; and its bookkeeping.

Attacks differ only in where they step next. Everything else is here once: asking the victim in batches that share a
policy, keeping the best of each image, closing those that are done so that batches stay full of open ones, and a last
check that no attack can get around (`run_verified`).
"""

import hashlib
import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from .errors import AttackError
from .threat import ThreatModel

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image


@dataclass(frozen=True)
class Context:
    """What a victim is asked beside the pixels."""

    prompt: str | None
    """The text behind the image, or None."""
    policy: Hashable = None
    """The taxonomy, which no attack on pixels looks into; images under one policy are asked together."""


class Victim(Protocol):
    """What is attacked: anything that says how unsafe pictures are (a judge, a student, filters, a cascade)."""

    name: str
    no_gradients: str | None
    """None where `margins` is differentiable in the pixels; else which part is not, as an error says it."""

    def margins(self, pixels: Tensor, contexts: Sequence[Context]) -> Tensor:
        """(B, 3, H, W) floats in [0, 1] and B contexts -> (B,) float32; positive means it says unsafe."""
        ...

    def score(self, images: "Sequence[Image]", contexts: Sequence[Context]) -> "NDArray[np.float64]":
        """The real path: B pictures as they would be posted -> (B,) p(unsafe), 0.5 the threshold, NaN unjudged."""
        ...


@dataclass
class Spent:
    """What attacks cost, and what they met."""

    forwards: int = 0
    """Images passed through the victim."""
    backwards: int = 0
    """Images whose gradient was taken."""
    zero_gradients: int = 0
    """Of those, gradients that were zero in every pixel."""
    seconds: float = 0.0
    """Spent in the victim: forward passes and backward ones."""


@dataclass
class AttackResult:
    """What an attack made of N images, within its budget."""

    pixels: Tensor
    """(N, 3, H, W): what the victim misjudges, else what came nearest to it."""
    margin: Tensor
    """(N,) the victim's margin on the attacker's terms; below 0 the attack succeeded."""
    steps: Tensor
    """(N,) after how many steps `pixels` was found; 0 is the clean image."""
    misjudged: Tensor
    """(N,) whether the clean image was judged as the attacker wants already; not the attack's merit."""

    @property
    def success(self) -> Tensor:
        """(N,) attacked pixels are misjudged, clean ones were not."""
        return (self.margin < 0) & ~self.misjudged


class Problem:
    """N images and the verdicts that an attacker wants changed.

    Attributes:
        victim: who is asked.
        images: (N, 3, H, W) float32 in [0, 1].
        contexts: N prompts and policies.
        signs: (N,) 1 where the victim shall stop saying unsafe, -1 where it shall start to.
        threat: the budget.
        seed: of every random draw.
        ids: N names; what is drawn for an image depends on the seed and its name, and so neither on the batch nor on
            which other images are still attacked. Two of one name share their draws.
    """

    def __init__(
        self,
        victim: Victim,
        images: Tensor,
        contexts: Sequence[Context],
        signs: Tensor,
        threat: ThreatModel,
        *,
        batch_size: int = 32,
        seed: int = 0,
        spent: Spent | None = None,
        ids: Sequence[str] | None = None,
    ) -> None:
        """Check what is attacked; without `ids`, images are called by their numbers.

        Raises:
            AttackError: images outside [0, 1], counts that differ, signs other than 1 and -1.
        """
        check_images(images)
        if not len(images) == len(contexts) == len(signs):
            raise AttackError(
                f"Got {len(images)} images, {len(contexts)} contexts and {len(signs)} signs; give one each."
            )
        if not bool((signs.abs() == 1).all()):
            raise AttackError(
                "signs are 1 (unsafe shall be called safe) or -1 (safe shall be called unsafe)."
            )
        self.victim, self.images, self.contexts = victim, images, tuple(contexts)
        self.signs, self.threat, self.batch_size, self.seed = signs.float(), threat, batch_size, seed
        self.spent = spent if spent is not None else Spent()
        self.ids = tuple(map(str, range(len(images)) if ids is None else ids))
        if len(self.ids) != len(images):
            raise AttackError(f"Got {len(self.ids)} names for {len(images)} images; give one each.")
        self._clean: Tensor | None = None

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, rows: Tensor) -> "Problem":
        """The same problem for (n,) of the rows; costs are counted together."""
        chosen = rows.tolist()
        part = self._like(
            self.images[rows],
            [self.contexts[row] for row in chosen],
            self.signs[rows],
            [self.ids[row] for row in chosen],
        )
        part._clean = None if self._clean is None else self._clean[rows]
        return part

    def with_epsilon(self, epsilon: float) -> "Problem":
        """The same problem with another budget."""
        other = self._like(self.images, self.contexts, self.signs)
        other.threat, other._clean = replace(self.threat, epsilon=epsilon), self._clean
        return other

    def with_victim(self, victim: Victim) -> "Problem":
        """The same images and goals for another victim, as a transfer attack needs it."""
        other = self._like(self.images, self.contexts, self.signs)
        other.victim = victim
        return other

    def with_contexts(self, contexts: Sequence[Context]) -> "Problem":
        """The same images with other prompts or policies."""
        return self._like(self.images, contexts, self.signs)

    def _like(
        self, images: Tensor, contexts: Sequence[Context], signs: Tensor, ids: Sequence[str] | None = None
    ) -> "Problem":
        return Problem(
            self.victim, images, contexts, signs, self.threat,
            batch_size=self.batch_size, seed=self.seed, spent=self.spent, ids=self.ids if ids is None else ids,
        )  # fmt: skip

    def signed_margins(self, pixels: Tensor, rows: Tensor) -> Tensor:
        """(B, 3, H, W) and (B,) rows -> (B,) signed margins; below 0 the attacker has what he wants."""
        with torch.no_grad():
            return self._ask(pixels, rows)

    def gradient(self, pixels: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """(B,) margins and their gradients (B, 3, H, W) in the pixels.

        Raises:
            AttackError: the victim has no gradients, or they are not finite.
        """
        if self.victim.no_gradients is not None:
            raise AttackError(
                f"{self.victim.name} gives no gradients to pixels: {self.victim.no_gradients}. Craft the attack on "
                "another victim (transfer), or use an attack that only asks (Square)."
            )
        pixels = pixels.detach().requires_grad_(True)
        with torch.enable_grad():
            margin = self._ask(pixels, rows)
            started = time.perf_counter()
            (gradient,) = torch.autograd.grad(margin.sum(), pixels)
            finite = bool(torch.isfinite(gradient).all())  # reading it waits for a GPU, so the clock is right
            self.spent.seconds += time.perf_counter() - started
        if not finite:
            raise AttackError(
                f"{self.victim.name} gives gradients that are not finite; half precision overflows so: load it in "
                "float32 or bfloat16."
            )
        self.spent.backwards += len(rows)
        self.spent.zero_gradients += int((gradient.flatten(1) == 0).all(1).sum())
        return margin.detach(), gradient

    def _ask(self, pixels: Tensor, rows: Tensor) -> Tensor:
        started = time.perf_counter()
        margins = self.victim.margins(pixels, [self.contexts[row] for row in rows.tolist()])
        margins = margins.float().to(pixels.device)
        finite = bool(torch.isfinite(margins).all())
        self.spent.forwards += len(rows)
        self.spent.seconds += time.perf_counter() - started
        if not finite:
            raise AttackError(
                f"{self.victim.name} gives margins that are not finite; half precision overflows so: load it in "
                "float32 or bfloat16."
            )
        return margins * self.signs[rows].to(pixels.device)

    def all_signed_margins(self, pixels: Tensor) -> Tensor:
        """(N, 3, H, W), one for each row -> (N,) signed margins, asked for in batches."""
        found = torch.empty(len(self))
        for rows in self.batches(torch.arange(len(self))):
            found[rows] = self.signed_margins(pixels[rows], rows).to(found.device)
        return found

    def clean_margins(self) -> Tensor:
        """(N,) margins of the clean images, asked once."""
        if self._clean is None:
            self._clean = self.all_signed_margins(self.images)
        return self._clean

    def batches(self, rows: Tensor) -> list[Tensor]:
        """(n,) rows in batches of one policy each, at most `batch_size`."""
        by_policy: dict[Any, list[int]] = {}
        for row in rows.tolist():
            by_policy.setdefault(self.contexts[row].policy, []).append(row)
        return [
            torch.tensor(members[start : start + self.batch_size])
            for members in by_policy.values()
            for start in range(0, len(members), self.batch_size)
        ]

    def draw_noise(self, rows: Tensor, salt: str, kind: str = "uniform") -> Tensor:
        """Random numbers (B, 3, H, W): uniform in [-1, 1], or normal; the same for an image among any others."""
        drawn = []
        for row in rows.tolist():
            generator = torch.Generator().manual_seed(self.seed_of(row, salt))
            shape = self.images.shape[1:]
            if kind == "normal":
                drawn.append(torch.randn(shape, generator=generator))
            else:
                drawn.append(torch.rand(shape, generator=generator) * 2 - 1)
        return torch.stack(drawn)

    def seed_of(self, row: int, salt: str) -> int:
        """A seed below 2 ** 63 for what is drawn for one image; `salt` tells its draws apart."""
        digest = hashlib.sha256(f"{self.seed}/{self.ids[row]}/{salt}".encode()).digest()
        return int.from_bytes(digest[:8], "big") >> 1

    def restart_points(self, rows: Tensor, restart: int, salt: str = "start") -> Tensor:
        """(B, 3, H, W) where a restart begins: the clean image first (restart 0), then random points of the ball."""
        clean = self.images[rows]
        if restart == 0:
            return clean.clone()
        if self.threat.norm == "linf":
            change = self.draw_noise(rows, f"{salt}/{restart}") * self.threat.epsilon
        else:
            change = self.draw_noise(rows, f"{salt}/{restart}", "normal")
            size = change.flatten(1).norm(dim=1).clamp(min=1e-12)[:, None, None, None]
            change = change / size * self.threat.epsilon
        return self.threat.project(clean + change, clean)


def check_images(images: Tensor) -> None:
    """See that pictures are floats in [0, 1].

    Raises:
        AttackError: another shape, type or range.
    """
    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
        raise AttackError(
            f"Images are {images.dtype} {tuple(images.shape)}; give floats (N, 3, H, W) in [0, 1], "
            "bytes divided by 255."
        )
    if images.numel() and not bool(torch.isfinite(images).all()):
        raise AttackError("Images hold values that are not finite.")
    if images.numel() and (float(images.min()) < 0 or float(images.max()) > 1):
        raise AttackError(
            f"Images range from {float(images.min()):.3g} to {float(images.max()):.3g}; give pixels in [0, 1]: divide "
            "bytes by 255, and leave normalising to the victim."
        )
