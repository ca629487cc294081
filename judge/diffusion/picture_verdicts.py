"""What a guard says about each picture of a call: its looks, where it was stopped, and what that cost."""

from dataclasses import dataclass

from prompts.verdict import Verdict

_SEVERITY = {"safe": 0, "unjudged": 1, "unsafe": 2}


@dataclass(frozen=True)
class LookVerdict:
    """The verdict of one look at one picture."""

    step: int
    """The step after which it was taken, from 1 on; 0 where it never was."""
    log_snr: float
    """Of the latents that entered the step; NaN where it is not known."""
    verdict: Verdict
    """With a score per category, or why there is none."""
    milliseconds: float
    """What the look cost, shared equally among the pictures it was taken at."""


@dataclass(frozen=True)
class PictureVerdict:
    """Everything that a guard says about one picture."""

    looks: tuple[LookVerdict, ...] = ()
    """In the order in which they were taken."""
    stopped_at: int | None = None
    """The step after which it was stopped, from 1 on; None where it was finished."""
    redrawn: tuple["PictureVerdict", ...] = ()
    """The pictures that were drawn in its place, with other seeds; the last of them was handed out, or a blank."""

    @property
    def final(self) -> "PictureVerdict":
        """The last picture drawn in its place; itself where there is none."""
        return self.redrawn[-1] if self.redrawn else self

    @property
    def deciding(self) -> LookVerdict | None:
        """The worst look: a flagged one, else an unjudged one, else a safe one; of several the highest score."""
        return max(
            self.looks,
            key=lambda look: (_SEVERITY[look.verdict.status], look.verdict.unsafe or 0.0),
            default=None,
        )

    @property
    def status(self) -> str:
        """`safe`, `unsafe` or `unjudged`, as its worst look; a picture at which nobody looked is unjudged."""
        return self.deciding.verdict.status if self.deciding else "unjudged"

    @property
    def reason(self) -> str | None:
        """Why the picture was not judged; None where it was."""
        return self.deciding.verdict.reason if self.deciding else "nobody looked at it while it was made"

    @property
    def milliseconds(self) -> float:
        """What all looks cost, those at pictures drawn in its place included."""
        return sum(look.milliseconds for look in self.looks) + sum(
            picture.milliseconds for picture in self.redrawn
        )
