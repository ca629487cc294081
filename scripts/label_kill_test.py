"""Label images in peace, then with everything that can go wrong, and compare the rows.

    python scripts/label_kill_test.py --images 10000 --kills 3          # 5 minutes on two cores

1. `killed`: `arbiter label` is ended with SIGKILL at random instants and started again until it is through. Wanted:
   exactly one row an input, scores equal to the last bit, no other file.
2. `poisoned`: some images become a decompression bomb, an animation of many frames, a cut file and a text, and two
   files cannot be read at all (a tar cut in the middle, JSON lines with a broken one). Wanted: only their rows differ.
   Neighbours in a batch may differ in the last bits, as a batch without the poison has another size; counted apart.
3. `full_disk`: the output lies on a file system (tmpfs, in a mount namespace of its own) that has room for half of it;
   it is made larger, and the same command run again. Wanted: an error that says so, then the same rows.

Every run is a process of its own, forked from one that has imported torch. Exit status 1 where a row is lost, doubled
or different.
"""

import argparse
import contextlib
import ctypes
import json
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

PRELOADED = ["torch", "transformers", "pyarrow.parquet", "judge.classifiers", "judge.labelling.job"]
ATTEMPTS = 5
"""At killing a run; a small one may be through before."""
SIGNIFICANT = 1e-5
"""A score that differs by more is another one."""
_NEW_MOUNTS, _NEW_USERS = 0x00020000, 0x10000000  # of unshare(2)


def main() -> None:
    """Run everything and print what differs."""
    options = parse()
    shutil.rmtree(options.out, ignore_errors=True)
    options.out.mkdir(parents=True)
    clean, peaceful = options.out / "input", options.out / "peaceful"
    make_input(clean, options)
    begun = time.monotonic()
    code = start(label_words(clean, peaceful, options), options.out / "peaceful.log").wait()
    seconds = time.monotonic() - begun
    wanted = rows_of(peaceful)
    found: dict[str, Any] = {"images": options.images, "rows": len(wanted), "seconds": seconds}
    if code or len(wanted) != options.images:
        raise SystemExit(f"In peace: exit code {code}, {len(wanted)} rows; see {options.out}/peaceful.log")
    found["killed"] = killed(clean, wanted, options)
    found["poisoned"] = poisoned(clean, wanted, options)
    found["full_disk"] = full_disk(clean, wanted, peaceful, options)
    print(json.dumps(found, indent=2))
    if not all(found[name]["as_wanted"] for name in ("killed", "poisoned", "full_disk")):
        raise SystemExit(1)


def parse() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument(
        "--shards", type=int, default=20, help="at least 8; tars, folders, Parquet, JSON lines"
    )
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--judge", default="small-student")
    parser.add_argument("--taxonomy", default="signs")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0, help="of the instants of the kills")
    parser.add_argument("--out", type=Path, default=Path("runs/label_kill_test"), help="made anew")
    return parser.parse_args()


def make_input(folder: Path, options: argparse.Namespace) -> None:
    """Tars for half of the images, and a folder, Parquet and JSON lines for the others."""
    from eval.labelling.pictures import KINDS, write_input

    shard = max(1, options.images // options.shards)
    left = options.images
    for number, kind in enumerate(KINDS):
        count = left if number == len(KINDS) - 1 else options.images // (2 if kind == "tar" else 6)
        write_input(kind, folder / kind, count, seed=number, shard=shard)
        left -= count


# --- runs -----------------------------------------------------------------------------------------------------


class Run:
    """`arbiter label` in a process of its own."""

    def __init__(self, target: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        self.process = context.Process(target=target, args=arguments)
        self.process.start()

    def wait(self) -> int | None:
        """Its exit code."""
        self.process.join()
        return self.process.exitcode


def start(words: Sequence[str], log: Path) -> Run:
    """Run the command line with these words; what it prints goes into a log."""
    return Run(run_command, (list(words), log))


def run_command(words: list[str], log: Path) -> None:
    """The command line, in a process that has nothing else to do."""
    with log.open("a", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.exit(command(words))


def command(words: Sequence[str]) -> int:
    """Exit code of `arbiter` with these words, torch on one thread."""
    import torch

    from judge.serve.cli import main as arbiter

    torch.set_num_threads(1)
    return arbiter(list(words))


def label_words(where: Path, out: Path, options: argparse.Namespace) -> list[str]:
    """The words after `arbiter`."""
    return [
        *("label", str(where), str(out), "--judge", options.judge, "--taxonomy", options.taxonomy),
        *("--workers", str(options.workers), "--quiet"),
    ]


# --- rows -----------------------------------------------------------------------------------------------------


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """All rows of an output, by name."""
    import pyarrow.parquet as pq

    rows: list[dict[str, Any]] = []
    for path in sorted(folder.glob("part-*.parquet")):
        rows += pq.read_table(path).to_pylist()
    return sorted(rows, key=lambda row: str(row["id"]))


def compare(wanted: Sequence[dict[str, Any]], found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Names of rows that are lost, doubled, new, or not the same; and how many differ in the last bits only."""
    before, after = {row["id"]: row for row in wanted}, {row["id"]: row for row in found}
    both = before.keys() & after.keys()
    changed = {name for name in both if before[name] != after[name]}
    other = {name for name in changed if not alike(before[name], after[name])}
    return {
        "lost": sorted(before.keys() - after.keys()),
        "doubled": len(found) - len(after),
        "new": sorted(after.keys() - before.keys()),
        "different": sorted(other),
        "last_bits": len(changed - other),
    }


def alike(one: Any, other: Any) -> bool:
    """Equal, numbers nearly."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(alike(one[name], other[name]) for name in one)
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other) <= SIGNIFICANT
    return bool(one == other)


def strays(folder: Path) -> list[str]:
    """Files that are neither parts nor the plan nor its lock."""
    known = {"_plan.sqlite", ".lock"}
    return sorted(
        path.name for path in folder.iterdir() if path.name not in known and not path.match("part-*.parquet")
    )


def same(difference: dict[str, Any]) -> bool:
    """Whether two outputs are equal to the last bit."""
    return not any(difference.values())


# --- what goes wrong ------------------------------------------------------------------------------------------


def killed(where: Path, wanted: list[dict[str, Any]], options: argparse.Namespace) -> dict[str, Any]:
    """Kill at random instants, go on, compare."""
    out, log, draw = options.out / "killed", options.out / "killed.log", random.Random(options.seed)
    for _ in range(ATTEMPTS):
        shutil.rmtree(out, ignore_errors=True)
        at = [
            kill(start(label_words(where, out, options), log), out, parts, draw)
            for parts in sorted(draw.sample(range(options.shards * 2 // 3), options.kills))
        ]
        if None not in at:  # else one was through before its kill
            break
    before = len(list(out.glob("part-*.parquet")))
    code = start(label_words(where, out, options), log).wait()
    difference, stray = compare(wanted, rows_of(out)), strays(out)
    return {
        "as_wanted": same(difference) and not stray and code == 0 and None not in at,
        "parts_at_kills": at,
        "parts_kept": before,
        "parts": len(list(out.glob("part-*.parquet"))),
        "exit_code": code,
        "strays": stray,
        **difference,
    }


def kill(run: Run, out: Path, parts: int, draw: random.Random) -> int | None:
    """End a run with SIGKILL a moment after it has so many parts; how many it had, None if it ended before."""
    while run.process.exitcode is None and len(list(out.glob("part-*.parquet"))) < max(1, parts):
        time.sleep(0.002)
    time.sleep(draw.uniform(0, 0.1))
    ended = run.process.exitcode is not None
    run.process.kill()
    run.wait()
    return None if ended else len(list(out.glob("part-*.parquet")))


def poisoned(clean: Path, wanted: list[dict[str, Any]], options: argparse.Namespace) -> dict[str, Any]:
    """Damage some files of a copy of the input, label it, and see which rows differ."""
    where, out = options.out / "poisoned-input", options.out / "poisoned"
    shutil.copytree(clean, where)
    expected, cut = poison(where)
    code = start(label_words(where, out, options), options.out / "poisoned.log").wait()
    rows = rows_of(out)
    difference = compare(wanted, rows)
    problems = {row["id"]: row["status"] for row in rows if row["status"] != "ok"}
    # Of the cut tar: members behind the cut are gone, the one at it is unreadable, and a row says that it was cut.
    gone = {name for name in difference["lost"] if name.startswith(cut)}
    at_cut = {name for name in difference["different"] if name.startswith(cut)}
    return {
        "as_wanted": code == 3
        and set(difference["different"]) == expected | at_cut
        and set(difference["lost"]) == gone
        and difference["doubled"] == 0
        and set(problems) == expected | at_cut | set(difference["new"])
        and len(at_cut) <= 1
        and len(difference["new"]) == 1
        and difference["new"][0].startswith(cut),
        "exit_code": code,
        "statuses": problems,
        "lost_with_the_cut_tar": len(gone),
        "lost_elsewhere": sorted(set(difference["lost"]) - gone),
        **{name: difference[name] for name in ("doubled", "new", "different", "last_bits")},
    }


def poison(folder: Path) -> tuple[set[str], str]:
    """Damage an input; names of the rows that have to differ, and the tar that was cut."""
    files = sorted((folder / "images").rglob("*.[jp][pn]g"))
    poisons = {"bomb": bomb(), "slow": endless(), "cut": files[2].read_bytes()[:-40], "text": b"text"}
    for path, data in zip(files[2 : 2 + len(poisons)], poisons.values(), strict=True):
        path.write_bytes(data)
    expected = {str(path.relative_to(folder)) for path in files[2 : 2 + len(poisons)]}
    lines = min((folder / "jsonl").glob("*.jsonl"))
    texts = lines.read_text(encoding="utf-8").splitlines()
    name = json.loads(texts[1])["id"]
    texts[1] = json.dumps({"id": name, "image": "AAAA"})
    lines.write_text("\n".join(texts) + "\n", encoding="utf-8")
    tar = min((folder / "tar").glob("*.tar"))
    os.truncate(tar, tar.stat().st_size * 3 // 5)
    expected.add(f"{lines.relative_to(folder)}#2/{name}")
    return expected, str(tar.relative_to(folder))


def bomb() -> bytes:
    """A PNG of 30,000 x 30,000 pixels in a few hundred bytes: its header says so."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000)))


def endless() -> bytes:
    """An animation that takes longer to decode than the two seconds that an image may."""
    from PIL import Image

    file = BytesIO()
    frames = [Image.new("P", (1500, 1500), level) for level in range(120)]
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    return file.getvalue()


def full_disk(
    where: Path, wanted: list[dict[str, Any]], peaceful: Path, options: argparse.Namespace
) -> dict[str, Any]:
    """Label onto a disk that becomes full, make it larger, and go on."""
    sizes = [path.stat().st_size for path in peaceful.iterdir()]
    size = sum(sizes) // 2 + peaceful.joinpath("_plan.sqlite").stat().st_size
    out, log = options.out / "full", options.out / "full.log"
    out.mkdir()
    copy = options.out / "full-copy"
    Run(label_onto_small_disk, (label_words(where, out, options), out, copy, size, log)).wait()
    if not (copy / "codes.json").is_file():
        return {"as_wanted": True, "not_measured": "this system gives nobody a mount namespace; see full.log"}
    codes = json.loads((copy / "codes.json").read_text(encoding="utf-8"))
    (copy / "codes.json").unlink()
    difference, said = compare(wanted, rows_of(copy)), "The disk is full" in log.read_text(encoding="utf-8")
    return {
        "as_wanted": same(difference) and not strays(copy) and codes["exit_codes"] == [2, 0] and said,
        "disk": f"tmpfs of {size:,} bytes, then larger",
        "said_so": said,
        **codes,
        "strays": strays(copy),
        **difference,
    }


def label_onto_small_disk(words: list[str], out: Path, copy: Path, size: int, log: Path) -> None:
    """In a mount namespace of this process: two runs, before and after the disk grows, and a copy of what is left."""
    with log.open("a", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    user = os.getuid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_NEW_MOUNTS | (_NEW_USERS if user else 0)):
        raise OSError(ctypes.get_errno(), "unshare")
    if user:  # become root of the new namespace, where mounting is allowed
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(out)], check=True)
    codes = [command(words)]
    parts = len(list(out.glob("part-*.parquet")))
    left = strays(out)
    subprocess.run(["mount", "-o", "remount,size=1g", str(out)], check=True)
    codes.append(command(words))
    shutil.copytree(out, copy)
    found = {"exit_codes": codes, "parts_when_full": parts, "strays_when_full": left}
    (copy / "codes.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        main()
