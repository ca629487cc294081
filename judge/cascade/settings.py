"""The result of calibrating a cascade: cutoffs, Platt curves, the promised miss rate and what it covers."""

import json
import math
from dataclasses import asdict, dataclass
from typing import Self

from judge.calibration.envelope import Envelope
from judge.errors import CheckpointError, ConfigError

from .similarity import Platt
from .stages import Cutoffs

SETTINGS = "cascade.json"


@dataclass(frozen=True)
class CascadeSettings:
    """The result of a calibration; belongs to one student and one judge."""

    text: Platt
    image: Platt
    cutoffs: Cutoffs
    with_judge: bool
    """Whether the cutoffs were chosen with a judge as the last stage."""
    promise: float
    """Promised total miss rate, from 0 to 1; on average over calibration sets (`judge.calibration.conformal`)."""
    level: float
    """The level of `judge.cascade.tuning.CutoffFamily` that keeps it."""
    unsafe_rows: int
    """Unsafe calibration rows from which the level was chosen."""
    calibrated_for: Envelope | None = None
    """Which policies the promise covers; None in files of older versions."""

    def to_json(self) -> str:
        """The settings as JSON, which `from_json` reads."""
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, source: str = SETTINGS) -> Self:
        """Read what `to_json` wrote; `source` names it in errors.

        Raises:
            CheckpointError: it is something else.
        """
        try:
            data = json.loads(text)
            text_platt, image_platt = (Platt(**data.pop(name)) for name in ("text", "image"))
            # Missing in files of older versions.
            data["calibrated_for"] = Envelope.from_dict(data.get("calibrated_for"))
            cutoffs = dict(data.pop("cutoffs"))
            # In files of older versions the text filter could be sure of safe; a prompt makes nothing safe any more.
            cutoffs.pop("text_safe", None)
            settings = cls(text_platt, image_platt, Cutoffs(**cutoffs), **data)
            # JSON of Python reads NaN and infinities, which no calibration gives.
            numbers = [settings.promise, settings.level, settings.unsafe_rows]
            numbers += [value for platt in (text_platt, image_platt) for value in asdict(platt).values()]
            if not all(math.isfinite(number) for number in numbers) or type(settings.with_judge) is not bool:
                raise ConfigError("a number is not finite, or with_judge is neither true nor false")
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise CheckpointError(
                f"{source} holds no settings of a cascade ({error}); run recipes/cascade.py again."
            ) from None
        return settings
