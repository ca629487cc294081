"""Processors for stills: Pillow's pixels, no torchvision, and nothing lost of what was in the checkpoint."""

import json
import pickle
import shutil

import pytest
import torch
import transformers

from judge.errors import CheckpointError, MissingExtraError
from judge.vlm.processor import load_processor, without_video
from judge.vlm.random_bases import RANDOM_BASES


@pytest.mark.parametrize("family", RANDOM_BASES)
def test_every_family_has_its_own_processor_with_pixels_by_pillow(base_folder, family, noise_image):
    processor = load_processor(str(base_folder(family)))
    assert type(processor).__name__.endswith("Processor")
    assert isinstance(processor, transformers.ProcessorMixin)
    assert type(processor.image_processor).__name__.endswith("Pil")
    again = pickle.loads(pickle.dumps(processor))
    text = [f"{processor.image_token} what is it?"]
    inputs = [p(text=text, images=[noise_image(1)], return_tensors="pt") for p in (processor, again)]
    assert inputs[0].keys() == inputs[1].keys()
    assert all(torch.equal(inputs[0][key], inputs[1][key]) for key in inputs[0])


def test_settings_for_videos_are_kept_for_those_who_serve_them(base_folder, tmp_path):
    folder = shutil.copytree(base_folder("qwen2_vl"), tmp_path / "base")
    file = folder / "processor_config.json"
    video = {"video_processor_type": "Qwen2VLVideoProcessor", "fps": 3.0}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"video_processor": video}))
    load_processor(str(folder)).save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "processor_config.json").read_text())
    assert saved["video_processor"] == video
    assert saved["processor_class"] == "Qwen2VLProcessor"
    load_processor(str(tmp_path / "saved"))


def test_a_processor_without_videos_stays_as_it_is():
    assert without_video(transformers.LlavaProcessor) is transformers.LlavaProcessor


def test_where_torchvision_is_needed_it_is_said_how_to_get_it(base_folder, monkeypatch):
    def absent(*_, **__):
        raise ImportError("SomeImageProcessor requires the torchvision library")

    monkeypatch.setattr(transformers.AutoImageProcessor, "from_pretrained", absent)
    monkeypatch.setattr("judge.vlm.processor.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="pip install torchvision"):
        load_processor(str(base_folder()))


def test_a_model_without_images_is_named(tmp_path):
    transformers.LlamaConfig(hidden_size=16, num_attention_heads=2).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="is a llama and names no processor"):
        load_processor(str(tmp_path))


@pytest.mark.parametrize("named", ["Qwen2VLImageProcessor", "Qwen2VLImageProcessorFast"])
def test_checkpoints_from_before_processors_had_a_file_of_their_own_load(
    tiny_vlm, tmp_path, named, noise_image
):
    """As on the hub: settings in preprocessor_config.json, the chat in chat_template.json."""
    _, processor = tiny_vlm("qwen2_vl")
    processor.tokenizer.save_pretrained(tmp_path)
    settings = json.loads(processor.image_processor.to_json_string())
    settings |= {"image_processor_type": named, "processor_class": "Qwen2VLProcessor"}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": processor.chat_template}))
    transformers.Qwen2VLConfig().save_pretrained(tmp_path)
    found = load_processor(str(tmp_path))
    assert type(found.image_processor).__name__ == "Qwen2VLImageProcessorPil"
    assert found.chat_template == processor.chat_template
    assert found.video_processor["merge_size"] == 2
    images = [noise_image(1, (40, 24))]
    pixels = [p.image_processor(images, return_tensors="pt").pixel_values for p in (found, processor)]
    assert torch.equal(*pixels)
