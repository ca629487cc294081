"""Splits that are drawn: every category everywhere, copies together, and nothing moves when rows are appended."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from judge import check_splits, load_examples
from judge.data import splits as drawing
from judge.data.images import DEFAULT_LIMITS
from judge.data.perceptual_hash import ImageHashes
from judge.data.splits import SHARES, copy_groups, draw_splits
from prompts import ArbiterError, Category, Example, ExampleError, Taxonomy

PETS = Taxonomy("pets", "1", (Category("Cats", "cats"), Category("Dogs", "dogs")))


def picture(seed: int, side: int = 32) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC)


def examples(keys: list[tuple[str, ...]], first: int = 0) -> list[Example]:
    return [
        Example(f"{first + place}", picture(first + place), violates=frozenset(violated))
        for place, violated in enumerate(keys)
    ]


def hashes(number: int) -> ImageHashes:
    """Random hashes of different pictures, without a picture."""
    rng = np.random.default_rng(0)
    return ImageHashes(
        tuple(map(str, range(number))),
        tuple(f"{place:064x}" for place in range(number)),
        rng.integers(0, 2**63, number, dtype=np.uint64),
        rng.integers(0, 256, (number, 16, 16), dtype=np.uint8),
    )


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.lists(st.sampled_from([(), (), ("a",), ("b",), ("a", "b"), ("c",)]), min_size=3, max_size=150),
    st.integers(0, 9),
)
def test_shares_hold_for_every_label_and_appended_rows_move_nothing(
    keys: list[tuple[str, ...]], seed: int
) -> None:
    labels = [Counter(["all", *(key or ("safe",))]) for key in keys]
    draws = [drawing._uniform(f"{seed}/{place}") for place in range(len(keys))]
    chosen = drawing._allocate(labels, draws, SHARES)
    for label in {label for own in labels for label in own}:
        having = [split for own, split in zip(labels, chosen, strict=True) if label in own]
        if len(having) >= 3 and label in ("safe", "c"):
            assert set(having) == set(SHARES), label  # three are enough for one in each
        if label == "all":
            for split, share in SHARES.items():
                assert abs(having.count(split) - share * len(having)) <= 4 + len(having) ** 0.5 / 4
    half = len(keys) // 2
    assert drawing._allocate(labels[:half], draws[:half], SHARES) == chosen[:half]


def test_sixty_images_of_five_categories() -> None:
    keys: list[tuple[str, ...]] = [()] * 30 + [(key,) for key in "abcde" for _ in range(6)]
    drawn = draw_splits(examples(keys))
    assert drawn.counts == {"train": 41, "test": 9, "validation": 10}
    by_label = Counter((keys[int(name)], split) for name, split in drawn.splits.items())
    assert all(by_label[key, split] >= 1 for key in set(keys) for split in SHARES)
    assert drawn.splits == draw_splits(examples(keys)).splits
    assert drawn.splits != draw_splits(examples(keys), seed=1).splits


def test_copies_stay_together(tmp_path: Path) -> None:
    originals = examples([("a",)] * 20)
    smaller = [
        Example(f"copy-{one.id}", one.image.resize((24, 24)), violates=one.violates) for one in originals
    ]
    flat = [
        Example(f"flat-{place}", Image.new("RGB", (16, 16), "white"), violates=frozenset("a"))
        for place in range(3)
    ]
    drawn = draw_splits([*originals, *smaller, *flat])
    assert {frozenset(group) for group in drawn.groups} == {
        *(frozenset((one.id, f"copy-{one.id}")) for one in originals),
        frozenset(("flat-0", "flat-1", "flat-2")),
    }
    assert all(len({drawn.splits[name] for name in group}) == 1 for group in drawn.groups)
    assert len(set(drawn.splits.values())) == 3


def test_pictures_that_only_look_alike_are_no_group() -> None:
    found = hashes(300)
    # Much alike by the hash, yet a little different in each thumbnail; two are the same picture.
    base = np.random.default_rng(1).integers(60, 190, (16, 16))
    noise = np.random.default_rng(2).normal(0, 9, (300, 16, 16))
    alike = ImageHashes(
        found.ids,
        (*found.pixels[:-1], found.pixels[0]),
        np.zeros(300, dtype=np.uint64),
        np.clip(base + noise, 0, 255).astype(np.uint8),
    )
    groups = Counter(copy_groups(alike).tolist())
    assert sorted(groups.values())[-2:] == [1, 2]
    assert copy_groups(found).tolist() == list(range(300))
    assert copy_groups(hashes(0)).tolist() == []


def test_images_that_cannot_be_opened_are_in_no_split(tmp_path: Path) -> None:
    picture(1).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no image")
    drawn = draw_splits(
        [Example("a", tmp_path / "a.png"), Example("b", tmp_path / "b.png"), Example("c", tmp_path / "c.png")]
    )
    assert drawn.splits == {"a": "train"}
    assert {row.id: row.status for row in drawn.hashes.skipped} == {"b": "not_an_image", "c": "missing"}
    picture(2).save(tmp_path / "b.png")  # a file that was repaired is looked at again
    assert set(draw_splits([Example("b", tmp_path / "b.png")], limits=DEFAULT_LIMITS).splits) == {"b"}


@pytest.mark.parametrize("shares", [{}, {"train": 1.5, "test": -0.5}, {"train": 0.5}])
def test_shares_that_are_none(shares: dict[str, float]) -> None:
    with pytest.raises(ArbiterError, match="give positive ones that sum to 1"):
        draw_splits([], shares=shares)


def write_folder(root: Path, rows: list[str], titles: str = "path,label,categories") -> Path:
    root.mkdir(exist_ok=True)
    for row in rows:
        path = row.split(",")[0]
        if not (root / path).exists():
            picture(int(Path(path).stem)).save(root / path)
    (root / "labels.csv").write_text("\n".join([titles, *rows]) + "\n")
    return root


def test_a_folder_without_splits(tmp_path: Path) -> None:
    rows = [f"{place}.png,{'unsafe,Cats' if place % 2 else 'safe,'}" for place in range(40)]
    parts = {
        split: load_examples(write_folder(tmp_path, rows), split=split, taxonomy=PETS) for split in SHARES
    }
    check_splits(*parts.values())
    assert {split: len(part.examples) for split, part in parts.items()} == {
        "train": 28,
        "validation": 6,
        "test": 6,
    }
    assert all(sum(bool(e.violates) for e in part.examples) in (3, 14) for part in parts.values())
    assert parts["test"].notes == (
        "40 rows name no split, so splits were drawn by category: 28 train, 6 validation, 6 test",
    )
    everything = load_examples(tmp_path, split="all", taxonomy=PETS)
    assert {e.id: e.split for e in everything.examples} == {
        e.id: split for split, part in parts.items() for e in part.examples
    }
    # More rows leave the others where they are.
    write_folder(tmp_path, rows + [f"{place}.png,safe," for place in range(40, 50)])
    later = {e.id: e.split for e in load_examples(tmp_path, split="all", taxonomy=PETS).examples}
    assert all(later[e.id] == e.split for e in everything.examples)


def test_a_folder_without_validation(tmp_path: Path) -> None:
    rows = [
        f"{place}.png,{'unsafe,Dogs' if place % 2 else 'safe,'},{'test' if place < 10 else 'train'}"
        for place in range(40)
    ]
    root = write_folder(tmp_path, rows, "path,label,categories,split")
    sizes = {split: len(load_examples(root, split=split, taxonomy=PETS).examples) for split in SHARES}
    assert sizes == {"train": 26, "validation": 4, "test": 10}
    assert load_examples(root, split="test", taxonomy=PETS).notes == ()
    write_folder(tmp_path, [row.replace(",test", ",val") for row in rows], "path,label,categories,split")
    with pytest.raises(
        ExampleError, match=r"no such split; there are: train, validation, all\. Write 'test' in the column"
    ):
        load_examples(root, split="test", taxonomy=PETS)


def test_an_image_that_cannot_be_opened_is_reported_whatever_split_is_asked_for(tmp_path: Path) -> None:
    root = write_folder(tmp_path, [f"{place}.png,safe," for place in range(12)])
    (root / "3.png").write_bytes(b"broken")
    for split in (*SHARES, "all"):
        found = load_examples(root, split=split, taxonomy=PETS, max_failures=0.6)
        assert [(row.id, row.status) for row in found.skipped] == [("3.png", "not_an_image")]


def test_another_taxonomy_draws_the_same_splits(tmp_path: Path) -> None:
    """Else a judge would be tested on images that it was trained on under another one."""
    names = ("Cats", "Dogs", "Owls", "Mice")
    rows = [f"{place}.png,unsafe,{names[place // 2 % 4]}" for place in range(0, 160, 2)]
    rows += [f"{place}.png,safe," for place in range(1, 160, 2)]

    def drawn(*known: str) -> dict[str, str]:
        taxonomy = Taxonomy("some", "1", tuple(Category(name, f"any of the {name}") for name in known))
        folder = write_folder(tmp_path, rows)
        parts = [load_examples(folder, split=split, taxonomy=taxonomy, max_failures=1.0) for split in SHARES]
        return {example.id: example.split for part in parts for example in part.examples}

    every, some = drawn(*names), drawn("Owls", "Mice")
    assert len(every) == 160
    assert len(some) == 120
    assert some == {name: every[name] for name in some}
