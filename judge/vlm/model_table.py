"""Memory of a base, and of all popular ones, as tables: of `arbiter doctor` and of docs/models.md."""

from collections.abc import Sequence
from dataclasses import replace

from .architecture import Architecture, KnownModel, find_architecture, known_models
from .families import family_of
from .memory import CARDS, Batch, Estimate, Task, estimate

POLICY_TOKENS = 1000
"""Of the table of all models: about ten categories with a sentence each."""
TABLE_BATCH = Batch(policy_tokens=POLICY_TOKENS)
PARTS = ("weights", "adapters", "gradients", "optimizer", "activations", "features", "policies", "gathered")
"""Of an estimate, in the order in which they are shown; then `overhead` and the total."""


def estimates(
    base: Architecture, batch: Batch, *, lora_r: int, optimizer: str = "adamw", gpus: int = 1
) -> dict[str, Estimate]:
    """Estimates by what is done; with several GPUs, what one of them holds under DDP, ZeRO-2 and ZeRO-3."""
    whole = replace(batch, checkpointing=False)
    found = {
        "inference": estimate(base, "inference", replace(batch, policies=1)),
        "LoRA": estimate(base, "lora", batch, lora_r=lora_r, optimizer=optimizer),
        "LoRA, no checkpointing": estimate(base, "lora", whole, lora_r=lora_r, optimizer=optimizer),
        "QLoRA": estimate(base, "qlora", batch, lora_r=lora_r, optimizer=optimizer),
    }
    if gpus > 1:
        # Weights in 4 bits stay whole on every GPU, so QLoRA goes with stage 2.
        wanted: tuple[tuple[str, Task, int], ...] = (
            ("LoRA", "lora", 2),
            ("QLoRA", "qlora", 2),
            ("LoRA", "lora", 3),
        )
        for name, task, stage in wanted:
            found[f"{name}, ZeRO-{stage}"] = estimate(
                base, task, batch, lora_r=lora_r, optimizer=optimizer, zero=stage, gpus=gpus
            )
    return found


def part_rows(found: dict[str, Estimate]) -> list[tuple[str, ...]]:
    """Rows of a table: what memory is for, and GB of each estimate."""
    rows = [
        (part, *(_gb(getattr(one, part)) for one in found.values()))
        for part in (*PARTS, "overhead", "total")
        if any(getattr(one, part) for one in found.values())
    ]
    return [*rows, ("fits on", *(fits(one) for one in found.values()))]


def fits(found: Estimate) -> str:
    """The smallest card with room, in words."""
    return f"more than {CARDS[-1]} GB" if found.fits is None else f"{found.fits} GB"


def _gb(count: float) -> str:
    return f"{count / 1e9:.1f}" if count >= 5e7 else "0.0" if count else ""


def markdown_table() -> str:
    """All popular bases: sizes, licences, path, memory and suggested YAML, as docs/models.md shows them."""
    titles = ("model", "parameters", "licence", "path", "inference", "LoRA", "QLoRA", "suggested YAML")
    lines = [_row(titles), _row(["---", "---:", "---", "---", "---:", "---:", "---:", "---"])]
    lines += [_row(_model_row(known)) for known in known_models().values()]
    return "\n".join(lines) + "\n"


def _model_row(known: KnownModel) -> Sequence[str]:
    name = f"`{known.id}`"
    path = family_of(known.family).path
    if path == "refused":
        return name, f"{known.published / 1e9:.2f} B", known.licence, "refused", "", "", "", ""
    base = find_architecture(known.id)
    tasks: tuple[Task, ...] = ("inference", "lora", "qlora")
    found = [estimate(base, task, TABLE_BATCH) for task in tasks]
    cells = [f"{one.total / 1e9:.0f} GB" + (f" ({one.fits})" if one.fits else "") for one in found]
    return name, f"{base.parameters / 1e9:.2f} B", known.licence, path, *cells, _yamls(known)


def _yamls(known: KnownModel) -> str:
    return ", ".join(f"`{name}.yaml`" for name in known.recipes)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
