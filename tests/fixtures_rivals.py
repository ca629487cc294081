"""Random weights of other people's classifiers, in the files that their authors publish."""

import importlib.util
import json
import pickle
from pathlib import Path

import pytest
from fixtures_models import TOWER

SCRIPT = Path(__file__).parents[1] / "scripts" / "convert_rival.py"
WIDTH = 24
"""Of the joint space of the tiny encoders."""
OLD_PREPROCESSOR = {
    "crop_size": 16,
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor",
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "size": 16,
}
"""preprocessor_config.json of the safety checker, which is older than transformers' present format; but for its sizes."""


@pytest.fixture(scope="session")
def convert_rival():
    """The module scripts/convert_rival.py."""
    spec = importlib.util.spec_from_file_location("convert_rival", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def rival_images():
    """24 noisy pictures of the tiny encoder's own size, each of another colour."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    colours = rng.uniform(0, 200, (24, 1, 1, 3))
    pixels = (colours + rng.uniform(0, 55, (24, 16, 16, 3))).astype(np.uint8)
    return [Image.fromarray(one) for one in pixels]


@pytest.fixture(scope="session")
def rival_embeddings(tiny_clip_folder, rival_images):
    """(24, D) pooled embeddings in float64, by transformers alone."""
    import torch
    from transformers import AutoImageProcessor, CLIPModel

    model = CLIPModel.from_pretrained(tiny_clip_folder).double().eval()
    values = AutoImageProcessor.from_pretrained(tiny_clip_folder)(images=rival_images, return_tensors="pt")
    with torch.no_grad():
        pooled = model.vision_model(values["pixel_values"].double()).pooler_output
        return model.visual_projection(pooled).numpy()


def unit(vectors):
    return vectors / (vectors**2).sum(-1, keepdims=True) ** 0.5


def random_prompts(embeddings):
    """(2, D), about as close to every image."""
    import numpy as np

    directions = unit(embeddings)
    side = 0.02 * np.linalg.svd(directions - directions.mean(0))[2][0]
    return np.stack([directions.mean(0) - side, directions.mean(0) + side]).astype(np.float16)


def random_head(seed, embeddings):
    """One of MultiHeaded's, with a batch norm that has seen data; few images are over its threshold."""
    import torch
    from torch import nn

    torch.manual_seed(seed)
    head = nn.Sequential(
        nn.Linear(WIDTH, 12), nn.ReLU(), nn.Dropout(0.5), nn.BatchNorm1d(12), nn.Linear(12, 1)
    ).eval()
    head[3].running_mean.normal_()
    head[3].running_var.uniform_(0.5, 2)
    head[3].weight.data.normal_()
    head[3].bias.data.normal_()
    with torch.no_grad():
        head[4].weight *= 10
        head[4].bias -= head(torch.tensor(embeddings).float()).quantile(0.8)
    return head


def random_detector(embeddings):
    """Weights of NSFW_Detector, by the authors' names; about half of the images are over its threshold."""
    import torch

    torch.manual_seed(7)
    directions = torch.tensor(unit(embeddings)).float()
    tensors = {"norm.mean": directions.mean(0), "norm.variance": directions.var(0)}
    values = (directions - tensors["norm.mean"]) / tensors["norm.variance"].sqrt()
    for number, (inner, outer) in enumerate(((WIDTH, 8), (8, 16), (16, 12), (12, 1)), start=1):
        tensors[f"linear_{number}.weight"] = torch.randn(outer, inner) / inner**0.5
        tensors[f"linear_{number}.bias"] = torch.randn(outer) * 0.1
        values = values @ tensors[f"linear_{number}.weight"].T + tensors[f"linear_{number}.bias"]
        values = values.relu() if number < 4 else values
    tensors["linear_4.bias"] -= values.median() - 0.01
    return tensors


def random_checker(folder, clip, embeddings):
    """A folder like that of the safety checker: 17 + 3 concepts on a tiny tower, weights named as years ago.

    Most images are far from most concepts, as there.
    """
    import numpy as np
    import torch
    from safetensors.torch import load_file

    config = json.loads((clip / "config.json").read_text())
    tower = load_file(clip / "model.safetensors")
    torch.manual_seed(3)
    tensors = {
        f"vision_model.{name}": tensor for name, tensor in tower.items() if name.startswith("vision_model.")
    }
    tensors["vision_model.vision_model.embeddings.position_ids"] = torch.arange(5)[None]
    tensors["visual_projection.weight"] = tower["visual_projection.weight"]
    for name, count, quantile in (("concept_embeds", 17, 0.97), ("special_care_embeds", 3, 0.8)):
        concepts = torch.randn(count, WIDTH)
        cosines = unit(embeddings) @ unit(concepts.double().numpy()).T
        tensors[name] = concepts
        tensors[f"{name}_weights"] = torch.tensor(np.quantile(cosines, quantile, axis=0)).float()
    folder.mkdir()
    torch.save(tensors, folder / "pytorch_model.bin")
    sizes = {key: config["vision_config"][key] for key in TOWER}
    config |= {
        "architectures": ["StableDiffusionSafetyChecker"],
        "vision_config_dict": sizes,  # entries of older versions of transformers
        "torch_dtype": "float32",
        "transformers_version": None,
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps(OLD_PREPROCESSOR))
    return folder


@pytest.fixture(scope="session")
def published(tmp_path_factory, tiny_clip_folder, rival_embeddings):
    """A folder with `prompts.p`, `heads/*.pt`, `nsfw.pth` and `checker/`, as their authors publish them."""
    import torch

    folder = tmp_path_factory.mktemp("published")
    (folder / "prompts.p").write_bytes(pickle.dumps(random_prompts(rival_embeddings), protocol=2))
    (folder / "heads").mkdir()
    for seed, name in enumerate(("sexual", "violent", "disturbing", "hateful", "political")):
        torch.save(random_head(seed, rival_embeddings).state_dict(), folder / "heads" / f"{name}.pt")
    torch.save(random_detector(rival_embeddings), folder / "nsfw.pth")
    random_checker(folder / "checker", tiny_clip_folder, rival_embeddings)
    return folder


@pytest.fixture(scope="session")
def converted(published, convert_rival):
    """Rival -> its safetensors file, or the folder of sd_filter."""
    made = {name: published / f"{name}.safetensors" for name in ("q16", "multiheaded", "nsfw_detector")}
    convert_rival.convert("q16", published / "prompts.p", made["q16"])
    convert_rival.convert("multiheaded", published / "heads", made["multiheaded"])
    convert_rival.convert("nsfw_detector", published / "nsfw.pth", made["nsfw_detector"])
    checker = published / "checker"
    convert_rival.convert("sd_filter", checker / "pytorch_model.bin", checker / "model.safetensors")
    return made | {"sd_filter": checker}
