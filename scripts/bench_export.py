"""Size of a student as ONNX files, and milliseconds an image with them.

    python scripts/bench_export.py                            # an untrained head on small-clip, one CPU thread
    python scripts/bench_export.py --student runs/signs_student

Exports the student in float32 and with int8 weights, and times PyTorch and both exports from an opened picture to the
scores under its own taxonomy (`signs` for an untrained head), image by image: alone, and with a prompt. All take turns
in each round; medians are given. The last line is JSON.
"""

import argparse
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from eval.timing import medians, time_in_turns
from judge.encoders.dual import DualEncoder
from judge.runs.folder import RunDir
from judge.runs.machine import device_name
from judge.standins.shipped import SHIPPED
from judge.standins.signs.examples import signs_examples
from judge.student.export import export_student
from judge.student.head import CrossAttentionHead, HeadConfig
from judge.student.onnx import load_onnx_student
from judge.student.student import Student, load_student
from prompts import load_taxonomy

PROMPT = "a poster with a knife and a glass of wine before the long drive home"


def main() -> None:
    """Export, time, print."""
    options = parse()
    torch.set_num_threads(options.threads)
    student = open_student(options.student)
    taxonomy = student.default_taxonomy or load_taxonomy("signs")
    images = [example.image for example in signs_examples("test", count=options.images)]
    found: dict[str, Any] = {"student": options.student, "categories": len(taxonomy), "megabytes": {}}
    with TemporaryDirectory() as folder:
        classifiers: dict[str, Any] = {"PyTorch, float32": student}
        for name, int8 in (("ONNX, float32", False), ("ONNX, int8", True)):
            path = Path(folder) / f"{'int8' if int8 else 'float32'}.onnx"
            exported = export_student(student, path, int8=int8)
            classifiers[name] = load_onnx_student(path, threads=options.threads)
            found["megabytes"][name] = {file.name.split(".", 1)[1]: size(file) for file in exported.files}
            print(f"{name:20}{exported.megabytes:8.1f} MB, probabilities differ by {exported.difference:.1e}")
        for what, prompt in (("image", None), ("image and prompt", PROMPT)):
            work = {
                name: lambda one=one, prompt=prompt: [
                    one.score([image], [prompt], taxonomy) for image in images
                ]
                for name, one in classifiers.items()
            }
            taken = medians(time_in_turns(work, repeats=options.rounds))
            found[what] = {name: 1000 * seconds / len(images) for name, seconds in taken.items()}
            for name, milliseconds in found[what].items():
                print(f"{name:20}{milliseconds:8.1f} ms, {what}")
    print(json.dumps(found | {"machine": device_name("cpu", options.threads)}))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--student", default="small-clip", help="a run, or an encoder that ships")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--images", type=int, default=16, help="pictures of a round")
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args()


def open_student(name: str) -> Student:
    """The student of a run, or an untrained head on an encoder that ships."""
    if name not in SHIPPED:
        return load_student(RunDir.open(name, kind="student"), device="cpu")
    encoder = DualEncoder.load(name)
    return Student(encoder, CrossAttentionHead(HeadConfig(encoder.width)), name=name)


def size(file: Path) -> float:
    """In 10^6 bytes, to a thousandth."""
    return round(file.stat().st_size / 1e6, 3)


if __name__ == "__main__":
    main()
