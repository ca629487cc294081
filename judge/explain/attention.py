"""The student's attention: which patches the phrase that met a category looked at, laid over the image.

Attention says where a head looked, which need not be why it decided (Jain and Wallace 2019). Here the weights are
those with which cosines are averaged into the logit, and `scripts/measure_explanations.py` measures where they point.
"""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image

from judge.encoders.pixels import preprocess
from judge.student.student import Student
from prompts.taxonomy import Taxonomy


def attention_map(
    student: Student,
    image: Image.Image,
    prompt: str | None,
    taxonomy: Taxonomy,
    category: int,
    cells: int,
) -> NDArray[np.float64]:
    """(cells, cells) share of each part of the image in what the category's strongest phrase attends to.

    What the encoder's crop leaves out is 0.

    Args:
        student: what decided.
        image: RGB.
        prompt: as it was judged with.
        taxonomy: as it was judged by.
        category: its place in the taxonomy.
        cells: rows and columns of the map.
    """
    shares = _patch_shares(student, image, prompt, taxonomy, category)
    across, down = _patch_places(student, image, round(len(shares) ** 0.5))
    total = np.zeros((cells, cells))
    rows = np.clip((down * cells).astype(int), 0, cells - 1)
    columns = np.clip((across * cells).astype(int), 0, cells - 1)
    # The largest of the patches whose centre lies in a cell; a cell without a centre takes the nearest patch's.
    np.maximum.at(total, (rows, columns), shares)
    for row, column in np.argwhere(total == 0):
        y, x = (row + 0.5) / cells, (column + 0.5) / cells
        inside = down.min() - 0.5 / cells <= y <= down.max() + 0.5 / cells
        if inside and across.min() - 0.5 / cells <= x <= across.max() + 0.5 / cells:
            total[row, column] = shares[np.argmin((down - y) ** 2 + (across - x) ** 2)]
    return total


def _patch_shares(
    student: Student, image: Image.Image, prompt: str | None, taxonomy: Taxonomy, category: int
) -> NDArray[np.float64]:
    """(P,) attention to each patch, of the reading and the phrase with the highest logit."""
    readings = student.read_prompts([prompt])
    tokens = student.encoder.encode_images([image]).to(student.encoder.device)  # (1, 1 + P, D)
    texts, mask = student.encode_prompts(readings.texts)
    images = tokens[[0] * len(readings)]
    with torch.no_grad():
        logits, weights = student.head.image_attention(
            images[None], texts[None], mask[None], student.queries(taxonomy)
        )
    logits, weights = logits[0, :, category], weights[0, :, category]  # (R, M) and (R, M, T)
    reading, phrase = divmod(int(logits.argmax()), logits.shape[-1])
    shares = weights[reading, phrase, 1:]  # without the pooled embedding
    return np.asarray(shares.double().cpu().numpy())


def _patch_places(
    student: Student, image: Image.Image, side: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(P,) x and y in [0, 1] of the image at each patch's centre.

    Two ramps go through the encoder's own resizing and cropping, so that no geometry is repeated here.
    """
    width, height = image.size
    # The processor takes long sides only to shrink them again; a ramp needs no more than 256 steps.
    scale = min(1.0, 256 / min(width, height))
    width, height = max(1, round(width * scale)), max(1, round(height * scale))
    x = ((torch.arange(width) + 0.5) / width).expand(height, width)
    y = ((torch.arange(height) + 0.5) / height)[:, None].expand(height, width)
    ramps = torch.stack([torch.stack([part] * 3) for part in (x, y)])  # (2, 3, H, W)
    plain = torch.stack([torch.zeros(3, height, width), torch.ones(3, height, width)])
    processed = preprocess(student.image_processor, torch.cat([ramps, plain]).float())[:, 0]
    low, high = processed[2], processed[3]
    # Normalising is linear: 0 and 1 as references undo it.
    found = (processed[:2] - low) / (high - low)
    pooled = F.adaptive_avg_pool2d(found, side).flatten(1).double().numpy()
    return pooled[0], pooled[1]
