"""The data card of a corpus: counted from its ledger, and read by `datasets`."""

import json
from collections import Counter

import pytest
import yaml
from fixtures_corpus import stub_plan, stub_stages

from judge.corpus.builder import build
from judge.corpus.card import CardTexts, write_card
from judge.corpus.ledger import Ledger
from judge.errors import CorpusError


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    build(stub_plan(), stub_stages(), folder)
    write_card(folder, CardTexts("Trees", "cc-by-4.0", "Telling | trees.", "Anything else."))
    return folder


@pytest.fixture(scope="module")
def text(corpus):
    return (corpus / "README.md").read_text()


@pytest.fixture(scope="module")
def rows(corpus):
    return [json.loads(line) for line in (corpus / "rows.jsonl").read_text().splitlines()]


def table(text, first):
    """The rows of the table whose header begins so, as lists of cells."""
    lines = text.split(f"| {first} |", 1)[1].splitlines()[2:]
    found = []
    for line in lines:
        if not line.startswith("|"):
            break
        found.append([cell.strip() for cell in line.strip("|").split("|")])
    return found


def kept(rows):
    return [row for row in rows if row["failure"] is None and row["duplicate_of"] is None]


def test_splits_and_categories_are_counted(text, rows):
    by_split = Counter(row["split"] for row in kept(rows))
    assert {cells[0]: int(cells[1]) for cells in table(text, "split")} == by_split
    for key, *numbers in table(text, "category | test | train"):
        expected = Counter(row["split"] for row in kept(rows) if row["scores"][key] >= 0.5)
        assert [int(number) for number in numbers] == [expected["test"], expected["train"], 0]
    safe = sum(max(row["scores"].values()) < 0.5 for row in kept(rows))
    assert sum(int(cells[2]) for cells in table(text, "split")) == safe > 0


def test_what_prompts_say_is_set_against_what_pictures_show(text, rows):
    clean = [row for row in kept(rows) if row["variant"] is None]
    expected = Counter(("oak" in row["prompt_label"], row["scores"]["oak"] >= 0.5) for row in clean)
    [oak] = [cells[1:] for cells in table(text, "category | both") if cells[0] == "oak"]
    cases = [(True, True), (True, False), (False, True), (False, False)]
    assert [int(cell) for cell in oak] == [expected[case] for case in cases]
    assert expected[True, False]
    assert expected[False, True]


def test_failures_variants_and_duplicates_are_counted_by_reason(text, rows):
    failed = Counter(
        f"{row['failure']['stage']}: {row['failure']['status']}" for row in rows if row["failure"]
    )
    assert {name: int(count) for name, count in table(text, "stage: reason")} == failed
    variants = Counter(row["variant"]["kind"] for row in kept(rows) if row["variant"])
    assert {cells[0]: int(cells[2]) for cells in table(text, "attack")} == variants
    duplicates = sum(row["duplicate_of"] is not None for row in rows)
    assert f"{duplicates} are near-duplicates" in text
    # In this corpus the classifier that was attacked is the one that labelled.
    assert "stub labelled attacks on itself" in text


def test_how_it_was_made_is_there(text):
    assert table(text, "model")[0][:5] == ["stub", "sha256:0", "NoScheduler", "2", "1.0"]
    assert table(text, "labelled by")[0][0] == "stub"
    assert "plan, taxonomy" in text
    assert "Licence: cc-by-4.0. Meant for: Telling &#124; trees. Not for: Anything else." in text


def test_the_same_ledger_gives_the_same_card(corpus, text):
    write_card(corpus, CardTexts("Trees", "cc-by-4.0", "Telling | trees.", "Anything else."))
    assert (corpus / "README.md").read_text() == text


def test_the_header_names_splits_and_licence_and_datasets_reads_by_it(
    corpus, text, rows, tmp_path, monkeypatch
):
    import datasets

    header = yaml.safe_load(text.split("---")[1])
    assert header["license"] == "cc-by-4.0"
    assert header["size_categories"] == ["n<1K"]
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    datasets.disable_progress_bars()
    found = datasets.load_dataset(str(corpus), cache_dir=str(tmp_path))
    assert {name: len(split) for name, split in found.items()} == Counter(row["split"] for row in kept(rows))


def test_what_nobody_said_is_not_made_up(corpus, tmp_path):
    folder = tmp_path / "other"
    build(stub_plan(), stub_stages(variants=False), folder)
    found = write_card(folder).read_text()
    assert "Licence: unknown. Meant for: Nobody has said yet." in found
    assert "Adversarial variants" not in found


def test_a_folder_without_a_built_corpus_is_refused(tmp_path):
    with pytest.raises(CorpusError, match=r"holds no ledger\.sqlite"):
        write_card(tmp_path)
    Ledger(tmp_path / "ledger.sqlite").__exit__()
    with pytest.raises(CorpusError, match="no shards yet"):
        write_card(tmp_path)
