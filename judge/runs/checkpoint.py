"""Checkpoints of our own training loops: weights, optimizer, schedule and random numbers, in one safetensors file.

transformers' trainer keeps checkpoints of its own (`judge.runs.resume`).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from judge.errors import CheckpointError

from .files import open_atomically

CHECKPOINT = "checkpoint.safetensors"
"""Name of the file in a run folder; it is deleted when the run is finished."""


@dataclass(frozen=True)
class TrainingState:
    """All that a loop has to remember to go on as if it had not been stopped."""

    path: Path | None
    """Where it is kept; None keeps nothing."""
    weights: Sequence[Any]
    """The tensors that train, always in the same order."""
    optimizer: Any
    schedule: Any
    generator: Any = None
    """A `torch.Generator` that all processes have in common, such as the one that draws the order of images."""

    def save(self, **progress: Any) -> None:
        """Write the state atomically, in the first process; every process has to call it.

        Args:
            progress: JSON values, such as the history so far; `load` gives them back.
        """
        if self.path is None:
            return
        from accelerate import PartialState
        from accelerate.utils import gather_object
        from safetensors.torch import save

        state = self.optimizer.state_dict()
        tensors = {f"weight.{i}": weight for i, weight in enumerate(self.weights)}
        for i, moments in state["state"].items():
            tensors |= {f"optimizer.{i}.{name}": value for name, value in moments.items()}
        for process, drawn in enumerate(gather_object([_random_states()])):
            tensors |= {f"random.{process}.{name}": value for name, value in drawn.items()}
        if self.generator is not None:
            tensors["generator"] = self.generator.get_state()
        about = {
            "groups": state["param_groups"],
            "schedule": self.schedule.state_dict(),
            "processes": PartialState().num_processes,
            "progress": progress,
        }
        if PartialState().is_main_process:
            content = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
            with open_atomically(self.path) as file:
                file.write(save(content, {"about": json.dumps(about)}))

    def load(self) -> dict[str, Any]:
        """Go back to what was saved, in place; nothing happens where there is no file yet.

        Returns:
            What `save` was given; empty without a file.

        Raises:
            CheckpointError: the file is damaged, of another training, or of another number of processes.
        """
        if self.path is None or not self.path.is_file():
            return {}
        import torch
        from accelerate import PartialState

        about, tensors = self._read(self.path)
        if about["processes"] != PartialState().num_processes:
            raise CheckpointError(
                f"{self.path} was written by {about['processes']} processes, not {PartialState().num_processes}; "
                "resume with as many, or choose another output_dir."
            )
        state: dict[int, dict[str, Any]] = {}
        for name, value in tensors.items():
            if name.startswith("optimizer."):
                _, number, moment = name.split(".")
                state.setdefault(int(number), {})[moment] = value
        with torch.no_grad():
            for i, weight in enumerate(self.weights):
                weight.copy_(tensors[f"weight.{i}"])
        self.optimizer.load_state_dict({"state": state, "param_groups": about["groups"]})
        self.schedule.load_state_dict(about["schedule"])
        mine = f"random.{PartialState().process_index}"
        torch.set_rng_state(tensors[f"{mine}.cpu"])
        if torch.cuda.is_available() and f"{mine}.cuda" in tensors:
            torch.cuda.set_rng_state(tensors[f"{mine}.cuda"])
        if self.generator is not None:
            self.generator.set_state(tensors["generator"])
        return dict(about["progress"])

    def _read(self, path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
        """What the file holds, if it fits these weights."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "pt") as file:
                about = json.loads((file.metadata() or {})["about"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, no mapping
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise CheckpointError(
                f"{path} cannot be read ({error}); delete it, and the training begins anew."
            ) from None
        saved = {name: value.shape for name, value in tensors.items() if name.startswith("weight.")}
        if saved != {f"weight.{i}": weight.shape for i, weight in enumerate(self.weights)}:
            raise CheckpointError(f"{path} holds other weights than those that train here; delete it.")
        return about, tensors


def _random_states() -> dict[str, Any]:
    """The states of this process's random numbers."""
    import torch

    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states
