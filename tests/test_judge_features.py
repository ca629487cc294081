"""judge/encoders/features.py: the same features as without a cache, encoded once, whatever is killed or damaged."""

import json
import multiprocessing
import os
import signal
import time
from functools import partial

import pytest
import torch
from fixtures_server import PATIENCE
from hypothesis import given
from hypothesis import strategies as st

from judge.encoders import features
from judge.encoders import store as feature_store
from judge.encoders.dual import DualEncoder
from judge.encoders.features import TokenTable, encode_images, encode_texts
from judge.errors import CheckpointError, ImageError
from prompts.example import Example

LONG = "a photo of two and three; handwritten seven on a wall, and zero, and one"
TEXTS = ["two", "", LONG, "é \U0001f642 \ud800", "two", "a photo of two"]
FORK = multiprocessing.get_context("fork")


class CountingEncoder(DualEncoder):
    """Remembers what was asked of it; `before` is called before each batch."""

    def reset(self, before=lambda: None):
        self.images, self.texts, self.before = [], [], before
        return self

    def encode_images(self, images):
        self.before()
        self.images.append(len(images))
        return super().encode_images(images)

    def encode_texts(self, texts):
        self.before()
        self.texts.append(list(texts))
        return super().encode_texts(texts)


@pytest.fixture(scope="module")
def loaded(tiny_clip_folder, tiny_siglip_folder):
    return {
        "clip": CountingEncoder.load(tiny_clip_folder),
        "siglip": CountingEncoder.load(tiny_siglip_folder),
    }


@pytest.fixture
def encoder(loaded):
    return loaded["clip"].reset()


@pytest.fixture
def examples(noise_image):
    """Ten pictures of two sizes, all different."""
    return [Example(f"e{seed}", noise_image(seed, (20 + seed % 2, 16))) for seed in range(10)]


@pytest.fixture
def few_rows(monkeypatch):
    """Shards that close after two rows of a tiny CLIP, 5 x 24 numbers each."""
    monkeypatch.setattr(feature_store, "SHARD_BYTES", 2 * 5 * 24 * 2)


def folder(cache, kind="text"):
    [found] = cache.glob(f"*/{kind}")
    return found


def index(cache, kind="text"):
    return [json.loads(line) for line in (folder(cache, kind) / "index.jsonl").read_text().splitlines()]


def hashes(cache, kind="text"):
    return [row for entry in index(cache, kind) for row in entry["rows"]]


def check_texts(table, encoder, texts):
    """Every row against the encoder asked for that text alone."""
    tokens, mask = table.rows(range(len(texts)))
    assert len(table) == len(texts)
    assert (tokens.dtype, mask.dtype) == (torch.float32, torch.bool)
    for row, own, text in zip(tokens, mask, texts, strict=True):
        expected = DualEncoder.encode_texts(encoder, [text])[0][0]
        assert own.tolist() == [True] * len(expected) + [False] * (len(row) - len(expected))
        torch.testing.assert_close(row[own], expected, rtol=2e-3, atol=2e-3)
        assert not row[~own].any()


def check_images(table, encoder, examples):
    tokens, mask = table.rows(range(len(examples)))
    expected = torch.cat([DualEncoder.encode_images(encoder, [example.image]) for example in examples])
    assert mask.all()
    torch.testing.assert_close(tokens, expected, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("family", ["clip", "siglip"])
@pytest.mark.parametrize("kept", [True, False])
def test_features_are_the_encoders_own(loaded, examples, tmp_path, family, kept):
    encoder, cache = loaded[family].reset(), tmp_path if kept else None
    for _ in range(2):
        check_images(encode_images(encoder, examples, cache=cache, progress=False), encoder, examples)
        check_texts(encode_texts(encoder, TEXTS, cache=cache), encoder, TEXTS)
    assert len(encoder.images) == (1 if kept else 2)


def test_what_is_kept_is_float16_with_and_without_a_cache(encoder, tmp_path):
    kept, held = (encode_texts(encoder, TEXTS, cache=cache) for cache in (tmp_path, None))
    for one, two in zip(kept.rows(range(6)), held.rows(range(6)), strict=True):
        assert torch.equal(one, two)
    tokens, _ = kept.rows([2])
    assert torch.equal(tokens, tokens.half().float())


def test_the_folder_says_whose_it_is(encoder, tmp_path):
    encode_texts(encoder, TEXTS, cache=tmp_path)
    assert folder(tmp_path).parent.name == encoder.fingerprint[:16]
    assert json.loads((folder(tmp_path) / "meta.json").read_text()) == {
        "format": 1,
        "kind": "text",
        "encoder": encoder.name,
        "fingerprint": encoder.fingerprint,
        "width": 24,
        "dtype": "float16",
    }
    [entry] = index(tmp_path)
    assert entry["file"] == "00000.safetensors"
    assert entry["bytes"] == (folder(tmp_path) / entry["file"]).stat().st_size


def test_only_what_is_missing_is_encoded(encoder, examples, tmp_path):
    encode_images(encoder, examples[:4], cache=tmp_path, batch_size=3, progress=False)
    assert encoder.images == [3, 1]
    encoder.reset()
    table = encode_images(encoder, examples[::-1], cache=tmp_path, batch_size=4, progress=False)
    assert encoder.images == [4, 2]
    check_images(table, encoder, examples[::-1])


def test_a_picture_is_kept_once_whatever_it_is_stored_in(encoder, noise_image, tmp_path):
    picture, other = noise_image(1), noise_image(2)
    for name in ("a.png", "b.bmp"):
        picture.save(tmp_path / name)
    sources = [picture, tmp_path / "a.png", other, str(tmp_path / "b.bmp"), (tmp_path / "a.png").read_bytes()]
    examples = [Example(str(number), source) for number, source in enumerate(sources)]
    table = encode_images(encoder, examples, cache=tmp_path / "cache", progress=False)
    assert encoder.images == [2]
    assert len(hashes(tmp_path / "cache", "image")) == 2
    check_images(
        table, encoder, [Example("", image) for image in (picture, picture, other, picture, picture)]
    )


def test_a_known_file_is_not_decoded_again(encoder, noise_image, tmp_path, monkeypatch):
    noise_image(1).save(tmp_path / "a.png")
    example = Example("a", tmp_path / "a.png")
    before = encode_images(encoder, [example], cache=tmp_path / "cache", progress=False)
    monkeypatch.setattr(features, "open_image", lambda *_: pytest.fail("it was decoded"))
    after = encode_images(encoder, [example], cache=tmp_path / "cache", progress=False)
    assert torch.equal(before.pooled, after.pooled)


def test_a_changed_file_is_another_picture(encoder, noise_image, tmp_path):
    example = Example("a", tmp_path / "a.png")
    for seed in (1, 2):
        noise_image(seed).save(tmp_path / "a.png")
        table = encode_images(encoder, [example], cache=tmp_path / "cache", progress=False)
        check_images(table, encoder, [Example("", noise_image(seed))])


def test_a_file_made_of_a_cached_pictures_pixels_is_still_no_image(encoder, noise_image, tmp_path):
    picture = noise_image(1)
    forged = f"{picture.mode} {picture.width}x{picture.height}\n".encode() + picture.tobytes()
    encode_images(encoder, [Example("a", picture)], cache=tmp_path, progress=False)
    with pytest.raises(ImageError, match="not_an_image"):
        encode_images(encoder, [Example("b", forged)], cache=tmp_path, progress=False)


@pytest.mark.parametrize("cached", [True, False])
def test_an_image_that_cannot_be_opened_is_named(encoder, noise_image, tmp_path, cached):
    examples = [Example("good", noise_image(1)), Example("bad one", tmp_path / "missing.png")]
    with pytest.raises(ImageError, match=r"missing: no such file \(example bad one\)") as caught:
        encode_images(encoder, examples, cache=tmp_path if cached else None, progress=False)
    assert caught.value.status == "missing"


def test_nothing_to_encode(encoder, tmp_path):
    for cache in (None, tmp_path):
        for table in (encode_images(encoder, [], cache=cache), encode_texts(encoder, [], cache=cache)):
            tokens, mask = table.rows([])
            assert (len(table), table.pooled.shape, tokens.shape, mask.shape) == (
                0,
                (0, 24),
                (0, 1, 24),
                (0, 1),
            )
    assert not encoder.images + encoder.texts


def test_rows_in_any_order(encoder, examples, tmp_path, few_rows):
    encode_images(encoder, examples, cache=tmp_path, progress=False)
    table = encode_images(encoder, examples, cache=tmp_path, progress=False)
    whole, _ = table.rows(range(10))
    wanted = [7, 0, 7, 9, -1]
    for indices in (wanted, torch.tensor(wanted), tuple(wanted)):
        assert torch.equal(table.rows(indices)[0], whole[wanted])
    assert torch.equal(table.pooled, whole[:, 0])
    assert table.pooled.dtype is torch.float32
    with pytest.raises(IndexError):
        table.rows([10])
    with pytest.raises(IndexError, match="not by a mask"):
        table.rows(torch.ones(10, dtype=torch.bool))


def test_only_shards_that_are_asked_for_are_touched(encoder, examples, tmp_path, few_rows):
    encode_images(encoder, examples, cache=tmp_path, progress=False)
    table = encode_images(encoder, examples, cache=tmp_path, progress=False)
    for entry in index(tmp_path, "image")[1:]:
        path = folder(tmp_path, "image") / entry["file"]
        path.write_bytes(bytes(path.stat().st_size))
    table.rows([0, 1])
    with pytest.raises(CheckpointError, match="cannot be read"):
        table.rows([0, 2])


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="asks Linux what is mapped")
def test_rows_are_memory_mapped(encoder, examples, tmp_path):
    encode_images(encoder, examples, cache=tmp_path, progress=False)
    table = encode_images(encoder, examples, cache=tmp_path, progress=False)
    shard = str(folder(tmp_path, "image") / "00000.safetensors")
    with open("/proc/self/maps") as maps:
        assert shard not in maps.read()
    table.rows([0])
    with open("/proc/self/maps") as maps:
        assert shard in maps.read()


def test_shards_close_when_full(encoder, examples, tmp_path, few_rows):
    encode_images(encoder, examples[:5], cache=tmp_path, progress=False)
    assert [len(entry["rows"]) for entry in index(tmp_path, "image")] == [2, 2, 1]


def in_child(work):
    """Run `work` in a forked process and give its exit status back."""
    child = FORK.Process(target=work)
    child.start()
    child.join(PATIENCE)
    return child.exitcode


def test_a_killed_run_loses_the_open_shard_only(encoder, examples, tmp_path, few_rows):
    def work():
        batches = iter(range(100))

        def before():
            if next(batches) == 3:  # six rows are in shards; the seventh will never be
                os.kill(os.getpid(), signal.SIGKILL)

        encode_images(encoder.reset(before), examples, cache=tmp_path, batch_size=2, progress=False)

    assert in_child(work) == -signal.SIGKILL
    assert len(hashes(tmp_path, "image")) == 6
    table = encode_images(encoder.reset(), examples, cache=tmp_path, progress=False)
    assert encoder.images == [4]
    check_images(table, encoder, examples)


@pytest.mark.parametrize("moment", range(10))
def test_a_run_killed_while_it_writes_goes_on(encoder, examples, tmp_path, few_rows, monkeypatch, moment):
    """At each of the first ten calls that synchronise a file or a folder: of meta.json, shards and index lines."""
    real, calls = os.fsync, iter(range(1000))

    def work():
        def fsync(number):
            if next(calls) == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            real(number)

        monkeypatch.setattr(feature_store.os, "fsync", fsync)
        encode_images(encoder.reset(), examples[:6], cache=tmp_path, progress=False)

    assert in_child(work) == -signal.SIGKILL
    table = encode_images(encoder.reset(), examples, cache=tmp_path, progress=False)
    check_images(table, encoder, examples)
    assert len(set(hashes(tmp_path, "image"))) == len(hashes(tmp_path, "image")) == 10
    assert len(list(folder(tmp_path, "image").glob("*.safetensors"))) == len(index(tmp_path, "image"))


@pytest.mark.parametrize("left", [0, 1, 40, -1])
def test_an_index_line_cut_short_is_dropped(encoder, examples, tmp_path, few_rows, left):
    encode_images(encoder, examples[:4], cache=tmp_path, progress=False)
    path = folder(tmp_path, "image") / "index.jsonl"
    first, second = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + second[:left])
    table = encode_images(encoder.reset(), examples, cache=tmp_path, progress=False)
    assert encoder.images == [8]
    check_images(table, encoder, examples)
    assert len(hashes(tmp_path, "image")) == 10


def test_processes_share_a_cache(encoder, examples, tmp_path, few_rows):
    """Two processes that want overlapping pictures at once encode each of them once, and both get them all."""
    gate, encoded = FORK.Barrier(2), FORK.Value("i", 0)

    def work(mine):
        encoder.reset(partial(time.sleep, 0.01))
        gate.wait(PATIENCE)
        for count in range(1, len(mine) + 1, 3):
            table = encode_images(encoder, mine[:count], cache=tmp_path, batch_size=2, progress=False)
            check_images(table, encoder, mine[:count])
        with encoded.get_lock():
            encoded.value += sum(encoder.images)

    children = [FORK.Process(target=work, args=(mine,)) for mine in (examples, examples[::-1])]
    for child in children:
        child.start()
    for child in children:
        child.join(PATIENCE)
    assert [child.exitcode for child in children] == [0, 0]
    assert encoded.value == 10
    assert len(set(hashes(tmp_path, "image"))) == len(hashes(tmp_path, "image")) == 10
    check_images(encode_images(encoder.reset(), examples, cache=tmp_path, progress=False), encoder, examples)
    assert not encoder.images


def test_a_table_stays_whole_while_others_add(encoder, tmp_path):
    old = encode_texts(encoder, TEXTS[:2], cache=tmp_path)
    encode_texts(encoder, ["new", *TEXTS], cache=tmp_path)
    check_texts(old, encoder, TEXTS[:2])


def test_encoders_do_not_mix(loaded, tmp_path):
    for encoder in loaded.values():
        check_texts(encode_texts(encoder.reset(), TEXTS, cache=tmp_path), encoder, TEXTS)
    assert len(list(tmp_path.iterdir())) == 2


def change_meta(**values):
    def change(place):
        path = place / "meta.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


def cut_shard(place):
    path = place / "00000.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def flip_bit(place):
    path = place / "00000.safetensors"
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(bytes(data))


def spoil_header(place):
    path = place / "00000.safetensors"
    path.write_bytes(b"\xff" * 16 + path.read_bytes()[16:])


def change_index(change):
    def spoil(place):
        entry = json.loads((place / "index.jsonl").read_text())
        (place / "index.jsonl").write_text(change(entry) + "\n")

    return spoil


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (change_meta(fingerprint="0" * 64), "has fingerprint '0000.*but this run needs"),
        (change_meta(width=99), "has width 99, but this run needs 24"),
        (change_meta(format=2), "has format 2, but this run needs 1"),
        (change_meta(kind="image"), "has kind 'image', but this run needs 'text'"),
        (change_meta(dtype="bfloat16"), "has dtype 'bfloat16', but this run needs 'float16'"),
        (lambda place: (place / "meta.json").write_text("{"), "meta.json is not JSON"),
        (lambda place: (place / "meta.json").write_text("[]"), "holds list, not an object"),
        (lambda place: (place / "meta.json").unlink(), "has no meta.json"),
        (lambda place: (place / "00000.safetensors").unlink(), "names 00000.safetensors, which is missing"),
        (cut_shard, "bytes, and should have"),
        (flip_bit, "in 00000.safetensors do not match their checksum"),
        (spoil_header, "00000.safetensors cannot be read"),
        (change_index(lambda entry: "nonsense"), "line 1 of the index is damaged"),
        (change_index(lambda entry: "[]"), "line 1 of the index is damaged"),
        (change_index(lambda entry: json.dumps(entry | {"rows": []})), "line 1 of the index is damaged"),
        (change_index(lambda entry: json.dumps(entry | {"rows": [1]})), "line 1 of the index is damaged"),
        (change_index(lambda entry: json.dumps(entry | {"file": "../x"})), "does not describe 00000.safe"),
        (change_index(lambda entry: json.dumps(entry | {"crc32": {}})), "do not match their checksum"),
    ],
)
def test_what_does_not_fit_is_refused(encoder, tmp_path, spoil, message):
    encode_texts(encoder, TEXTS, cache=tmp_path)
    spoil(folder(tmp_path))
    with pytest.raises(CheckpointError, match=message) as caught:
        encode_texts(encoder, TEXTS, cache=tmp_path).rows(range(6))
    assert str(folder(tmp_path)) in str(caught.value)
    assert "Delete this folder, or choose another cache." in str(caught.value)


def test_damage_is_seen_by_pooled_too(encoder, tmp_path):
    encode_texts(encoder, TEXTS, cache=tmp_path)
    path = folder(tmp_path) / "00000.safetensors"
    data = path.read_bytes()
    for place in range(len(data) - 64, len(data), 2):  # one of these numbers is pooled or a token
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        table = encode_texts(encoder, TEXTS, cache=tmp_path)
        with pytest.raises(CheckpointError, match="do not match their checksum"):
            (table.rows(range(6)), table.pooled)


def test_another_name_for_the_same_encoder_is_welcome(encoder, tmp_path):
    encode_texts(encoder, TEXTS, cache=tmp_path)
    change_meta(encoder="the hub's name")(folder(tmp_path))
    encode_texts(encoder.reset(), TEXTS, cache=tmp_path)
    assert not encoder.texts


def test_a_cache_that_cannot_be_made_is_refused(encoder, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="No features can be kept in"):
        encode_texts(encoder, TEXTS, cache=tmp_path / "file")


def test_features_beyond_float16_are_refused(encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(encoder, "encode_images", lambda images: torch.full((len(images), 5, 24), 1e6))
    with pytest.raises(CheckpointError, match="images features that float16 cannot hold"):
        encode_images(encoder, [Example("a", _white())], cache=tmp_path, progress=False)
    assert not list(tmp_path.rglob("*.safetensors"))


def _white():
    from PIL import Image

    return Image.new("RGB", (16, 16), "white")


def test_a_failed_run_gives_the_lock_back(encoder, noise_image, tmp_path):
    examples = [Example("a", noise_image(1)), Example("b", b"nothing")]
    with pytest.raises(ImageError):
        encode_images(encoder, examples, cache=tmp_path, progress=False)
    assert in_child(partial(encode_images, encoder, examples[:1], cache=tmp_path, progress=False)) == 0


def test_progress_is_shown_when_asked_for(encoder, examples, tmp_path, monkeypatch, capsys):
    bar = features.tqdm
    monkeypatch.setattr(features, "tqdm", lambda **options: bar(**(options | {"delay": 0, "mininterval": 0})))
    encode_images(encoder, examples, cache=tmp_path)
    assert "encoding images: 100%" in capsys.readouterr().err
    encode_images(encoder, examples, cache=tmp_path, progress=False)
    encode_texts(encoder, TEXTS, cache=tmp_path)
    assert not capsys.readouterr().err


calls = st.lists(
    st.tuples(
        st.lists(st.sampled_from(["", "two", "seven", "a photo", LONG, LONG + "!", "é"]), max_size=6),
        st.integers(1, 4),
        st.sampled_from([1, 500, 2000, 10**9]),
    ),
    max_size=5,
)


@given(calls)
def test_any_calls_give_what_the_encoder_gives(loaded, tmp_path_factory, calls):
    encoder, cache = loaded["clip"].reset(), tmp_path_factory.mktemp("cache")
    tables: list[tuple[TokenTable, list[str]]] = []
    with pytest.MonkeyPatch.context() as patch:
        for texts, batch_size, shard_bytes in calls:
            patch.setattr(feature_store, "SHARD_BYTES", shard_bytes)
            tables.append((encode_texts(encoder, texts, cache=cache, batch_size=batch_size), texts))
    read = [text for batch in encoder.texts for text in batch]
    assert len(read) == len(set(read)), "a text was encoded twice"
    for table, texts in tables:
        check_texts(table, encoder, texts)
        if texts:
            assert torch.equal(table.pooled, table.rows(range(len(texts)))[0][:, 0])
