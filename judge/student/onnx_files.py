"""The files of an exported student: their names, the manifest, checks, and the runtimes that open them.

`judge.student.export` writes six files that belong together and share a stem:

    student.onnx            image encoder: pixels -> image tokens
    student.text.onnx       text encoder: token ids -> pooled and token embeddings
    student.taxonomy.onnx   embeddings of phrases -> queries, once per taxonomy
    student.head.onnx       image tokens, prompt tokens, queries -> logits, once a reading of each image
    student.tokenizer.json  of the text encoder
    student.json            how to prepare images and texts, the taxonomy, and the SHA-256 of the other five
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from judge.data.preprocessing import ImagePreprocessing
from judge.encoders.phrases import KINDS
from judge.errors import CheckpointError, MissingExtraError
from judge.runs.files import file_hash

from .preprocessing import TextPreprocessing

FORMAT = 2
"""Version of the files; raised when older code could no longer read them."""
SIDES = {
    "image": ".onnx",
    "text": ".text.onnx",
    "taxonomy": ".taxonomy.onnx",
    "head": ".head.onnx",
    "tokenizer": ".tokenizer.json",
}
"""What replaces `.onnx` in the name of each file but the manifest."""
MANIFEST = ".json"
EXPORT_AGAIN = "export the student again"


def make_manifest(images: ImagePreprocessing, texts: TextPreprocessing, **about: Any) -> dict[str, Any]:
    """The content of student.json but for the hashes; `about` are further entries."""
    return {"format": FORMAT, "kinds": list(KINDS), "image": asdict(images), "text": asdict(texts), **about}


def read_manifest(path: Path) -> dict[str, Any]:
    """Read the manifest beside the image side `path`.

    Raises:
        CheckpointError: a file is missing or damaged, or of another format.
    """
    file = path.with_suffix(MANIFEST)
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist; `arbiter export RUN {path}` writes it.")
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        version, kinds = found["format"], found["kinds"]
        if not isinstance(found["sha256"], dict) or not isinstance(version, int):
            raise TypeError("entries of another type")
    except FileNotFoundError:
        raise CheckpointError(f"{file} is missing; {path} needs all files it was exported with.") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise damaged(file, error) from error
    if version != FORMAT or kinds != list(KINDS):
        raise CheckpointError(
            f"{path} has export format {version} with phrases {kinds}, this version reads {FORMAT} with "
            f"{list(KINDS)}; export it again, or use the version of arbiter-vision that wrote it."
        )
    return dict(found)


def check_file(file: Path, expected: object, path: Path) -> None:
    """Compare the SHA-256 of a file with that in the manifest of the student `path`.

    Raises:
        CheckpointError: it differs, or the file cannot be read.
    """
    try:
        found = file_hash(file)
    except OSError as error:
        raise CheckpointError(
            f"{file} cannot be read ({error.strerror}); {path} needs all files it was exported with."
        ) from error
    if found != expected:
        raise CheckpointError(
            f"{file} is not the file that was exported with {path.with_suffix(MANIFEST)} (SHA-256 "
            f"{found[:16]}, not {str(expected)[:16]}): damaged, or of another export. Export again."
        )


def open_session(
    file: Path, threads: int, *, who: str = "An exported student", advice: str = EXPORT_AGAIN
) -> Any:
    """An ONNX Runtime session on the CPU; 0 threads leaves their number to the runtime.

    Args:
        file: the graph.
        threads: in one session.
        who: whose graph it is, for the error if the runtime is missing.
        advice: what to do about a damaged file.

    Raises:
        CheckpointError: the file is missing or damaged.
        MissingExtraError: onnxruntime is not installed.
    """
    runtime = import_extra("onnxruntime", who)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    # A student has three thread pools; spinning threads of an idle one would slow the others down.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3  # errors only: its warnings are about missing hardware
    try:
        return runtime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its classes are not public
        raise damaged(file, error, advice) from error


def open_tokenizer(file: Path, context: int) -> Any:
    """A tokenizer that cuts texts into windows of `context` tokens and does not pad."""
    library = import_extra("tokenizers")
    try:
        tokenizer = library.Tokenizer.from_file(str(file))
    except Exception as error:  # it raises bare ones
        raise damaged(file, error) from error
    tokenizer.no_padding()
    tokenizer.enable_truncation(context)
    return tokenizer


def import_extra(package: str, who: str = "An exported student") -> Any:
    """Import a package of the extra `onnx`, which `who` needs.

    Raises:
        MissingExtraError: it is not installed.
    """
    from importlib import import_module

    try:
        return import_module(package)
    except ImportError as error:
        raise MissingExtraError(
            f"{who} needs {package}; install it with `pip install 'arbiter-vision[onnx]'`, or alone."
        ) from error


def damaged(file: Path, error: Exception, advice: str = EXPORT_AGAIN) -> CheckpointError:
    """The error for a file that cannot be used, with what to do."""
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return CheckpointError(f"{file} is damaged ({type(error).__name__}: {first[:200]}); {advice}.")
