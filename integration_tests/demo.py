"""The main job of each package in a small setting, and one page that shows what came out: ``demo/report.html``.

The jobs are the installed commands, run one after the other as a user would type them, each in a folder of
its own. The page is built from those folders alone: from each ``metrics.json`` the table that answers the
question and, folded away, all the rest; every PNG and GIF inside the page, so that it can be sent as one file.

    python integration_tests/demo.py [--out demo] [--only lieconv]
"""

from __future__ import annotations

import argparse
import base64
import html
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lie.run import write_text

Table = tuple[list[str], list[list[Any]]]
"""column names, rows of cells"""


@dataclass(frozen=True)
class Job:
    """One command and the name under which its results stand in the report."""

    label: str
    command: str
    """As typed at the root of the repository; ``{out}`` is the run's folder."""


@dataclass(frozen=True)
class Section:
    """Jobs of one package that answer one question together."""

    name: str
    title: str
    text: str
    jobs: tuple[Job, ...]
    summary: Callable[[Mapping[str, Any]], Table]
    """From the metrics of the jobs, by label, to the table that answers the question."""
    picture: str = ""
    """File name of the figure of the first job that opens the page; empty where the section has none there."""
    caption: str = ""
    """What is seen in that figure, in plain words."""


@dataclass(frozen=True)
class Run:
    """A job that has run."""

    job: Job
    folder: Path
    seconds: float

    @property
    def metrics(self) -> dict[str, Any]:
        """What the command wrote down as its result."""
        return json.loads((self.folder / "metrics.json").read_text(encoding="utf-8"))


# --- the answers ---


def rotated_digits(metrics: Mapping[str, Any]) -> Table:
    """Accuracy upright and rotated, a row for each network."""
    columns = ["network", "upright", "rotated at random", "change of the logits under rotation", "parameters"]
    rows = [
        [label, f"{values['accuracy_upright']:.1%}", f"{values['accuracy_rotated']:.1%}",
         values["rotation_change"], values["parameters"]]
        for label, values in metrics.items()
    ]  # fmt: skip
    return columns, rows


def equivariance_errors(metrics: Mapping[str, Any]) -> Table:
    """Mean absolute Lie derivative, a row for each generator and a column for each model."""
    models = {name: record for values in metrics.values() for name, record in values["models"].items()}
    generators = next(iter(models.values()))["generators"]
    rows = [[name, *(record["generators"][name]["mean_absolute"] for record in models.values())] for name in generators]
    return ["generator", *models], rows


def training_errors(metrics: Mapping[str, Any]) -> Table:
    """Accuracies and relative errors before and after training, a row for each network."""
    runs = {label: run for values in metrics.values() for label, run in values["runs"].items()}
    generators = [key.removeprefix("per_variance_") for key in next(iter(runs.values())) if key.endswith("_first")]
    names = [name.removesuffix("_first") for name in generators]
    columns = ["network, trained on", "accuracy", "on moved digits", *(f"{name}, before and after" for name in names)]
    rows = [
        [
            label,
            f"{run['accuracy']:.1%}",
            f"{run['accuracy_moved']:.1%}",
            *(f"{run[f'per_variance_{name}_first']:.3g} → {run[f'per_variance_{name}']:.3g}" for name in names),
        ]
        for label, run in runs.items()
    ]
    return columns, rows


def scalars(metrics: Mapping[str, Any]) -> Table:
    """Every number that the runs have in common, a row for each and a column for each run."""
    flat = {label: dict(_numbers(values)) for label, values in metrics.items()}
    first, *others = flat.values()
    common = [name for name in first if all(name in other for other in others)]
    return ["", *metrics], [[name, *(numbers[name] for numbers in flat.values())] for name in common]


def _numbers(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Names and numbers of the results, nested ones after their parents' names; not those that went in."""
    for key, value in values.items():
        name = f"{prefix}{key.replace('_', ' ')}"
        if isinstance(value, dict) and not is_cell(value):
            if key not in {"config", "configuration", "versions"} and not prefix:
                yield from _numbers(value, f"{name}: ")
        elif key != "seed" and is_cell(value) and not isinstance(value, str | list | bool | None):
            yield name, value


def results(**names: str) -> Callable[[Mapping[str, Any]], Table]:
    """The summary that shows the named results, each under a description; all numbers if none is there."""

    def summary(metrics: Mapping[str, Any]) -> Table:
        rows = [
            [text, *(values[key] for values in metrics.values())]
            for key, text in names.items()
            if all(key in values for values in metrics.values())
        ]
        return (["", *metrics], rows) if rows else scalars(metrics)

    return summary


# Half the default width and depth: minutes on two cores, and the answer is the same.
SMALL_NETWORK = "--channels 32 --num-layers 2 --num-neighbors 12 --batch-size 32 --epochs 8"
# A tenth of the default steps.
SMALL_TRAINING = "--trajectories 200 --test-trajectories 10 --steps 300 --batch-size 100 --hidden 64"

SECTIONS = (
    Section(
        "lieconv",
        "Digits that are recognised at any rotation",
        "Two networks learn 1437 handwritten digits, upright ones only. The convolution of one is equivariant to "
        "the rotations and translations of the plane, SE(2); that of the other to no group. Both are then asked "
        "for the 360 digits that neither has seen, upright and rotated.",
        (
            Job("SE(2)", f"lieconv train --data digits --group se2 {SMALL_NETWORK} --out {{out}}"),
            Job("trivial group", f"lieconv train --data digits --group trivial {SMALL_NETWORK} --out {{out}}"),
        ),
        rotated_digits,
        picture="accuracy_by_angle.png",
        caption="accuracy on handwritten digits against the angle by which they are rotated. The network has seen "
        "upright digits only; its convolution is equivariant to rotations, so the curve stays flat.",
    ),
    Section(
        "liederivative",
        "How equivariant three architectures are before training",
        "The Lie derivative of a network's output along ten ways to move an image, on photographs: zero is "
        "invariance. The weights are random here, so the numbers compare architectures, not trained models; "
        "<code>--pretrained</code> measures those.",
        (
            Job(
                "three models",
                "liederivative measure resnet18 vit_tiny_patch16_224 convnext_atto "
                "--images sample --limit 8 --out {out}",
            ),
        ),
        equivariance_errors,
        picture="lee.png",
        caption="how fast the output of three image models changes as the image is moved in ten ways. A shorter bar is "
        "a more equivariant model.",
    ),
    Section(
        "liederivative-training",
        "How equivariance changes while a network learns",
        "A small convolutional network and a small vision transformer learn handwritten digits, upright ones or "
        "moved ones, and a callback in their training loop follows the Lie derivative of their outputs on moved "
        "digits that none has seen, relative to how much the outputs differ between digits.",
        (
            Job(
                "four networks",
                "python packages/liederivative/examples/lee_during_training.py --steps 800 --out {out}",
            ),
        ),
        training_errors,
    ),
    Section(
        "chnn-simulate",
        "A chain of three pendulums",
        "Simulated in Cartesian coordinates with its rods as constraints. The truth that networks learn from "
        "should keep its energy and its rods: both drifts are measured.",
        (Job("largest of 4 trajectories", "chnn simulate chain-pendulum --links 3 --trajectories 4 --out {out}"),),
        results(
            energy_drift_max="relative energy drift over 3 s",
            position_violation_max="error of the rods, m²",
            velocity_violation_max="its rate, m²/s",
        ),
        picture="animation.gif",
        caption="a chain of three pendulums under gravity, simulated in Cartesian coordinates. The rods are "
        "constraints and keep their lengths to rounding.",
    ),
    Section(
        "chnn",
        "Learning a double pendulum, with and without its constraints",
        "The same simulated trajectories and the same number of steps for two models: CHNN sees Cartesian "
        "coordinates and the rods, HNN sees angles and momenta. The errors are those of rollouts from states that "
        "neither has seen, against the truth.",
        (
            Job("CHNN", f"chnn train chain-pendulum --links 2 --model chnn {SMALL_TRAINING} --out {{out}}"),
            Job("HNN", f"chnn train chain-pendulum --links 2 --model hnn {SMALL_TRAINING} --out {{out}}"),
        ),
        results(
            rollout_error="relative error of the state, geometric mean",
            rollout_error_max="the same, worst trajectory",
            energy_error="relative error of the energy",
            constraint_violation="error of the rods, m²",
            model_parameters="parameters",
        ),
    ),
)


# --- running ---


def run_jobs(sections: Sequence[Section], folder: Path) -> dict[str, list[Run]]:
    """Run every job, its output and progress on the terminal; exits with 1 at the first that fails."""
    runs: dict[str, list[Run]] = {}
    total, number = sum(len(section.jobs) for section in sections), 0
    for section in sections:
        for index, job in enumerate(section.jobs):
            number += 1
            out = folder / (section.name if len(section.jobs) == 1 else f"{section.name}-{index + 1}")
            program, *arguments = shlex.split(job.command.format(out=out))
            print(f"\n[{number}/{total}] {job.command.format(out=out)}", flush=True)
            started = time.perf_counter()
            # The command that was installed beside this interpreter, whatever PATH says.
            done = subprocess.run([str(Path(sys.executable).with_name(program)), *arguments], check=False)
            if done.returncode:
                sys.exit(f"demo: {program} ended with exit code {done.returncode}; no report was written")
            runs.setdefault(section.name, []).append(Run(job, out, time.perf_counter() - started))
    return runs


# --- the page ---

STYLE = """
:root { --ink: #1c2430; --soft: #5b6675; --line: #dde2e9; --paper: #ffffff; --wash: #f5f7fa; --accent: #2457a6; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e8ee; --soft: #9aa5b4; --line: #333c48; --paper: #14181e; --wash: #1c222a; --accent: #8ab4f8; }
  figure img { background: #ffffff; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 3rem 1.5rem 5rem; background: var(--paper); color: var(--ink);
       font: 16px/1.6 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 .5rem; }
h2 { font-size: 1.35rem; line-height: 1.3; margin: 3.5rem 0 .5rem; padding-top: 1.5rem;
     border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.5rem 0 .25rem; }
p { max-width: 46rem; }
.soft, figcaption, summary { color: var(--soft); font-size: .9rem; }
code, pre { font: .85rem/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
pre { background: var(--wash); border: 1px solid var(--line); border-radius: 6px; padding: .75rem 1rem;
      overflow-x: auto; white-space: pre-wrap; overflow-wrap: anywhere; }
pre .time { color: var(--soft); float: right; margin-left: 1rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: 1rem 0; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .9rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
thead th { color: var(--soft); font-weight: 600; border-bottom: 2px solid var(--line); white-space: normal; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: 1.25rem; }
.opening { grid-template-columns: repeat(auto-fit, minmax(min(100%, 17rem), 1fr)); margin: 1.5rem 0; align-items: end; }
figure { margin: .5rem 0; }
figure img { max-width: 100%; height: auto; border: 1px solid var(--line); border-radius: 6px; display: block; }
details { margin: .75rem 0; }
summary { cursor: pointer; }
nav a { color: var(--accent); text-decoration: none; margin-right: 1.25rem; }
"""


def build_report(sections: Sequence[Section], runs: Mapping[str, Sequence[Run]]) -> str:
    """The page as one HTML text without a reference to anything outside it."""
    shown = [section for section in sections if section.name in runs]
    seconds = sum(run.seconds for done in runs.values() for run in done)
    versions: dict[str, str] = {}
    for done in runs.values():
        for run in done:
            versions |= run.metrics.get("versions", {})
    machine = f"{os.cpu_count()} processors, {platform.machine()}"
    links = "".join(f'<a href="#{section.name}">{html.escape(section.title)}</a>' for section in shown)
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>lie: demonstration</title><style>{STYLE}</style></head><body>",
            "<h1>What the packages do</h1>",
            opening_html(shown, runs),
            f'<p class="soft">Made by <code>nox -s demo</code> on {time.strftime("%Y-%m-%d")} '
            f"in {duration(seconds)} on {html.escape(machine)}.</p><nav>{links}</nav>",
            *(section_html(section, runs[section.name]) for section in shown),
            "<h2>Versions</h2>",
            table_html(["", "version"], [[name, version] for name, version in versions.items()]),
            "</body></html>\n",
        ]
    )


def opening_html(sections: Sequence[Section], runs: Mapping[str, Sequence[Run]]) -> str:
    """One picture per package, each with a sentence that says what is seen and a link to its section."""
    cards = [
        f'<figure><a href="#{section.name}">{image_html(path, section.title)}</a>'
        f"<figcaption><b>{html.escape(section.name.partition('-')[0])}</b>: {section.caption}</figcaption></figure>"
        for section in sections
        if section.picture and (path := runs[section.name][0].folder / section.picture).is_file()
    ]
    return f'<div class="figures opening">{"".join(cards)}</div>' if cards else ""


def section_html(section: Section, runs: Sequence[Run]) -> str:
    """Heading, commands, the table that answers, the figures, and all other results folded away."""
    metrics = {run.job.label: run.metrics for run in runs}
    commands = "\n".join(
        f'<span class="time">{duration(run.seconds)}</span>{html.escape(run.job.command.format(out=run.folder))}'
        for run in runs
    )
    figures = [
        figure_html(path, run.job.label if len(runs) > 1 else "")
        for run in runs
        for path in sorted([*run.folder.glob("*.gif"), *run.folder.glob("*.png")])
    ]
    details = "".join(
        f"<details><summary>all results: {html.escape(label)}</summary>{value_html(values)}</details>"
        for label, values in metrics.items()
    )
    return "\n".join(
        [
            f'<h2 id="{section.name}">{html.escape(section.title)}</h2>',
            f"<p>{section.text}</p><pre>{commands}</pre>",
            table_html(*section.summary(metrics)),
            f'<div class="figures">{"".join(figures)}</div>' if figures else "",
            details,
        ]
    )


def figure_html(path: Path, label: str) -> str:
    """A figure inside the page, with its name as caption."""
    caption = ": ".join(part for part in (label, path.stem.replace("_", " ").replace("-", " ")) if part)
    return f"<figure>{image_html(path, caption)}<figcaption>{html.escape(caption)}</figcaption></figure>"


def image_html(path: Path, description: str) -> str:
    """An image whose bytes stand in the page."""
    kind = {".png": "image/png", ".gif": "image/gif"}[path.suffix]
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return f'<img alt="{html.escape(description)}" src="data:{kind};base64,{data}">'


def table_html(columns: Iterable[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table; cells as `cell_text` shows them."""
    head = "".join(f"<th>{html.escape(column)}</th>" for column in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell_text(cell))}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def value_html(value: Any) -> str:
    """Any JSON value as tables: a table of what fits in one, the rest below it under its name."""
    if is_cell(value):
        return f"<p>{html.escape(cell_text(value))}</p>"
    if isinstance(value, list):
        value = {str(index): item for index, item in enumerate(value)}
    cells = {key: item for key, item in value.items() if is_cell(item)}
    parts = [table_html(["", ""], cells.items())] if cells else []
    nested = {key: item for key, item in value.items() if key not in cells}
    columns = {
        tuple(item) if isinstance(item, dict) and all(map(is_cell, item.values())) else None: None
        for item in nested.values()
    }
    if len(columns) == 1 and (names := next(iter(columns))) and len(nested) > 1:  # all of one shape: one table
        parts.append(table_html(["", *names], [[key, *item.values()] for key, item in nested.items()]))
    else:
        parts += [f"<h3>{html.escape(key)}</h3>{value_html(item)}" for key, item in nested.items()]
    return "".join(parts)


def is_cell(value: Any) -> bool:
    """Whether ``value`` fits in one cell: a scalar, a mean with its standard error, or a list of scalars."""
    if isinstance(value, dict):
        return value.keys() == {"mean", "standard_error"}
    if isinstance(value, list):
        return all(item is None or isinstance(item, bool | int | float | str) for item in value)
    return True


def cell_text(value: Any) -> str:
    """``value`` for a person: four digits, means with their errors, long lists by their length."""
    if isinstance(value, dict):
        error = value["standard_error"]
        return f"{value['mean']:.3g}" + ("" if error is None else f" ± {error:.1g}")
    if isinstance(value, list):
        return ", ".join(map(cell_text, value)) if len(value) <= 8 else f"{len(value)} values"
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def duration(seconds: float) -> str:
    """Seconds as people say them: 48 s, 3 min 05 s."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def main(argv: Sequence[str] | None = None) -> None:
    """Run the jobs and write the report."""
    parser = argparse.ArgumentParser(description="Run each package's main job and write one page about it.")
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for the runs and report.html")
    parser.add_argument("--only", nargs="+", choices=[section.name for section in SECTIONS], help="these sections only")
    arguments = parser.parse_args(argv)
    sections = [section for section in SECTIONS if not arguments.only or section.name in arguments.only]
    for section in sections:  # from nothing: what an earlier demonstration left is not shown again
        for old in arguments.out.glob(f"{section.name}*"):
            if old.is_dir() and (old.name == section.name or old.name.removeprefix(f"{section.name}-").isdigit()):
                shutil.rmtree(old)
    arguments.out.mkdir(parents=True, exist_ok=True)
    report = arguments.out / "report.html"
    report.unlink(missing_ok=True)
    runs = run_jobs(sections, arguments.out)
    write_text(report, build_report(sections, runs))
    total = sum(run.seconds for done in runs.values() for run in done)
    print(f"\n{report} written: {report.stat().st_size / 1e6:.1f} MB, {duration(total)} of work")


if __name__ == "__main__":
    main()
