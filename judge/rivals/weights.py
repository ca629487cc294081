"""Weights of published heads, as `scripts/convert_rival.py` writes them: safetensors, never a pickle."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from judge.errors import CheckpointError, first_line

Module = TypeVar("Module", bound=nn.Module)
PICKLES = (".p", ".pkl", ".pickle", ".pt", ".pth", ".bin", ".ckpt")


def read_tensors(path: str | Path, *, who: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file, by name.

    Raises:
        CheckpointError: the file is missing, damaged, a pickle, or holds a weight that is not finite.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(path)
    advice = f"scripts/convert_rival.py makes it of what the authors of {who} publish"
    if path.suffix in PICKLES:
        raise CheckpointError(f"{path} is a pickle, which is never loaded here; {advice}.")
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} cannot be read as safetensors ({first_line(error)}); {advice}."
        ) from error
    broken = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise CheckpointError(f"{path} holds weights that are not finite, such as {broken[0]}; get it anew.")
    return {name: tensor.float() for name, tensor in tensors.items()}


def load_head(path: str | Path, build: Callable[[dict[str, Tensor]], Module], *, who: str) -> Module:
    """A head with the weights of a file.

    Args:
        path: a safetensors file.
        build: makes a head of the sizes that the tensors have.
        who: name of the classifier, for messages.

    Raises:
        CheckpointError: as of `read_tensors`, or the tensors are those of something else.
    """
    tensors = read_tensors(path, who=who)
    try:
        head = build(tensors)
        head.load_state_dict(tensors)
    except (KeyError, IndexError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path} holds no weights of {who}: {first_line(error)}") from error
    return head.requires_grad_(False)
