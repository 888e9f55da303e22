"""Coverage: the smallest model of each of timm's 98 modules, end to end and by layers; a few of them in every run."""

from __future__ import annotations

import pytest
import torch
from liederivative import decompose, lee, lie_derivatives
from liederivative.derivative import LADDER
from torch import nn

# timm's module: its smallest model, options that cut the depth of the largest ones, height and width in pixels.
MODELS = {
    "beit": ("beit_base_patch16_224", {"depth": 2}, (224, 224)),
    "byoanet": ("halonet_h1", {}, (256, 256)),
    "byobnet": ("test_byobnet", {}, (160, 160)),
    "cait": ("cait_xxs24_224", {}, (224, 224)),
    "coat": ("coat_tiny", {}, (224, 224)),
    "convit": ("convit_tiny", {}, (224, 224)),
    "convmixer": ("convmixer_768_32", {}, (224, 224)),
    "convnext": ("test_convnext", {}, (160, 160)),
    "cpubone": ("cpubone_nano", {}, (224, 224)),
    "crossvit": ("crossvit_tiny_240", {}, (240, 240)),
    "csatv2": ("csatv2", {}, (512, 512)),
    "cspnet": ("cs3darknet_focus_s", {}, (256, 256)),
    "cspnext": ("cspnext_tiny", {}, (224, 224)),
    "davit": ("davit_tiny", {}, (224, 224)),
    "deepseek_vit": ("deepseek_vit_412m", {"depth": 2, "img_size": 224}, (224, 224)),
    "deit": ("deit_tiny_patch16_224", {}, (224, 224)),
    "densenet": ("densenet121", {}, (224, 224)),
    "dla": ("dla46x_c", {}, (224, 224)),
    "dpn": ("dpn48b", {}, (224, 224)),
    "edgenext": ("edgenext_xx_small", {}, (256, 256)),
    "efficientformer": ("efficientformer_l1", {}, (224, 224)),
    "efficientformer_v2": ("efficientformerv2_s0", {}, (224, 224)),
    "efficientnet": ("test_efficientnet", {}, (160, 160)),
    "efficientvim": ("efficientvim_m1", {}, (224, 224)),
    "efficientvit_mit": ("efficientvit_b0", {}, (224, 224)),
    "efficientvit_msra": ("efficientvit_m0", {}, (224, 224)),
    "eva": ("eva02_tiny_patch14_224", {"depth": 2}, (224, 224)),
    "fasternet": ("fasternet_t0", {}, (224, 224)),
    "fastvit": ("fastvit_t8", {}, (256, 256)),
    "focalnet": ("focalnet_tiny_srf", {}, (224, 224)),
    "gcvit": ("gcvit_xxtiny", {}, (224, 224)),
    "gemma4_vit": ("gemma4_vit_167m", {"depth": 2, "img_size": 224}, (224, 224)),
    "ghostnet": ("ghostnet_050", {}, (224, 224)),
    "hardcorenas": ("hardcorenas_b", {}, (224, 224)),
    "hgnet": ("hgnetv2_b0", {}, (224, 224)),
    "hiera": ("hiera_tiny_224", {}, (224, 224)),
    "hieradet_sam2": ("hieradet_small", {}, (256, 256)),
    "hrnet": ("hrnet_w18_small", {}, (224, 224)),
    "iformer": ("iformer_t", {}, (224, 224)),
    "inception_next": ("inception_next_atto", {}, (224, 224)),
    "inception_resnet_v2": ("inception_resnet_v2", {}, (299, 299)),
    "inception_v3": ("inception_v3", {}, (299, 299)),
    "inception_v4": ("inception_v4", {}, (299, 299)),
    "lcnetv2": ("lcnetv2_small", {}, (224, 224)),
    "levit": ("levit_128s", {}, (224, 224)),
    "lowformer": ("lowformer_b0", {}, (224, 224)),
    "mambaout": ("test_mambaout", {}, (160, 160)),
    "maxxvit": ("test_coatnet", {}, (160, 160)),
    "metaformer": ("poolformerv2_s12", {}, (224, 224)),
    "mlp_mixer": ("gmlp_ti16_224", {}, (224, 224)),
    "mobilenetv3": ("mobilenetv3_small_050", {}, (224, 224)),
    "mobilenetv5": ("mobilenetv5_base", {}, (256, 256)),
    "mobilevit": ("mobilevit_xxs", {}, (256, 256)),
    "mvitv2": ("mvitv2_tiny", {}, (224, 224)),
    "naflexvit": ("naflexvit_base_patch16_parfac_gap", {"depth": 2, "img_size": 224}, (224, 224)),
    "nasnet": ("nasnetalarge", {}, (331, 331)),
    "nest": ("nest_tiny", {}, (224, 224)),
    "nextvit": ("nextvit_small", {}, (224, 224)),
    "nfnet": ("test_nfnet", {}, (160, 160)),
    "pit": ("pit_ti_224", {}, (224, 224)),
    "pnasnet": ("pnasnet5large", {}, (331, 331)),
    "pvt_v2": ("pvt_v2_b0", {}, (224, 224)),
    "qwen3_vit": ("qwen3_vit_88m", {"depth": 2, "img_size": 224}, (224, 224)),
    "rdnet": ("rdnet_tiny", {}, (224, 224)),
    "regnet": ("regnetx_002", {}, (224, 224)),
    "repghost": ("repghostnet_050", {}, (224, 224)),
    "repvit": ("repvit_m1", {}, (224, 224)),
    "res2net": ("res2next50", {}, (224, 224)),
    "resnest": ("resnest14d", {}, (224, 224)),
    "resnet": ("test_resnet", {}, (160, 160)),
    "resnetv2": ("resnetv2_18", {}, (224, 224)),
    "rexnet": ("rexnet_100", {}, (224, 224)),
    "selecsls": ("selecsls42", {}, (224, 224)),
    "senet": ("legacy_seresnet18", {}, (224, 224)),
    "sequencer": ("sequencer2d_s", {}, (224, 224)),
    "shvit": ("shvit_s1", {}, (224, 224)),
    "sknet": ("skresnet18", {}, (224, 224)),
    "starnet": ("starnet_s050", {}, (224, 224)),
    "swiftformer": ("swiftformer_xs", {}, (224, 224)),
    "swin_transformer": ("swin_tiny_patch4_window7_224", {}, (224, 224)),
    "swin_transformer_v2": ("swinv2_tiny_window16_256", {}, (256, 256)),
    "swin_transformer_v2_cr": ("swinv2_cr_tiny_224", {}, (224, 224)),
    "tiny_vit": ("tiny_vit_5m_224", {}, (224, 224)),
    "tnt": ("tnt_s_legacy_patch16_224", {}, (224, 224)),
    "tresnet": ("tresnet_m", {}, (224, 224)),
    "twins": ("twins_svt_small", {}, (224, 224)),
    "vgg": ("vgg11", {}, (224, 224)),
    "visformer": ("visformer_tiny", {}, (224, 224)),
    "vision_transformer": ("test_vit", {}, (160, 160)),
    "vision_transformer_hybrid": ("vit_tiny_r_s16_p8_224", {}, (224, 224)),
    "vision_transformer_relpos": ("test_vit_relpos", {}, (160, 160)),
    "vision_transformer_sam": ("samvit_base_patch16_224", {"depth": 2, "img_size": 224}, (224, 224)),
    "vitamin": ("vitamin_small_224", {}, (224, 224)),
    "volo": ("volo_d1_224", {}, (224, 224)),
    "vovnet": ("ese_vovnet19b_slim_dw", {}, (224, 224)),
    "xception": ("legacy_xception", {}, (299, 299)),
    "xception_aligned": ("xception41p", {}, (299, 299)),
    "xcit": ("xcit_nano_12_p8_224", {}, (224, 224)),
}  # fmt: skip
QUICK = (
    "byobnet", "convnext", "cpubone", "efficientnet", "mambaout", "maxxvit", "nfnet", "resnet",
    "vision_transformer", "vision_transformer_relpos",
)  # fmt: skip
# These compute a part in float32 whatever they are given, so that a float64 model rounds as one of float32 there.
FLOAT32_INSIDE = {"deepseek_vit": 1e-6, "efficientvit_mit": 1e-4}


def build(module: str) -> tuple[nn.Module, torch.Tensor]:
    import timm

    name, options, size = MODELS[module]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = timm.create_model(name, **options).eval()
        with torch.no_grad():
            for parameter in model.parameters():  # heads and scales that start at zero would hide everything
                parameter += 0.02 * torch.randn_like(parameter)
        return model, torch.randn(1, 3, *size)


def measure_end_to_end(module: str) -> None:
    model, x = build(module)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    single = lee(model, x, probabilities=True)
    assert single.absolute.isfinite().all()
    assert single.method.startswith("fused rules")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    model, x = model.double(), x.double()
    ours = lie_derivatives(model, x, ["rotate", "saturate"])
    # Unverified: where a kink lies within the step of a quotient, differences would take its place.
    torchs = lie_derivatives(model, x, ["rotate", "saturate"], ladder=LADDER[3:], verify=False)
    size = torchs.derivatives.abs().max()
    assert size > 0
    # Hundreds of layers of rounding in double precision.
    assert (ours.derivatives - torchs.derivatives).abs().max() < FLOAT32_INSIDE.get(module, 1e-11) * size


def measure_layers(module: str) -> None:
    model, x = build(module)
    assert decompose(model, x, "rotate", by="type").closure < FLOAT32_INSIDE.get(module, 1e-5)
    found = decompose(model.double(), x.double(), "rotate", by="type")
    assert found.closure < FLOAT32_INSIDE.get(module, 1e-12)
    whole = lie_derivatives(model, x.double(), ["rotate"]).derivatives[0]
    gap = (found.total - whole).abs().max()
    assert gap <= FLOAT32_INSIDE.get(module, 1e-11) * whole.abs().max()


@pytest.mark.parametrize("module", QUICK)
def test_end_to_end(module):
    measure_end_to_end(module)


@pytest.mark.parametrize("module", QUICK)
def test_layers(module):
    measure_layers(module)


@pytest.mark.slow
@pytest.mark.parametrize("module", sorted(set(MODELS) - set(QUICK)))
def test_every_other_module_end_to_end(module):
    measure_end_to_end(module)


@pytest.mark.slow
@pytest.mark.parametrize("module", sorted(set(MODELS) - set(QUICK)))
def test_every_other_module_by_layers(module):
    measure_layers(module)


def test_the_table_names_every_module_of_timm():
    import timm

    listed = set(timm.list_models())
    modules = {module for module in timm.list_modules() if listed & set(timm.list_models(module=module))}
    assert modules <= set(MODELS)
