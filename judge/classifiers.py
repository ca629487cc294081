"""Any classifier by name: a run folder, a model folder, a hub id, or a base that ships."""

from pathlib import Path
from typing import TYPE_CHECKING

from .errors import CheckpointError

if TYPE_CHECKING:
    from .protocol import Classifier


def load_classifier(
    name_or_path: str | Path, *, device: str | None = None, template: str | None = None, batch_size: int = 8
) -> "Classifier":
    """Load what answers the one question: which of these categories does this image violate?

    Args:
        name_or_path: a run folder (`runs/demo`); or a base model, judged zero-shot.
        device: such as `cpu` or `cuda`; by default a GPU where there is one.
        template: overrides the template of a base; a run keeps the one it was trained with.
        batch_size: images in one forward pass.

    Raises:
        CheckpointError: nothing there that could be loaded; the message says what was expected.
    """
    import torch

    from .rundir import MANIFEST, RunDir
    from .vlm.load import BaseOptions, load_adapter, load_base
    from .vlm.score import VisionLanguageJudge

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    path = Path(name_or_path)
    if not (path / MANIFEST).is_file():
        if path.is_dir() and not (path / "config.json").is_file():
            raise CheckpointError(f"{path} is neither a run (no {MANIFEST}) nor a model (no config.json).")
        model, processor = load_base(BaseOptions(model_name_or_path=str(name_or_path)), device=device)
        return VisionLanguageJudge(
            model, processor, template or "policy_first", name=str(name_or_path), batch_size=batch_size
        )
    run = RunDir.open(path, kind="vlm")
    trained_with = run.manifest["template"]
    if template not in (None, trained_with):
        raise CheckpointError(f"{path} was trained with the template {trained_with!r}, not {template!r}.")
    model, processor = load_base(
        BaseOptions(model_name_or_path=run.manifest["base"], dtype=run.manifest["dtype"]), device=device
    )
    model = load_adapter(model, run.path / "adapter").to(device)
    return VisionLanguageJudge(
        model,
        processor,
        trained_with,
        name=f"{path.name}",
        default_taxonomy=run.taxonomy,
        batch_size=batch_size,
    )
