"""Any classifier by name: a run folder, a model folder, `hf:` and a hub id, a served model, or an exported student."""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, cast

from prompts.names import nearest
from prompts.reading import PromptMode, check_prompt_mode

from .errors import CheckpointError, ConfigError
from .lessons.record import read_record
from .protocol import ReadsPrompts
from .publish.contents import MERGED
from .publish.hub import fetch
from .publish.repository import split_revision
from .runs.files import nearest_path
from .runs.folder import MANIFEST, RunDir
from .runs.references import HUB

if TYPE_CHECKING:
    from .protocol import Classifier

LOADERS = {
    "student": ("student.student", "load_student"),
    "linear_probe": ("baselines.linear_probe", "load_linear_probe"),
    "prompt_learning": ("baselines.prompt_learning", "load_prompt_learning"),
    "pooled_attention": ("baselines.pooled_attention", "load_pooled_attention"),
    "cascade": ("cascade.saved", "load_cascade"),
}
"""What reads a run of each kind: `load(run, device=..., batch_size=...)` of this module; `vlm` is read here."""
JUDGED_AT_ONCE = 8
"""Images in one forward pass of a judge, by default."""


def load_classifier(
    name_or_path: str | Path,
    *,
    device: str | None = None,
    template: str | None = None,
    batch_size: int | None = None,
    stage_judge: "str | Path | Classifier | None" = None,
    prompt_mode: PromptMode = "max",
) -> "Classifier":
    """Load any classifier by name or path.

    Args:
        name_or_path: a run folder (`runs/demo`, `runs/student`, `runs/cascade`); an exported `student.onnx`, which
            needs no torch; `http://host:8000/v1#model` of a chat server; a run that ships (`tiny-student`,
            `small-student`, `small-cascade`); or a base model, judged zero-shot: a folder, `tiny-llava` or another
            that ships, or `hf:ORGANISATION/MODEL` on the Hugging Face hub. A repository there may also hold a run that
            `arbiter push` published; `hf:ORGANISATION/MODEL@REVISION` pins a branch, tag or commit. Without `hf:` no
            name is looked up on the hub, so that a mistyped folder is said at once.
        device: such as `cpu` or `cuda`; by default a GPU where there is one.
        template: overrides the template of a base or a server; a run keeps the one it was trained with.
        batch_size: images in one forward pass, of every stage of a cascade too, or requests to a server at a time; by
            default what suits the kind: 8 for a judge, 32 or 64 for what is small.
        stage_judge: of a cascade, where its judge is (a folder, a URL, a classifier), or `none` to leave it out; by
            default where the run says. A run contacts no host, so a served judge has to be named here.
        prompt_mode: `max`, the default: an image is scored alone and with its prompt, and the higher counts, so that a
            prompt can only add suspicion. `use`: with its prompt only; `ignore`: alone. A cascade is always `max`.

    Raises:
        CheckpointError: there is nothing that can be loaded; the message says what was expected.
        ConfigError: a template, a stage's judge or a prompt mode for something that has none, or a server that cannot
            be used.
        ArbiterError: no such prompt mode.
    """
    mode = check_prompt_mode(prompt_mode)
    text, fetched = _locate(name_or_path)
    classifier = _load(text, fetched, device, template, batch_size, stage_judge)
    from .calibration.thresholds import HasThresholds, run_thresholds

    if isinstance(classifier, HasThresholds):
        classifier.thresholds = run_thresholds(fetched or Path(text))
    if isinstance(classifier, ReadsPrompts):
        classifier.prompt_mode = mode
    elif mode != "max":
        raise ConfigError(f"{name_or_path} has no prompt mode, so {mode!r} is not for it; leave it out.")
    return classifier


def _locate(name_or_path: str | Path) -> tuple[str, Path | None]:
    """The name, a shipped run's as its path; and the folder of a run that was fetched from the hub."""
    from .standins.shipped import run_path

    text = run_path(str(name_or_path))
    return text, fetch(*split_revision(text)) if text.startswith(HUB) else None


def _load(
    text: str,
    fetched: Path | None,
    device: str | None,
    template: str | None,
    batch_size: int | None,
    stage_judge: "str | Path | Classifier | None",
) -> "Classifier":
    path = fetched or Path(text)
    size = {} if batch_size is None else {"batch_size": batch_size}
    kind = RunDir.open(path).kind if (path / MANIFEST).is_file() else None
    if stage_judge is not None and kind != "cascade":
        raise ConfigError(f"{text} is no cascade, so it has no stage to name a judge for; leave it out.")
    # A server and an exported student need no torch, which takes seconds to import.
    if text.startswith(("http://", "https://")):
        from .vlm.remote import load_remote

        return load_remote(text, template=template, batch_size=batch_size or JUDGED_AT_ONCE)
    if path.suffix == ".onnx":
        from .student.onnx import load_onnx_student

        return load_onnx_student(path, **size)
    if kind is None:
        check_name(text)  # before torch, so that a mistyped name is said at once
    import torch

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if kind is None:
        return _base(text, device, template, batch_size or JUDGED_AT_ONCE)
    run = RunDir.open(path, name=text.removeprefix(HUB) if fetched else None)
    if run.kind in LOADERS:
        if template is not None:
            raise CheckpointError(f"{path} is a {run.kind!r}, which has no template; leave the option out.")
        home, name = LOADERS[run.kind]
        named = {"judge": stage_judge} if run.kind == "cascade" else {}
        # Imported by name, so that loading one kind does not import the others.
        load = getattr(import_module(f".{home}", __package__), name)
        return cast("Classifier", load(run, device=device, **size, **named))
    return _judge(run, device, template, batch_size or JUDGED_AT_ONCE)


def _base(name: str, device: str, template: str | None, batch_size: int) -> "Classifier":
    """A base model, judged zero-shot."""
    from .vlm.judging import open_judge
    from .vlm.load import BaseOptions, load_base

    revision = None
    if name.startswith(HUB):
        name, revision = split_revision(name)
    model, processor = load_base(BaseOptions(name, revision or "main"), device=device)
    return open_judge(model, processor, template or "policy_first", name=name, batch_size=batch_size)


def check_name(name: str) -> None:
    """Refuse a name that is nothing here, before anything heavy is imported; whether it can be loaded shows later.

    Raises:
        CheckpointError: neither a run or model folder, an exported student, a shipped name, a URL, nor marked as the
            hub's; with the name that was probably meant.
    """
    from .standins.shipped import SHIPPED, run_path

    path = Path(run_path(name))
    if path.is_dir():
        if not any((path / file).is_file() for file in (MANIFEST, "config.json")):
            raise CheckpointError(f"{path} is neither a run (no {MANIFEST}) nor a model (no config.json).")
    elif not (
        name in SHIPPED
        or name.startswith((HUB, "http://", "https://"))
        or (path.suffix == ".onnx" and path.is_file())
    ):
        raise CheckpointError(_not_found(name))


def _not_found(name: str) -> str:
    """What to say of a name that is nothing here, with the one that was probably meant."""
    from .standins.shipped import SHIPPED, SHIPPED_RUNS

    if Path(name).exists():
        return f"{name} is a file, and no student.onnx; give a run folder, such as runs/demo."
    runs = [path.parent for path in sorted(Path("runs").glob(f"*/{MANIFEST}"))]
    known = {run.name.casefold(): str(run) for run in runs} | {
        shipped: shipped for shipped in (*SHIPPED, *SHIPPED_RUNS)
    }
    return (
        f"There is no {name!r} here{nearest_path(name) or nearest(name, known)}. Give a run or model folder, "
        f"student.onnx, tiny-student or small-student, URL#MODEL of a server, or {HUB}ORGANISATION/MODEL of the hub."
    )


def _judge(run: RunDir, device: str, template: str | None, batch_size: int) -> "Classifier":
    """A base model with the adapter of a run."""
    from .vlm.adapter import load_adapter
    from .vlm.judging import open_judge
    from .vlm.load import BaseOptions, load_base

    if run.kind != MERGED:
        RunDir.open(run.path, kind="vlm")  # refuses any other kind by name
    trained_with = run.manifest["template"]
    if template not in (None, trained_with):
        raise CheckpointError(f"{run.path} was trained with the template {trained_with!r}, not {template!r}.")
    record = read_record(run)
    if run.kind == MERGED:
        whole = BaseOptions(str(run.path), dtype=run.manifest.get("dtype", "float32"))
        model, processor = load_base(whole, device=device)
    else:
        model, processor = load_base(BaseOptions.from_run(run), device=device)
        # The adapter stays beside the base, unmerged, as it was trained and measured.
        model = load_adapter(model, run.path / "adapter").to(device)
    return open_judge(
        model,
        processor,
        trained_with,
        name=run.name,
        default_taxonomy=run.taxonomy,
        batch_size=batch_size,
        envelope=record.envelope,
        evidence=record.evidence,
    )
