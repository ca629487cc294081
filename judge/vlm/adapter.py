"""Adapters: add LoRA to a base, and load a run's adapter."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from judge.errors import CheckpointError, ConfigError, first_line
from judge.standins.shipped import base_path

from .families import is_language

LANGUAGE_TARGETS = r".*(language|text)_model\.layers\.\d+\.(self_attn|mlp)\.(q|k|v|o|gate|up|down)_proj"
"""Every linear layer of the language model and none of the vision tower."""


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


def add_lora(model: Any, options: LoraOptions, *, base: str) -> tuple[Any, dict[str, int]]:
    """Wrap `model` with new adapters, and count its parameters.

    Returns:
        The peft model, and counts: `modules` adapted, `trainable` and `all` parameters.

    Raises:
        ConfigError: the expression matches nothing, or a module outside the language model and its head.
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
    # Adapters are trained in float32 on a 16-bit base; ZeRO-3 gathers one dtype only and keeps float32 copies itself.
    wrapped = get_peft_model(model, config, autocast_adapter_dtype=not is_deepspeed_zero3_enabled())
    # peft looks it up at every save; a short name would mean the hub.
    config.base_model_name_or_path = base_path(base)
    counts = {
        "modules": len(matched),
        "trainable": sum(_size(p) for p in wrapped.parameters() if p.requires_grad),
        "all": sum(_size(p) for p in wrapped.parameters()),
    }
    return wrapped, counts


def _matched(model: Any, expression: str) -> list[str]:
    """Names of the modules that an expression matches; all must belong to the language model."""
    try:
        pattern = re.compile(expression)
    except re.error as error:
        raise ConfigError(
            f"lora_target_modules {expression!r} is not a regular expression: {error}."
        ) from None
    modules = [name for name, _ in model.named_modules() if pattern.fullmatch(name)]
    if not modules:
        raise ConfigError(
            f"lora_target_modules {expression!r} matches no module of this base. "
            f"Its linear layers are named like {_example_names(model)}; leave the option out for the default."
        )
    # A hardened tower is the subject of `judge.vlm.training.tower`; here a typo must not adapt it.
    outside = [name for name in modules if not is_language(name) and name != "lm_head"]
    if outside:
        raise ConfigError(
            f"lora_target_modules {expression!r} matches {len(modules)} modules, and {len(outside)} of them are "
            f"outside the language model (such as {outside[0]}). Name it in the expression, as the default "
            f"'{LANGUAGE_TARGETS}' does; train_projector trains the projector, and recipes/adversarial_lora.py "
            "adapts the tower."
        )
    return modules


def _projectors(model: Any) -> list[str]:
    names = [name for name, _ in model.model.named_children() if "projector" in name or "connector" in name]
    if not names:
        raise ConfigError("train_projector: this family has no module named as a projector; leave it out.")
    return names


def _example_names(model: Any) -> str:
    from torch import nn

    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return ", ".join(names[-3:])


def load_adapter(model: Any, path: str | Path, *, trainable: bool = False) -> Any:
    """Load a saved adapter onto its base, and check that every tensor was used.

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
            f"{first_line(error)}"
        ) from error
    # peft reports every key of the base as missing, so only the adapter's own count.
    lost = [key for key in result.missing_keys if "lora_" in key or "modules_to_save" in key]
    if lost or result.unexpected_keys:
        raise CheckpointError(
            f"The adapter {path} matches this base only in part: {len(lost)} of its tensors are missing, "
            f"{len(result.unexpected_keys)} left over (such as {[*lost, *result.unexpected_keys][0]}). "
            f"It was trained on {config.base_model_name_or_path!r}; load that base."
        )
    return wrapped if trainable else wrapped.eval()


def tidy_adapter(path: str | Path, *, base: str) -> None:
    """Make a saved adapter portable: its base by name instead of by path, and no pickle beside it."""
    config = Path(path) / "adapter_config.json"
    content = json.loads(config.read_text(encoding="utf-8"))
    config.write_text(json.dumps(content | {"base_model_name_or_path": base}, indent=2), encoding="utf-8")
    (Path(path) / "training_args.bin").unlink(missing_ok=True)


def _size(parameter: Any) -> int:
    """Elements of a parameter; under ZeRO-3, where each process holds a part, of the whole."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def _check_kind(path: Path) -> None:
    """Accept LoRA only: other kinds may load things that they name, such as a tokenizer with remote code."""
    try:
        kind = json.loads((path / "adapter_config.json").read_text(encoding="utf-8"))["peft_type"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise CheckpointError(f"{path} has no adapter_config.json that could be read ({error}).") from None
    if kind != "LORA":
        raise CheckpointError(f"The adapter {path} is of the kind {kind!r}; a judge's is LORA.")
