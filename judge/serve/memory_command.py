"""`arbiter doctor --model X`: how much memory a base takes, by arithmetic; nothing is loaded."""

import json
from dataclasses import asdict, dataclass
from typing import Annotated

import typer

from prompts.taxonomy import Taxonomy

from .completion import complete_taxonomy
from .terminal import Terminal

ModelOption = Annotated[
    str | None,
    typer.Option(
        metavar="BASE",
        help="How much memory a base takes, instead: a folder, hf:ORGANISATION/MODEL, or one of docs/models.md.",
    ),
]
PolicyOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="With --model: the taxonomy, one that ships or a YAML file.",
        show_default="a policy of 1000 tokens",
        autocompletion=complete_taxonomy,
    ),
]
BatchOption = Annotated[
    int,
    typer.Option(
        "--batch-size", min=1, help="With --model: images judged at a time, and rows of a policy in training."
    ),
]
RankOption = Annotated[
    int, typer.Option("--lora-r", "--lora_r", min=1, help="With --model: rank of the adapters.")
]
OptimizerOption = Annotated[str, typer.Option(help="With --model: adamw or adamw_8bit.")]
GpusOption = Annotated[int, typer.Option(min=1, help="With --model: GPUs that share the work, under ZeRO.")]
ImageTokensOption = Annotated[
    int | None,
    typer.Option(
        "--image-tokens", min=1, help="With --model: of one image.", show_default="of 1024 x 1024 pixels"
    ),
]
ModelsOption = Annotated[
    bool, typer.Option("--models", help="The table of docs/models.md instead, as Markdown.")
]


@dataclass(frozen=True)
class MemoryQuestion:
    """What is asked about a base."""

    model: str
    policy: str | None
    batch_size: int
    lora_r: int
    optimizer: str
    gpus: int
    image_tokens: int | None


def show_memory(asked: MemoryQuestion, *, as_json: bool) -> None:
    """Print what a base takes for inference, LoRA and QLoRA.

    Raises:
        CheckpointError: no such base, or one of a family that cannot be a judge.
        TaxonomyError: no such taxonomy.
    """
    from judge.vlm.architecture import find_architecture
    from judge.vlm.families import check_family, family_of
    from judge.vlm.memory import Batch
    from judge.vlm.model_table import POLICY_TOKENS, estimates, part_rows

    base = find_architecture(asked.model, image_tokens=asked.image_tokens)
    check_family(base.family)
    taxonomy = _taxonomy(asked.policy)
    tokens, counted = _policy_tokens(asked.model, taxonomy) if taxonomy else (POLICY_TOKENS, True)
    batch = Batch(policy_tokens=tokens, images=asked.batch_size)
    found = estimates(base, batch, lora_r=asked.lora_r, optimizer=asked.optimizer, gpus=asked.gpus)
    path = family_of(base.family).path
    if as_json:
        memory = {name: one.to_dict() for name, one in found.items()}
        sizes = {"path": path, "base": asdict(base), "policy_tokens": tokens, "gpus": asked.gpus}
        print(json.dumps({**sizes, "memory": memory}))
        return
    terminal = Terminal()
    policy = taxonomy.name if taxonomy else "a policy"
    about = "" if counted else "about "
    terminal.notice(f"{base.name} ({base.family}, path {path}): {base.parameters:,} parameters")
    terminal.notice(
        f"{policy}: {about}{tokens} tokens; {base.tokens_of_image}: {base.image_tokens}; {asked.batch_size} images "
        f"at a time, rank {asked.lora_r}" + (f", on each of {asked.gpus} GPUs" if asked.gpus > 1 else "")
    )
    if tokens + base.image_tokens > base.context > 0:
        terminal.notice(
            f"That is more than the {base.context} tokens that it reads: select fewer categories."
        )
    terminal.table(("GB", *found), part_rows(found))
    terminal.notice(
        "By arithmetic, without loading anything; features are at most. The formulas: docs/models.md."
    )


def show_models() -> None:
    """Print the table of popular bases."""
    from judge.vlm.model_table import markdown_table

    print(markdown_table(), end="")


def _taxonomy(name: str | None) -> Taxonomy | None:
    from prompts.taxonomy_file import load_taxonomy

    return None if name is None else load_taxonomy(name)


def _policy_tokens(model: str, taxonomy: Taxonomy) -> tuple[int, bool]:
    from judge.vlm.architecture import policy_tokens

    return policy_tokens(model, taxonomy)
