"""adversarial/texts/tokens.py: greedy coordinate gradients on a small CLIP and on a made-up encoder."""

import math

import pytest
import torch
from torch.nn import functional as F

from adversarial.errors import AttackError
from adversarial.problem import Problem
from adversarial.texts.token_attack import TokenAttack
from adversarial.texts.tokens import TokenSearch, one_hot_gradient
from adversarial.threat import ThreatModel
from adversarial.victim import Context
from judge.encoders.dual import DualEncoder
from judge.encoders.soft_text import SoftText

TARGET = "a photo of the digit seven"


def cosine_distance(embed, target):
    """The loss of MMA-Diffusion's text attack: one minus the cosine to a target embedding."""
    return lambda embedded: 1 - F.cosine_similarity(embed(embedded), target[None], dim=-1)


def random_texts(soft, length, count):
    ids = torch.randint(len(soft.allowed), (count, length), generator=torch.Generator().manual_seed(0))
    return [soft.decode(soft.allowed[row]) for row in ids]


class Letters:
    """A tokenizer of lower-case letters and one pair, `ab`, which it reads as one token, so that a, b is no prompt."""

    max_tokens = 12

    def __init__(self):
        self.table = torch.randn(27, 6, generator=torch.Generator().manual_seed(1))
        self.allowed = torch.arange(27)
        self.texts = [chr(97 + i) for i in range(26)] + ["ab"]

    def decode(self, ids):
        return "".join(self.texts[i] for i in ids.tolist())

    def encode(self, text):
        ids, at = [], 0
        while at < len(text):
            pair = text[at : at + 2] == "ab"
            ids.append(26 if pair else ord(text[at]) - 97)
            at += 2 if pair else 1
        return torch.tensor(ids, dtype=torch.long)


@pytest.fixture(scope="module")
def soft():
    return SoftText(DualEncoder.load("tiny-clip"))


@pytest.fixture(scope="module")
def target(soft):
    return soft.encoder.encode_texts([TARGET])[0][0, 0]


def test_the_gradient_is_that_of_one_hot_rows(soft, target):
    ids = soft.allowed[20:25]
    loss = cosine_distance(lambda embedded: soft.encode_embedded(embedded)[0][:, 0], target)
    one_hot = F.one_hot(ids[None], len(soft.table)).float().requires_grad_(True)
    loss(one_hot @ soft.table).sum().backward()
    found = one_hot_gradient(soft, loss, ids)
    assert found.shape == (5, len(soft.table))
    assert torch.allclose(found, one_hot.grad[0], atol=1e-6)
    assert float(found.abs().max()) > 1e-4


def test_search_nears_the_target_without_its_words(soft, target):
    loss = cosine_distance(lambda embedded: soft.encode_embedded(embedded)[0][:, 0], target)
    forbidden = ("seven", "digit", "photo")
    search = TokenSearch(length=6, top_k=64, candidates=48, steps=12, forbidden=forbidden)
    found = search.run(soft, loss, seed=1)
    chance = soft.encoder.encode_texts(random_texts(soft, 6, 30))[0][:, 0]
    by_chance = F.cosine_similarity(chance, target[None], dim=-1)
    reached = float(F.cosine_similarity(soft.encoder.encode_texts([found.text])[0][0, 0], target, dim=0))
    assert reached == pytest.approx(1 - found.loss, abs=1e-5)
    assert reached > float(by_chance.mean()) + 0.5
    assert reached > float(by_chance.max())
    assert not any(word in found.text.casefold() for word in forbidden)
    assert soft.encode(found.text).tolist() == found.ids.tolist()
    assert len(found.ids) == 6
    assert found.losses == sorted(found.losses, reverse=True)
    assert len(found.losses) == found.steps + 1 == 13
    assert found.tried > 12 * 24


def test_searches_repeat():
    soft = Letters()
    loss = cosine_distance(lambda embedded: embedded.mean(1), soft.table[3])
    runs = [TokenSearch(length=4, top_k=8, candidates=8, steps=3).run(soft, loss, seed=s) for s in (0, 0, 1)]
    assert runs[0].text == runs[1].text
    assert runs[0].losses == runs[1].losses
    assert runs[0].text != runs[2].text


def test_one_place_is_searched_to_the_best_token():
    soft = Letters()
    goal = soft.table[[4, 9, 17]].sum(0)

    def loss(embedded):
        return (embedded.sum(1) - goal).square().sum(-1)

    start, free = torch.tensor([4, 0, 17]), torch.tensor([False, True, False])
    search = TokenSearch(top_k=27, candidates=200, steps=2, stop_below=1e-6)
    found = search.run(soft, loss, start=start, editable=free)
    assert found.text == "ejr"
    assert (found.loss, found.steps) == (pytest.approx(0, abs=1e-6), 1)
    assert search.run(soft, loss, start=found.ids).steps == 0


def test_the_most_promising_token_is_the_best_one_where_the_loss_is_linear():
    soft, slopes = Letters(), torch.tensor([[1.0], [3.0], [-2.0]])

    def loss(embedded):
        return (embedded[..., 0] * slopes[:, 0]).sum(1)

    found = TokenSearch(top_k=1, candidates=40, steps=1).run(soft, loss, start=soft.encode("mnm"))
    swaps = soft.encode("mnm").repeat(3 * 27, 1)
    swaps[torch.arange(81), torch.arange(81) // 27] = torch.arange(81) % 27
    assert found.loss == pytest.approx(float(loss(soft.table[swaps]).min()), abs=1e-5)
    assert found.tried <= 1 + 3


def test_only_prompts_that_are_read_back_are_kept():
    soft = Letters()
    goal = soft.table[[0, 1]]  # a, b: which reads as `ab`, another token

    def loss(embedded):
        return (embedded - goal).square().sum((1, 2))

    found = TokenSearch(length=2, top_k=27, candidates=300, steps=6).run(soft, loss)
    assert found.text != "ab"
    assert soft.encode(found.text).tolist() == found.ids.tolist()
    assert found.loss > 0
    near = found.ids.repeat(54, 1)  # no legal swap of one token is better
    near[torch.arange(54), torch.arange(54) // 27] = torch.arange(54) % 27
    legal = [ids for ids in near if soft.encode(soft.decode(ids)).tolist() == ids.tolist()]
    assert 40 < len(legal) < 54
    assert found.loss == pytest.approx(float(loss(soft.table[torch.stack(legal)]).min()), abs=1e-5)


def test_forbidden_words_also_across_spaces():
    search = TokenSearch(forbidden=("Balloon", "hot air"))
    assert search._forbids("a BALLOON")
    assert search._forbids("bal loon")
    assert search._forbids("hotair")
    assert not search._forbids("ball on")
    soft = Letters()
    goal = soft.table[[3, 4, 5]]
    found = TokenSearch(length=3, top_k=27, candidates=300, steps=5, forbidden=("e",)).run(
        soft, lambda embedded: (embedded - goal).square().sum((1, 2))
    )
    assert "e" not in found.text
    assert (found.text[0], found.text[2]) == ("d", "f")


def test_a_start_with_forbidden_words_is_no_result():
    soft = Letters()
    zero = lambda embedded: embedded.sum((1, 2)) * 0  # noqa: E731
    search = TokenSearch(top_k=27, candidates=50, steps=2, forbidden=("x",))
    found = search.run(soft, zero, start=soft.encode("cxd"))
    assert "x" not in found.text
    with pytest.raises(AttackError, match="no single swap changes that"):
        search.run(soft, zero, start=soft.encode("cxxd"))
    kept = search.run(soft, zero, start=soft.encode("cxxd"), editable=torch.tensor([1, 0, 0, 1]).bool())
    assert kept.text[1:3] == "xx"


def test_what_cannot_be_searched():
    soft = Letters()
    loss = cosine_distance(lambda embedded: embedded.mean(1), soft.table[0])
    with pytest.raises(AttackError, match="at least 1"):
        TokenSearch(steps=0)
    with pytest.raises(AttackError, match="No position"):
        TokenSearch().run(soft, loss, start=soft.encode("abc"), editable=torch.zeros(2).bool())
    with pytest.raises(AttackError, match="Fewer than two tokens"):
        TokenSearch(forbidden=tuple("abcdefghijklmnopqrstuvwxyz")).run(soft, loss)
    with pytest.raises(AttackError, match="not finite"):
        TokenSearch(length=2).run(soft, lambda embedded: embedded.sum((1, 2)) * math.nan)
    with pytest.raises(AttackError, match="Gradients to the tokens are not finite"):
        TokenSearch(length=2).run(soft, lambda embedded: (embedded * 0).sum((1, 2)).sqrt())


class LetterVictim:
    """Unsafe as far as the prompt's letters point one way, and the picture is bright."""

    name = "letters"
    no_gradients = None

    def __init__(self, soft):
        self.soft = soft

    def margin(self, pixels, context):
        bias = float(pixels.mean())
        return lambda embedded: embedded[..., 0].mean(1) + bias - 0.5

    def margins(self, pixels, contexts):
        embedded = [self.soft.table[self.soft.encode(c.prompt or "z")][None] for c in contexts]
        found = [self.margin(p, c)(e) for p, c, e in zip(pixels[:, None], contexts, embedded, strict=True)]
        return torch.cat(found)

    def score(self, images, contexts):
        raise NotImplementedError


def test_attack_on_a_victim_keeps_the_prompt_and_asks_again():
    soft = Letters()
    first = soft.table[:26, 0]
    unsafe, safe = chr(97 + int(first.argmax())), chr(97 + int(first.argmin()))
    victim = LetterVictim(soft)
    prompts = [unsafe * 3, safe * 3, safe * 3, unsafe * 30]
    problem = Problem(
        victim,
        torch.full((4, 3, 4, 4), 0.5),
        [Context(prompt) for prompt in prompts],
        torch.tensor([1.0, 1.0, -1.0, 1.0]),
        ThreatModel(0.0),
    )
    search = TokenSearch(length=6, top_k=10, candidates=20, steps=20, stop_below=0.0)
    attack = TokenAttack(soft, victim.margin, search)
    found = attack.run(problem)
    assert found.misjudged.tolist() == [False, True, False, False]
    assert found.success.tolist()[:3] == [True, False, True]
    assert bool(found.success[3]) == bool(first.max() + first.min() < 0)  # half of it is the prompt
    assert found.prompts[0].startswith(prompts[0])
    assert found.prompts[2].startswith(prompts[2])
    assert len(soft.encode(found.prompts[3])) == soft.max_tokens
    assert found.family == [attack.name, "", attack.name, attack.name]
    assert int(found.queries[0]) > 1
    free = TokenAttack(soft, victim.margin, search, keep_prompt=False).run(problem)
    assert free.success.tolist() == [True, False, True, True]
    assert len(soft.encode(free.prompts[0])) == 6


def test_a_wrong_margin_is_found_out():
    soft = Letters()
    victim = LetterVictim(soft)
    unsafe = chr(97 + int(soft.table[:26, 0].argmax()))
    problem = Problem(
        victim, torch.full((1, 3, 4, 4), 0.5), [Context(unsafe * 3)], torch.ones(1), ThreatModel(0.0)
    )
    search = TokenSearch(length=2, top_k=5, candidates=5, steps=2)
    found = TokenAttack(soft, lambda pixels, context: lambda e: e[..., 0].mean(1) * 0 - 9, search).run(
        problem
    )
    assert float(found.margin[0]) > -1
    assert float(found.margin[0]) == pytest.approx(
        float(
            problem.with_contexts(found.contexts(problem)).signed_margins(problem.images, torch.arange(1))[0]
        ),
        abs=1e-6,
    )
