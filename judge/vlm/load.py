"""Base models, adapters and whole runs, loaded so that nothing is missing without a word.

Weights come from safetensors only, remote code is never run, and an adapter is accepted only if every one of its
tensors found its place.
"""

import json
import re
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from judge.errors import CheckpointError, ConfigError, MissingExtraError
from prompts.errors import ArbiterError

from .processor import load_processor

if TYPE_CHECKING:
    from judge.runs.folder import RunDir

SHIPPED = ("tiny-llava", "tiny-clip")
"""Names of bases inside the package."""
LANGUAGE_TARGETS = r".*language_model\.layers\.\d+\.(self_attn|mlp)\.(q|k|v|o|gate|up|down)_proj"
"""Every linear layer of the language model and none of the vision tower (finetune.md, section 3)."""
_BITS = ("load_in_4bit", "bnb_4bit_quant_type", "use_bnb_nested_quant")
_RAISED = (OSError, ValueError, KeyError, RuntimeError, ImportError, AttributeError, TypeError)
"""What transformers raises on checkpoints that it cannot read."""


@dataclass
class BaseOptions:
    """Which base model, and how it is held in memory."""

    model_name_or_path: str = field(
        default="tiny-llava",
        metadata={
            "help": "A hub id, a folder, or tiny-llava, which ships: LLaVA-1.5, NeXT, OneVision, Qwen2-VL to 3-VL; "
            "of other families those that a check at load finds are read as their processor means it."
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

    def recorded(self) -> dict[str, Any]:
        """What a run's manifest keeps, so that the base is served as it was measured; `from_run` reads it."""
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
            CheckpointError: the run names none, or an address (`judge.runs.references`).
        """
        from judge.runs.references import stored_model

        manifest = run.manifest
        bits = manifest.get("quantization") or {}
        if not bits and (run.path / "config.yaml").is_file():  # runs that kept it among their options alone
            bits = run.config
        chosen = {name: bits[name] for name in _BITS if name in bits}
        try:
            base = stored_model(manifest["base"], run.path)
            return cls(base, manifest.get("revision", "main"), manifest.get("dtype", "float32"), **chosen)
        except KeyError:
            raise CheckpointError(f"{run.path} names no base model; it is damaged.") from None


@dataclass
class LoraOptions:
    """Which layers are adapted, and how."""

    lora_r: int = field(default=16, metadata={"help": "Rank."})
    lora_alpha: int = field(default=32, metadata={"help": "Scale: the update counts alpha / r times."})
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout before the adapter, 0 to 1."})
    use_rslora: bool = field(default=False, metadata={"help": "Scale by alpha / sqrt(r) instead (rsLoRA)."})
    use_dora: bool = field(default=False, metadata={"help": "Learn magnitude and direction apart (DoRA)."})
    lora_target_modules: str = field(
        default=LANGUAGE_TARGETS,
        metadata={"help": "Regular expression on the full name of each module to adapt."},
    )
    train_projector: bool = field(
        default=False, metadata={"help": "Train the whole projector between tower and language model too."}
    )


def base_path(name_or_path: str) -> str:
    """The folder of a base that ships; any other name is given back."""
    if name_or_path in SHIPPED and not Path(name_or_path).exists():
        return str(files("judge") / "checkpoints" / name_or_path)
    return name_or_path


def load_base(options: BaseOptions, *, device: str | None = None) -> tuple[Any, Any]:
    """Load a base model in evaluation mode, with its processor.

    Raises:
        CheckpointError: it cannot be loaded, lacks what a judge needs, or is of a family that a judge would misread
            (`judge.vlm.agreement`).
        MissingExtraError: 4 bits without bitsandbytes, or a processor that cannot do without torchvision.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForImageTextToText

    from .agreement import check_agreement

    path = base_path(options.model_name_or_path)
    common = {"revision": options.model_revision, "trust_remote_code": False}
    kwargs: dict[str, Any] = {"dtype": options.dtype, "use_safetensors": True, "attn_implementation": "sdpa"}
    if options.load_in_4bit:
        kwargs["quantization_config"] = _four_bits(options, path)
    try:
        processor = load_processor(path, options.model_revision)
        model = AutoModelForImageTextToText.from_pretrained(path, **common, **kwargs)
    except ArbiterError:
        raise
    except (*_RAISED, SafetensorError) as error:
        raise CheckpointError(
            f"{options.model_name_or_path!r} could not be loaded as a vision-language model: {_first_line(error)} "
            f"Give a hub id, a folder with config.json and safetensors, or one of {', '.join(SHIPPED)}."
        ) from error
    if not hasattr(processor, "tokenizer") or processor.tokenizer.eos_token is None:
        raise CheckpointError(
            f"{options.model_name_or_path!r} has no tokenizer with an end token; a closed answer cannot end."
        )
    if options.load_in_4bit:
        _keep_gradients(model)
    elif device is not None:
        model.to(device)
    check_agreement(model.eval(), processor)
    return model, processor


def _keep_gradients(model: Any) -> None:
    """Stop bitsandbytes from repacking 4-bit weights when a CPU evaluates them: no gradient passes them after."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def _four_bits(options: BaseOptions, path: str) -> Any:
    """4-bit settings that spare everything but the language model.

    transformers matches names from the start of the path, and a list of one's own replaces the default that spares
    the head, so the full names are read off an empty copy of the model (finetune.md, section 3).
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
    with torch.device("meta"):
        empty = AutoModelForImageTextToText.from_config(config)
    spared = [f"model.{name}" for name, _ in empty.model.named_children() if name != "language_model"]
    compute = torch.float32 if options.dtype in ("float32", "auto") else getattr(torch, options.dtype)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=options.bnb_4bit_quant_type,
        bnb_4bit_use_double_quant=options.use_bnb_nested_quant,
        bnb_4bit_compute_dtype=compute,
        bnb_4bit_quant_storage=compute,
        llm_int8_skip_modules=[*spared, "lm_head"],
    )


def add_lora(model: Any, options: LoraOptions, *, base: str) -> tuple[Any, dict[str, int]]:
    """Wrap `model` with fresh adapters; count what is trained.

    Returns:
        The peft model, and counts: `modules` adapted, `trainable` and `all` parameters.

    Raises:
        ConfigError: the expression matches nothing, or anything outside the language model and its head.
    """
    from peft import LoraConfig, get_peft_model
    from transformers.integrations import is_deepspeed_zero3_enabled

    matched = _matched(model, options.lora_target_modules)
    config = LoraConfig(
        r=options.lora_r,
        lora_alpha=options.lora_alpha,
        lora_dropout=options.lora_dropout,
        use_rslora=options.use_rslora,
        use_dora=options.use_dora,
        target_modules=options.lora_target_modules,
        modules_to_save=_projectors(model) if options.train_projector else None,
        task_type="CAUSAL_LM",
    )
    # Adapters learn in float32 on a 16-bit base; ZeRO-3 gathers one dtype only and keeps float32 copies itself.
    wrapped = get_peft_model(model, config, autocast_adapter_dtype=not is_deepspeed_zero3_enabled())
    config.base_model_name_or_path = base_path(base)  # looked up at every save: a name would mean the hub
    counts = {
        "modules": len(matched),
        "trainable": sum(_size(p) for p in wrapped.parameters() if p.requires_grad),
        "all": sum(_size(p) for p in wrapped.parameters()),
    }
    return wrapped, counts


def _matched(model: Any, expression: str) -> list[str]:
    """Names of the modules that an expression reaches; all of them must be the language model's."""
    try:
        pattern = re.compile(expression)
    except re.error as error:
        raise ConfigError(f"lora_target_modules {expression!r} is no regular expression: {error}.") from None
    modules = [name for name, _ in model.named_modules() if pattern.fullmatch(name)]
    if not modules:
        raise ConfigError(
            f"lora_target_modules {expression!r} matches no module of this base. "
            f"Its linear layers are named like {_example_names(model)}; leave the option out for the default."
        )
    outside = [name for name in modules if "language_model" not in name.split(".") and name != "lm_head"]
    if outside:
        raise ConfigError(
            f"lora_target_modules {expression!r} matches {len(modules)} modules, and {len(outside)} of them are "
            f"outside the language model (such as {outside[0]}). Name it in the expression, as the default "
            f"'{LANGUAGE_TARGETS}' does; train_projector trains the projector, and recipes/adversarial_lora.py "
            "adapts the tower."
        )
    return modules


def _size(parameter: Any) -> int:
    """Numbers in a parameter; under ZeRO-3, where each process holds a part, in the whole of it."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def _projectors(model: Any) -> list[str]:
    names = [name for name, _ in model.model.named_children() if "projector" in name]
    if not names:
        raise ConfigError("train_projector: this family has no module named as a projector; leave it out.")
    return names


def _example_names(model: Any) -> str:
    from torch import nn

    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return ", ".join(names[-3:])


def load_adapter(model: Any, path: str | Path, *, trainable: bool = False) -> Any:
    """Put a saved adapter on its base, and see that every tensor found its place.

    Raises:
        CheckpointError: no adapter there, another base, or tensors missing or left over.
    """
    from peft import PeftConfig, PeftModel, set_peft_model_state_dict
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    weights = Path(path) / "adapter_model.safetensors"
    if not weights.is_file():
        raise CheckpointError(
            f"{path} holds no adapter_model.safetensors (pickled adapters are never loaded)."
        )
    _check_kind(Path(path))
    config = PeftConfig.from_pretrained(str(path))
    config.inference_mode = not trainable
    try:
        state = load_file(weights)
        wrapped = PeftModel(model, config, autocast_adapter_dtype=True)
        result = set_peft_model_state_dict(wrapped, state)
    except (RuntimeError, ValueError, KeyError, SafetensorError) as error:
        raise CheckpointError(
            f"The adapter {path} does not fit this base (it was trained on {config.base_model_name_or_path!r}): "
            f"{_first_line(error)}"
        ) from error
    lost = [key for key in result.missing_keys if "lora_" in key or "modules_to_save" in key]
    if lost or result.unexpected_keys:
        raise CheckpointError(
            f"The adapter {path} matches this base only in part: {len(lost)} of its tensors are missing, "
            f"{len(result.unexpected_keys)} left over (such as {[*lost, *result.unexpected_keys][0]}). "
            f"It was trained on {config.base_model_name_or_path!r}; load that base."
        )
    return wrapped if trainable else wrapped.eval()


def _check_kind(path: Path) -> None:
    """Other kinds than LoRA may load what they name themselves, such as a tokenizer with code of its own."""
    try:
        kind = json.loads((path / "adapter_config.json").read_text(encoding="utf-8"))["peft_type"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise CheckpointError(f"{path} has no adapter_config.json that could be read ({error}).") from None
    if kind != "LORA":
        raise CheckpointError(f"The adapter {path} is of the kind {kind!r}; a judge's is LORA.")


def tidy_adapter(path: str | Path, *, base: str) -> None:
    """Make a saved adapter fit to be passed on: its base by name, and no pickle beside it."""
    config = Path(path) / "adapter_config.json"
    content = json.loads(config.read_text(encoding="utf-8"))
    config.write_text(json.dumps(content | {"base_model_name_or_path": base}, indent=2), encoding="utf-8")
    (Path(path) / "training_args.bin").unlink(missing_ok=True)


def merge_run(run: str | Path, out: str | Path) -> Path:
    """Write base and adapter of a run as one plain checkpoint that any engine can serve.

    A run on a 4-bit base (QLoRA) is merged into the weights that its 4 bits stand for, written in full: it was
    trained and measured on those, and the original weights would answer otherwise.

    Raises:
        CheckpointError: not a run of this kind, or `out` is in use.
    """
    from judge.runs.folder import RunDir

    folder = RunDir.open(run, kind="vlm")
    target = Path(out)
    if target.exists() and any(target.iterdir()):
        raise CheckpointError(f"{target} is not empty; choose another folder.")
    options = BaseOptions.from_run(folder)
    model, processor = load_base(options)
    if options.load_in_4bit:
        model = model.dequantize()
    merged = load_adapter(model, folder.path / "adapter").merge_and_unload()
    merged.save_pretrained(target)
    processor.save_pretrained(target)
    return target


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
