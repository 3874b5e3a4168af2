"""transformers: speech, pictures with text, detection, segmentation and depth, with small configurations."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from zoo_models.entry import Entry, generator, images, tokens
from zoo_models.transformers_text import SEQ2SEQ, SMALL, VOCABULARY, make

Parts = dict[str, tuple[str, dict[str, Any]]]


def _entry(
    name: str,
    model: str,
    config: str,
    inputs: Callable[[int, int], Any],
    options: dict[str, Any] | None = None,
    **parts: tuple[str, dict[str, Any]],
) -> Entry:
    return Entry(f"transformers/{name}", partial(make, model, config, options or {}, parts), inputs)


def _wave(batch: int, variant: int) -> dict[str, Tensor]:
    length = (1600, 2000)[variant]
    return {"input_values": torch.randn(batch + variant, length, generator=generator(variant))}


def _features(batch: int, variant: int, bins: int, *lengths: int) -> Tensor:
    """[batch, time, bins]."""
    length = lengths[min(variant, len(lengths) - 1)]
    return torch.randn(batch + variant, length, bins, generator=generator(variant))


def _targets(batch: int, variant: int) -> Tensor:
    return tokens(batch, variant, 7, 9, vocabulary=VOCABULARY)


def _pixels(*sizes: int) -> Callable[[int, int], dict[str, Tensor]]:
    return lambda b, v: {"pixel_values": images(b, v, *sizes)}


def _captioned(size: int) -> Callable[[int, int], dict[str, Tensor]]:
    return lambda b, v: {
        "input_ids": tokens(b, v, 8, 11, vocabulary=VOCABULARY),
        "pixel_values": images(b, v, size),
    }


SPEECH = SMALL | {
    "conv_dim": (32, 32, 32),
    "conv_kernel": (10, 3, 3),
    "conv_stride": (5, 2, 2),
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "vocab_size": 40,
}
TEXT = SMALL | {"vocab_size": VOCABULARY, "max_position_embeddings": 32, "eos_token_id": 2}
VISION = SMALL | {"image_size": 64, "patch_size": 16}
RESNET: Parts = {
    "backbone_config": (
        "ResNetConfig",
        {
            "embedding_size": 16,
            "hidden_sizes": [16, 32, 48, 64],
            "depths": [1, 1, 1, 1],
            "layer_type": "basic",
            "out_features": ["stage4"],
        },
    )
}
STAGES: Parts = {
    "backbone_config": (
        "ConvNextConfig",
        {
            "hidden_sizes": [16, 32, 48, 64],
            "depths": [1, 1, 1, 1],
            "out_features": ["stage1", "stage2", "stage3", "stage4"],
        },
    )
}
QUERIES = SEQ2SEQ | {"num_queries": 10, "use_timm_backbone": False}
SWIN = {"embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 4], "window_size": 2, "image_size": 64}

ENTRIES = (
    # speech
    _entry("wav2vec2", "Wav2Vec2ForCTC", "Wav2Vec2Config", _wave, SPEECH),
    _entry(
        "wav2vec2_layer_norm",
        "Wav2Vec2Model",
        "Wav2Vec2Config",
        _wave,
        SPEECH | {"feat_extract_norm": "layer", "do_stable_layer_norm": True},
    ),
    _entry("hubert", "HubertModel", "HubertConfig", _wave, SPEECH),
    _entry("wavlm", "WavLMModel", "WavLMConfig", _wave, SPEECH),
    _entry(
        "whisper",
        "WhisperForConditionalGeneration",
        "WhisperConfig",
        lambda b, v: {"input_features": _features(b, v, 64, 16), "decoder_input_ids": _targets(b, v)},
        SEQ2SEQ
        | {
            "vocab_size": VOCABULARY,
            "num_mel_bins": 16,
            "max_source_positions": 32,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "decoder_start_token_id": 1,
            "suppress_tokens": None,
            "begin_suppress_tokens": None,
        },
    ),
    _entry(
        "speech_to_text",
        "Speech2TextForConditionalGeneration",
        "Speech2TextConfig",
        lambda b, v: {"input_features": _features(b, v, 16, 40, 56), "decoder_input_ids": _targets(b, v)},
        SEQ2SEQ | {"vocab_size": VOCABULARY, "input_feat_per_channel": 16, "conv_channels": 64},
    ),
    _entry(
        "audio_spectrogram",
        "ASTModel",
        "ASTConfig",
        lambda b, v: {"input_values": _features(b, v, 32, 64)},
        SMALL | {"num_mel_bins": 32, "max_length": 64},
    ),
    _entry(
        "encodec",
        "EncodecModel",
        "EncodecConfig",
        lambda b, v: {"input_values": _wave(b, v)["input_values"][:, None]},
        {"num_filters": 8, "hidden_size": 32, "codebook_dim": 32, "codebook_size": 64, "upsampling_ratios": [4, 2]},
    ),
    # pictures with text
    _entry(
        "clip",
        "CLIPModel",
        "CLIPConfig",
        _captioned(64),
        {"projection_dim": 48, "text_config": TEXT, "vision_config": VISION},
    ),
    _entry("siglip", "SiglipModel", "SiglipConfig", _captioned(64), {"text_config": TEXT, "vision_config": VISION}),
    _entry(
        "blip",
        "BlipForConditionalGeneration",
        "BlipConfig",
        _captioned(64),
        {"text_config": TEXT | {"encoder_hidden_size": 64}, "vision_config": VISION},
    ),
    _entry("vilt", "ViltModel", "ViltConfig", _captioned(64), SMALL | {"vocab_size": VOCABULARY, "image_size": 64}),
    # pictures
    _entry("vit", "ViTForImageClassification", "ViTConfig", _pixels(64), VISION),
    _entry("dinov2", "Dinov2Model", "Dinov2Config", _pixels(64, 96), SMALL | {"image_size": 64, "patch_size": 16}),
    _entry(
        "convnext", "ConvNextForImageClassification", "ConvNextConfig", _pixels(64, 96), STAGES["backbone_config"][1]
    ),
    _entry("resnet", "ResNetForImageClassification", "ResNetConfig", _pixels(64, 96), RESNET["backbone_config"][1]),
    _entry("swin", "SwinModel", "SwinConfig", _pixels(64, 128), SWIN),
    _entry("mobilevit", "MobileViTModel", "MobileViTConfig", _pixels(64, 128)),
    # detection, segmentation, depth
    _entry("detr", "DetrForObjectDetection", "DetrConfig", _pixels(96, 128), QUERIES, **RESNET),
    _entry(
        "conditional_detr",
        "ConditionalDetrForObjectDetection",
        "ConditionalDetrConfig",
        _pixels(96, 128),
        QUERIES,
        **RESNET,
    ),
    _entry(
        "yolos",
        "YolosForObjectDetection",
        "YolosConfig",
        _pixels(64),
        SMALL | {"image_size": [64, 64], "num_detection_tokens": 10},
    ),
    _entry(
        "segformer",
        "SegformerForSemanticSegmentation",
        "SegformerConfig",
        _pixels(64, 96),
        {
            "hidden_sizes": [16, 32, 48, 64],
            "depths": [1, 1, 1, 1],
            "num_attention_heads": [1, 2, 3, 4],
            "decoder_hidden_size": 32,
        },
    ),
    _entry(
        "upernet",
        "UperNetForSemanticSegmentation",
        "UperNetConfig",
        _pixels(64, 96),
        {"hidden_size": 32, "auxiliary_channels": 16, "auxiliary_in_channels": 48},
        **STAGES,
    ),
    _entry(
        "dpt",
        "DPTForDepthEstimation",
        "DPTConfig",
        _pixels(64),
        VISION
        | {
            "num_hidden_layers": 4,
            "backbone_out_indices": [0, 1, 2, 3],
            "neck_hidden_sizes": [16, 24, 32, 48],
            "fusion_hidden_size": 32,
        },
    ),
    _entry(
        "mask2former",
        "Mask2FormerForUniversalSegmentation",
        "Mask2FormerConfig",
        _pixels(64, 128),
        {
            "feature_size": 32,
            "mask_feature_size": 32,
            "hidden_dim": 32,
            "encoder_feedforward_dim": 48,
            "encoder_layers": 1,
            "decoder_layers": 2,
            "num_attention_heads": 4,
            "dim_feedforward": 64,
            "num_queries": 8,
        },
        backbone_config=("SwinConfig", SWIN | {"out_features": ["stage1", "stage2", "stage3", "stage4"]}),
    ),
)
