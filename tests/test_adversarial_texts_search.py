"""adversarial/texts/attack.py, result.py and subwords.py: black-box attacks on prompts, against filters of known words."""

import math

import pytest
import torch

from adversarial.errors import AttackError
from adversarial.problem import Problem
from adversarial.texts.attack import TextAttack
from adversarial.texts.families import FAMILIES, lies
from adversarial.texts.result import FamilyResult, TextResult, prompt_margins, verify_prompts
from adversarial.texts.subwords import SubwordSearch
from adversarial.threat import ThreatModel
from adversarial.victim import Context


class KeywordVictim:
    """Unsafe is a prompt with a word of its policy in it; one answer a prompt, no gradients."""

    name = "keywords"
    no_gradients = "it looks words up"

    def __init__(self):
        self.asked = []
        self.batches = []

    def margins(self, pixels, contexts):
        assert len({context.policy for context in contexts}) == 1
        self.batches.append(len(contexts))
        self.asked += [context.prompt for context in contexts]
        found = [sum(w in (c.prompt or "").lower() for w in c.policy) for c in contexts]
        return torch.tensor([float(count) - 0.5 for count in found]) + 0 * pixels.flatten(1).sum(1)

    def score(self, images, contexts):
        raise NotImplementedError


def make(prompts, signs=None, words=("balloon",), policies=None, **options):
    count = len(prompts)
    contexts = [
        Context(prompt, policy)
        for prompt, policy in zip(prompts, policies or [tuple(words)] * count, strict=True)
    ]
    images = torch.rand(count, 3, 4, 4)
    signs = torch.ones(count) if signs is None else torch.tensor(signs)
    return Problem(KeywordVictim(), images, contexts, signs, ThreatModel(0.0), **options)


PROMPTS = ["a red balloon over a seven", "Balloons, many of them", "the digit four"]


def test_spelling_beats_a_list_of_words_and_carriers_do_not():
    problem = make(PROMPTS)
    found = TextAttack().run(problem)
    assert found.misjudged.tolist() == [False, False, True]
    assert found.success.tolist() == [True, True, False]
    for family in ("misspellings", "homoglyphs", "spacing", "leetspeak", "deletion"):
        assert found.families[family].asr_n() == 1, family
    for family in ("carriers", "disavowals", "injections", "case"):
        assert found.families[family].asr_n() == 0, family
        assert found.families[family].asr_1() == 0
    assert found.prompts[2] == PROMPTS[2]
    assert int(found.queries[0]) == sum(len(tries.margins[0]) for tries in found.families.values()) > 50
    assert int(found.queries[2]) == 0
    assert problem.spent.forwards == 3 + int(found.queries.sum())


def test_other_way_round_only_lies_help():
    problem = make(["the digit four", "a balloon"], signs=[-1.0, -1.0])
    families = FAMILIES | {"lies": lies({"unsafe": ["two balloons", "a seven"]})}
    found = TextAttack(families).run(problem)
    assert found.misjudged.tolist() == [False, True]
    assert found.success.tolist() == [True, False]
    assert found.prompts[0] == "two balloons"
    assert found.family == ["lies", ""]
    assert found.families["lies"].asr_1() == 0.5
    assert found.families["lies"].asr_n() == 1


def test_rows_of_different_policies_and_sizes_keep_apart():
    problem = make(
        ["a balloon", "a seven", "a balloon and a seven", "a seven"],
        policies=[("balloon",), ("seven",), ("balloon", "seven"), ("balloon",)],
        batch_size=2,
    )
    maker = {"swap": lambda prompt, target, seed: [prompt.replace("seven", "six"), "nothing", "a balloon"]}
    found = TextAttack(maker).run(problem)
    assert found.families["swap"].margins == [[0.5, -0.5, 0.5], [-0.5, -0.5, -0.5], [0.5, -0.5, 0.5], []]
    assert found.prompts == ["nothing", "a six", "nothing", "a seven"]
    assert max(problem.victim.batches) <= 2


def test_early_stop_asks_no_more():
    problem = make(["a balloon"])
    maker = {"a": lambda *_: ["balloon", "one", "two"], "b": lambda *_: ["three"]}
    assert TextAttack(maker).run(problem).queries.tolist() == [4]
    assert TextAttack(maker, early_stop=True).run(problem).queries.tolist() == [2]


def test_attacked_pixels_are_shown():
    class Bright(KeywordVictim):
        def margins(self, pixels, contexts):
            return pixels.mean((1, 2, 3)) - 0.5 + torch.tensor([float(len(c.prompt or "")) for c in contexts])

    problem = make(["abc"])
    problem.victim = Bright()
    problem.images[:] = 1.0
    found = TextAttack({"f": lambda *_: [""]}).run(problem, torch.zeros_like(problem.images))
    assert float(found.margin[0]) == pytest.approx(-0.5)
    assert found.success.tolist() == [True]
    assert float(verify_prompts(found, problem).margin[0]) == pytest.approx(0.5)
    assert float(verify_prompts(found, problem, torch.zeros_like(problem.images)).margin[0]) == pytest.approx(
        -0.5
    )


def test_rates_by_hand():
    tries = FamilyResult([[1.0, -1.0], [-1.0, -1.0], [], [1.0], [-1.0]], torch.tensor([0, 0, 0, 0, 1]).bool())
    assert tries.asr_1() == pytest.approx((0.5 + 1 + 0 + 0) / 4)
    assert tries.asr_n() == pytest.approx(2 / 4)
    assert tries.most_prompts == 2
    assert math.isnan(FamilyResult([[-1.0]], torch.tensor([True])).asr_n())


def test_what_an_attack_claims_is_asked_again():
    problem = make(["a balloon", "two balloons"])
    claim = TextResult(
        ["a balloon", "two kites"], torch.tensor([-9.0, -9.0]), ["x", "x"], torch.ones(2), torch.zeros(2)
    )
    assert verify_prompts(claim, problem).success.tolist() == [False, True]
    with pytest.raises(AttackError, match="1 prompts for 2 rows"):
        verify_prompts(TextResult(["a"], torch.ones(1), [""], torch.ones(1), torch.zeros(1)), problem)


def test_asking_some_rows():
    problem = make(PROMPTS)
    assert prompt_margins(problem, problem.images, {2: "balloon", 0: None}) == {0: -0.5, 2: 0.5}
    assert prompt_margins(problem, problem.images, {}) == {}
    with pytest.raises(AttackError, match="No families"):
        TextAttack({})


def shared_words(original, candidate):
    words = set(original.lower().split())
    return len(words & set(candidate.lower().split())) / len(words)


def test_sub_words_beat_a_list_of_words_and_keep_the_rest():
    problem = make(["a red balloon over a seven", "the digit four", None])
    search = SubwordSearch(shared_words, min_similarity=0.7)
    found = search.run(problem)
    assert found.success.tolist() == [True, False, False]
    assert shared_words(PROMPTS[0], found.prompts[0]) >= 0.7
    assert "over a seven" in found.prompts[0]
    assert 0 < int(found.queries[0]) <= 60
    assert found.queries[1:].tolist() == [0, 0]
    assert found.families[search.name].asr_n() == 1
    assert verify_prompts(found, problem).success.tolist() == [True, False, False]


def test_known_words_save_queries():
    prompt = "over the wall of the old house flew a balloon that nobody saw"
    slow = SubwordSearch(shared_words, min_similarity=0.5).run(make([prompt]))
    fast = SubwordSearch(
        shared_words, min_similarity=0.5, sensitive=("Balloon",), fragments=("ba", "lo")
    ).run(make([prompt]))
    assert slow.success.all()
    assert fast.queries.tolist() == [1]
    assert int(slow.queries[0]) > 5
    assert prompt.replace("balloon", "") != fast.prompts[0]


def test_two_words_at_once():
    problem = make(["one balloon and one kite over there"], words=("balloon", "kite"))
    found = SubwordSearch(shared_words, min_similarity=0.5, sensitive=("balloon", "kite")).run(problem)
    assert found.success.tolist() == [True]
    assert "and one" in found.prompts[0]


def test_queries_and_the_floor_hold():
    hopeless = make(["balloon balloons"], words=("b", "a", "e", "i", "o", "u", "n", "s", "t", "r", ""))
    found = SubwordSearch(lambda a, b: 1.0, queries=17).run(hopeless)
    assert found.success.tolist() == [False]
    assert found.queries.tolist() == [17]
    assert len(hopeless.victim.asked) == 18

    strict = make(["a red balloon"])
    found = SubwordSearch(lambda a, b: 0.0, min_similarity=0.5).run(strict)
    assert found.success.tolist() == [False]
    assert found.prompts == ["a red balloon"]
    assert found.queries.tolist() == [3]  # each word left out once; nothing else may be asked

    with pytest.raises(AttackError, match="at least 1"):
        SubwordSearch(shared_words, queries=0)


def test_searches_repeat():
    runs = [
        SubwordSearch(shared_words, min_similarity=0.5).run(make(PROMPTS, seed=seed)) for seed in (0, 0, 1)
    ]
    assert runs[0].prompts == runs[1].prompts
    assert runs[0].prompts != runs[2].prompts
