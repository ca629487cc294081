"""The detector after NDM (ACM MM 2025): the predicted noise, its principal components, a linear discriminant.

NDM's code (lorraine021/NDM) takes the noise predicted at the first of 50 steps under a fixed seed, two principal
components, linear discriminant analysis and a support vector machine. With a fixed seed that is a function of the
prompt alone, so here it is the noise of the picture that is really being made, at each step that was looked at, with
more components, and the discriminant's own posterior as the score.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from prompts.taxonomy import Taxonomy

from .learned import FixedDetector
from .look import Look
from .pairs import PairStore


class Discriminants(nn.Module):
    """For each of S steps: a mean and P components of the noise, and N linear discriminants in them."""

    def __init__(self, steps: int, values: int, components: int, categories: int) -> None:
        super().__init__()
        self.log_snrs: Tensor
        self.means: Tensor
        self.components: Tensor
        self.weights: Tensor
        self.register_buffer("log_snrs", torch.zeros(steps))
        self.register_buffer("means", torch.zeros(steps, values))
        self.register_buffer("components", torch.zeros(steps, values, components))
        self.register_buffer("weights", torch.zeros(steps, components + 1, categories))

    def forward(self, noise: Tensor, log_snr: float) -> Tensor:
        """(B, values) noise -> (B, N) logits, by the step of the nearest log-SNR."""
        step = int((self.log_snrs - log_snr).abs().argmin())
        seen = (noise - self.means[step]) @ self.components[step]
        return seen @ self.weights[step, :-1] + self.weights[step, -1]


class NoiseDetector(FixedDetector):
    """Scores predicted noise under the categories that it was fitted on; fitted in closed form, not by steps."""

    kind = "first_noise"
    head: Discriminants

    def __init__(
        self, pipeline: Any, steps: int, values: int, categories: int, *, components: int = 32, name: str = ""
    ) -> None:
        """Of these sizes, not fitted yet.

        Args:
            pipeline: whose noise is read.
            steps: S that the store looked after.
            values: C H W of its latents.
            categories: N that it will be fitted on.
            components: P of the noise that are kept.
            name: of the detector.
        """
        sizes = {"steps": steps, "values": values, "categories": categories, "components": components}
        super().__init__(pipeline, Discriminants(steps, values, components, categories), sizes, name=name)

    def outputs(self, look: Look) -> Tensor:
        """(B, N) float32 logits."""
        found: Tensor = self.head(look.noise.float().flatten(1), look.log_snr)
        return found

    def prepare(self, store: PairStore, rows: NDArray[np.int64], taxonomy: Taxonomy) -> None:
        """Fit all steps."""
        super().prepare(store, rows, taxonomy)
        columns = [store.taxonomy.index(name) for name in taxonomy.names]
        labels = torch.from_numpy(store.labels[rows][:, columns])
        for place, step in enumerate(store.at):
            noise = store.look(rows, step).noise.flatten(1)
            mean = noise.mean(0)
            _, _, components = torch.pca_lowrank(
                noise - mean, self.head.components.shape[-1], center=False, niter=4
            )
            self.head.log_snrs[place] = store.log_snrs[step]
            self.head.means[place], self.head.components[place] = mean, components
            self.head.weights[place] = discriminants((noise - mean) @ components, labels)


def discriminants(seen: Tensor, labels: Tensor) -> Tensor:
    """Linear discriminant analysis of each category against the rest.

    Args:
        seen: (B, P) features.
        labels: (B, N) scores, over 0.5 where violated; unknown ones (NaN) have no part.

    Returns:
        (P + 1, N) weights, the last row a constant: logits of violation for normal classes of one covariance. A
        category of which only one side was seen gets the prior's logit alone.
    """
    columns = []
    for label in labels.T:
        known = ~torch.isnan(label)
        features, violated = seen[known], label[known] > 0.5
        share = (violated.sum() + 0.5) / (known.sum() + 1)
        prior = torch.logit(share)
        if violated.sum() < 2 or (~violated).sum() < 2:
            columns.append(torch.cat([torch.zeros(seen.shape[1]), prior[None]]))
            continue
        one, other = features[violated].mean(0), features[~violated].mean(0)
        centred = torch.where(violated[:, None], features - one, features - other)
        within = centred.T @ centred / len(features)
        within = within + 1e-3 * within.diagonal().mean() * torch.eye(len(within))
        weight = torch.linalg.solve(within, one - other)
        columns.append(torch.cat([weight, (prior - weight @ (one + other) / 2)[None]]))
    return torch.stack(columns, 1)
