"""Diffusion pipelines of unchanged classes of diffusers, a few hundred kilobytes each, with random weights.

What they draw is noise. They have the modules, names, guidance and attention of the real ones, for tests and timings
in which only those matter. Text encoders are random too; the tokenizer is that of `tiny-clip`.
"""

from collections.abc import Callable
from typing import Any

from .shipped import checkpoint_path

WORDS = 24
"""Tokens of a prompt, the start and the end among them."""
SIZE = 32
"""Pixels of a side of the pictures."""
_LANGUAGE_TEXTS = (
    "Describe the image by detailing the color, shape, size, texture, quantity, text, spatial relationships",
    "of the objects and background: a picture of a dog, a digit, a sign, a street at night",
)


def random_pipeline(name: str, seed: int = 0) -> Any:
    """Build a pipeline on the CPU in float32, in evaluation mode, without a progress bar.

    Args:
        name: one of `PIPELINES`.
        seed: of the weights.

    Raises:
        ValueError: no such pipeline.
    """
    import torch

    if name not in PIPELINES:
        raise ValueError(f"No random pipeline {name!r}; known: {', '.join(PIPELINES)}.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline = PIPELINES[name]()
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _sd1(**scheduler: Any) -> Any:
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    return StableDiffusionPipeline(
        vae=_autoencoder(),
        text_encoder=_clip(32),
        tokenizer=_clip_tokenizer(),
        unet=_unet(cross_attention_dim=32),
        scheduler=DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
            **scheduler,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _sd2() -> Any:
    return _sd1(prediction_type="v_prediction")


def _sdxl() -> Any:
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    return StableDiffusionXLPipeline(
        vae=_autoencoder(),
        text_encoder=_clip(32),
        text_encoder_2=_clip(32, projected=True),
        tokenizer=_clip_tokenizer(),
        tokenizer_2=_clip_tokenizer(),
        unet=_unet(
            cross_attention_dim=64,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + 32,
            transformer_layers_per_block=(1, 2),
            use_linear_projection=True,
        ),
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1
        ),
        add_watermarker=False,
    )


def _sd3() -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    transformer = SD3Transformer2DModel(
        sample_size=SIZE // 2,
        patch_size=2,
        in_channels=4,
        num_layers=3,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=64,
        caption_projection_dim=32,
        pooled_projection_dim=64,
        out_channels=4,
        pos_embed_max_size=SIZE,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=_autoencoder(shift_factor=0.06),
        text_encoder=_clip(32, projected=True),
        tokenizer=_clip_tokenizer(),
        text_encoder_2=_clip(32, projected=True),
        tokenizer_2=_clip_tokenizer(),
        text_encoder_3=_t5(64),
        tokenizer_3=_language_tokenizer(),
    )


def _flux() -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=2,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=64,
        pooled_projection_dim=32,
        guidance_embeds=True,
        axes_dims_rope=(4, 4, 8),
    )
    return FluxPipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=_autoencoder(shift_factor=0.1),
        text_encoder=_clip(32),
        tokenizer=_clip_tokenizer(),
        text_encoder_2=_t5(64),
        tokenizer_2=_language_tokenizer(),
    )


def _qwen_image() -> Any:
    from diffusers import (
        AutoencoderKLQwenImage,
        FlowMatchEulerDiscreteScheduler,
        QwenImagePipeline,
        QwenImageTransformer2DModel,
    )

    tokenizer = _language_tokenizer(("<|im_start|>", "<|im_end|>"))
    pipeline = QwenImagePipeline(
        transformer=QwenImageTransformer2DModel(
            patch_size=2,
            in_channels=16,
            out_channels=4,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            axes_dims_rope=(8, 4, 4),
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=AutoencoderKLQwenImage(
            base_dim=8,
            z_dim=4,
            dim_mult=[1, 1],
            num_res_blocks=1,
            temperal_downsample=[False],
            latents_mean=[0.1, -0.1, 0.2, 0.0],
            latents_std=[1.5, 0.5, 1.0, 2.0],
        ),
        text_encoder=_qwen(32, len(tokenizer)),
        tokenizer=tokenizer,
    )
    # Every other tokenizer than the real one needs another number of tokens for the words before the prompt.
    before = pipeline.prompt_template_encode.partition("{}")[0]
    pipeline.prompt_template_encode_start_idx = len(tokenizer(before).input_ids)
    return pipeline


PIPELINES: dict[str, Callable[[], Any]] = {
    "sd1": _sd1,
    "sd2": _sd2,
    "sdxl": _sdxl,
    "sd3": _sd3,
    "flux": _flux,
    "qwen-image": _qwen_image,
}
"""Name -> builder: Stable Diffusion 1 (predicts noise), 2 (velocity), XL and 3.5, Flux.1, Qwen-Image."""


def _autoencoder(**config: Any) -> Any:
    """Pictures to 4 channels of half their size."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(4, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=2,
        latent_channels=4,
        sample_size=SIZE,
        mid_block_add_attention=False,
        **config,
    )


def _unet(**config: Any) -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=SIZE // 2,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(1, 2),
        norm_num_groups=4,
        **config,
    )


def _clip_tokenizer() -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint_path("tiny-clip"))
    tokenizer.model_max_length = WORDS
    return tokenizer


def _clip(width: int, *, projected: bool = False) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    tokenizer = _clip_tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=width,
        projection_dim=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=WORDS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config)


def _language_tokenizer(special: tuple[str, ...] = ()) -> Any:
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    from .tokenizer import train_byte_bpe

    trained = train_byte_bpe(_LANGUAGE_TEXTS, 400, ("<pad>", "</s>", *special))
    if not special:
        # T5 ends every text.
        trained.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=trained,
        pad_token="<pad>",
        eos_token="</s>",
        extra_special_tokens=list(special),
        model_max_length=512,
    )


def _t5(width: int) -> Any:
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(
        T5Config(
            vocab_size=400,
            d_model=width,
            d_kv=8,
            d_ff=width,
            num_layers=1,
            num_heads=2,
            feed_forward_proj="gated-gelu",
        )
    )


def _qwen(width: int, vocabulary: int) -> Any:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    config = Qwen2_5_VLConfig(
        text_config={
            "hidden_size": width,
            "intermediate_size": width,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "rope_parameters": {
                "mrope_section": [2, 3, 3],
                "rope_type": "default",
                "type": "default",
                "rope_theta": 1_000_000.0,
            },
            "vocab_size": vocabulary,
        },
        vision_config={
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_heads": 2,
            "out_hidden_size": width,
        },
        vocab_size=vocabulary,
        vision_end_token_id=0,
        vision_start_token_id=0,
        vision_token_id=0,
        image_token_id=0,
        video_token_id=0,
    )
    return Qwen2_5_VLForConditionalGeneration(config)
