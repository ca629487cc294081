"""What the way in which a victim reads prompts rules out: under `max` a prompt can only add suspicion."""

from copy import copy
from dataclasses import replace

from judge.cascade.cascade import Cascade
from judge.cascade.filters_alone import FilterClassifier
from judge.protocol import ReadsPrompts
from prompts.reading import PromptMode

from .victims import ClassifierVictim


def only_adds_suspicion(victim: ClassifierVictim) -> bool:
    """Whether no prompt, by construction, gets a lower score than no prompt at all (`judge.readings`)."""
    classifier = victim.classifier
    if isinstance(classifier, ReadsPrompts):
        return classifier.prompt_mode != "use"
    return isinstance(classifier, Cascade | FilterClassifier)


def with_prompt_mode(victim: ClassifierVictim, mode: PromptMode) -> ClassifierVictim | None:
    """The victim in another mode, weights and caches shared; None where it has no choice."""
    if not isinstance(victim.classifier, ReadsPrompts):
        return None
    classifier = copy(victim.classifier)
    classifier.prompt_mode = mode
    return replace(victim, classifier=classifier)
