"""The commands ``layers`` and ``aliasing`` from end to end."""

from __future__ import annotations

import json

import pytest
from liederivative.cli import main
from liederivative.images import sample_photographs
from liederivative.layerwise import decompose
from liederivative.zoo import load_model
from PIL import Image


def test_layers_writes_what_the_library_finds(tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("COLUMNS", "150")
    arguments = ["layers", "test_vit", "--limit", "2", "--generators", "translate_x", "rotate", "--device", "cpu"]
    assert main([*arguments, "--dtype", "float64", "--out", str(tmp_path)]) == 0
    printed = capfd.readouterr().out
    assert "blocks.0.norm1" in printed and "add up to the whole" in printed
    found = json.loads((tmp_path / "metrics.json").read_text())
    model = load_model("test_vit", seed=0)
    x = model.images([photograph.image for photograph in sample_photographs()[:2]]).double()
    pairs = [decompose(model.module.double(), image, "rotate", probabilities=True) for image in x.split(1)]
    table = found["generators"]["rotate"]
    assert table["closure"] < 1e-12
    rows = {row["name"]: row for row in table["terms"]}
    whole = sum(float(one.total.square().sum()) for one in pairs)
    for name, row in rows.items():
        along = sum(float((one.all_terms()[name] * one.total).sum()) for one in pairs)
        assert row["share"] == pytest.approx(along / whole, abs=1e-9)
    assert table["terms"][-1]["cumulative"] == pytest.approx(1)
    assert table["mean_squared"] == pytest.approx(whole / (2 * 1000))
    assert Image.open(tmp_path / "layers.png").size[0] > 500
    few = tmp_path / "few"
    assert main([*arguments[:4], "--by", "type", "--logits", "--out", str(few), "--device", "cpu"]) == 0
    kinds = json.loads((few / "metrics.json").read_text())["generators"]["translate_x"]["terms"]
    assert {"LayerNorm", "GELU"} <= {row["kind"] for row in kinds}


def test_aliasing_writes_measurement_and_theory(tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("COLUMNS", "150")
    names = ["tanh", "filtered tanh", "stride 2", "blur 2"]
    assert main(["aliasing", *names, "--size", "32", "--signals", "4", "--out", str(tmp_path)]) == 0
    assert "blur 2" in capfd.readouterr().out
    rows = json.loads((tmp_path / "metrics.json").read_text())["results"]
    assert [row["operation"] for row in rows[::10]] == names
    for row in rows:
        # The theory on a grid 16 times finer: a few millionths of tanh's harmonics lie beyond it.
        assert row["theory"] == pytest.approx(row["measured"], rel=1e-5, abs=1e-20)
    assert Image.open(tmp_path / "aliasing.png").size[0] > 500


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["layers", "resnet81"], "unknown timm model 'resnet81': did you mean"),
        (["layers", "test_vit", "--generators", "rotatoin"], "did you mean 'rotate'"),
        (["layers", "test_vit", "--by", "depth"], "unknown grouping 'depth'"),
        (["layers", "test_vit", "--dtype", "float16"], "invalid choice 'float16'"),
        (["layers", "test_vit", "--limit", "0"], "--limit to be"),
        (["aliasing", "reul"], "unknown operation 'reul': did you mean 'relu'"),
        (["aliasing", "relu", "--size", "30"], "divisible by 4"),
        (["aliasing", "relu", "--signals", "0"], "--signals"),
    ],
)
def test_bad_arguments(arguments, message, tmp_path, capfd):
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 2
    line = capfd.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("liederivative: error: ") and message in line
    assert not (tmp_path / "out").exists()
