"""The problem an attack solves: images, the verdicts to change, a victim and a budget.

Attacks differ only in where they step next. What they share is here and in `adversarial/search.py`: querying the victim
in batches that share a policy, random draws that do not depend on the batch, and counting what it costs.

Attacks minimise the *signed margin*: the victim's margin times the row's sign. It is positive while the verdict stands,
and negative once the attack has succeeded (for a correctly classified image: its margin in the usual sense).
"""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .errors import AttackError
from .threat import ThreatModel
from .victim import Context, Victim


@dataclass
class Spent:
    """The cost of attacks, counted in images."""

    forwards: int = 0
    """Images passed through the victim."""
    backwards: int = 0
    """Images whose gradient was taken."""
    zero_gradients: int = 0
    """Of those, gradients that were zero in every pixel."""
    seconds: float = 0.0
    """In the victim's forward and backward passes."""


@dataclass
class AttackResult:
    """The best point that an attack found for each of N images, within its budget."""

    pixels: Tensor
    """(N, 3, H, W) in [0, 1]: misjudged pixels, else those with the lowest signed margin."""
    margin: Tensor
    """(N,) signed margin; below 0 the attack succeeded."""
    steps: Tensor
    """(N,) after how many steps `pixels` was found; 0 is the clean image."""
    misjudged: Tensor
    """(N,) bool, whether the clean image was misjudged already, which is no success."""

    @property
    def success(self) -> Tensor:
        """(N,) bool: the attacked pixels are misjudged, the clean ones were not."""
        return (self.margin < 0) & ~self.misjudged


class Problem:
    """N images whose verdicts an attacker wants to change.

    Attributes:
        victim: the classifier under attack.
        images: (N, 3, H, W) float32 in [0, 1].
        contexts: N prompts and policies.
        signs: (N,) 1 to turn unsafe into safe, -1 to turn safe into unsafe.
        threat: the threat model with its budget.
        batch_size: images in one forward pass.
        seed: of every random draw.
        spent: the cost so far, shared with subsets and copies.
        ids: N names, from which random draws are seeded. Rows of one name share their draws.
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
        """Check the input; without `ids`, images are named by their index.

        Raises:
            AttackError: images outside [0, 1], counts that differ, signs other than 1 and -1.
        """
        check_images(images)
        if not len(images) == len(contexts) == len(signs):
            raise AttackError(
                f"Got {len(images)} images, {len(contexts)} contexts and {len(signs)} signs; give one each."
            )
        if not bool((signs.abs() == 1).all()):
            raise AttackError("signs must be 1 (turn unsafe into safe) or -1 (turn safe into unsafe).")
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
        """The problem of (B,) selected rows; costs are counted together."""
        chosen = rows.tolist()
        part = self._copy(
            self.images[rows],
            [self.contexts[row] for row in chosen],
            self.signs[rows],
            [self.ids[row] for row in chosen],
        )
        # Clean margins that are known are not computed again.
        part._clean = None if self._clean is None else self._clean[rows]
        return part

    def with_epsilon(self, epsilon: float) -> "Problem":
        """The same problem with another budget."""
        other = self._copy(self.images, self.contexts, self.signs)
        other.threat, other._clean = replace(self.threat, epsilon=epsilon), self._clean
        return other

    def with_victim(self, victim: Victim) -> "Problem":
        """The same images and goals for another victim, as a transfer attack needs."""
        other = self._copy(self.images, self.contexts, self.signs)
        other.victim = victim
        return other

    def with_contexts(self, contexts: Sequence[Context]) -> "Problem":
        """The same images with other prompts or policies."""
        return self._copy(self.images, contexts, self.signs)

    def _copy(
        self, images: Tensor, contexts: Sequence[Context], signs: Tensor, ids: Sequence[str] | None = None
    ) -> "Problem":
        return Problem(
            self.victim, images, contexts, signs, self.threat,
            batch_size=self.batch_size, seed=self.seed, spent=self.spent, ids=self.ids if ids is None else ids,
        )  # fmt: skip

    def signed_margins(self, pixels: Tensor, rows: Tensor) -> Tensor:
        """(B, 3, H, W) pixels of (B,) rows -> (B,) signed margins; below 0 the attack succeeded."""
        with torch.no_grad():
            return self._query(pixels, rows)

    def gradient(self, pixels: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) pixels of (B,) rows -> (B,) signed margins and their (B, 3, H, W) gradients.

        Raises:
            AttackError: the victim has no gradients, or they are not finite.
        """
        if self.victim.no_gradients is not None:
            raise AttackError(
                f"{self.victim.name} gives no gradients to pixels: {self.victim.no_gradients}. Craft the attack on "
                "another victim (transfer), or use a black-box attack (Square)."
            )
        pixels = pixels.detach().requires_grad_(True)
        with torch.enable_grad():
            margin = self._query(pixels, rows)
            # The sum over rows has each row's own gradient, as rows do not interact.
            started = time.perf_counter()
            (gradient,) = torch.autograd.grad(margin.sum(), pixels)
            # Reading the result synchronises with the GPU, so the clock is right.
            finite = bool(torch.isfinite(gradient).all())
            self.spent.seconds += time.perf_counter() - started
        if not finite:
            raise AttackError(
                f"{self.victim.name} gives gradients that are not finite, as float16 overflows do: load it in "
                "float32 or bfloat16."
            )
        self.spent.backwards += len(rows)
        self.spent.zero_gradients += int((gradient.flatten(1) == 0).all(1).sum())
        return margin.detach(), gradient

    def _query(self, pixels: Tensor, rows: Tensor) -> Tensor:
        started = time.perf_counter()
        margins = self.victim.margins(pixels, [self.contexts[row] for row in rows.tolist()])
        # A victim may return half precision, or tensors on another device.
        margins = margins.float().to(pixels.device)
        finite = bool(torch.isfinite(margins).all())
        self.spent.forwards += len(rows)
        self.spent.seconds += time.perf_counter() - started
        if not finite:
            raise AttackError(
                f"{self.victim.name} gives margins that are not finite, as float16 overflows do: load it in "
                "float32 or bfloat16."
            )
        return margins * self.signs[rows].to(pixels.device)

    def all_signed_margins(self, pixels: Tensor) -> Tensor:
        """(N, 3, H, W), one picture for each row -> (N,) signed margins, computed in batches."""
        found = torch.empty(len(self))
        for rows in self.batches(torch.arange(len(self))):
            found[rows] = self.signed_margins(pixels[rows], rows).to(found.device)
        return found

    def clean_margins(self) -> Tensor:
        """(N,) signed margins of the clean images, computed once."""
        if self._clean is None:
            self._clean = self.all_signed_margins(self.images)
        return self._clean

    def batches(self, rows: Tensor) -> list[Tensor]:
        """Split (n,) rows into (B,) batches of one policy each, B at most `batch_size`."""
        # A victim encodes a policy once per batch, so rows of other policies would cost a pass of their own.
        by_policy: dict[Any, list[int]] = {}
        for row in rows.tolist():
            by_policy.setdefault(self.contexts[row].policy, []).append(row)
        return [
            torch.tensor(members[start : start + self.batch_size])
            for members in by_policy.values()
            for start in range(0, len(members), self.batch_size)
        ]

    def draw_noise(self, rows: Tensor, salt: str, kind: str = "uniform") -> Tensor:
        """(B,) rows -> (B, 3, H, W) noise, `uniform` in [-1, 1] or `normal`; `salt` tells an image's draws apart."""
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
        """A seed below 2 ** 63 for one image; `salt` tells its draws apart.

        It is keyed by the image's name, so that draws depend neither on the batch nor on which rows are still active.
        """
        digest = hashlib.sha256(f"{self.seed}/{self.ids[row]}/{salt}".encode()).digest()
        return int.from_bytes(digest[:8], "big") >> 1

    def restart_points(self, rows: Tensor, restart: int, salt: str = "start") -> Tensor:
        """(B, 3, H, W) start of a run: the clean image for restart 0, then random points of the ball (L2: sphere)."""
        clean = self.images[rows]
        if restart == 0:
            return clean.clone()
        # Uniform in the L-inf cube; on the surface of the L2 sphere, where almost all of a ball's volume is.
        if self.threat.norm == "linf":
            change = self.draw_noise(rows, f"{salt}/{restart}") * self.threat.epsilon
        else:
            change = self.draw_noise(rows, f"{salt}/{restart}", "normal")
            size = change.flatten(1).norm(dim=1).clamp(min=1e-12)[:, None, None, None]
            change = change / size * self.threat.epsilon
        return self.threat.project(clean + change, clean)


def check_images(images: Tensor) -> None:
    """Check that images are (N, 3, H, W) floats in [0, 1].

    Raises:
        AttackError: another shape, type or range.
    """
    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
        raise AttackError(
            f"Images are {images.dtype} {tuple(images.shape)}; give floats (N, 3, H, W) in [0, 1], "
            "bytes divided by 255."
        )
    if images.numel() and not bool(torch.isfinite(images).all()):
        raise AttackError("Images contain values that are not finite.")
    if images.numel() and (float(images.min()) < 0 or float(images.max()) > 1):
        raise AttackError(
            f"Images range from {float(images.min()):.3g} to {float(images.max()):.3g}; give pixels in [0, 1]: divide "
            "bytes by 255, and leave normalising to the victim."
        )
