"""Arrays of numpy and torch -> images, by one fixed rule.

An array is grey, RGB or RGBA: (H, W), (H, W, C) or (C, H, W) with C of 1, 3 or 4. `uint8` holds 0 to 255, floats hold
0 to 1; every other type is refused, as its range is not known. Floats are rounded to the nearest of 256 levels, so that
`levels / 255` in float32 gives the same image as `levels`. Channels are red, green, blue.
"""

from typing import TYPE_CHECKING, Any, TypeGuard

from PIL import Image

from judge.errors import QuestionError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SHAPES = "(H, W), (H, W, 3), (3, H, W), or 1 or 4 channels"
_CHANNELS = {1: "L", 3: "RGB", 4: "RGBA"}


def is_array(value: object) -> TypeGuard[Any]:
    """Whether it is an array of numpy, a tensor of torch, or similar; imports neither."""
    return not isinstance(value, Image.Image) and hasattr(value, "shape") and hasattr(value, "dtype")


def image_of_array(array: Any) -> Image.Image:
    """One image of mode L, RGB or RGBA from an array (H, W), (H, W, C) or (C, H, W).

    An empty array gives an empty image.

    Raises:
        QuestionError: a shape or type that is not one of those above, or floats outside 0 to 1.
    """
    import numpy as np

    if type(array).__module__.startswith("torch"):
        array = array.detach().cpu()
        # numpy has no bfloat16.
        array = array.float() if array.is_floating_point() else array
    values: NDArray[Any] = np.asarray(array)
    if values.dtype.kind == "f":
        values = _levels(values)
    elif values.dtype != np.uint8:
        raise QuestionError(
            f"An array of {values.dtype} has no known range; give uint8 of 0 to 255, or floats of 0 to 1."
        )
    values = _channels_last(values)
    mode = _CHANNELS[values.shape[2]]
    if not values.size:
        return Image.new(mode, (values.shape[1], values.shape[0]))
    # (H, W, C), or (H, W) for grey, which Pillow expects without a channel axis.
    return Image.fromarray(np.ascontiguousarray(values[..., 0] if mode == "L" else values))


def _levels(values: "NDArray[np.floating[Any]]") -> "NDArray[np.uint8]":
    import numpy as np

    if values.size and not (values.min() >= 0 and values.max() <= 1):  # False for NaN as well
        raise QuestionError(
            f"Floats of a picture are 0 to 1, got {values.min():g} to {values.max():g}. Divide by 255 what is 0 to "
            "255, and undo a normalisation by mean and deviation."
        )
    return np.rint(values.astype(np.float64) * 255).astype(np.uint8)


def _channels_last(values: "NDArray[np.uint8]") -> "NDArray[np.uint8]":
    if values.ndim == 2:
        return values[..., None]
    if values.ndim == 3:
        # An image of 1, 3 or 4 pixels height or width can be read both ways, and a wrong guess would be noise.
        last, first = values.shape[2] in _CHANNELS, values.shape[0] in _CHANNELS
        if last and first:
            raise QuestionError(
                f"An array of shape {values.shape} may have its channels first or last; give a PIL image."
            )
        if last:
            return values
        if first:
            return values.transpose(1, 2, 0)
    raise QuestionError(f"An array of shape {values.shape} is no picture; give {SHAPES}.")
