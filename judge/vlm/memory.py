"""How much memory a base takes for judging, LoRA and QLoRA, by arithmetic: on one GPU, and on several under ZeRO.

Everything is counted from the sizes of the base (`judge.vlm.architecture`) and of your batch:

    weights      2 bytes a parameter in 16 bits. QLoRA holds the linear layers of the language model's blocks in NF4
                 with double quantisation: 4 + 8 / 64 + 32 / (64 * 256) = 4.127 bits (arXiv 2305.14314, section 3).
    adapters     LoRA of rank r adds r * (inputs + outputs) of each adapted layer (arXiv 2106.09685, section 4.1),
                 trained in float32: 4 bytes, 4 more for the gradients, 8 for AdamW's two moments, or 2 in 8 bits with
                 a float32 scale for each 256 of them (arXiv 2110.02861, section 2).
    activations  of each block, what autograd keeps of a token (`block_bytes`). With checkpointing the input of each
                 block, and one block whole while it is computed again (arXiv 1604.06174). Counted as in
                 arXiv 2205.05198, section 4, for LoRA on a frozen Llama whose attention keeps no scores
                 (arXiv 2205.14135).
    policies     keys and values of a judge's kept policy: 2 * blocks * key heads * head width * 2 bytes a token.
    ZeRO         stage 1 divides the optimizer's states among N GPUs, stage 2 gradients too, stage 3 adapters and
                 weights too (arXiv 1910.02054, section 5); then each GPU also holds what it gathered of the others.

What is not counted: fragmentation, buffers of kernels and of communication. `OVERHEAD` is set aside for them and for
the GPU's context. scripts/bench_memory.py compares the estimates of activations with measured ones.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from judge.errors import ConfigError

from .architecture import Architecture

NF4_BYTES = (4 + 8 / 64 + 32 / (64 * 256)) / 8
"""Of a parameter in NF4 with double quantisation."""
HALF, FULL = 2, 4
"""Bytes of a number in bfloat16 and in float32."""
ADAMW = {"adamw": 8.0, "adamw_8bit": 2 * (1 + FULL / 256)}
"""Bytes of an optimizer's states for each trained parameter."""
CARDS = (24, 40, 80)
"""GB of common GPUs."""
OVERHEAD = 1.5e9
"""Bytes set aside on each GPU for its context, kernels and fragmentation; a rule of thumb, not measured."""
TAIL_TOKENS = 64
"""Of a row besides its image: the prompt, the question, the answer."""
ANSWER_TOKENS = 8
FEATURE_BYTES = 4 * 1024**3
"""Limit of kept image features (`judge.vlm.training.trainer.FEATURE_BYTES`)."""
LIVE_PARAMETERS = 1_000_000_000
"""That DeepSpeed's stage 3 gathers at most at a time (`stage3_max_live_parameters`, its default)."""

Task = Literal["inference", "lora", "qlora"]


@dataclass(frozen=True)
class Batch:
    """What runs at a time on one GPU."""

    policy_tokens: int = 1000
    """Before the image: the whole policy under `policy_first`."""
    images: int = 4
    """Judging: images in one forward pass. Training: rows that share a policy (`flip.group_size`)."""
    policies: int = 1
    """Training: policies in one forward pass (`per_device_train_batch_size`). Judging: policies whose cache is kept."""
    checkpointing: bool = True
    """`activation_checkpointing`."""
    kept_images: int | None = None
    """Images whose features are kept while training; None for as many as the limit of the cache allows, 0 for none."""


@dataclass(frozen=True)
class Estimate:
    """Bytes on one GPU, by what they are for."""

    task: Task
    weights: float
    adapters: float = 0.0
    gradients: float = 0.0
    optimizer: float = 0.0
    activations: float = 0.0
    features: float = 0.0
    """Kept image features, at most."""
    policies: float = 0.0
    """Cached keys and values of policies."""
    gathered: float = 0.0
    """Parameters of other GPUs, under ZeRO-3."""
    overhead: float = OVERHEAD

    @property
    def total(self) -> float:
        """Of all parts."""
        return sum(float(value) for value in asdict(self).values() if not isinstance(value, str))

    @property
    def fits(self) -> int | None:
        """The smallest of `CARDS`, in GB, with room for all; None if none has."""
        return next((size for size in CARDS if self.total <= size * 1e9), None)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: bytes as whole numbers."""
        parts = {
            key: value if isinstance(value, str) else round(value) for key, value in asdict(self).items()
        }
        return {**parts, "total": round(self.total), "fits_gb": self.fits}


def estimate(
    base: Architecture,
    task: Task,
    batch: Batch | None = None,
    *,
    lora_r: int = 16,
    optimizer: str = "adamw",
    number_bytes: int = HALF,
    zero: int = 0,
    gpus: int = 1,
) -> Estimate:
    """Memory of one GPU.

    Args:
        base: from `find_architecture`.
        task: `inference`, `lora` or `qlora`.
        batch: what runs at a time.
        lora_r: rank of the adapters; every linear layer of the language model is adapted, as by default.
        optimizer: one of `ADAMW`.
        number_bytes: of weights and activations, 2 or 4.
        zero: stage of DeepSpeed's ZeRO, 0 to 3; 0 is DDP, where every GPU holds everything.
        gpus: that share the work.

    Raises:
        ConfigError: no such task, optimizer, stage or number of GPUs.
    """
    _check(task, optimizer, zero, gpus)
    batch = batch or Batch()
    found = Estimate(task, weights=_weights(base, task == "qlora", number_bytes))
    if task == "inference":
        kept = key_value_bytes(base, number_bytes) * batch.policy_tokens * batch.policies
        return replace(found, activations=judging_bytes(base, batch, number_bytes), policies=kept)
    trained = lora_r * base.adapted
    found = replace(
        found,
        adapters=FULL * trained,
        gradients=FULL * trained,
        optimizer=ADAMW[optimizer] * trained,
        # Evaluations in between judge as many images at a time, beside all the rest.
        activations=max(
            training_bytes(base, batch, lora_r, number_bytes), judging_bytes(base, batch, number_bytes)
        ),
        features=_feature_bytes(base, batch, number_bytes),
    )
    return _shard(found, base, zero, gpus, number_bytes)


def _check(task: str, optimizer: str, zero: int, gpus: int) -> None:
    if task not in ("inference", "lora", "qlora"):
        raise ConfigError(f"No task {task!r}; choose inference, lora or qlora.")
    if optimizer not in ADAMW:
        raise ConfigError(f"No optimizer {optimizer!r}; choose {' or '.join(ADAMW)}.")
    if zero not in (0, 1, 2, 3) or gpus < 1:
        raise ConfigError(f"ZeRO-{zero} on {gpus} GPUs: stages are 0 to 3, and one GPU or more.")


def _weights(base: Architecture, quantised: bool, number_bytes: int) -> float:
    in_layers = NF4_BYTES if quantised else number_bytes
    return in_layers * base.in_layers + number_bytes * (base.parameters - base.in_layers)


def key_value_bytes(base: Architecture, number_bytes: int = HALF) -> int:
    """Bytes of the keys and values of one token in all blocks."""
    return 2 * base.layers * base.keys * number_bytes


def block_bytes(base: Architecture, tokens: int, seen: int, lora_r: int, number_bytes: int = HALF) -> float:
    """What autograd keeps of one block of a frozen Llama with LoRA on its seven linear layers.

    Of each token: the numbers that the norms see, in float32; an input for each adapted layer (under autocast every
    layer has a 16-bit copy of its own; in float32 layers share theirs) and r numbers between its two matrices; of the
    MLP gate, its activation and up; of attention query and output.

    Args:
        base: sizes.
        tokens: T in the packed row.
        seen: keys that rows hold in all, policies copied to each row: of each a key and a value as wide as the queries.
        lora_r: rank.
        number_bytes: 2 under autocast, 4 in float32.
    """
    mixed = number_bytes == HALF
    # Layers that read the same numbers share them in float32: q, k, v; gate, up.
    inputs = base.adapted_inputs if mixed else 2 * base.width + base.queries + base.inner
    # In float32 a norm's input is the row itself, which a copy in float32 is not.
    kept = FULL * base.normed + number_bytes * (inputs + 7 * lora_r + 3 * base.inner + 2 * base.queries)
    return tokens * kept + 2 * seen * base.queries * number_bytes


def training_bytes(base: Architecture, batch: Batch, lora_r: int, number_bytes: int = HALF) -> float:
    """What a training step holds besides weights and optimizer: N policies of P tokens, each with G rows of L.

    With checkpointing the input of each block, and one block whole; without, all blocks whole. While gradients go back
    through a block there are two more tensors of the MLP's width. Then the logits of the answers in 16 bits, in float32
    and their gradient.
    """
    row = base.image_tokens + TAIL_TOKENS
    rows = batch.policies * batch.images
    tokens = batch.policies * batch.policy_tokens + rows * row
    seen = rows * (batch.policy_tokens + row) + batch.policies * batch.policy_tokens
    block = block_bytes(base, tokens, seen, lora_r, number_bytes)
    inputs = base.layers * tokens * base.width * number_bytes
    kept = inputs + block if batch.checkpointing else base.layers * block
    passing = 2 * tokens * base.inner * number_bytes
    logits = rows * ANSWER_TOKENS * base.vocabulary * (number_bytes + 2 * FULL)
    return kept + passing + logits


def judging_bytes(base: Architecture, batch: Batch, number_bytes: int = HALF) -> float:
    """What a forward pass of B images holds: keys and values of each row with a copy of its policy, the mask, logits.

    And the larger of the tower's work and a block's, of which each ends before the next begins.
    """
    row = base.image_tokens + TAIL_TOKENS
    cache = key_value_bytes(base, number_bytes) * (batch.policy_tokens + row) * batch.images
    mask = batch.images * row * (batch.policy_tokens + row) * number_bytes
    block = batch.images * row * (3 * base.inner + 4 * base.width) * number_bytes
    tower = batch.images * base.image_patches * (2 * base.tower_inner + 6 * base.tower_width) * number_bytes
    logits = batch.images * ANSWER_TOKENS * base.vocabulary * (number_bytes + FULL)
    return cache + mask + max(block, tower) + logits


def _feature_bytes(base: Architecture, batch: Batch, number_bytes: int) -> float:
    if batch.kept_images is None:
        return float(FEATURE_BYTES)
    return min(float(FEATURE_BYTES), batch.kept_images * base.image_tokens * base.width * number_bytes)


def _shard(found: Estimate, base: Architecture, zero: int, gpus: int, number_bytes: int) -> Estimate:
    """What one of N GPUs holds under a stage of ZeRO; with one GPU the stages hold what DDP holds."""
    if zero == 0:
        return found
    if zero >= 1:
        found = replace(found, optimizer=found.optimizer / gpus, features=0.0)  # not kept under DeepSpeed
    if zero >= 2:
        found = replace(found, gradients=found.gradients / gpus)
    if zero == 3:
        share = found.weights / base.parameters
        gathered = min(LIVE_PARAMETERS, base.parameters) * share * (1 - 1 / gpus)
        found = replace(
            found, weights=found.weights / gpus, adapters=found.adapters / gpus, gathered=gathered
        )
    return found
