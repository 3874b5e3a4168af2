"""diffusers: UNets, transformers of pictures, videos and sound, and autoencoders, with small configurations."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from zoo_models.entry import Entry, generator, images, library

Inputs = Callable[[int, int], Any]


def _make(kind: str, options: dict[str, Any]) -> nn.Module:
    model: nn.Module = getattr(library("diffusers"), kind)(**options)
    return model


def _entry(name: str, kind: str, inputs: Inputs, **options: Any) -> Entry:
    return Entry(f"diffusers/{name}", partial(_make, kind, options), inputs)


def _noise(batch: int, variant: int, *sizes: int) -> Tensor:
    """[batch, *sizes]."""
    return torch.randn(batch + variant, *sizes, generator=generator(variant))


def _steps(batch: int, variant: int) -> Tensor:
    return torch.randint(1, 900, (batch + variant,), generator=generator(variant))


def _text(batch: int, variant: int, width: int = 32) -> Tensor:
    """Embedded text of another length in each variant."""
    return _noise(batch, variant, (5, 7)[variant], width)


def _diffused(size: int, channels: int = 4, other: int = 0, **more: Callable[[int, int], Tensor]) -> Inputs:
    """Noisy latents, time steps and text, by the names that most transformers give them."""
    return lambda b, v: {
        "hidden_states": images(b, v, size, other or size, channels=channels),
        "timestep": _steps(b, v),
        "encoder_hidden_states": _text(b, v),
        **{name: make(b, v) for name, make in more.items()},
    }


def _video(**more: Callable[[int, int], Tensor]) -> Inputs:
    """Noisy videos of four channels, [batch, 4, frames, 8, 8], with time steps and text."""
    return lambda b, v: {
        "hidden_states": _noise(b, v, 4, (2, 3)[v], 8, 8),
        "timestep": _steps(b, v),
        "encoder_hidden_states": _text(b, v),
        **{name: make(b, v) for name, make in more.items()},
    }


def _mask(batch: int, variant: int) -> Tensor:
    """Every word of `_text` counts."""
    return torch.ones(batch + variant, (5, 7)[variant])


def _flux(batch: int, variant: int) -> dict[str, Tensor]:
    pixels, words = (16, 20)[variant], (5, 7)[variant]
    return {
        "hidden_states": _noise(batch, variant, pixels, 4),
        "encoder_hidden_states": _text(batch, variant),
        "pooled_projections": _noise(batch, variant, 32),
        "timestep": _steps(batch, variant) / 1000,
        "img_ids": torch.arange(3 * pixels).reshape(pixels, 3) % 5,
        "txt_ids": torch.zeros(words, 3, dtype=torch.long),
    }


def _ltx(batch: int, variant: int) -> dict[str, Any]:
    frames = (2, 3)[variant]
    return {
        "hidden_states": _noise(batch, variant, frames * 16, 4),
        "encoder_hidden_states": _text(batch, variant),
        "timestep": _steps(batch, variant),
        "encoder_attention_mask": _mask(batch, variant),
        "num_frames": frames,
        "height": 4,
        "width": 4,
    }


def _unconditional(batch: int, variant: int) -> dict[str, Tensor]:
    return {"sample": images(batch, variant, 16, 32), "timestep": _steps(batch, variant)}


def _conditional(*sizes: int) -> Inputs:
    return lambda b, v: {
        "sample": _noise(b, v, 4, *sizes, *((16, 16), (32, 32))[v]),
        "timestep": _steps(b, v),
        "encoder_hidden_states": _text(b, v),
    }


UNET = {"block_out_channels": (32, 64), "layers_per_block": 1, "norm_num_groups": 8}
STABLE = UNET | {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 32,
    "attention_head_dim": 4,
}
CODER = {
    "block_out_channels": (32, 64),
    "down_block_types": ("DownEncoderBlock2D", "DownEncoderBlock2D"),
    "norm_num_groups": 8,
}
BOTH_WAYS = CODER | {"up_block_types": ("UpDecoderBlock2D", "UpDecoderBlock2D")}
HEADS = {"num_attention_heads": 4, "attention_head_dim": 16, "num_layers": 2}

ENTRIES = (
    # UNets
    _entry(
        "ddpm_unet",
        "UNet2DModel",
        _unconditional,
        **UNET,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    ),
    _entry(
        "ddpm_unet_scale_shift",
        "UNet2DModel",
        _unconditional,
        **UNET,
        down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
        resnet_time_scale_shift="scale_shift",
    ),
    _entry("stable_diffusion_unet", "UNet2DConditionModel", _conditional(), **STABLE),
    _entry(
        "sdxl_unet",
        "UNet2DConditionModel",
        _conditional(),
        **STABLE | {"use_linear_projection": True, "transformer_layers_per_block": 2, "attention_head_dim": (2, 4)},
    ),
    _entry(
        "video_unet",
        "UNet3DConditionModel",
        _conditional(3),
        **STABLE
        | {
            "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
            "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
        },
    ),
    _entry(
        "controlnet",
        "ControlNetModel",
        lambda b, v: {**_conditional()(b, v), "controlnet_cond": images(b, v, 128, 256)},
        **{key: value for key, value in STABLE.items() if key != "up_block_types"},
    ),
    _entry("t2i_adapter", "T2IAdapter", lambda b, v: images(b, v, 64, 96), channels=[32, 48, 64, 64]),
    _entry(
        "unet_1d",
        "UNet1DModel",
        lambda b, v: {"sample": _noise(b, v, 2, (64, 96)[v]), "timestep": _steps(b, v)},
        extra_in_channels=64,
        block_out_channels=(32, 32, 64),
    ),
    # transformers
    _entry(
        "dit",
        "DiTTransformer2DModel",
        lambda b, v: {
            "hidden_states": images(b, v, 16, channels=4),
            "timestep": _steps(b, v),
            "class_labels": _steps(b, v) % 10,
        },
        **HEADS,
        sample_size=16,
        num_embeds_ada_norm=1000,
    ),
    _entry(
        "pixart",
        "PixArtTransformer2DModel",
        _diffused(16),
        **HEADS,
        sample_size=16,
        cross_attention_dim=64,
        caption_channels=32,
        use_additional_conditions=False,
    ),
    _entry(
        "stable_diffusion_3",
        "SD3Transformer2DModel",
        _diffused(8, 4, 16, pooled_projections=lambda b, v: _noise(b, v, 32)),
        **HEADS,
        sample_size=8,
        in_channels=4,
        out_channels=4,
        joint_attention_dim=32,
        caption_projection_dim=64,
        pooled_projection_dim=32,
        pos_embed_max_size=16,
    ),
    _entry(
        "flux",
        "FluxTransformer2DModel",
        _flux,
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=4,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 6, 6),
    ),
    _entry(
        "auraflow",
        "AuraFlowTransformer2DModel",
        _diffused(16),
        sample_size=16,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=16,
        num_attention_heads=4,
        joint_attention_dim=32,
        caption_projection_dim=64,
        pos_embed_max_size=64,
    ),
    _entry(
        "sana",
        "SanaTransformer2DModel",
        _diffused(8, 4, 16),
        **HEADS,
        in_channels=4,
        out_channels=4,
        num_cross_attention_heads=4,
        cross_attention_head_dim=16,
        cross_attention_dim=64,
        caption_channels=32,
        sample_size=8,
    ),
    _entry(
        "prior",
        "PriorTransformer",
        lambda b, v: {
            "hidden_states": _noise(b, v, 32),
            "timestep": _steps(b, v),
            "proj_embedding": _noise(b, v, 32),
            "encoder_hidden_states": _noise(b, v, 5, 32),
        },
        **HEADS,
        embedding_dim=32,
        num_embeddings=5,
    ),
    _entry(
        "ltx_video",
        "LTXVideoTransformer3DModel",
        _ltx,
        **HEADS,
        in_channels=4,
        out_channels=4,
        cross_attention_dim=64,
        caption_channels=32,
    ),
    _entry(
        "mochi",
        "MochiTransformer3DModel",
        _video(encoder_attention_mask=lambda b, v: _mask(b, v).bool()),
        **HEADS,
        in_channels=4,
        pooled_projection_dim=32,
        text_embed_dim=32,
        time_embed_dim=16,
        max_sequence_length=8,
    ),
    _entry(
        "cogvideox",
        "CogVideoXTransformer3DModel",
        lambda b, v: {
            "hidden_states": _noise(b, v, 2, 4, 8, 8),
            "timestep": _steps(b, v),
            "encoder_hidden_states": _noise(b, v, 5, 32),
        },
        **HEADS,
        in_channels=4,
        out_channels=4,
        time_embed_dim=16,
        text_embed_dim=32,
        sample_width=8,
        sample_height=8,
        sample_frames=5,
        max_text_seq_length=5,
    ),
    _entry(
        "wan",
        "WanTransformer3DModel",
        _video(),
        **HEADS,
        in_channels=4,
        out_channels=4,
        text_dim=32,
        freq_dim=32,
        ffn_dim=96,
        rope_max_seq_len=32,
    ),
    _entry(
        "latte",
        "LatteTransformer3DModel",
        lambda b, v: {
            "hidden_states": _noise(b, v, 4, 2, 8, 8),
            "timestep": _steps(b, v),
            "encoder_hidden_states": _text(b, v),
        },
        **HEADS,
        in_channels=4,
        out_channels=8,
        sample_size=8,
        patch_size=2,
        caption_channels=32,
        cross_attention_dim=64,
        video_length=2,
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        activation_fn="gelu-approximate",
        attention_bias=True,
    ),
    # autoencoders
    _entry("autoencoder_kl", "AutoencoderKL", lambda b, v: images(b, v, 32, 64), **BOTH_WAYS),
    _entry("vq_model", "VQModel", lambda b, v: images(b, v, 32, 64), **BOTH_WAYS, num_vq_embeddings=32),
    _entry(
        "autoencoder_tiny",
        "AutoencoderTiny",
        lambda b, v: images(b, v, 32, 64),
        encoder_block_out_channels=(32, 32),
        decoder_block_out_channels=(32, 32),
        num_encoder_blocks=(1, 2),
        num_decoder_blocks=(2, 1),
    ),
    _entry(
        "deep_compression_autoencoder",
        "AutoencoderDC",
        lambda b, v: images(b, v, 32, 64),
        latent_channels=4,
        attention_head_dim=4,
        encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(16, 32),
        decoder_block_out_channels=(16, 32),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
    ),
    _entry(
        "oobleck",
        "AutoencoderOobleck",
        lambda b, v: _noise(b, v, 2, (128, 192)[v]),
        encoder_hidden_size=16,
        downsampling_ratios=[2, 4],
        channel_multiples=[1, 2],
        decoder_channels=16,
        decoder_input_channels=8,
        audio_channels=2,
    ),
    _entry(
        "autoencoder_wan",
        "AutoencoderKLWan",
        lambda b, v: _noise(b, v, 3, 5, *((16, 16), (32, 32))[v]),
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 2],
        num_res_blocks=1,
        temperal_downsample=[True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    ),
)
