"""Files of predictions: what is written is read again, and what is not one is refused with a reason."""

import json
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fixtures_benchmark import synthetic_predictions

from eval.benchmark.predictions import Prediction, PredictionsError, read_predictions, write_predictions


def same(one, two):
    """Equal, with NaN equal to itself."""
    return repr(one) == repr(replace(two, violates=one.violates, unknown=one.unknown, asked=one.asked)) and (
        (one.violates, one.unknown, one.asked) == (two.violates, two.unknown, two.asked)
    )


def test_predictions_survive_the_file(tmp_path):
    written = synthetic_predictions(rows=30, covers=("three", "seven"), options={"weights": "a.safetensors"})
    write_predictions(tmp_path / "a.parquet", written)
    read = read_predictions(tmp_path / "a.parquet")
    assert read.about == written.about
    assert len(read.rows) == 30
    assert all(map(same, read.rows, written.rows))
    assert any(row.reason for row in read.rows)


def test_truth_is_about_what_was_asked():
    row = Prediction("1", frozenset({"three"}), frozenset({"four"}), 0.5, (), frozenset({"three"}))
    assert row.truth is True
    assert replace(row, asked=frozenset({"five"})).truth is False
    assert replace(row, asked=frozenset({"four", "five"})).truth is None


def damaged(path, change):
    """The file with its metadata or columns changed."""
    table = pq.read_table(path)
    about = json.loads(table.schema.metadata[b"arbiter"])
    table = change(table, about) or table.replace_schema_metadata({b"arbiter": json.dumps(about).encode()})
    pq.write_table(table, path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table, about: about.update(version=2), "has version 2, and this Arbiter reads version 1"),
        (lambda table, about: about.update(colour="red"), "says colour"),
        (lambda table, about: table.replace_schema_metadata({}), "is no file of predictions"),
        (lambda table, about: table.drop_columns(["reason"]), "has the columns id, violates"),
        (lambda table, about: pa.concat_tables([table, table]), "two rows of the image 'image-0'"),
    ],
)
def test_another_file_is_refused(tmp_path, change, message):
    path = tmp_path / "a.parquet"
    write_predictions(path, synthetic_predictions(rows=3))
    damaged(path, change)
    with pytest.raises(PredictionsError, match=message):
        read_predictions(path)


def test_scores_outside_0_and_1_are_refused(tmp_path):
    path = tmp_path / "a.parquet"
    good = synthetic_predictions(rows=3)
    write_predictions(path, replace(good, rows=(replace(good.rows[0], unsafe=1.5),)))
    with pytest.raises(PredictionsError, match=r"image-0.*each in \[0, 1\] or null"):
        read_predictions(path)
    write_predictions(path, replace(good, rows=(replace(good.rows[0], categories=(0.5,)),)))
    with pytest.raises(PredictionsError, match="the whole and 10 categories"):
        read_predictions(path)


def test_what_is_no_parquet_is_refused(tmp_path):
    (tmp_path / "a.parquet").write_text("id,unsafe\n")
    with pytest.raises(PredictionsError, match="cannot be read as Parquet"):
        read_predictions(tmp_path / "a.parquet")
