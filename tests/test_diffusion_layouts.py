"""Layouts: what is known of a pipeline, and why others are refused."""

import diffusers
import pytest
import torch

from judge.diffusion.layouts import LAYOUTS, attention_layers, layout_of
from judge.errors import PipelineError
from judge.standins.random_pipelines import PIPELINES, random_pipeline

torch.set_num_threads(1)


def empty(name):
    """A pipeline of a class without any part."""
    kind = getattr(diffusers, name)
    return kind.__new__(kind)


@pytest.mark.parametrize("name", PIPELINES)
def test_each_random_pipeline_is_of_the_class_and_has_a_layout(name):
    pipeline = random_pipeline(name)
    layout = layout_of(pipeline)
    assert type(pipeline) is getattr(diffusers, layout.pipeline)
    assert set(layout.inputs) <= set(pipeline._callback_tensor_inputs)
    assert layout.attention == ("cross" if layout.denoiser == "unet" else "joint")
    for layer in attention_layers(pipeline).values():
        assert hasattr(layer, "to_k" if layout.attention == "cross" else "add_k_proj")


def test_every_class_of_the_table_has_a_callback_can_be_interrupted_and_offers_the_inputs():
    for name, layout in LAYOUTS.items():
        kind = getattr(diffusers, name)
        assert isinstance(kind.interrupt, property)
        assert set(layout.inputs) <= set(kind._callback_tensor_inputs)


def test_layers_are_in_order_of_depth_and_self_attention_is_none_of_them():
    unet = list(attention_layers(random_pipeline("sdxl")))
    places = [name.partition(".")[0] for name in unet]
    assert places == ["down_blocks"] * 2 + ["mid_block"] * 2 + ["up_blocks"] * 4
    # `attn2` of SD3's first block is self-attention of the image; single blocks of Flux read both as one sequence.
    sd3 = random_pipeline("sd3")
    assert hasattr(sd3.transformer.transformer_blocks[0], "attn2")
    assert list(attention_layers(sd3)) == [f"transformer_blocks.{number}.attn" for number in range(3)]
    assert list(attention_layers(random_pipeline("flux"))) == [
        f"transformer_blocks.{number}.attn" for number in range(2)
    ]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("PixArtAlphaPipeline", "takes no `callback_on_step_end`"),
        ("PixArtSigmaPipeline", "takes no `callback_on_step_end`"),
        ("IFPipeline", "takes no `callback_on_step_end`"),
        ("StableDiffusionUpscalePipeline", "takes no `callback_on_step_end`"),
        ("LongCatImagePipeline", "takes no `callback_on_step_end`"),
        ("LatentConsistencyModelPipeline", "cannot be interrupted"),
        ("Lumina2Pipeline", "cannot be interrupted"),
        ("AuraFlowPipeline", "cannot be interrupted"),
        ("ModularPipeline", "is a modular pipeline"),
        ("StableDiffusionXLModularPipeline", "is a modular pipeline"),
        ("StableDiffusionPAGPipeline", "Nothing is known of the layout of StableDiffusionPAGPipeline"),
        ("HunyuanDiTPipeline", "Nothing is known of the layout of HunyuanDiTPipeline"),
    ],
)
def test_pipelines_that_cannot_be_watched_or_stopped_are_refused_with_the_reason(name, why):
    with pytest.raises(PipelineError, match=why):
        layout_of(empty(name))


def test_other_things_are_refused():
    for thing in (None, "a path", torch.nn.Linear(1, 1)):
        with pytest.raises(PipelineError, match="takes no `callback_on_step_end`"):
            layout_of(thing)
    with pytest.raises(PipelineError, match="no unet"):
        layout_of(empty("StableDiffusionPipeline"))


def test_a_subclass_is_known_unless_it_has_a_loop_of_its_own():
    class Renamed(diffusers.StableDiffusionPipeline):
        pass

    class OwnLoop(diffusers.StableDiffusionPipeline):
        def __call__(self, prompt, callback_on_step_end=None):
            return prompt

    parts = random_pipeline("sd1").components
    assert layout_of(Renamed(**parts, requires_safety_checker=False)).pipeline == "StableDiffusionPipeline"
    with pytest.raises(
        PipelineError, match="OwnLoop is a StableDiffusionPipeline with a denoising loop of its own"
    ):
        layout_of(OwnLoop(**parts, requires_safety_checker=False))


def test_a_class_of_the_same_name_from_elsewhere_is_not_known():
    class StableDiffusionPipeline:
        unet = torch.nn.Linear(1, 1)
        interrupt = False

        def __call__(self, callback_on_step_end=None):
            return self.unet

    with pytest.raises(PipelineError, match="Nothing is known"):
        layout_of(StableDiffusionPipeline())


def test_an_unknown_kind_of_attention_is_refused():
    pipeline = random_pipeline("sd1")
    pipeline.unet = diffusers.UNet2DModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=(4, 8),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        norm_num_groups=2,
    )
    with pytest.raises(PipelineError, match="is a UNet2DModel without `attn2` with `to_k`"):
        layout_of(pipeline)


def test_where_a_picture_cannot_be_stopped_alone_the_layout_says_why():
    assert layout_of(random_pipeline("sd1")).whole_batch_only is None
    for name in ("flux", "qwen-image"):
        assert "does not hand to the callback" in layout_of(random_pipeline(name)).whole_batch_only
    pipeline = random_pipeline("sd1")
    pipeline.unet.register_to_config(encoder_hid_dim_type="ip_image_proj")
    assert "IP-Adapter" in layout_of(pipeline).whole_batch_only
    control = diffusers.ControlNetModel.from_unet(
        random_pipeline("sd1").unet, conditioning_embedding_out_channels=(4, 4)
    )
    parts = {**random_pipeline("sd1").components, "controlnet": control}
    with_control = diffusers.StableDiffusionControlNetPipeline(**parts, requires_safety_checker=False)
    assert "control image" in layout_of(with_control).whole_batch_only
