"""The driver of a labelling run: whatever an engine does and wherever it is stopped, one row an input."""

import errno
import shutil
import tempfile
import weakref
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from judge.errors import LabellingError
from judge.labelling import run as run_module
from judge.labelling.columns import label_block
from judge.labelling.inputs.shards import Shard
from judge.labelling.job import check_parts
from judge.labelling.plan import PLAN, Plan
from judge.labelling.rows import Opened, Scored
from judge.labelling.run import label_shards, locked
from judge.labelling.writer import Part, parts_in, schema
from judge.verdicts.rows import Judging
from prompts.taxonomy import Taxonomy

TAXONOMY = Taxonomy.from_dict(
    {"name": "some", "version": "1", "categories": [{"name": "A", "definition": "about A"}]}, "test"
)
PART, BLOCK = 6, 2
ABOUT = {"taxonomies": {}}


def shards(*sizes):
    """Shards of so many inputs each; a path for each input."""
    return [
        Shard(number, "images", "root", tuple(f"{number}/{n}" for n in range(size)))
        for number, size in enumerate(sizes)
    ]


def scored(shard, part, offset, ids, last):
    """A block whose rows could not be read, which needs no model."""
    from judge.errors import ImageError

    rows = [Opened(name, name, problem=ImageError("missing", "not there")) for name in ids]
    verdicts = label_block(rows, None, Judging(TAXONOMY)).verdicts
    columns = [[row.id for row in rows]] * 2 + [
        [None] * len(rows),
        ["unreadable"] * len(rows),
        ["no"] * len(rows),
    ]
    form = schema([TAXONOMY])
    arrays = [pa.array(column, pa.string()) for column in columns]
    arrays.append(pa.StructArray.from_arrays([verdicts], fields=list(form.field("verdicts").type)))
    return Scored(shard, part, offset, last, pa.table(arrays, schema=form))


def blocks_of(task):
    """What an engine yields of a task, in order."""
    paths = task.shard.paths
    starts = range(0, max(len(paths), 1), BLOCK)
    for offset in starts:
        part, last = offset // PART, offset == starts[-1]
        if part not in task.done:
            yield scored(task.shard.number, part, offset, paths[offset : offset + BLOCK], last)
        elif last:
            yield scored(task.shard.number, part, offset, (), last)


def in_order(tasks):
    for task in tasks:
        yield from blocks_of(task)


def found_ids(folder):
    return [name for part in parts_in(folder) for name in pq.read_table(folder / part.name)["id"].to_pylist()]


def expected(all_shards):
    return sorted(path for shard in all_shards for path in shard.paths)


@given(
    st.lists(st.integers(0, 15), max_size=4),
    st.randoms(use_true_random=False),
    st.lists(st.integers(0, 20), max_size=3),
)
def test_stopped_anywhere_shuffled_and_doubled(sizes, chance, stops):
    everything = shards(*sizes)

    def engine(stop):
        def run(tasks):
            blocks = list(in_order(tasks))
            blocks += chance.sample(blocks, len(blocks) // 2)
            chance.shuffle(blocks)
            for number, block in enumerate(blocks):
                if number == stop:
                    raise KeyboardInterrupt
                yield block

        return run

    folder = Path(tempfile.mkdtemp())
    try:
        for stop in [*stops, None]:
            try:
                tally = label_shards(everything, folder, PART, engine(stop), ABOUT)
            except KeyboardInterrupt:
                continue
        assert sorted(found_ids(folder)) == expected(everything)
        assert tally.before + tally.rows == len(expected(everything)) == tally.counts.statuses.total()
        # Nothing is left to do, so the engine is given nothing.
        again = label_shards(everything, folder, PART, lambda tasks: iter(list(tasks)), ABOUT)
        assert (again.rows, again.todo) == (0, frozenset())
        assert again.counts == tally.counts
    finally:
        shutil.rmtree(folder)


def test_files_that_came_later_are_added_without_touching_the_others(tmp_path):
    label_shards(shards(7), tmp_path, PART, in_order, ABOUT)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    tally = label_shards(shards(7, 3), tmp_path, PART, in_order, ABOUT)
    assert (tally.before, tally.rows) == (7, 3)
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}.items() >= before.items()


@pytest.mark.parametrize("damaged", [Part(0, 0, False), Part(0, 1, False), Part(0, 2, True)])
def test_a_damaged_part_is_done_again(tmp_path, damaged):
    label_shards(shards(15), tmp_path, PART, in_order, ABOUT)
    path = tmp_path / damaged.name
    path.write_bytes(path.read_bytes()[:-20])
    tally = label_shards(shards(15), tmp_path, PART, in_order, ABOUT)
    assert 0 < tally.rows <= PART
    assert sorted(found_ids(tmp_path)) == expected(shards(15))


def test_rows_of_a_status_are_done_again(tmp_path):
    label_shards(shards(15), tmp_path, PART, in_order, ABOUT)
    assert label_shards(shards(15), tmp_path, PART, in_order, ABOUT, again=["timeout"]).rows == 0
    tally = label_shards(shards(15), tmp_path, PART, in_order, ABOUT, again=["unreadable"])
    assert (tally.before, tally.rows) == (0, 15)
    assert sorted(found_ids(tmp_path)) == expected(shards(15))


def test_a_shard_that_could_not_be_read_and_now_can(tmp_path):
    """Its one row that says so was the last part; now others follow, and nothing of it stays."""
    label_shards(shards(1), tmp_path, PART, in_order, ABOUT)
    label_shards(shards(15), tmp_path, PART, in_order, ABOUT, again=["unreadable"])
    assert sorted(found_ids(tmp_path)) == expected(shards(15))
    assert label_shards(shards(15), tmp_path, PART, in_order, ABOUT).todo == frozenset()


@pytest.mark.parametrize("lost", [Part(0, 1, False), Part(0, 2, True)])
@pytest.mark.parametrize("now", [1, 8])
def test_a_shard_that_has_become_another_is_never_called_finished(tmp_path, lost, now):
    """As when a tar of which some parts are missing was removed, or cannot be opened any more."""
    label_shards(shards(15), tmp_path, PART, in_order, ABOUT)
    (tmp_path / lost.name).unlink()
    before = found_ids(tmp_path)
    for _ in range(2):
        with pytest.raises(LabellingError, match="1 shards have other inputs now"):
            label_shards(
                [*shards(now), Shard(1, "images", "root", ("1/0",))], tmp_path, PART, in_order, ABOUT
            )
        assert {name for name in found_ids(tmp_path) if name.startswith("0")} >= set(before)
        assert "1/0" in found_ids(tmp_path)
    assert len(found_ids(tmp_path)) == len(set(found_ids(tmp_path)))


def test_a_shard_that_lost_what_follows_a_finished_part_keeps_its_labels(tmp_path):
    label_shards(shards(15), tmp_path, PART, in_order, ABOUT)
    with pytest.raises(LabellingError, match="first is '0/0'; see whether it can be read"):
        label_shards(shards(1), tmp_path, PART, in_order, ABOUT, again=["unreadable"])
    assert sorted(found_ids(tmp_path)) == expected(shards(15))


def test_an_engine_that_loses_a_whole_part_is_found_out(tmp_path):
    with pytest.raises(LabellingError, match="1 shards came back incomplete"):
        label_shards(
            shards(15), tmp_path, PART, lambda tasks: (b for b in in_order(tasks) if b.part != 1), ABOUT
        )


def test_parts_of_another_plan_are_refused(tmp_path):
    label_shards(shards(7), tmp_path, PART, in_order, {**ABOUT, "plan": "one"})
    with pytest.raises(LabellingError, match=r"part-0000000-00000\.parquet was written under another plan"):
        label_shards(shards(7), tmp_path, PART, in_order, {**ABOUT, "plan": "other"})


def test_tasks_are_made_one_by_one(tmp_path):
    """The paths of ten million images are never in memory together."""
    alive = []

    class Shards:
        def __iter__(self):
            for shard in (Shard(n, "images", "root", (f"{n}/0",)) for n in range(50)):
                alive.append(weakref.ref(shard))
                yield shard

    def engine(tasks):
        for task in tasks:
            yield from blocks_of(task)
            assert sum(shard() is not None for shard in alive[50:]) <= 3

    label_shards(Shards(), tmp_path, PART, engine, ABOUT)
    assert len(found_ids(tmp_path)) == 50


def test_an_engine_that_loses_a_block_is_found_out(tmp_path):
    with pytest.raises(LabellingError, match="2 shards came back incomplete, the first is number 1"):
        label_shards(
            shards(3, 9, 4),
            tmp_path,
            PART,
            lambda tasks: (
                block for block in in_order(tasks) if (block.shard, block.offset) not in {(1, 2), (2, 2)}
            ),
            ABOUT,
        )
    assert sorted(found_ids(tmp_path)) == ["0/0", "0/1", "0/2", "1/6", "1/7", "1/8"]
    label_shards(shards(3, 9, 4), tmp_path, PART, in_order, ABOUT)
    assert sorted(found_ids(tmp_path)) == expected(shards(3, 9, 4))


def test_a_full_disk_is_one_line_and_costs_nothing(tmp_path, monkeypatch):
    write, left = run_module.write_part, [2]

    def full(*arguments):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(*arguments)

    monkeypatch.setattr(run_module, "write_part", full)
    with pytest.raises(LabellingError, match=r"The disk is full.*run the same command again"):
        label_shards(shards(15, 15), tmp_path, PART, in_order, ABOUT)
    monkeypatch.undo()
    assert len(found_ids(tmp_path)) == 2 * PART
    label_shards(shards(15, 15), tmp_path, PART, in_order, ABOUT)
    assert sorted(found_ids(tmp_path)) == expected(shards(15, 15))


def test_one_run_at_a_time_removes_what_a_killed_one_left(tmp_path):
    folder = tmp_path / "labels"
    folder.mkdir()
    (folder / ".part-0000000-00000.parquet.123-4").write_bytes(b"half")
    with locked(folder):
        assert not list(folder.glob(".part-*"))
        with pytest.raises(LabellingError, match="Another process is labelling"), locked(folder):
            pass
    with locked(folder):
        pass


class Found:
    """What the plan reads of a listed file."""

    def __init__(self, path, kind="images", size=1, modified=1):
        self.path, self.kind, self.size, self.modified = path, kind, size, modified


kinds = st.sampled_from(["images", "images", "images", "tar", "parquet"])


@given(st.lists(st.tuples(st.integers(0, 40), kinds), unique_by=lambda pair: pair[0], max_size=25), st.data())
def test_a_plan_only_grows(files, data):
    """Whatever is added in however many steps: a file's shard and its place there never change."""
    with tempfile.TemporaryDirectory() as name, Plan(Path(name)) as plan:
        known = {}
        present = []
        for _ in range(3):
            present += [file for file in files if file not in present and data.draw(st.booleans())]
            listed = sorted(present)
            changed = plan.extend((Found(f"{number}\udcff.x", kind) for number, kind in listed), 3)
            assert changed.new == len(present) - sum(len(paths) for paths in known.values())
            assert not changed.other
            found = {shard.number: shard.paths for shard in plan.shards("root", {})}
            assert sorted(path for paths in found.values() for path in paths) == sorted(
                f"{number}\udcff.x" for number, _ in present
            )
            assert found.items() >= known.items()
            assert list(found) == sorted(found)
            for shard in plan.shards("root", {}):
                assert len(shard.paths) == 1 or (shard.kind == "images" and len(shard.paths) <= 3)
            assert plan.sizes() == {number: len(paths) for number, paths in found.items()}
            known = found


def test_a_changed_file_is_named(tmp_path):
    with Plan(tmp_path) as plan:
        plan.extend([Found("a.png"), Found("b.tar", "tar")], 3)
    with Plan(tmp_path) as plan:
        assert plan.extend([Found("a.png"), Found("b.tar", "tar", size=2)], 3).other == ("b.tar",)


def test_labels_whose_plan_is_gone_or_old_are_refused(tmp_path):
    """A new plan could give their numbers to other files, which would then pass for labelled."""
    parts = [Part(0, 0, True), Part(1, 0, True)]
    with Plan(tmp_path) as plan:
        check_parts(plan, [])
        with pytest.raises(LabellingError, match="the plan was deleted, or is an older copy"):
            check_parts(plan, parts)
        plan.extend([Found("a.tar", "tar")], 3)
        with pytest.raises(LabellingError, match=r"holds part-0000001-00000-end\.parquet"):
            check_parts(plan, parts)
        plan.extend([Found("b.tar", "tar")], 3)
        check_parts(plan, parts)
        first = plan.identity
    with Plan(tmp_path) as plan:
        assert plan.identity == first
    (tmp_path / PLAN).unlink()
    with Plan(tmp_path) as plan:
        assert plan.identity != first


def test_shards_of_changed_files_are_renewed(tmp_path):
    renewed = []
    with Plan(tmp_path) as plan:
        plan.extend([Found("a.png"), Found("b.png"), Found("c.tar", "tar"), Found("d.tar", "tar")], 2)
        now = [
            Found("a.png"),
            Found("b.png", size=2),
            Found("c.tar", "tar", modified=9),
            Found("d.tar", "tar"),
        ]
        assert plan.extend(now, 2, renewed.append) == (0, ())
        assert renewed == [0, 1]
        assert plan.extend(now, 2, renewed.append) == (0, ())
        assert renewed == [0, 1]
        assert [shard.paths for shard in plan.shards("", {})] == [("a.png", "b.png"), ("c.tar",), ("d.tar",)]


def test_a_damaged_plan_is_one_line(tmp_path):
    with Plan(tmp_path) as plan:
        plan.extend([Found(f"{number}.png") for number in range(500)], 3)
    path = tmp_path / PLAN
    path.write_bytes(path.read_bytes()[:4096] + bytes(path.stat().st_size - 4096))
    with pytest.raises(LabellingError, match=r"plan.sqlite.*malformed"), Plan(tmp_path) as plan:
        list(plan.shards("root", {}))
    path.write_bytes(b"no database" * 500)
    with pytest.raises(LabellingError, match="file is not a database"):
        Plan(tmp_path)


def test_a_plan_on_a_full_disk_is_one_line_and_stays_as_it_was(tmp_path):
    def fill():
        with Plan(tmp_path) as plan:
            plan.extend([Found("a.png")], 3)
            [pages] = plan._database.execute("PRAGMA page_count").fetchone()
            plan._database.execute(f"PRAGMA max_page_count = {pages + 2}")
            plan.extend((Found(f"{number}.png") for number in range(5000)), 3)

    with pytest.raises(LabellingError, match="full, free some space"):
        fill()
    with Plan(tmp_path) as plan:
        assert [shard.paths for shard in plan.shards("root", {})] == [("a.png",)]


@pytest.mark.parametrize("modified", [-(2**70), -1, 2**63, 2**70])
def test_a_file_may_have_any_time(tmp_path, modified):
    with Plan(tmp_path) as plan:
        plan.extend([Found("a.png", modified=modified)], 3)
        assert plan.extend([Found("a.png", modified=modified)], 3) == (0, ())


def test_listing_that_fails_leaves_no_half_a_plan(tmp_path):
    def listing():
        yield Found("a.png")
        raise OSError("the network is gone")

    with Plan(tmp_path) as plan:
        with pytest.raises(OSError, match="network"):
            plan.extend(listing(), 3)
        assert not list(plan.shards("root", {}))
