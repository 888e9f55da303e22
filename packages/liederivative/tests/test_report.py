"""The report: accuracies joined to the right weights, correlations by their definitions, a page that stands alone."""

from __future__ import annotations

import base64
import io
import itertools
import json
import os
import random
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from lie.run import UserError
from liederivative.cli import main
from liederivative.report import (
    depth_curves,
    join_accuracies,
    layer_type_shares,
    rank_correlation,
    read_accuracies,
    report_rows,
)
from PIL import Image

GENERATORS = ("translate_x", "rotate", "saturate")


def record(model: str, family: str, parameters: int, error: float, *, kind: str = "pretrained", **extra: Any) -> dict:
    numbers = {
        name: {
            measure: {"mean": error * (index + 1), "standard_error": None, "per_image": [error]}
            for measure in ("mean_absolute", "mean_squared")
        }
        for index, name in enumerate(GENERATORS)
    }
    return {
        "model": model,
        "family": family,
        "status": "ok",
        "fingerprint": "f",
        "seed": 0,
        "quantity": "softmax probabilities",
        "versions": {"timm": "1.0"},
        "result": {
            "weights": {"kind": kind, "source": f"{model}.tag_in1k" if kind == "pretrained" else "x", "sha256": "0"},
            "parameters": parameters,
            "num_classes": 1000,
            "preprocessing": {"input_size": [3, 224, 224]},
            "method": "forward mode",
            "seconds": 1.5,
            "generators": numbers,
        },
        **extra,
    }


def layers(*shares: tuple[str, str, float]) -> list[dict[str, Any]]:
    return [{"name": name, "type": kind, "share": share, "norm": abs(share)} for name, kind, share in shares]


@pytest.fixture
def swept(tmp_path):
    """Results of eleven models in two families; the errors fall with size, exactly in order in one family."""
    out = tmp_path / "sweep"
    (out / "models").mkdir(parents=True)
    source = random.Random(0)
    rows = ["model,img_size,top1,top1_err"]
    for index in range(5):
        model = f"resnet{index}"
        split = layers(("conv1", "Conv2d", 0.25), ("relu", "ReLU", 1.0), ("remainder", "remainder", -0.25))
        found = record(model, "resnet", 10**6 * (index + 1), 10.0 ** -(index + 2), layers={"translate_x": split})
        (out / "models" / f"{model}.json").write_text(json.dumps(found))
        rows.append(f"{model}.tag_in1k,224,{70 + index},{30 - index}")
    for index in range(5):
        model = f"vit<{index}>"  # a name that would break a page which does not escape it
        found = record(model, "vision_transformer", 3 * 10**6 * (index + 1), 1e-4 * source.random() + 1e-6)
        (out / "models" / f"vit{index}.json").write_text(json.dumps(found | {"model": model}))
        rows.append(f"{model}.tag_in1k,224,{75 + index / 2},{25 - index / 2}")
    failed = {"model": "broken", "family": "x", "status": "failed", "fingerprint": "f", "versions": {"timm": "1.0"},
              "error": {"type": "E", "message": "no <kernel>", "traceback": ""}}  # fmt: skip
    (out / "models" / "broken.json").write_text(json.dumps(failed))
    (tmp_path / "table.csv").write_text("\n".join(rows) + "\n")
    return out


class Page(HTMLParser):
    """What a browser would load, and the tables' cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.outside: list[str] = []
        self.images: list[bytes] = []
        self.rows: list[list[str]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)
        for name, value in attributes:
            if name in ("src", "href", "srcset", "data", "action") and value and not value.startswith("#"):
                if value.startswith("data:image/png;base64,"):
                    self.images.append(base64.b64decode(value.partition(",")[2], validate=True))
                else:
                    self.outside.append(value)
        if tag == "link":
            self.outside.append("link")
        if tag == "tr":
            self.rows.append([])

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag  # every tag closes the one that is open

    def handle_data(self, data: str) -> None:
        self.text.append(data)
        if self.rows and self.open and self.open[-1] in ("td", "button"):
            self.rows[-1].append(data)


def test_the_page_stands_alone_and_shows_everything(swept, tmp_path, capfd):
    assert main(["report", str(swept), "--accuracies", str(tmp_path / "table.csv")]) == 0
    out = swept / "report"
    text = (out / "report.html").read_text()
    page = Page(text)
    assert page.open == []
    assert page.outside == []
    assert not re.search(r"url\(|@import|https?://|fetch\(|XMLHttpRequest", text)
    names = sorted(path.name for path in out.glob("*.png"))
    assert names == [
        "depth_translate_x.png", "generators.png", "layer_types_translate_x.png",
        "lee_vs_accuracy.png", "lee_vs_parameters.png",
    ]  # fmt: skip
    assert sorted(page.images) == sorted((out / name).read_bytes() for name in names)
    for image in page.images:
        picture = Image.open(io.BytesIO(image))
        assert min(picture.size) > 200
        assert len(picture.convert("RGB").getcolors(10**6) or []) > 10  # something is drawn
    models = {row[0]: row for row in page.rows if row}
    assert models["resnet2"][:5] == ["resnet2", "resnet", "3,000,000", "pretrained", "72"]
    assert models["resnet2"][5:8] == ["0.0001", "0.0002", "0.0003"]
    assert models["vit<3>"][1] == "vision_transformer"
    assert models["broken"] == ["broken", "no <kernel>"]
    assert "sortable" in text
    assert "Spearman" in capfd.readouterr().out


def test_the_correlations_are_those_of_the_definition(swept, tmp_path):
    assert main(["report", str(swept), "--accuracies", str(tmp_path / "table.csv"), "--out", str(tmp_path / "r")]) == 0
    found = json.loads((tmp_path / "r" / "metrics.json").read_text())
    assert found["with_accuracy"] == 10
    assert found["failed"] == {"broken": "no <kernel>"}
    by_size = found["correlations"]["parameters"]["translate_x"]
    assert by_size["resnet"]["spearman"] == pytest.approx(-1)  # built to fall
    assert by_size["resnet"]["n"] == 5
    assert set(by_size) == {"all", "resnet", "vision_transformer"}
    records = [json.loads(path.read_text()) for path in (swept / "models").glob("resnet*.json")]
    records += [json.loads(path.read_text()) for path in (swept / "models").glob("vit*.json")]
    pairs = [
        (r["result"]["parameters"], r["result"]["generators"]["translate_x"]["mean_squared"]["mean"]) for r in records
    ]
    # Kendall's tau-b by its definition: concordant minus discordant pairs over the geometric mean of the untied.
    score = ties_x = ties_y = count = 0
    for (a, b), (c, d) in itertools.combinations(pairs, 2):
        score += ((a > c) - (a < c)) * ((b > d) - (b < d))
        ties_x, ties_y, count = ties_x + (a == c), ties_y + (b == d), count + 1
    assert by_size["all"]["kendall"] == pytest.approx(score / ((count - ties_x) * (count - ties_y)) ** 0.5)
    # Spearman by the correlation of ranks; only the sizes have ties, whose ranks are averaged.
    import numpy as np

    def ranks(values):
        return [sum(v < w for v in values) + (sum(v == w for v in values) + 1) / 2 for w in values]

    expected = np.corrcoef(ranks([p for p, _ in pairs]), ranks([e for _, e in pairs]))[0, 1]
    assert by_size["all"]["spearman"] == pytest.approx(expected)
    assert found["correlations"]["accuracy"]["rotate"]["resnet"]["spearman"] == pytest.approx(-1)


def test_no_correlation_of_too_few_or_of_a_constant():
    assert rank_correlation([1, 2, 3], [1, 2, 3]) is None
    assert rank_correlation([1, 2, 3, 4], [2, 2, 2, 2]) is None
    found = rank_correlation([1, 2, 3, 4], [4, 3, 2, 1])
    assert found is not None
    assert found.kendall == -1.0
    assert found.kendall_p == pytest.approx(2 / 24)  # one order of the 4! each way


def test_accuracies_belong_to_weights_not_to_architectures(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("model,img_size,top1\na.tag_in1k,224,70\na.tag_in1k,288,71\nb,,60\nc.tag_in1k,288,50\nd,224,40\n")
    accuracies = read_accuracies(path)
    records = [
        record("a", "x", 1, 1.0),  # timm's weights, at 224 pixels
        record("b", "x", 1, 1.0, kind="checkpoint"),  # the user's
        record("c", "x", 1, 1.0),  # one row only, at another size
        record("d", "x", 1, 1.0, kind="random"),  # knows nothing
        record("e", "x", 1, 1.0),  # not in the table
    ]
    assert join_accuracies(records, accuracies) == {"a": 70.0, "b": 60.0, "c": 50.0}
    records[0]["result"]["preprocessing"]["input_size"] = [3, 288, 288]
    assert join_accuracies(records, accuracies)["a"] == 71.0
    records[0]["result"]["preprocessing"]["input_size"] = [3, 256, 256]
    assert "a" not in join_accuracies(records, accuracies)  # two sizes, neither of them this one


@pytest.mark.skipif("LIE_TEST_DATA" not in os.environ, reason="needs timm's published tables under LIE_TEST_DATA")
def test_timms_published_table():
    accuracies = read_accuracies(Path(os.environ["LIE_TEST_DATA"]) / "timm_results" / "results-imagenet.csv")
    assert len(accuracies) > 1000
    resnet = record("resnet18", "resnet", 11_689_512, 1.0)
    resnet["result"]["weights"]["source"] = "resnet18.a1_in1k"
    found = join_accuracies([resnet], accuracies)["resnet18"]
    assert 65 < found < 75  # any published ResNet-18
    import timm

    known = set(timm.list_models(pretrained=True))
    assert len(known & accuracies.keys()) > 1000  # the table's names are timm's


def test_layer_shares_and_curves(swept):
    records = [json.loads((swept / "models" / f"resnet{i}.json").read_text()) for i in range(2)]
    assert layer_type_shares(records, "translate_x")["resnet0"] == {"Conv2d": 0.25, "ReLU": 1.0, "remainder": -0.25}
    curve = depth_curves(records, "translate_x")["resnet1"]
    assert curve == [(0.0, 0.0), (1 / 3, 0.25), (2 / 3, 1.25), (1.0, 1.0)]
    assert layer_type_shares(records, "rotate") == {}


def test_a_measurement_has_a_report_too(tmp_path):
    run = tmp_path / "run"
    quick = ["--image-size", "64", "--limit", "1", "--generators", "rotate", "--device", "cpu"]
    assert main(["measure", "test_resnet", "test_vit", *quick, "--out", str(run)]) == 0
    assert main(["report", str(run), "--measure", "mean_absolute", "--out", str(tmp_path / "page")]) == 0
    page = Page((tmp_path / "page" / "report.html").read_text())
    rows = {row[0]: row for row in page.rows if row}
    stored = json.loads((run / "metrics.json").read_text())["models"]["test_vit"]
    value = stored["generators"]["rotate"]["mean_absolute"]["mean"]
    assert rows["test_vit"][1:6] == ["vision_transformer", f"{stored['parameters']:,}", "random", "–", f"{value:.4g}"]
    assert "no rank correlation" not in "".join(page.text)
    assert not (tmp_path / "page" / "lee_vs_accuracy.png").exists()


def test_an_old_figure_does_not_stay(swept, tmp_path, capfd):
    out = tmp_path / "r"
    assert main(["report", str(swept), "--accuracies", str(tmp_path / "table.csv"), "--out", str(out)]) == 0
    assert "accuracies joined to" in capfd.readouterr().out
    (tmp_path / "other.csv").write_text("model,top1\nnobody,70\n")
    assert main(["report", str(swept), "--accuracies", str(tmp_path / "other.csv"), "--out", str(tmp_path / "q")]) == 0
    assert "joined to 0 of" in (said := capfd.readouterr().out) and "the table has no row" in said
    assert (out / "lee_vs_accuracy.png").exists()
    assert main(["report", str(swept), "--out", str(out), "--generators", "saturate"]) == 0
    assert not (out / "lee_vs_accuracy.png").exists()
    assert "none were given" in (out / "report.html").read_text()


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("name,top1\na,70\n", "has no column 'model' (it has name, top1)"),
        ("model,acc\na,70\n", "has no column 'top1' (it has model, acc)"),
        ("model,top1\na,seventy\n", ":2: expected a number in top1, got 'seventy'"),
        ("model,top1\na,70\nb,700\n", ":3: expected top1 in per cent"),
        ("model,top1\na,0.7\nb,0.8\n", "got fractions"),
        ("", "has no column 'model' (it has none)"),
    ],
)
def test_bad_tables(table, message, swept, tmp_path, capfd):
    path = tmp_path / "bad.csv"
    path.write_text(table)
    assert main(["report", str(swept), "--accuracies", str(path)]) == 2
    assert message in capfd.readouterr().err
    assert not (swept / "report").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no/such"], "no folder no/such"),
        (["SWEPT", "--measure", "mean"], "did you mean 'mean_squared'"),
        (["SWEPT", "--generators", "rotat"], "choose --generators from"),
        (["SWEPT", "--accuracies", "no/such.csv"], "no file no/such.csv"),
    ],
)
def test_bad_arguments(arguments, message, swept, capfd):
    assert main(["report", *(str(swept) if argument == "SWEPT" else argument for argument in arguments)]) == 2
    assert message in capfd.readouterr().err
    assert not (swept / "report").exists()


def test_nothing_but_failures(swept, capfd):
    for path in (swept / "models").glob("[rv]*.json"):
        path.unlink()
    assert main(["report", str(swept)]) == 2
    assert "every one of the 1 models" in capfd.readouterr().err


def test_rows_leave_failures_out(swept):
    records = [json.loads(path.read_text()) for path in sorted((swept / "models").glob("*.json"))]
    rows = report_rows(records, "mean_squared")
    assert len(rows) == len(records) - 1
    with pytest.raises(UserError, match="no result in"):
        from liederivative.sweep import read_records

        read_records(swept / "models")
