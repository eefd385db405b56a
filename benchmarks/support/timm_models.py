"""The smallest model of each of timm's modules, and how to find it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from fxrebasin.models.torchvision_shim import ensure_torchvision

SMALLEST = {
    "beit": ("beit_base_patch16_224", 86_530_984),
    "byoanet": ("halonet_h1", 8_100_056),
    "byobnet": ("test_byobnet", 456_856),
    "cait": ("cait_xxs24_224", 11_956_264),
    "coat": ("coat_tiny", 5_498_540),
    "convit": ("convit_tiny", 5_710_512),
    "convmixer": ("convmixer_768_32", 21_110_248),
    "convnext": ("test_convnext", 272_128),
    "cpubone": ("cpubone_nano", 6_519_700),
    "crossvit": ("crossvit_tiny_240", 7_014_800),
    "csatv2": ("csatv2", 11_103_444),
    "cspnet": ("cs3darknet_focus_s", 3_274_728),
    "cspnext": ("cspnext_tiny", 2_733_700),
    "davit": ("davit_tiny", 28_360_168),
    "deepseek_vit": ("deepseek_vit_412m", 411_842_560),
    "deit": ("deit_tiny_patch16_224", 5_717_416),
    "densenet": ("densenet121", 7_978_856),
    "dla": ("dla46x_c", 1_068_440),
    "dpn": ("dpn48b", 9_126_226),
    "edgenext": ("edgenext_xx_small", 1_327_216),
    "efficientformer": ("efficientformer_l1", 12_289_928),
    "efficientformer_v2": ("efficientformerv2_s0", 3_600_256),
    "efficientnet": ("test_efficientnet", 356_196),
    "efficientvim": ("efficientvim_m1", 6_679_458),
    "efficientvit_mit": ("efficientvit_b0", 3_410_008),
    "efficientvit_msra": ("efficientvit_m0", 2_349_436),
    "eva": ("vit_tiny_patch16_dinov3_qkvb", 5_489_664),
    "fasternet": ("fasternet_t0", 3_905_500),
    "fastvit": ("fastvit_t8", 4_026_232),
    "focalnet": ("focalnet_tiny_srf", 28_427_116),
    "gcvit": ("gcvit_xxtiny", 11_995_428),
    "gemma4_vit": ("gemma4_vit_167m", 167_364_608),
    "ghostnet": ("ghostnet_050", 2_587_292),
    "hardcorenas": ("hardcorenas_b", 5_176_544),
    "hgnet": ("hgnetv2_b0", 5_996_550),
    "hiera": ("hiera_tiny_224", 27_910_216),
    "hieradet_sam2": ("sam2_hiera_tiny", 26_851_008),
    "hrnet": ("hrnet_w18_small", 13_187_464),
    "iformer": ("iformer_t", 2_886_456),
    "inception_next": ("inception_next_atto", 4_156_520),
    "inception_resnet_v2": ("inception_resnet_v2", 55_843_464),
    "inception_v3": ("inception_v3", 23_834_568),
    "inception_v4": ("inception_v4", 42_679_816),
    "lcnetv2": ("lcnetv2_small", 4_128_552),
    "levit": ("levit_128s", 7_777_058),
    "lowformer": ("lowformer_b0", 14_100_472),
    "mambaout": ("test_mambaout", 447_560),
    "maxxvit": ("test_coatnet", 575_480),
    "metaformer": ("poolformerv2_s12", 11_891_712),
    "mlp_mixer": ("gmlp_ti16_224", 5_867_328),
    "mobilenetv3": ("mobilenetv3_small_050", 1_593_224),
    "mobilenetv5": ("mobilenetv5_base", 82_647_976),
    "mobilevit": ("mobilevit_xxs", 1_272_024),
    "mvitv2": ("mvitv2_tiny", 24_173_320),
    "naflexvit": ("naflexvit_base_patch16_parfac_gap", 86_461_672),
    "nasnet": ("nasnetalarge", 88_753_150),
    "nest": ("nest_tiny", 17_057_608),
    "nextvit": ("nextvit_small", 31_763_368),
    "nfnet": ("test_nfnet", 383_080),
    "pit": ("pit_ti_224", 4_847_272),
    "pnasnet": ("pnasnet5large", 86_057_668),
    "pvt_v2": ("pvt_v2_b0", 3_666_760),
    "qwen3_vit": ("qwen3_vit_88m", 87_414_528),
    "rdnet": ("rdnet_tiny", 23_863_008),
    "regnet": ("regnetx_002", 2_684_792),
    "repghost": ("repghostnet_050", 2_313_968),
    "repvit": ("repvit_m1", 5_485_248),
    "res2net": ("res2next50", 24_671_464),
    "resnest": ("resnest14d", 10_611_688),
    "resnet": ("test_resnet", 469_688),
    "resnetv2": ("resnetv2_18", 11_687_720),
    "rexnet": ("rexnet_100", 4_796_873),
    "selecsls": ("selecsls42", 30_354_952),
    "senet": ("legacy_seresnet18", 11_778_592),
    "sequencer": ("sequencer2d_s", 27_651_688),
    "shvit": ("shvit_s1", 6_330_808),
    "sknet": ("skresnet18", 11_958_056),
    "starnet": ("starnet_s050", 542_728),
    "swiftformer": ("swiftformer_xs", 3_475_360),
    "swin_transformer": ("swin_tiny_patch4_window7_224", 28_288_354),
    "swin_transformer_v2": ("swinv2_tiny_window16_256", 28_347_154),
    "swin_transformer_v2_cr": ("swinv2_cr_tiny_224", 28_332_124),
    "tiny_vit": ("tiny_vit_5m_224", 12_082_725),
    "tnt": ("tnt_s_legacy_patch16_224", 23_755_336),
    "tresnet": ("tresnet_m", 31_389_032),
    "twins": ("twins_svt_small", 24_060_776),
    "vgg": ("vgg11", 132_863_336),
    "visformer": ("visformer_tiny", 10_321_368),
    "vision_transformer": ("test_vit", 371_240),
    "vision_transformer_hybrid": ("vit_tiny_r_s16_p8_224", 6_337_704),
    "vision_transformer_relpos": ("test_vit_relpos", 850_147),
    "vision_transformer_sam": ("samvit_base_patch16_224", 86_457_064),
    "vitamin": ("vitamin_small_224", 22_173_376),
    "volo": ("volo_d1_224", 26_632_040),
    "vovnet": ("ese_vovnet19b_slim_dw", 1_897_752),
    "xception": ("legacy_xception", 22_855_952),
    "xception_aligned": ("xception41p", 26_907_752),
    "xcit": ("xcit_nano_12_p8_224", 3_049_016),
}
"""By module: its model with the fewest parameters in timm 1.0.31, and how many these are."""


def modules() -> list[str]:
    """The names of all of timm's modules that hold models."""
    ensure_torchvision()
    import timm

    return sorted(timm.list_modules())


def build(name: str) -> nn.Module:
    """A model in eval mode, with weights as its constructor draws them."""
    ensure_torchvision()
    import timm

    model: nn.Module = timm.create_model(name, pretrained=False)
    return model.eval()


def image_size(model: nn.Module) -> tuple[int, ...]:
    """Channels, height and width of the images that a model was made for."""
    config = vars(model)["pretrained_cfg"]
    return tuple(config["input_size"])


def fewest_parameters(module: str) -> int:
    """The number of parameters of a module's smallest model, found by building all of them."""
    ensure_torchvision()
    import timm

    best = math.inf
    for name in timm.list_models(module=module):
        try:
            # Models may drop parameters again, and count those that are tied twice
            with torch.device("meta"), _at_most(1.5 * best):
                model = timm.create_model(name, pretrained=False)
        except _TooLargeError:
            continue
        best = min(best, sum(parameter.numel() for parameter in model.parameters()))
    return int(best)


class _TooLargeError(Exception):
    """A model registers more parameters than are wanted."""


@contextmanager
def _at_most(limit: float) -> Iterator[None]:
    """Stop as soon as more parameters are registered."""
    register = nn.Module.register_parameter
    count = 0

    def counting(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        nonlocal count
        count += 0 if param is None else param.numel()
        if count > limit:
            raise _TooLargeError
        register(self, name, param)

    nn.Module.register_parameter = counting
    try:
        yield
    finally:
        nn.Module.register_parameter = register
