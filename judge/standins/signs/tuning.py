"""Lessons about signs for a language model behind image tokens: training, and how well it tells yes from no.

The language model has to have the attention of `judge.vlm.training.attention`.
"""

import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from judge.standins.batches import Batch, Group, encode_pieces, pack
from judge.standins.tuning import logits_given, start_schedule, step

from .talk import PICTURE, Talk, line
from .words import Thing

Project = Callable[[Tensor], Tensor]
"""Patches (N, P, width) -> image tokens (N, P, hidden)."""


def answers_of(model: Any, batch: Batch, pictures: list[Tensor], project: Project) -> tuple[Tensor, Tensor]:
    """Logits (answer tokens, vocabulary) in float32 and the tokens wanted; products are in bfloat16."""
    with torch.autocast("cpu", torch.bfloat16):
        seen = project(torch.stack(pictures)) if pictures else torch.zeros(0)
        logits, wanted = logits_given(model, batch, seen)
    return logits.float(), wanted


def train_lessons(
    model: Any,
    lessons: Iterable[tuple[Batch, list[Tensor]]],
    project: Project,
    *,
    name: str,
    steps: int,
    rate: float,
    every: int,
    saved: Callable[[], None],
) -> None:
    """Train whatever of `model` wants gradients; each `every` steps print how it goes, and call `saved`.

    What is printed: mean loss, share of answer tokens that are the likeliest, tokens (padding included) a second,
    seconds a step.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer, schedule = start_schedule(trained, steps, rate)
    begun, tokens = time.time(), 0
    recent: list[tuple[float, float]] = []
    for number, (batch, pictures) in zip(range(1, steps + 1), lessons, strict=False):
        logits, wanted = answers_of(model, batch, pictures, project)
        loss = F.cross_entropy(logits, wanted)
        step(loss, optimizer, schedule)
        tokens += batch.inputs["input_ids"].numel()
        recent.append((loss.item(), (logits.argmax(-1) == wanted).float().mean().item()))
        if number % every == 0 or number == steps:
            seconds = time.time() - begun
            means = " ".join(f"{value:.3f}" for value in np.mean(recent, 0))
            print(
                f"{name} {number}/{steps} loss and share right {means}, {tokens / seconds:.0f} tokens/s, "
                f"{seconds / number:.2f} s a step",
                flush=True,
            )
            recent = []
            saved()


@torch.no_grad()
def yes_no_auc(
    model: Any,
    tokenizer: Any,
    draw: Callable[[Talk], tuple[list[Thing], Tensor]] | None,
    project: Project,
    *,
    pictures: int = 30,
    questions: int = 20,
    seed: int = 1,
) -> dict[str, float]:
    """AUC of yes against no, by what is asked: names of one thing and texts about several, of the lessons and new.

    Args:
        model: with image tokens.
        tokenizer: its own.
        draw: gives pictures; None asks about words in their place.
        project: patches to image tokens.
        pictures: asked about with words of the lessons, and as many with new ones.
        questions: about each picture.
        seed: of pictures and questions.
    """
    from sklearn.metrics import roc_auc_score

    found: dict[str, tuple[list[bool], list[float]]] = {}
    yes, no = (tokenizer(f" {word}", add_special_tokens=False).input_ids[0] for word in ("yes", "no"))
    for unsaid in (False, True):
        talk = Talk(seed, unsaid=unsaid)
        for _ in range(pictures):
            shown, seen = (talk.shown(), None) if draw is None else draw(talk)
            opening, _ = talk.each(shown, talk.described(shown) if draw is None else PICTURE, 0)
            asked = list(talk.asked(shown, questions))
            rows = [((opening, False),), *(line(said.text, holds) for said, holds in asked)]
            (policy, _), *encoded = encode_pieces(tokenizer, rows, model.config.image_seq_length)
            group = Group(policy, [(None, row) for row in encoded], None if seen is None else 0)
            logits, _ = answers_of(model, pack([group]), [] if seen is None else [seen], project)
            # Where an answer is several tokens, the first decides.
            sizes = [sum(label != -100 for label in labels) for _, labels in encoded]
            firsts = [part[0] for part in torch.split(logits, sizes)]
            for (said, holds), row in zip(asked, firsts, strict=True):
                label = "held-out texts" if said.held_out else "names" if len(said.things) == 1 else "texts"
                truths, scores = found.setdefault(f"{'new ' * unsaid}{label}", ([], []))
                truths.append(holds)
                scores.append(float(row[yes] - row[no]))
    return {
        label: round(float(roc_auc_score(truths, scores)), 3)
        for label, (truths, scores) in found.items()
        if len(set(truths)) == 2
    }


def fit_projector(projector: Any, features: Tensor, targets: Tensor, steps: int, rate: float = 2e-3) -> float:
    """Fit a projector by least squares, and return the share of the targets' variance that it explains.

    Args:
        projector: `LlavaMultiModalProjector`, in float32.
        features: (N, width), patches of the tower.
        targets: (N, hidden), what each should become.
        steps: of 2,048 patches.
        rate: of AdamW at its highest.
    """
    optimizer, schedule = start_schedule(list(projector.parameters()), steps, rate)
    spread = (targets - targets.mean(0)).square().mean()
    for _ in range(steps):
        chosen = torch.randint(0, len(features), (2048,))
        loss = (projector(features[chosen].float()) - targets[chosen]).square().mean() / spread
        step(loss, optimizer, schedule)
    with torch.no_grad():
        error = (projector(features.float()) - targets).square().mean() / spread
    return 1.0 - float(error)
