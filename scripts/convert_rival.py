"""Convert the published weights of another project's classifier to safetensors, once; at run time no pickle is loaded.

    python scripts/convert_rival.py q16 prompts.p q16.safetensors
    python scripts/convert_rival.py multiheaded checkpoints/multi-headed multiheaded.safetensors
    python scripts/convert_rival.py nsfw_detector clip_autokeras_binary_nsfw.pth nsfw_detector.safetensors
    python scripts/convert_rival.py sd_filter pytorch_model.bin model.safetensors

Where the authors publish them: Q16, `data/ViT-L-14/prompts.p` of ml-research/Q16; MultiHeaded, the folder with
`sexual.pt`, `violent.pt`, `disturbing.pt`, `hateful.pt` and `political.pt` of YitingQu/unsafe-diffusion;
NSFW_Detector, yiting/NSFWDetector on the Hugging Face hub; SD_Filter, CompVis/stable-diffusion-safety-checker there.

A pickle can run any code when it is read. These are read by unpicklers that know arrays and tensors and refuse
everything else. What was written is loaded again, as the classifier will.
"""

import argparse
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from judge.errors import CheckpointError, first_line
from judge.rivals import multiheaded, nsfw_detector, q16
from judge.rivals.weights import load_head, read_tensors
from judge.runs.files import file_hash
from prompts.errors import ArbiterError

CONCEPTS = ("concept_embeds", "special_care_embeds", "concept_embeds_weights", "special_care_embeds_weights")


class ArrayUnpickler(pickle.Unpickler):
    """Reads numpy arrays of numbers, and refuses every other object."""

    def find_class(self, module: str, name: str) -> Any:
        """What a pickle of an array names, whatever numpy wrote it."""
        if (module, name) in {("numpy", "ndarray"), ("numpy", "dtype")}:
            return getattr(np, name)
        if module in {"numpy.core.multiarray", "numpy._core.multiarray"} and name == "_reconstruct":
            return _empty_array
        if module in {"numpy.core.numeric", "numpy._core.numeric"} and name == "_frombuffer":
            return _array_of_buffer
        if (module, name) == ("_codecs", "encode"):
            return _latin1
        raise pickle.UnpicklingError(f"it holds a {module}.{name}, and only arrays of numbers are read")


def _empty_array(kind: Any, shape: Any, _: Any) -> Any:
    """The array that the rest of the pickle fills."""
    if kind is not np.ndarray or tuple(shape) != (0,):
        raise pickle.UnpicklingError("it holds an array of another kind")
    return np.ndarray((0,), dtype=np.int8)


def _array_of_buffer(buffer: Any, dtype: Any, shape: Any, order: Any) -> Any:
    """The array of a pickle of protocol 5."""
    return np.frombuffer(buffer, dtype=dtype).reshape(shape, order=order)


def _latin1(text: Any, encoding: Any) -> bytes:
    """Bytes as Python 2 compatible pickles write them."""
    if encoding != "latin1" or not isinstance(text, str):
        raise pickle.UnpicklingError("it holds a text in another encoding")
    return text.encode("latin1")


def read_array(path: Path) -> Tensor:
    """The array of a pickle as a float32 tensor.

    Raises:
        CheckpointError: the file cannot be read, or holds anything else.
    """
    try:
        with path.open("rb") as file:
            found = ArrayUnpickler(file).load()
    except Exception as error:  # a damaged pickle can raise anything
        raise CheckpointError(f"{path} cannot be read as a pickled array: {first_line(error)}.") from error
    if not isinstance(found, np.ndarray) or found.dtype.kind != "f":
        raise CheckpointError(f"{path} holds {type(found).__name__}, not an array of floats.")
    return torch.from_numpy(np.ascontiguousarray(found, dtype=np.float32))


def read_torch(path: Path) -> dict[str, Tensor]:
    """The tensors of a file of `torch.save`, by name; a single tensor is called `prompts`.

    Raises:
        CheckpointError: the file cannot be read, or holds anything else.
    """
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise anything
        raise CheckpointError(f"{path} cannot be read as tensors alone: {first_line(error)}") from error
    if isinstance(found, Tensor):
        found = {"prompts": found}
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise CheckpointError(f"{path} holds {type(found).__name__}, not tensors by name.")
    # Cloned, because safetensors refuses tensors that share memory.
    return {str(name): value.detach().clone().contiguous() for name, value in found.items()}


def read_q16(path: Path) -> dict[str, Tensor]:
    """Q16's two prompts; of the original pickle, or of a later file of `torch.save`."""
    return read_torch(path) if path.suffix == ".pt" else {"prompts": read_array(path)}


def read_heads(folder: Path) -> dict[str, Tensor]:
    """The five heads of a folder, as one set of tensors."""
    return {
        f"heads.{name}.{key}": tensor
        for name in multiheaded.HEADS
        for key, tensor in read_torch(folder / f"{name}.pt").items()
    }


def check_concepts(path: Path) -> None:
    """Check that the concepts of a safety checker are there.

    Raises:
        CheckpointError: one is missing.
    """
    missing = sorted(set(CONCEPTS) - read_tensors(path, who="sd_filter").keys())
    if missing:
        raise CheckpointError(f"{path} is no safety checker: it has no {missing[0]}.")


READERS: dict[str, Callable[[Path], dict[str, Tensor]]] = {
    "multiheaded": read_heads,
    "nsfw_detector": read_torch,
    "q16": read_q16,
    "sd_filter": read_torch,
}
CHECKS: dict[str, Callable[[Path], object]] = {
    "multiheaded": lambda path: load_head(path, multiheaded.build_head, who="multiheaded"),
    "nsfw_detector": lambda path: load_head(path, nsfw_detector.build_head, who="nsfw_detector"),
    "q16": lambda path: load_head(path, q16.build_head, who="q16"),
    "sd_filter": check_concepts,
}


def convert(rival: str, source: Path, out: Path) -> None:
    """Read `source`, write `out`, and load it again; nothing is left of a file that does not load.

    Raises:
        CheckpointError: the source cannot be read or belongs to something else, or `out` exists.
    """
    if out.exists() or out.suffix != ".safetensors":
        raise CheckpointError(f"{out} exists, or does not end in .safetensors; name a new file.")
    tensors = READERS[rival](source)
    part = out.with_suffix(".part")
    try:
        save_file(tensors, part, metadata={"format": "pt", "rival": rival})
        CHECKS[rival](part)
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line and convert."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rival", choices=sorted(READERS))
    parser.add_argument("source", type=Path, help="the published file, or the folder of multiheaded")
    parser.add_argument("out", type=Path, help="the safetensors file to write")
    options = parser.parse_args(arguments)
    try:
        convert(options.rival, options.source, options.out)
    except ArbiterError as error:
        raise SystemExit(str(error)) from error
    print(f"{options.out}  SHA-256 {file_hash(options.out)}")


if __name__ == "__main__":
    main()
