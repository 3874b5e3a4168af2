"""timm: convolutional networks, transformers and what lies between."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from zoo_models.entry import Entry, images, library


def _make(name: str, **options: Any) -> nn.Module:
    return library("timm").create_model(name, pretrained=False, **options)


def _any_size(name: str, *sizes: int, **options: Any) -> Entry:
    sizes = sizes or (64, 96)
    return Entry(f"timm/{name}", partial(_make, name, **options), lambda b, v: images(b, v, *sizes))


def _built_for(name: str, size: int, **options: Any) -> Entry:
    """Of one image size, given when it is built."""
    return _any_size(name, size, img_size=size, **options)


ENTRIES = (
    # convolutional
    _any_size("mobilenetv1_100"),
    _any_size("mobilenetv3_small_100"),
    _any_size("mobilenetv4_conv_small"),
    _any_size("mobilenetv4_hybrid_medium"),
    _any_size("resnet50d"),
    _any_size("legacy_seresnet18"),
    _any_size("res2net50_14w_8s"),
    _any_size("resnest14d"),
    _any_size("ecaresnet26t"),
    _any_size("skresnet18"),
    _any_size("gcresnet33ts"),
    _any_size("resnetv2_50x1_bit"),
    _any_size("dm_nfnet_f0"),
    _any_size("eca_nfnet_l0"),
    _any_size("nf_resnet26"),
    _any_size("repvgg_a0"),
    _any_size("mobileone_s0"),
    _any_size("cspresnet50"),
    _any_size("cspdarknet53"),
    _any_size("cs3darknet_s"),
    _any_size("ese_vovnet19b_dw"),
    _any_size("densenetblur121d"),
    _any_size("dla34"),
    _any_size("dpn68"),
    _any_size("hrnet_w18_small"),
    _any_size("hgnetv2_b0"),
    _any_size("selecsls42"),
    _any_size("inception_v4", 96, 128),
    _any_size("inception_resnet_v2", 96, 128),
    _any_size("legacy_xception", 96, 128),
    _any_size("nasnetalarge", 96, 128),
    _any_size("pnasnet5large", 96, 128),
    _any_size("tresnet_m"),
    _any_size("ghostnet_100"),
    _any_size("ghostnetv2_100"),
    _any_size("hardcorenas_a"),
    _any_size("mixnet_s"),
    _any_size("fbnetc_100"),
    _any_size("fbnetv3_b"),
    _any_size("lcnet_050"),
    _any_size("tinynet_e"),
    _any_size("rexnet_100"),
    _any_size("efficientnet_lite0"),
    _any_size("efficientnet_cc_b0_4e"),
    _any_size("gernet_s"),
    _any_size("regnetz_005"),
    _any_size("rdnet_tiny"),
    _any_size("convnext_atto"),
    _any_size("convnextv2_atto"),
    _any_size("inception_next_atto"),
    _any_size("mambaout_femto"),
    _any_size("fasternet_t0"),
    _any_size("starnet_s1"),
    _any_size("repvit_m0_9"),
    _any_size("convmixer_768_32"),
    # convolutions and attention
    _built_for("botnet26t_256", 128),
    _built_for("halonet26t", 256),
    _any_size("lambda_resnet26t", 128, 160),
    _built_for("coatnet_nano_rw_224", 64),
    _built_for("maxvit_pico_rw_256", 128),
    _any_size("mobilevit_xxs", 128, 64),
    _any_size("mobilevitv2_050", 128, 64),
    _any_size("edgenext_xx_small"),
    _built_for("efficientformer_l1", 224),
    _built_for("efficientformerv2_s0", 64),
    _any_size("efficientvit_b0"),
    _built_for("efficientvit_m0", 128),
    _built_for("levit_128s", 64),
    _built_for("levit_conv_128s", 64),
    _any_size("fastvit_sa12", 64),
    _any_size("fastvit_t8"),
    _any_size("nextvit_small"),
    _built_for("visformer_tiny", 64),
    _any_size("tiny_vit_5m_224", 64, 128),
    _any_size("poolformer_s12"),
    _any_size("convformer_s18"),
    _any_size("caformer_s18"),
    _any_size("swiftformer_xs"),
    _any_size("davit_tiny"),
    _built_for("coat_lite_tiny", 64),
    _built_for("coat_tiny", 64),
    _built_for("convit_tiny", 64),
    _built_for("crossvit_9_240", 240),
    # transformers and perceptrons
    _built_for("vit_base_patch16_224", 224),
    _built_for("vit_medium_patch16_reg4_gap_256", 64),
    _built_for("vit_relpos_small_patch16_224", 64),
    _built_for("deit_tiny_distilled_patch16_224", 64),
    _built_for("deit3_small_patch16_224", 64),
    _built_for("beit_base_patch16_224", 64, depth=3),
    _built_for("cait_xxs24_224", 64, depth=4),
    _built_for("eva02_tiny_patch14_224", 56),
    _built_for("swin_tiny_patch4_window7_224", 112, window_size=7),
    _built_for("swinv2_tiny_window8_256", 64),
    _any_size("pvt_v2_b0"),
    _built_for("twins_pcpvt_small", 64),
    _built_for("twins_svt_small", 224),
    _any_size("xcit_nano_12_p16_224"),
    _built_for("gcvit_xxtiny", 224),
    _any_size("focalnet_tiny_srf"),
    _built_for("hiera_tiny_224", 64),
    _built_for("mvitv2_tiny", 64),
    _built_for("volo_d1_224", 64),
    _built_for("nest_tiny", 64),
    _built_for("pit_ti_224", 64),
    _built_for("tnt_s_legacy_patch16_224", 64),
    _built_for("sequencer2d_s", 64),
    _built_for("mixer_s32_224", 64),
    _built_for("gmlp_ti16_224", 64),
    _built_for("resmlp_12_224", 64),
)
