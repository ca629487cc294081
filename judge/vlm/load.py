"""Load base models, in full precision or 4 bits.

Weights come from safetensors only, and remote code is never run. `judge.vlm.adapter` loads adapters.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from judge.errors import CheckpointError, ConfigError, MissingExtraError, first_line
from judge.runs.files import nearest_path
from judge.standins.shipped import SHIPPED, base_path
from prompts.errors import ArbiterError
from prompts.names import nearest

from .families import check_family, is_language
from .processor import load_processor

if TYPE_CHECKING:
    from judge.runs.folder import RunDir

_BITS = ("load_in_4bit", "bnb_4bit_quant_type", "use_bnb_nested_quant")
_RAISED = (OSError, ValueError, KeyError, RuntimeError, ImportError, AttributeError, TypeError)
"""Exceptions of transformers for checkpoints that it cannot read."""


@dataclass
class BaseOptions:
    """Which base model, and in which precision."""

    model_name_or_path: str = field(
        default="tiny-llava",
        metadata={
            "help": "A hub id, a folder, or tiny-llava or small-llava, which ship. docs/models.md lists families; "
            "others are compared with their own processor and model at load, and judged fast, slower or not at all."
        },
    )
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit on the hub."})
    dtype: str = field(
        default="float32", metadata={"help": "Of the base: float32, bfloat16, float16, or auto (as saved)."}
    )
    load_in_4bit: bool = field(
        default=False,
        metadata={
            "help": "QLoRA: hold the language model in 4 bits; tower, projector and head stay as they are."
        },
    )
    bnb_4bit_quant_type: str = field(default="nf4", metadata={"help": "4-bit format: nf4 or fp4."})
    use_bnb_nested_quant: bool = field(default=True, metadata={"help": "Quantise the 4-bit scales as well."})

    def to_manifest(self) -> dict[str, Any]:
        """Entries of a run's manifest, so that the base is served as it was measured; `from_run` reads them."""
        bits = {name: getattr(self, name) for name in _BITS} if self.load_in_4bit else {"load_in_4bit": False}
        return {
            "base": self.model_name_or_path,
            "revision": self.model_revision,
            "dtype": self.dtype,
            "quantization": bits,
        }

    @classmethod
    def from_run(cls, run: "RunDir") -> Self:
        """The base of a run, in the precision in which it was measured.

        Raises:
            CheckpointError: the run names none, or a URL (`judge.runs.references`).
        """
        from judge.runs.references import stored_model

        manifest = run.manifest
        bits = manifest.get("quantization") or {}
        if not bits and (run.path / "config.yaml").is_file():  # older runs have it in their options only
            bits = run.config
        chosen = {name: bits[name] for name in _BITS if name in bits}
        try:
            base = stored_model(manifest["base"], run.path)
            return cls(base, manifest.get("revision", "main"), manifest.get("dtype", "float32"), **chosen)
        except KeyError:
            raise CheckpointError(f"{run.path} names no base model; it is damaged.") from None


def check_base(options: BaseOptions) -> None:
    """Check that a base is there and of a family that can be a judge, without reading its weights.

    Raises:
        CheckpointError: it is not.
    """
    from transformers import AutoConfig

    path = _place(options.model_name_or_path)
    try:
        config = AutoConfig.from_pretrained(path, revision=options.model_revision, trust_remote_code=False)
    except _RAISED as error:
        raise CheckpointError(
            f"{options.model_name_or_path!r} could not be loaded as a vision-language model: {first_line(error)} "
            f"Give a hub id, a folder with config.json and safetensors, or one of {', '.join(SHIPPED)}."
        ) from error
    check_family(config.model_type)


def _place(name: str) -> str:
    """The folder of a base, or its hub id; what can be neither is refused before anybody asks the hub."""
    path = base_path(name)  # a shipped base has a name instead of a path
    if not Path(path).exists() and not re.fullmatch(r"[\w.-]+/[\w.-]+", path):
        raise CheckpointError(
            f"There is no base {name!r} here{nearest_path(name) or nearest(name, SHIPPED)}. Give a folder with "
            f"config.json and safetensors, one of {', '.join(SHIPPED)}, or a hub id, such as llava-hf/llava-1.5-7b-hf."
        )
    return path


def load_base(options: BaseOptions, *, device: str | None = None) -> tuple[Any, Any]:
    """Load a base model in evaluation mode, with its processor.

    Raises:
        CheckpointError: it cannot be loaded, lacks what a judge needs, or is of a family that cannot be a judge
            (`judge.vlm.families`, `judge.vlm.agreement`).
        MissingExtraError: 4 bits without bitsandbytes, or a processor that needs torchvision.
    """
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModelForImageTextToText

    from .agreement import choose_path

    path = _place(options.model_name_or_path)
    common = {"revision": options.model_revision, "trust_remote_code": False}
    kwargs: dict[str, Any] = {"dtype": options.dtype, "use_safetensors": True, "attn_implementation": "sdpa"}
    if options.load_in_4bit:
        kwargs["quantization_config"] = _quantization_config(options, path)
    try:
        check_family(AutoConfig.from_pretrained(path, **common).model_type)
        processor = load_processor(path, options.model_revision)
        model = AutoModelForImageTextToText.from_pretrained(path, **common, **kwargs)
    except ArbiterError:
        raise
    except (*_RAISED, SafetensorError) as error:
        raise CheckpointError(
            f"{options.model_name_or_path!r} could not be loaded as a vision-language model: {first_line(error)} "
            f"Give a hub id, a folder with config.json and safetensors, or one of {', '.join(SHIPPED)}."
        ) from error
    if not hasattr(processor, "tokenizer") or processor.tokenizer.eos_token is None:
        raise CheckpointError(
            f"{options.model_name_or_path!r} has no tokenizer with an end token; a closed answer cannot end."
        )
    if options.load_in_4bit:
        _disable_repacking(model)
    elif device is not None:
        model.to(device)
    model.judging_path = choose_path(model.eval(), processor)
    return model, processor


def _disable_repacking(model: Any) -> None:
    """Stop bitsandbytes from repacking 4-bit weights at evaluation on a CPU, after which gradients cannot pass."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def _quantization_config(options: BaseOptions, path: str) -> Any:
    """4-bit settings that quantise the language model only.

    transformers matches names from the start of the path, and a custom list replaces the default one with the head in
    it, so the full names are read from an empty copy of the model.
    """
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText, BitsAndBytesConfig

    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            "A base in 4 bits (load_in_4bit, or a run that was trained and measured so) needs bitsandbytes: "
            "pip install 'arbiter-vision[qlora]'."
        ) from error
    if options.bnb_4bit_quant_type not in ("nf4", "fp4"):
        raise ConfigError(f"bnb_4bit_quant_type is {options.bnb_4bit_quant_type!r}; choose nf4 or fp4.")
    config = AutoConfig.from_pretrained(path, revision=options.model_revision, trust_remote_code=False)
    with torch.device("meta"):  # no memory is allocated
        empty = AutoModelForImageTextToText.from_config(config)
    spared = [f"model.{name}" for name, _ in empty.model.named_children() if not is_language(name)]
    # Computing in the precision of the rest; stored in it too, so that FSDP and ZeRO see one dtype.
    compute = torch.float32 if options.dtype in ("float32", "auto") else getattr(torch, options.dtype)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=options.bnb_4bit_quant_type,
        bnb_4bit_use_double_quant=options.use_bnb_nested_quant,
        bnb_4bit_compute_dtype=compute,
        bnb_4bit_quant_storage=compute,
        llm_int8_skip_modules=[*spared, "lm_head"],
    )
