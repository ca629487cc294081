"""What a card says that no run can know: the hub id of its base, licences, where the data come from.

Kept in `card.yaml` of the run, so that it is asked once; the file itself is not published.
"""

import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Self

import yaml

from judge.errors import ConfigError
from judge.runs.files import write_atomically
from judge.runs.references import is_hub_id
from judge.standins.shipped import SHIPPED

DETAILS = "card.yaml"
_LONGEST = 2000


@dataclass(frozen=True)
class Details:
    """What its user says about a run; None where nothing was said."""

    base: str | None = None
    """Hub id of the base (or of a student's encoder), where the run names a folder of this machine."""
    license: str | None = None
    """Of the weights, as the hub writes it: mit, apache-2.0, llama2, other."""
    data_license: str | None = None
    """Of the images and labels it was trained on, in words."""
    data: str | None = None
    """Where the images and labels come from, in words."""

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value is not None and (not isinstance(value, str) or not 0 < len(value.strip()) <= _LONGEST):
                raise ConfigError(f"The card's {name} is {value!r:.80}; expected 1 to {_LONGEST} characters.")
        if self.base is not None and self.base not in SHIPPED and not is_hub_id(self.base):
            raise ConfigError(f"The base {self.base!r} is no hub id; write it like llava-hf/llava-1.5-7b-hf.")
        if self.license is not None and not self.license.replace("-", "").replace(".", "").isalnum():
            raise ConfigError(
                f"The license {self.license!r} is no identifier such as mit, apache-2.0 or other; say more in "
                "the text of the data licence, or edit the card."
            )

    @classmethod
    def of(cls, run: Path) -> Self:
        """What was said of a run so far.

        Raises:
            ConfigError: the file cannot be read.
        """
        path = run / DETAILS
        if not path.is_file():
            return cls()
        try:
            found = yaml.safe_load(path.read_text(encoding="utf-8"))
            return cls(**(found or {}))
        except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
            if isinstance(error, ConfigError):
                raise
            allowed = ", ".join(field.name for field in fields(cls))
            raise ConfigError(f"{path} cannot be read; it may hold {allowed}, each a text.") from None

    def updated(self, **given: str | None) -> Self:
        """With everything that is given now in place of what was said before."""
        return replace(self, **{name: value for name, value in given.items() if value is not None})

    def save(self, run: Path) -> None:
        """Keep it beside the run."""
        said = {name: value for name, value in asdict(self).items() if value is not None}
        write_atomically(run / DETAILS, yaml.safe_dump(said, sort_keys=False, allow_unicode=True))


def published_base(name: object, details: Details) -> str | None:
    """The name under which others find the base that a run names; None where only a folder of this machine is known.

    Raises:
        ConfigError: the user names another base than the run does.
    """
    if isinstance(name, str) and not Path(name).is_dir() and (name in SHIPPED or is_hub_id(name)):
        if details.base not in (None, name):
            raise ConfigError(f"The run names the base {name!r}; it cannot be published as {details.base!r}.")
        return name
    if details.base is not None or not isinstance(name, str):
        return details.base
    # What transformers notes when a model of the hub is saved again.
    try:
        noted = json.loads((Path(name) / "config.json").read_text(encoding="utf-8"))["_name_or_path"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    known = isinstance(noted, str) and "/" in noted and is_hub_id(noted) and not Path(noted).exists()
    return noted if known else None
