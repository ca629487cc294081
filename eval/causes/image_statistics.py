"""Image quality in numbers: signal-to-noise ratio, noise, edge density, entropy (UnsafeBench, section 3.1, Figure 13).

The paper gives no definitions, so these are choices. All but `pixels` are computed on the grey levels (ITU-R 601) of
the picture brought to one number of pixels, its shape kept, because the size of a file would otherwise decide: the
same scene has less noise and fewer edges a pixel when it is shown larger. `pixels` shows how far sizes differ.
"""

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

WORKING_PIXELS = 256 * 256
"""Width x height at which pictures are measured, about."""
EDGE = 0.1
"""Sobel magnitude from which a pixel belongs to an edge, where a step from black to white has 1. On OpenCV's scale,
which does not normalise, it is 102, about the usual lower threshold of its Canny detector."""
STATISTICS: Mapping[str, str] = MappingProxyType(
    {
        "snr": "signal-to-noise ratio (dB)",
        "noise": "noise (grey levels)",
        "edge_density": "edge density (share of pixels)",
        "entropy": "entropy (bits)",
        "pixels": "size of the file (1,000 pixels)",
    }
)
"""Name -> what it is, with its unit."""
_ROUNDING = 1 / np.sqrt(12)
"""Standard deviation of rounding to whole grey levels: no picture of 8 bits is known better."""
_NOISE_KERNEL = np.array([[1.0, -2.0, 1.0], [-2.0, 4.0, -2.0], [1.0, -2.0, 1.0]])

Floats = NDArray[np.float64]


def image_statistics(image: Image.Image, *, working_pixels: int = WORKING_PIXELS) -> dict[str, float]:
    """The statistics of an RGB picture, by the names in `STATISTICS`; all finite.

    - `snr`: 20 log10(mean / standard deviation) of the grey levels, in dB. This is what "SNR of an image" mostly
      means where no clean picture is known; contrast lowers it as much as noise does. Mean and deviation are at least
      the rounding error of 8 bits, so a uniform picture has a finite value too.
    - `noise`: standard deviation of the noise in grey levels, as Immerkaer estimates it (1996, "Fast noise variance
      estimation"): what a difference of two Laplacians leaves, in which flat regions and straight edges vanish.
    - `edge_density`: share of pixels, 0 to 1, whose Sobel magnitude is at least `EDGE`.
    - `entropy`: Shannon's, of the histogram of 256 grey levels: 0 to 8 bits.
    - `pixels`: width x height of the picture as it was given, in thousands.
    """
    levels = grey_levels(image, working_pixels)
    return {
        "snr": signal_to_noise(levels),
        "noise": noise_deviation(levels),
        "edge_density": edge_density(levels),
        "entropy": entropy(levels),
        "pixels": image.width * image.height / 1e3,
    }


def grey_levels(image: Image.Image, working_pixels: int = WORKING_PIXELS) -> Floats:
    """(H, W) grey levels, whole numbers of 0 to 255, with H * W near `working_pixels` and no side under 3."""
    scale = (working_pixels / (image.width * image.height)) ** 0.5
    size = (max(3, round(image.width * scale)), max(3, round(image.height * scale)))
    grey = image.convert("L")
    if size != grey.size:
        grey = grey.resize(
            size, Image.Resampling.BILINEAR
        )  # averages where it makes smaller; never overshoots
    return np.asarray(grey, dtype=np.float64)


def signal_to_noise(levels: Floats) -> float:
    """20 log10(mean / standard deviation) of grey levels (H, W), in dB."""
    return float(20 * np.log10(max(levels.mean(), _ROUNDING) / max(levels.std(), _ROUNDING)))


def noise_deviation(levels: Floats) -> float:
    """Immerkaer's estimate of the noise's standard deviation in grey levels (H, W), H and W at least 3."""
    response = ndimage.convolve(levels, _NOISE_KERNEL, mode="reflect")[1:-1, 1:-1]
    # The kernel's squares sum to 36; of normal noise the mean magnitude is sqrt(2 / pi) of the deviation.
    return float(np.sqrt(np.pi / 2) * np.abs(response).mean() / 6)


def edge_density(levels: Floats) -> float:
    """Share of pixels of grey levels (H, W) with a Sobel magnitude of at least `EDGE`."""
    across, down = (ndimage.sobel(levels / 255, axis=axis, mode="nearest") for axis in (1, 0))
    # The weights of the operator sum to 4.
    return float((np.hypot(across, down) / 4 >= EDGE).mean())


def entropy(levels: Floats) -> float:
    """Shannon's entropy of the histogram of whole grey levels (H, W), in bits."""
    shares = np.bincount(levels.astype(np.int64).ravel(), minlength=256) / levels.size
    shares = shares[shares > 0]
    return max(0.0, float(-(shares * np.log2(shares)).sum()))
