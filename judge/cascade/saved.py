"""A cascade's run folder: saving it, and the checks before its stages are loaded again.

The folder is untrusted (`judge.runs.references`): no host is contacted, the stages must be those that were calibrated,
and the settings must be ones that a calibration can give.
"""

import math
import os
from pathlib import Path
from typing import Any
from urllib.parse import urldefrag

from judge.errors import CheckpointError, ConfigError
from judge.protocol import Classifier
from judge.publish.hub import fetch
from judge.publish.repository import split_revision
from judge.runs.files import file_hash
from judge.runs.folder import MANIFEST, RunDir
from judge.runs.references import HUB, fingerprint, is_address, stored_model, stored_path
from judge.standins.shipped import SHIPPED

from .cascade import Cascade
from .settings import SETTINGS, CascadeSettings
from .similarity import Platt
from .stages import NEVER

_RUN_AGAIN = "run recipes/cascade.py again."
_ROUNDING = 1e-9


def save_cascade(
    run: RunDir, settings: CascadeSettings, *, student: str | Path, judge: str | Path | None
) -> None:
    """Write the settings, and into the manifest which student and judge they belong to.

    A stage in a folder is stored as its path relative to this one, with its fingerprint; any other judge (a shipped
    base, one on the hub, a server) by name.

    Args:
        run: the cascade's folder.
        settings: of the calibration.
        student: folder of the student.
        judge: folder or name of the judge; None without one.

    Raises:
        ConfigError: the judge is a cascade itself.
    """
    written = run.write_text(SETTINGS, settings.to_json())
    about: dict[str, Any] = {"settings": file_hash(written), "student": None, "judge": None}
    for stage, name in (("student", student), ("judge", judge)):
        if name is not None:
            about[stage] = _reference(Path(name), run) if Path(name).exists() else _named(str(name))
    run.update_manifest(**about)


def _named(name: str) -> dict[str, str]:
    """A judge by name, with the fingerprint of a run that the hub has under it."""
    folder = fetch(*split_revision(name)) if name.startswith(HUB) else None
    return {"name": name} | ({} if folder is None else {"sha256": fingerprint(folder)})


def load_cascade(
    run: RunDir,
    *,
    device: str | None = None,
    batch_size: int | None = None,
    judge: "str | Path | Classifier | None" = None,
) -> Cascade:
    """Load what `save_cascade` wrote, with its student and judge.

    Args:
        run: the cascade's folder.
        device: such as `cpu` or `cuda`.
        batch_size: images in one forward pass of every stage; by default what suits each.
        judge: the judge, if not where the run names it: its folder, the URL of its server, or a classifier. A served
            judge is used only if it is named here. `none` leaves it out.

    Raises:
        CheckpointError: settings or a run are missing or damaged, a stage is not the one that was calibrated, or the
            judge is served and no server is named.
        ConfigError: a judge for a cascade that was calibrated without one.
    """
    from judge.student.student import load_student

    path = run.path / SETTINGS
    try:
        settings = CascadeSettings.from_json(path.read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise CheckpointError(f"{run.path} holds no {SETTINGS} ({error}); {_RUN_AGAIN}") from None
    # Two checks: the settings are those that were written, and ones that a calibration can give.
    _check_settings_hash(run, path)
    check_settings(settings, str(path))
    if judge is not None and judge != "none" and not settings.with_judge:
        raise ConfigError(
            f"{run.path} was calibrated without a judge, so none can be named for it; leave it out."
        )
    size: dict[str, Any] = {} if batch_size is None else {"batch_size": batch_size}
    student = load_student(RunDir.open(_stage_path(run, "student"), kind="student"), device=device, **size)
    last = (
        _load_judge(run, judge, device=device, batch_size=batch_size)
        if settings.with_judge and judge != "none"
        else None
    )
    return Cascade(student, settings, last, name=run.name, default_taxonomy=run.taxonomy, **size)


def check_settings(settings: CascadeSettings, source: str) -> None:
    """Check that a calibration can have given these settings (`judge.cascade.tuning.CutoffFamily`, `Platt.fit`).

    "Safe" cutoffs are quantiles of scores, "unsafe" ones are scores or `NEVER`, and no score of a filter is larger than
    its curve gives at a cosine of 1. A filter's cutoffs may cross, as unsafe goes first there; the student's do not.
    Level 0 calls nothing safe. There must be enough unsafe rows that missing none of them is within the promise.

    Raises:
        CheckpointError: no calibration gives them; `source` names them in the message.
    """
    cuts, wrong = settings.cutoffs, []
    for name, safe, unsafe, curve in (
        ("text", 0.0, cuts.text_unsafe, settings.text),
        ("image", cuts.image_safe, cuts.image_unsafe, settings.image),
    ):
        # A probability outside of these cannot come from this filter, so neither can a cutoff.
        low, high = _probability_range(curve)
        if curve.slope < 0:
            wrong.append(f"the {name} filter's slope is {curve.slope:g}, below 0")
        if safe > high:
            wrong.append(f"{name}_safe is {safe:g}, and that filter gives {high:g} at most")
        if unsafe != NEVER and not low <= unsafe <= high:
            wrong.append(f"{name}_unsafe is {unsafe:g}, and that filter gives {low:g} to {high:g}")
    if not 0 <= cuts.student_safe <= min(1, cuts.student_unsafe):
        wrong.append(f"student_safe is {cuts.student_safe:g} and student_unsafe {cuts.student_unsafe:g}")
    if cuts.student_unsafe > 1 and cuts.student_unsafe != NEVER:
        wrong.append(f"student_unsafe is {cuts.student_unsafe:g}")
    # Rows in the band would be passed on to a judge that does not exist.
    if not settings.with_judge and cuts.student_unsafe != cuts.student_safe:
        wrong.append("the student has a band of doubt and no judge behind it")
    if cuts.judge > 1:
        wrong.append(f"the judge's cutoff is {cuts.judge:g}")
    if not 0 <= settings.level <= 1:
        wrong.append(f"the level is {settings.level:g}, which goes from 0 to 1")
    elif settings.level == 0 and max(cuts.image_safe, cuts.student_safe, cuts.judge) > 0:
        wrong.append("something is called safe at level 0")
    if not 0 < settings.promise < 1:
        wrong.append(f"the promised miss rate is {settings.promise:g}, which lies between 0 and 1")
    # With n rows, the smallest bound that conformal risk control can give is 1 / (n + 1).
    elif type(settings.unsafe_rows) is not int or 1 / (settings.unsafe_rows + 1) > settings.promise:
        wrong.append(f"{settings.unsafe_rows} unsafe rows cannot support a promise of {settings.promise:g}")
    if wrong:
        raise CheckpointError(
            f"{source} was given by no calibration: {'; '.join(wrong)}. Do not trust it; {_RUN_AGAIN}"
        )


def _probability_range(curve: Platt) -> tuple[float, float]:
    """The smallest and largest probability of a filter: at cosines of -1 and 1, with a margin for rounding."""
    ends = [1 / (1 + math.exp(-max(-700.0, min(700.0, curve.slope * c + curve.intercept)))) for c in (-1, 1)]
    return ends[0] - _ROUNDING, ends[1] + _ROUNDING


def _reference(path: Path, run: RunDir) -> dict[str, str]:
    """The manifest's entry for a stage in a folder or file: relative path and fingerprint."""
    if (path / MANIFEST).is_file() and RunDir.open(path).kind == "cascade":
        raise ConfigError(f"{path} is a cascade and cannot be a stage of another; give its judge.")
    return {"path": os.path.relpath(path.resolve(), run.path.resolve()), "sha256": fingerprint(path)}


def _check_settings_hash(run: RunDir, settings: Path) -> None:
    """Check that the settings are the ones that the manifest holds a hash of."""
    kept = run.manifest.get("settings")
    if kept is None:
        raise CheckpointError(
            f"{run.path} was written by an older version, which kept no hash of its settings and of all that its "
            f"stages consist of; {_RUN_AGAIN}"
        )
    if kept != file_hash(settings):
        raise CheckpointError(
            f"{settings} was changed after the calibration, and its promise says nothing about other cutoffs; "
            f"{_RUN_AGAIN}"
        )


def _stage_path(run: RunDir, stage: str, named: Path | None = None) -> Path:
    """The folder of a stage, as the caller or the run names it, checked to be the one that was calibrated."""
    about = _manifest_entry(run, stage)
    if "path" not in about:
        raise CheckpointError(f"{run.path} names no {stage}; {_RUN_AGAIN}")
    path = named or stored_path(about["path"], run.path)
    if not path.exists():
        raise CheckpointError(
            f"{path} does not exist, and {run.path} needs it as its {stage}; put it there, or {_RUN_AGAIN}"
        )
    if fingerprint(path) != about.get("sha256"):
        raise CheckpointError(
            f"{path} is not what {run.path} was calibrated with (weights, shape, adapter, base, encoder or taxonomy "
            f"differ), and its promise says nothing about another {stage}; {_RUN_AGAIN}"
        )
    return path


def _manifest_entry(run: RunDir, stage: str) -> dict[str, Any]:
    about: Any = run.manifest.get(stage)
    if not isinstance(about, dict):
        raise CheckpointError(f"{run.path} names no {stage}; {_RUN_AGAIN}")
    return about


def _load_judge(run: RunDir, named: "str | Path | Classifier | None", **how: Any) -> Classifier:
    from judge.classifiers import load_classifier

    about = _manifest_entry(run, "judge")
    # A classifier object is trusted as it is: there is nothing to hash.
    if named is not None and not isinstance(named, (str, Path)):
        return named
    stored = about.get("name")
    if stored is None:
        if named is not None and is_address(str(named)):
            raise CheckpointError(
                f"{run.path} was calibrated with the judge in {about.get('path')!r} and not with one on a server; "
                "leave --stage-judge out, or name the folder that this judge was moved to."
            )
        # A folder may have been moved, but its fingerprint must be the calibrated one.
        path = _stage_path(run, "judge", None if named is None else Path(named))
        if (path / MANIFEST).is_file() and RunDir.open(path).kind == "cascade":
            raise CheckpointError(f"{run.path} names another cascade as its judge; {_RUN_AGAIN}")
        return load_classifier(path, **how)
    if isinstance(stored, str) and is_address(stored):
        return load_classifier(_server_url(run, stored, None if named is None else str(named)), **how)
    pinned = stored.removeprefix(HUB) if isinstance(stored, str) else stored
    if named is not None and str(named).removeprefix(HUB) != pinned:
        raise CheckpointError(
            f"{run.path} was calibrated with the judge {stored!r} and not with {str(named)!r}."
        )
    model = stored_model(pinned.partition("@")[0] if isinstance(pinned, str) else pinned, run.path)
    if model in SHIPPED or Path(model).is_dir():
        return load_classifier(model, **how)
    _check_fetched(run, f"{HUB}{pinned}", about.get("sha256"))
    return load_classifier(f"{HUB}{pinned}", **how)


def _check_fetched(run: RunDir, name: str, expected: object) -> None:
    """Check that a run on the hub is still the one that was calibrated, and no cascade, which could name this one."""
    folder = fetch(*split_revision(name))
    if folder is None and expected is None:
        return  # a base model, which is not downloaded to be hashed
    if folder is None or RunDir.open(folder).kind == "cascade" or fingerprint(folder) != expected:
        raise CheckpointError(f"{name} is not the judge that {run.path} was calibrated with; {_RUN_AGAIN}")


def _server_url(run: RunDir, stored: str, named: str | None) -> str:
    """The URL of a judge on the server that the caller named; the run only decides which model it must be."""
    model = urldefrag(stored)[1]
    if named is None:
        raise CheckpointError(
            f"{run.path} was calibrated with a judge on a server, {stored!r}, and a run contacts no host by itself. "
            "Name the server that images may be posted to: --stage-judge URL on the command line, "
            "load_classifier(..., stage_judge=URL) in Python; or none, which flags what the student is unsure of."
        )
    if not is_address(named):
        raise CheckpointError(f"{run.path} was calibrated with a judge on a server, and {named!r} is no URL.")
    # `URL#model`: without a model the run's own is asked for, and another one is refused.
    url, asked = urldefrag(named)
    if model and asked and asked != model:
        raise CheckpointError(
            f"{run.path} was calibrated with the served model {model!r}, not {asked!r}; {_RUN_AGAIN}"
        )
    return f"{url}#{asked or model}" if asked or model else url
