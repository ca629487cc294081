"""Prompts that try to get a forbidden picture out of a generator, made from a plain one without any query."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from adversarial.errors import AttackError
from adversarial.texts.disguises import DISGUISES
from adversarial.texts.families import FAMILIES, random_for
from adversarial.texts.prompt_search import Attempt, bare, replace_words
from adversarial.texts.tokens import TokenSearch
from judge.cascade.prompt_filter import PromptFilter
from judge.encoders.alternatives import alternatives
from judge.encoders.soft_text import SoftText
from prompts.taxonomy import Category, Taxonomy

REWRITTEN = ("misspellings", "homoglyphs", "leetspeak", "spacing", "case", "carriers", "disavowals")
"""Families of `adversarial.texts.families` that keep what the prompt asks for."""
DISGUISED = ("zero_width", "combining_marks")
"""Families of `adversarial.texts.disguises` likewise."""
MOST_SEEDS = 2**31


@dataclass(frozen=True)
class Goal:
    """A picture that an attacker wants."""

    prompt: str
    """A plain prompt that asks for it."""
    replaced: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Word of the prompt that names the category -> other words for it (`other_names`)."""
    described: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """The same word -> descriptions of the thing without its name."""


def goal_of(prompt: str, taxonomy: Taxonomy) -> Goal:
    """What an attacker can say in the place of the words that name a category."""
    names = {
        bare(name): category
        for category in taxonomy
        for name in (category.name, *category.aliases, *category.rewordings)
        if len(name.split()) == 1
    }
    shown = {bare(word): names[bare(word)] for word in prompt.split() if bare(word) in names}
    return Goal(
        prompt,
        {word: found for word, category in shown.items() if (found := other_names(category, word))},
        {word: found for word, category in shown.items() if (found := descriptions(category))},
    )


def other_names(category: Category, word: str) -> list[str]:
    """Short names of a category without a word: aliases, rewordings of one word, names in other languages."""
    short = [text for text in category.rewordings if len(text.split()) == 1]
    found = [
        *(translation.name for translation in category.languages),
        *short,
        category.name,
        *category.aliases,
    ]
    return [text for text in dict.fromkeys(found) if word not in map(bare, text.split())]


def descriptions(category: Category) -> list[str]:
    """Parts of the definitions that do not hold the name."""
    texts = [*alternatives(category.definition), *category.definition.split(","), *category.rewordings]
    texts += [translation.definition for translation in category.languages]
    found = dict.fromkeys(text.strip() for text in texts if len(text.split()) > 1)
    names = {bare(category.name), *map(bare, category.aliases)}
    return [text for text in found if not names & set(map(bare, text.split()))]


def family_attempts(goal: Goal, vague: Sequence[str], *, each: int = 2, seed: int = 0) -> list[Attempt]:
    """The attempts of every family at one goal: up to `each` of a family, each with a seed of its own.

    Args:
        goal: what is wanted.
        vague: prompts that name nothing, whose picture may happen to be what is wanted.
        each: attempts of a family; of vague prompts twice as many.
        seed: of all draws.
    """
    draw = random_for(goal.prompt, seed)
    made: dict[str, list[str | None]] = {"plain": [goal.prompt] * each}
    makers = {**{name: FAMILIES[name] for name in REWRITTEN}, **{name: DISGUISES[name] for name in DISGUISED}}
    for name, maker in makers.items():
        made[name] = maker(goal.prompt, "safe", seed)
    made["other names"] = [*replace_words(goal.prompt, goal.replaced)]
    made["descriptions"] = [*replace_words(goal.prompt, goal.described)]
    made["vague"] = [draw.choice(list(vague)) for _ in range(2 * each)] if vague else []
    found = []
    for name, texts in made.items():
        usable = [text for text in texts if text]
        chosen = usable if name in ("plain", "vague") else draw.sample(usable, min(each, len(usable)))
        found += [Attempt(text, draw.randrange(MOST_SEEDS), name) for text in chosen]
    return found


def token_prompts(
    prompt: str,
    prompt_filter: PromptFilter,
    taxonomy: Taxonomy,
    cutoff: float,
    *,
    length: int = 5,
    steps: int = 12,
    candidates: int = 48,
    seed: int = 0,
) -> list[str]:
    """Endings that lead the prompt filter astray while the prompt keeps asking, by gradient search over tokens.

    White-box: the margin of the filter is minimised, until it lets the prompt pass. Whether the generator still draws
    what is wanted is seen only when it does.

    Args:
        prompt: the plain one.
        prompt_filter: the defence.
        taxonomy: what it is asked.
        cutoff: from which it refuses.
        length: tokens of the ending; two thirds and all of it are tried.
        steps: of each search.
        candidates: prompts of each step.
        seed: of the draws.

    Returns:
        The prompts found, the best first; none where the encoder leaves no room.
    """
    encoder = prompt_filter.similarities.encoder
    soft = SoftText(encoder)
    margin = filter_margin(soft, prompt_filter, taxonomy, cutoff)
    found: list[tuple[float, str]] = []
    for size in dict.fromkeys((max(1, 2 * length // 3), length)):
        search = TokenSearch(length=size, top_k=64, candidates=candidates, steps=steps, stop_below=-0.5)
        own = soft.encode(prompt).cpu()[: max(soft.max_tokens - size, 0)]
        try:
            ids = search.extend(soft, own, torch.Generator().manual_seed(seed)) if len(own) else None
            if ids is None:
                continue
            editable = torch.arange(len(ids)) >= len(own)
            result = search.run(soft, margin, start=ids, editable=editable, seed=seed)
        except AttackError:
            continue  # no ending of this length that the tokenizer keeps
        found.append((result.loss, result.text))
    return [text for _, text in sorted(found)]


def filter_margin(
    soft: SoftText, prompt_filter: PromptFilter, taxonomy: Taxonomy, cutoff: float
) -> Callable[[Tensor], Tensor]:
    """(B, L, W) embedded prompts -> (B,) logits over the filter's cutoff, differentiable; negative ones pass."""
    at = float(torch.logit(torch.tensor(min(cutoff, 1.0), dtype=torch.float64), eps=1e-6))

    def margin(embedded: Tensor) -> Tensor:
        pooled = F.normalize(soft.encode_embedded(embedded)[0][:, 0], dim=-1)
        cosines = prompt_filter.similarities.cosines(pooled, taxonomy)
        return prompt_filter.platt.logits(cosines).amax(dim=1) - at

    return margin
