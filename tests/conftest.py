"""Shared set-up: offline, one thread, few and repeatable hypothesis examples, scripts in processes of their own."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["DS_ACCELERATOR"] = "cpu"  # read when DeepSpeed is imported
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections import Counter

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "arbiter",
    max_examples=40,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("arbiter")


def pytest_collection_modifyitems(items):
    """Files with most slow tests first: two workers that take a file at a time then end together."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


@pytest.fixture(autouse=True)
def _few_threads() -> None:
    """One thread, or OMP_NUM_THREADS: tiny models on several spend their time waiting."""
    import sys

    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        torch.manual_seed(0)


CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}{% endif %}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ 'IMAGE\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] + ' ' }}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
GRIDS = [[16, 32], [32, 16], [32, 32]]


def tiny_tokenizer(image_token):
    """Byte-level BPE of 420 entries, trained on the templates, so that answers are several tokens each."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    from prompts import load_taxonomy, render

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<pad>", "<s>", "</s>", image_token, "<vision>", "</vision>", "<video>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    chats = [
        render(load_taxonomy("digits"), "a photo", template=name) for name in ("policy_first", "perspective")
    ]
    texts = [
        part.get("text", "") for chat in chats for message in chat.messages for part in message["content"]
    ]
    core.train_from_iterator(texts + [answer.text for chat in chats for answer in chat.answers], trainer)
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens={"image_token": image_token},
    )


def build_tiny(family, *, width=32, kv_heads=2, context=2048, seed=0):
    """A random model of the family with two layers, and a processor for it."""
    import torch
    import transformers as t

    from judge.vlm.processor import without_video

    torch.manual_seed(seed)
    qwen = family.startswith("qwen")
    image_token = "<|image_pad|>" if qwen else "<image>"
    tokenizer = tiny_tokenizer(image_token)
    # Wide initial weights: scores of random models that hardly differ would hide mistakes.
    text = {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": kv_heads,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": context,
        "initializer_range": 0.25,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    vision = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 8,
        "initializer_range": 0.25,
        "initializer_factor": 10.0,
    }
    chat_template = CHAT_TEMPLATE.replace("IMAGE", image_token)
    crop = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}
    llava = {
        "patch_size": 8,
        "vision_feature_select_strategy": "default",
        "num_additional_image_tokens": 1,
        "chat_template": chat_template,
    }
    if family == "llava":
        config = t.LlavaConfig(
            vision_config=t.CLIPVisionConfig(**vision),
            text_config=t.LlamaConfig(**text),
            image_token_index=3,
            image_seq_length=4,
        )
        model = t.LlavaForConditionalGeneration(config)
        return model, t.LlavaProcessor(t.CLIPImageProcessorPil(**crop), tokenizer, **llava)
    if family == "llava_next":
        config = t.LlavaNextConfig(
            vision_config=t.CLIPVisionConfig(**vision),
            text_config=t.LlamaConfig(**text),
            image_token_index=3,
            image_grid_pinpoints=GRIDS,
            image_seq_length=4,
        )
        tiles = t.LlavaNextImageProcessorPil(**crop, image_grid_pinpoints=GRIDS)
        return t.LlavaNextForConditionalGeneration(config), t.LlavaNextProcessor(tiles, tokenizer, **llava)
    if family == "llava_onevision":
        siglip = {key: value for key, value in vision.items() if not key.startswith("initializer")}
        config = t.LlavaOnevisionConfig(
            vision_config=t.SiglipVisionConfig(**siglip, vision_use_head=False),
            text_config=t.Qwen2Config(**text),
            image_token_index=3,
            video_token_index=6,
            vision_feature_layer=-1,
            vision_feature_select_strategy="full",
            image_grid_pinpoints=GRIDS,
        )
        model = t.LlavaOnevisionForConditionalGeneration(config)
        tiles = t.LlavaOnevisionImageProcessorPil(
            size={"height": 16, "width": 16}, image_grid_pinpoints=GRIDS
        )
        processor = without_video(t.LlavaOnevisionProcessor)(
            tiles,
            tokenizer,
            num_image_tokens=4,
            vision_feature_select_strategy="full",
            chat_template=chat_template,
        )
        return model, processor
    text["rope_parameters"] = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    special = {
        "image_token_id": 3,
        "vision_start_token_id": 4,
        "vision_end_token_id": 5,
        "video_token_id": 6,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    tower = {"depth": 2, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2}
    if family == "qwen2_vl":
        tower |= {"embed_dim": 32, "hidden_size": width, "mlp_ratio": 2}
        config = t.Qwen2VLConfig(vision_config=tower, text_config=text, **special)
        model = t.Qwen2VLForConditionalGeneration(config)
    elif family == "qwen3_vl":
        tower |= {"hidden_size": 32, "out_hidden_size": width, "intermediate_size": 64}
        tower |= {"num_position_embeddings": 16, "deepstack_visual_indexes": [0]}
        text["head_dim"] = width // 4
        text["rope_parameters"]["mrope_interleaved"] = True
        config = t.Qwen3VLConfig(vision_config=tower, text_config=text, **special)
        model = t.Qwen3VLForConditionalGeneration(config)
    else:
        tower |= {"hidden_size": 32, "out_hidden_size": width, "intermediate_size": 64, "window_size": 16}
        config = t.Qwen2_5_VLConfig(
            vision_config=tower | {"fullatt_block_indexes": [1]}, text_config=text, **special
        )
        model = t.Qwen2_5_VLForConditionalGeneration(config)
    grid = t.Qwen2VLImageProcessorPil(patch_size=4, merge_size=2, min_pixels=64, max_pixels=1024)
    kind = t.Qwen3VLProcessor if family == "qwen3_vl" else t.Qwen2VLProcessor
    return model, without_video(kind)(grid, tokenizer, chat_template=chat_template)


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory):
    """`base_folder(family="llava", **options)` -> a folder in the hub's layout, saved once a session."""
    saved = {}

    def make(family="llava", **options):
        key = (family, *sorted(options.items()))
        if key not in saved:
            model, processor = build_tiny(family, **options)
            saved[key] = tmp_path_factory.mktemp(family)
            model.save_pretrained(saved[key])
            processor.save_pretrained(saved[key])
        return saved[key]

    return make


@pytest.fixture(scope="session")
def tiny_vlm(base_folder):
    """`tiny_vlm(family="llava", **options)` -> fresh model and processor, by `load_base`."""
    from judge.vlm.load import BaseOptions, load_base

    def make(family="llava", **options):
        return load_base(BaseOptions(model_name_or_path=str(base_folder(family, **options))))

    return make


def caption_tokenizer(special, template):
    """Byte-level BPE over a few captions; `special` are (unknown, start, end, pad), `template` places them."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    unknown, start, end, pad = special
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=list(dict.fromkeys((pad, start, unknown, end))),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(["a photo of two and three", "handwritten seven on a wall"] * 3, trainer)
    core.post_processor = processors.TemplateProcessing(
        single=template,
        special_tokens=[(token, core.token_to_id(token)) for token in dict.fromkeys((start, end))],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token=pad, bos_token=start, eos_token=end, unk_token=unknown
    )


TOWER = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 8,
}


def save_tiny_encoder(folder, family, **vision):
    """A random encoder of 2 layers in the hub's layout: contexts of 12 tokens, images of 16 x 16, patches of 8 x 8.

    As in OpenAI's CLIP, and in SigLIP, texts are padded with the token that ends them.
    """
    import torch
    import transformers as t

    torch.manual_seed(0)
    if family == "clip":
        start, end = "<|startoftext|>", "<|endoftext|>"
        tokenizer = caption_tokenizer((end, start, end, end), f"{start} $A {end}")
        images = t.CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    else:
        tokenizer = caption_tokenizer(("<unk>", "<s>", "</s>", "</s>"), "$A </s>")
        images = t.SiglipImageProcessorPil(size={"height": 16, "width": 16})
    text = {key: TOWER[key] for key in list(TOWER)[:4]} | {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 12,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if family == "clip":
        config = t.CLIPConfig(vision_config=TOWER | vision, text_config=text, projection_dim=24)
        model = t.CLIPModel(config)
    else:
        model = t.SiglipModel(t.SiglipConfig(vision_config=TOWER | vision, text_config=text))
    with torch.no_grad():  # far from their initial values, so that no wrong path gives nearly the same
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    images.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_encoder_folder(tmp_path_factory):
    """`tiny_encoder_folder(family, **vision)` -> a folder with a random CLIP or SigLIP, saved once a session."""
    saved = {}

    def make(family, **vision):
        key = (family, *sorted(vision.items()))
        if key not in saved:
            saved[key] = save_tiny_encoder(tmp_path_factory.mktemp(family), family, **vision)
        return saved[key]

    return make


@pytest.fixture(scope="session")
def tiny_clip_folder(tiny_encoder_folder):
    """A random CLIP: joint space 24 wide."""
    return tiny_encoder_folder("clip")


@pytest.fixture(scope="session")
def tiny_siglip_folder(tiny_encoder_folder):
    """A random SigLIP (a SigLIP 2 of fixed resolution is the same model): joint space 32 wide."""
    return tiny_encoder_folder("siglip")


@pytest.fixture(scope="session")
def noise_image():
    """`noise_image(seed, size=(20, 16))` -> a random RGB picture, (width, height)."""
    import numpy as np
    from PIL import Image

    def make(seed, size=(20, 16)):
        noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        return Image.fromarray(noise)

    return make


RECIPE_OPTIONS = {
    "dataset": "digits",
    "taxonomy": "digits",
    "held_out": ["four", "eight"],
    "flip": {"group_size": 4, "max_categories": 2, "custom": 0.0},
    "limit": 200,
    "groups_per_epoch": 60,
    "lora_r": 4,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "linear",
    "warmup_steps": 0,
    "save_total_limit": None,
    "per_device_train_batch_size": 20,  # three steps an epoch, so six steps cross into the second
    "max_steps": 6,
    "eval_rows": 20,
    "test_rows": 20,
    "judge_batch_size": 32,
    "logging_steps": 1,
    "save_steps": 2,
    "eval_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
}


@pytest.fixture(scope="session")
def recipe_config(base_folder, tmp_path_factory):
    """A YAML for recipes/lora_llava.py: six steps on a random tiny base and a few digits."""
    import yaml

    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(yaml.safe_dump(RECIPE_OPTIONS | {"model_name_or_path": str(base_folder())}))
    return path


class Script:
    """A script in a process group of its own, forked where everything heavy is imported already."""

    def __init__(self, command, environment):
        import multiprocessing
        import runpy
        import tempfile
        from pathlib import Path

        root, self.folder = Path(__file__).resolve().parent.parent, tempfile.TemporaryDirectory()
        self.output, self.errors = (Path(self.folder.name) / name for name in ("output", "errors"))
        given = {
            "FOLDER": str(root),
            "ENVIRONMENT": environment,
            "OUTPUT": str(self.output),
            "ERRORS": str(self.errors),
            "COMMAND": [str(root / command[0]), *map(str, command[1:])],
        }
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(
            ["torch", "transformers", "trl", "peft", "sklearn.ensemble", "matplotlib.figure", "deepspeed"]
        )
        self.process = context.Process(
            target=runpy.run_path, args=(str(root / "tests" / "data" / "forked_script.py"), given)
        )
        self.process.start()

    def wait(self):
        """Exit code, once it has ended; negative, the signal that ended it. The test's own timeout bounds it."""
        self.process.join()
        return self.process.exitcode

    @property
    def stdout(self):
        return self.output.read_text()

    @property
    def stderr(self):
        return self.errors.read_text()

    def kill(self):
        """End it and what it started."""
        import signal
        from contextlib import suppress

        if self.process.is_alive():
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.kill()
            self.process.join()
        self.folder.cleanup()


@pytest.fixture(scope="session")
def start_script():
    """`start_script(path, *options, **environment)` -> a `Script` that runs a file of the project as `python` does.

    The imports of a recipe take longer than the few steps of its test. A server process imports them once, and each
    script is a fork of it: a fresh process otherwise, with its own arguments, environment, output and exit code.
    """
    started = []

    def start(*command, **environment):
        started.append(Script(command, environment))
        return started[-1]

    yield start
    for script in started:
        script.kill()


@pytest.fixture(scope="session")
def accelerate(start_script):
    """`accelerate(profile, recipe, *options)` starts a recipe under `accelerate launch`.

    torchrun's own settings let it fork its processes and run the recipe in them.
    """
    from pathlib import Path

    from accelerate.commands import accelerate_cli

    root = Path(__file__).resolve().parent.parent

    def start(profile, recipe, *options):
        config = root / "recipes" / "configs" / "accelerate" / f"{profile}.yaml"
        command = ["launch", "--config_file", config, "--main_process_port", "0", root / recipe, *options]
        return start_script(accelerate_cli.__file__, *command, PET_RUN_PATH="1", PET_START_METHOD="fork")

    return start


@pytest.fixture(scope="session")
def launch(accelerate, recipe_config):
    """`launch(out, *options, profile="single")` runs recipes/lora_llava.py; gives the ended `Script`."""

    def run(out, *options, profile="single"):
        options = ["--config", recipe_config, "--output_dir", out, *options]
        script = accelerate(profile, "recipes/lora_llava.py", *options)
        if script.wait():
            pytest.fail((script.stdout + script.stderr)[-4000:])
        return script

    return run


SHORT_RUN = {"limit": 60, "groups_per_epoch": 8, "per_device_train_batch_size": 4, "max_steps": 3}
SHORT_RUN |= {"eval_rows": 4, "test_rows": 8, "save_strategy": "no", "use_cpu": True, "held_out": ["four"]}


@pytest.fixture
def train_here(recipe_config, tmp_path, monkeypatch):
    """`train_here(base, name="run", **options)` runs three steps of recipes/lora_llava.py in this process.

    Gives back the run's `path`, and by name what it `asked`: (evaluation, judged rows).
    """
    import importlib.util
    import sys
    from pathlib import Path
    from types import SimpleNamespace

    import yaml

    # Neither depends on the base, and they take longer than all the rest.
    monkeypatch.setattr("eval.shortcut.check.check_rows", lambda *_, **__: SimpleNamespace(auc=0.5))
    monkeypatch.setattr("eval.reports.judge_page.write_report", lambda *_, **__: None)

    def run(base, name="run", **options):
        config, path = tmp_path / f"{name}.yaml", tmp_path / name
        given = yaml.safe_load(recipe_config.read_text()) | SHORT_RUN | {"model_name_or_path": str(base)}
        config.write_text(yaml.safe_dump(given | options))
        arguments = ["--config", str(config), "--output_dir", str(path)]
        monkeypatch.setattr(sys, "argv", ["lora_llava.py", *arguments])
        file = Path(__file__).resolve().parent.parent / "recipes" / "lora_llava.py"
        spec = importlib.util.spec_from_file_location("lora_llava", file)
        recipe = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "lora_llava", recipe)  # its arguments are pickled beside the adapter
        spec.loader.exec_module(recipe)
        predict, asked = recipe.predict_distributed, {}

        def recorded(judge, evaluation, name=""):
            asked[name] = (evaluation, predict(judge, evaluation, name))
            return asked[name][1]

        recipe.predict_distributed = recorded
        recipe.main()
        return SimpleNamespace(path=path, asked=asked)

    return run


@pytest.fixture(scope="session")
def single_run(launch, tmp_path_factory):
    """The folder of an uninterrupted run in one process."""
    out = tmp_path_factory.mktemp("runs") / "single"
    launch(out)
    return out


@pytest.fixture(scope="session")
def step_losses():
    """`step_losses(run)` -> loss by step, unrounded."""
    import json

    def read(run):
        lines = [json.loads(line) for line in (run / "rows" / "history.jsonl").read_text().splitlines()]
        return {line["step"]: line["loss"] for line in lines if "loss" in line}

    return read


SHAPES = {
    "ring": ("Ring", "a round outline, a circle drawn with a line; a hoop"),
    "bars": ("Bars, upright", "upright bars side by side; a fence"),
    "cross": ("Painter's cross", "two lines that cross; an X"),
    "corner": ("Corner", "one filled corner of the picture"),
}
"""Categories of the pictures in `shapes`: key -> name and definition; names that command lines have to quote."""


def draw_shapes(keys, rng):
    """A picture of 32 x 32 with the shapes in `keys`, each in ink and at a place of its own, on a ground with noise."""
    import numpy as np
    from PIL import Image, ImageDraw

    ground = rng.integers(150, 250, 3) + rng.integers(-12, 6, (32, 32, 3))
    picture = Image.fromarray(ground.astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    for key in keys:
        ink = tuple(int(value) for value in rng.integers(0, 90, 3))
        x, y, size = (int(value) for value in (*rng.integers(0, 16, 2), rng.integers(10, 16)))
        if key == "ring":
            draw.ellipse((x, y, x + size, y + size), outline=ink, width=2)
        elif key == "bars":
            for place in range(x, x + size, 5):
                draw.rectangle((place, y, place + 1, y + size), fill=ink)
        elif key == "cross":
            draw.line((x, y, x + size, y + size), fill=ink, width=2)
            draw.line((x, y + size, x + size, y), fill=ink, width=2)
        else:
            draw.polygon(((0, 0), (size, 0), (0, size)), fill=ink)
    return picture


@pytest.fixture(scope="session")
def shapes(tmp_path_factory):
    """Data that is not digits, as a user would bring it: a folder of pictures with a CSV, and a taxonomy file.

    `dataset` (`folder:PATH`) and `taxonomy` (a path) are what recipes take; both paths hold spaces. A third of the
    pictures is harmless, every third prompt is missing, and no prompt says what its picture shows.
    """
    import csv
    from types import SimpleNamespace

    import numpy as np
    import yaml

    home = tmp_path_factory.mktemp("shapes")
    folder = home / "my pictures"
    (folder / "files").mkdir(parents=True)
    rng, keys = np.random.default_rng(3), list(SHAPES)
    lines = []
    for split, count in (("train", 72), ("validation", 72), ("test", 48)):
        for number in range(count):
            shown = [str(key) for key in rng.choice(keys, size=number % 3, replace=False)]
            path = folder / "files" / f"{split} {number}.png"
            draw_shapes(shown, rng).save(path)
            line = {
                "path": f"files/{path.name}",
                "prompt": ("", "a picture", f"drawing number {number}, in colour")[number // 3 % 3],
                "label": "unsafe" if shown else "safe",
                "categories": ";".join(shown),
                "split": split,
            }
            lines.append(line)
    with (folder / "table.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, lines[0].keys())
        table.writeheader()
        table.writerows(lines)
    taxonomy = home / "my taxonomy.yaml"
    categories = [{"name": name, "key": key, "definition": text} for key, (name, text) in SHAPES.items()]
    about = {"name": "shapes of ours", "version": 1, "categories": categories}
    taxonomy.write_text(yaml.safe_dump(about, sort_keys=False))
    return SimpleNamespace(dataset=f"folder:{folder}", taxonomy=str(taxonomy), folder=folder)


@pytest.fixture(scope="session")
def run_recipe():
    """`run_recipe(name, *words, rows=8, ...)` runs a recipe in this process and gives back what it prints."""
    import importlib.util
    import io
    import sys
    from contextlib import redirect_stdout
    from pathlib import Path

    recipes = Path(__file__).resolve().parent.parent / "recipes"

    def run(name, *given, **options):
        words = [f"{name}.py", *map(str, given)]
        for option, value in options.items():
            words += [f"--{option}", *map(str, value if isinstance(value, list) else [value])]
        printed = io.StringIO()
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed):
            patch.setattr(sys, "argv", words)
            spec = importlib.util.spec_from_file_location(f"recipe_{name}", recipes / words[0])
            module = importlib.util.module_from_spec(spec)
            patch.setitem(sys.modules, spec.name, module)  # checkpoints pickle the class of its arguments
            spec.loader.exec_module(module)
            module.main()
        return printed.getvalue()

    return run


TRAINER_OPTIONS = {
    "max_steps": 2,
    "per_device_train_batch_size": 2,
    "eval_strategy": "no",
    "save_strategy": "no",
    "logging_steps": 1,
    "use_cpu": True,
    "disable_tqdm": True,
}


@pytest.fixture(scope="session")
def shapes_judge(shapes, run_recipe, base_folder, tmp_path_factory):
    """A judge of `shapes` after two steps: `run`, its folder, and `printed`."""
    from types import SimpleNamespace

    home = tmp_path_factory.mktemp("judge of shapes")
    (home / "small.yaml").write_text("flip: {group_size: 4, max_categories: 2}\n")
    printed = run_recipe(
        "lora_llava",
        config=home / "small.yaml",
        model_name_or_path=base_folder(),
        dataset=shapes.dataset,
        taxonomy=shapes.taxonomy,
        held_out="corner",
        output_dir=home / "a judge",
        groups_per_epoch=50,
        test_rows=16,
        judge_batch_size=32,
        **TRAINER_OPTIONS,
    )
    return SimpleNamespace(run=home / "a judge", printed=printed)


@pytest.fixture(scope="session")
def shapes_student(shapes, shapes_judge, run_recipe, tmp_path_factory):
    """A student of `shapes_judge` after two steps: `run`, its folder, and `printed`."""
    from types import SimpleNamespace

    home = tmp_path_factory.mktemp("student of shapes")
    printed = run_recipe(
        "distill_cross_attention",
        teacher=shapes_judge.run,
        dataset=shapes.dataset,
        taxonomy=shapes.taxonomy,
        held_out="corner",
        output_dir=home / "a student",
        cache=home / "features",
        inner=32,
        heads=2,
        rank=8,
        lessons=6,
        eval_rows=16,
        test_rows=16,
        **TRAINER_OPTIONS,
    )
    return SimpleNamespace(run=home / "a student", printed=printed)
