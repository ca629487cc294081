"""Generic instruction tuning of a stand-in LLaVA: answers to packed conversations, and how many of them are right.

The language model has to have the attention of `judge.vlm.training.attention`.
"""

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .batches import Batch, Batches, pack
from .conversations import LIST_OPENINGS
from .entries import Form

if TYPE_CHECKING:
    from torch.optim.lr_scheduler import LRScheduler

QUESTIONED: Mapping[str, tuple[int, int, str | None, Form, int]] = {
    "plain": (5, 0, None, Form(), 0),
    "upper case": (5, 0, None, Form(case=str.upper), 0),
    "made-up names": (5, 0, None, Form("made_up"), 0),
    "codes": (5, 0, None, Form("code"), 0),
    "clauses": (5, 0, None, Form("clause"), 0),
    "long sentences": (5, 0, None, Form(wrapped=1.0), 0),
    "orders": (5, 0, None, Form(ordered=1.0), 0),
    "20 entries": (5, 15, None, Form(), 0),
    "40 entries": (5, 35, None, Form(), 0),
    "not": (1, 0, "not", Form(), 0),
    "both": (5, 0, "both", Form(), 0),
    "unless": (5, 0, "unless", Form(), 0),
    "caption of 600": (5, 0, None, Form(), 600),
}
"""Kind -> entries about digits, others, logic, how they are written, and characters of the caption."""


def answer_logits(model: Any, batch: Batch, features: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (answer tokens, vocabulary) and the tokens wanted, of all answers of a packed batch.

    Args:
        model: a LLaVA that reads shared lists.
        batch: of conversations.
        features: (pictures, patches, hidden), what the tower makes of all pictures.
    """
    return logits_given(model, batch, model.model.multi_modal_projector(features[batch.pictures].float()))


def logits_given(model: Any, batch: Batch, seen: Tensor) -> tuple[Tensor, Tensor]:
    """`answer_logits` with the image tokens' embeddings `seen` (pictures, patches, hidden) of this batch."""
    ids = batch.inputs["input_ids"]
    embedded = model.get_input_embeddings()(ids)
    image = (ids == model.config.image_token_index)[..., None]
    embedded = embedded.masked_scatter(image, seen.to(embedded.dtype))
    inputs = {name: value for name, value in batch.inputs.items() if name != "input_ids"}
    hidden = model.model.language_model(inputs_embeds=embedded, **inputs, use_cache=False).last_hidden_state
    answered = batch.labels[:, 1:] != -100
    return model.lm_head(hidden[:, :-1][answered]), batch.labels[:, 1:][answered]


def train_conversations(model: Any, batches: Batches, features: Tensor, steps: int, rate: float) -> None:
    """Train all but the tower, in bfloat16 with weights in float32.

    Prints the loss, the share of answers' tokens that are the likeliest, and that of their first tokens.
    """
    model.model.vision_tower.requires_grad_(False)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer, schedule = start_schedule(trained, steps, rate)
    progress = Progress("talk", steps)
    for _, batch in zip(range(steps), batches, strict=False):
        with torch.autocast("cpu", torch.bfloat16):
            logits, wanted = answer_logits(model, batch, features)
        loss = F.cross_entropy(logits.float(), wanted)
        step(loss, optimizer, schedule)
        right = (logits.argmax(-1) == wanted).float()
        begins = (batch.labels[:, :-1] == -100)[batch.labels[:, 1:] != -100]
        progress.update(loss.item(), right.mean().item(), right[begins].mean().item())


@torch.no_grad()
def accuracy_by_kind(model: Any, batches: Batches, features: Tensor, lists: int = 24) -> dict[str, float]:
    """Share of pictures for which the whole answer to "which of these, or none" is the likeliest, token by token."""
    found = {}
    for kind, (count, things, logic, form, caption) in QUESTIONED.items():
        right: list[bool] = []
        for _ in range(lists):
            entries = batches.conversations.drawn.draw(count, things, logic, form)
            text = "\n".join([LIST_OPENINGS[0], *(f"- {entry.name}: {entry.meaning}" for entry in entries)])
            group = batches.asked(entries, text, True, caption, questions=1)
            logits, wanted = answer_logits(model, pack([group]), features)
            sizes = [sum(label != -100 for label in labels) for _, (_, labels) in group.rows]
            right += [bool(part.all()) for part in torch.split(logits.argmax(-1) == wanted, sizes)]
        found[kind] = sum(right) / len(right)
    return found


def start_schedule(
    parameters: list[nn.Parameter], steps: int, rate: float
) -> tuple[torch.optim.Optimizer, "LRScheduler"]:
    """AdamW, with a rate that rises to `rate` and falls to nothing within `steps`."""
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.05, betas=(0.9, 0.98))
    return optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.08)


def step(loss: Tensor, optimizer: torch.optim.Optimizer, schedule: "LRScheduler") -> None:
    """One step, with the gradient's norm clipped to 1."""
    torch.autograd.backward(loss)
    nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
    optimizer.step()
    schedule.step()
    optimizer.zero_grad()


class Progress:
    """Prints the means of a hundred steps."""

    def __init__(self, name: str, steps: int) -> None:
        """Start the clock."""
        self.name, self.steps, self.done, self.start = name, steps, 0, time.time()
        self.recent: list[tuple[float, ...]] = []

    def update(self, *values: float) -> None:
        """Count a step and its metrics."""
        self.done += 1
        self.recent.append(values)
        if self.done % 100 == 0 or self.done == self.steps:
            means = " ".join(f"{sum(column) / len(column):.4f}" for column in zip(*self.recent, strict=True))
            print(
                f"{self.name} {self.done}/{self.steps} {means} {time.time() - self.start:.0f} s", flush=True
            )
            self.recent = []
