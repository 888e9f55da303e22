"""The command ``liederivative sweep``."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from lie.run import (
    UserError,
    output_directory,
    print_table,
    provenance,
    resolve_device,
    unknown_name,
    write_json,
    write_text,
)
from msgspec import Meta

from liederivative.options import MeasureOptions

if TYPE_CHECKING:
    from liederivative.sweep.worker import Task

Processes = Annotated[int, Meta(ge=1, le=4096)]
_FREE = ("device", "batch_size", "tangents_per_pass", "backend", "workers", "threads", "address", "retry_failed")
"""settings that change where and how fast a result comes, not the result: a resumed sweep may choose them anew"""
_NO_RESULT = (*_FREE, "models", "family", "exclude", "out", "resume")
"""settings that do not change the result of one model"""


@dataclass(frozen=True)
class SweepCommand(MeasureOptions):
    """Measure many timm models, on all processors or on a cluster; one result file each.

    Example: liederivative sweep 'resnet*' --family convnext --images sample --workers 4 --out runs/sweep

    A model that fails is recorded, and the sweep goes on. A killed sweep is resumed by
    liederivative sweep --resume runs/sweep. Writes models/NAME.json, results.csv and metrics.json to --out;
    liederivative report runs/sweep makes figures of them.
    """

    models: tyro.conf.Positional[tuple[str, ...]] = ()
    """names, globs in quotes ('resnet*', '*.fb_in1k', '*' for all), @FILE, a list of them, one a line, and
    @paper, the models of the paper's sweep that timm still has"""
    family: tuple[str, ...] = ()
    """timm modules, all of whose models are measured: convnext vision_transformer swin_transformer"""
    exclude: tuple[str, ...] = ()
    """globs of models to leave out"""
    layers: tuple[str, ...] = ()
    """generators under which each model is also decomposed layer by layer; none by default"""
    backend: str = "loky"
    """loky: processes of this machine; serial: this process; dask or ray: a cluster"""
    workers: Processes | None = None
    """models at once; by default a quarter of the processors"""
    threads: Processes | None = None
    """processors a worker; by default all of this machine shared between the workers, and 1 on a cluster"""
    address: str | None = None
    """of the cluster: tcp://host:8786 for dask, ray://host:10001 or auto for ray; started here by default"""
    out: str = "runs/sweep"
    """folder for the results, made if absent"""
    resume: str | None = None
    """resume the sweep in this folder, with its settings: models already there are not measured again"""
    retry_failed: bool = False
    """with --resume: measure again what failed"""

    def run(self) -> None:
        """Check everything given, then measure, then write and show the results."""
        settings = self
        if self.resume is not None:
            settings = self.resumed(self.resume, kind="sweep", done="swept", free=_FREE, name="sweep")
        settings._sweep()

    def _sweep(self) -> None:
        from tqdm import tqdm

        from liederivative.sweep.records import kept_record, results_table
        from liederivative.sweep.runner import Sweep, run_sweep

        tasks = self._tasks()
        workers = self._workers()
        with output_directory(self.out) as out:
            if self.resume is None and (out / "config.json").exists():
                raise UserError(
                    f"{out} already holds a run; resume it with --resume {out}, or give another folder by --out"
                )
            found: dict[str, Any] = {}
            for task in tasks if self.resume is not None else ():
                record = kept_record(out, task.name, task.fingerprint, retry_failed=self.retry_failed)
                if record is not None:
                    found[task.name] = record
            remaining = [task for task in tasks if task.name not in found]
            # Before the first record: whatever happens from here on, --resume knows what to do.
            if self.resume is None:
                write_json(out / "config.json", {"command": "sweep", **asdict(replace(self, resume=None))})
            else:
                print(f"measured before, kept: {len(found)} of {len(tasks)} models", file=sys.stderr)
            for stale in (out / "metrics.json", out / "results.csv"):
                stale.unlink(missing_ok=True)
            bar = tqdm(total=len(tasks), initial=len(found), unit="model", smoothing=0, desc="sweep")
            failed = 0

            def done(record: dict[str, Any]) -> None:
                nonlocal failed
                if record["status"] != "ok":
                    failed += 1
                    tqdm.write(f"failed: {record['model']}: {record['error']['message'][:200]}", file=sys.stderr)
                bar.set_postfix_str(f"{failed} failed, last {record['model']}", refresh=False)
                bar.update()

            try:
                found |= run_sweep(Sweep(remaining, out, self.backend, workers, self.address, done))
            except UserError:
                if self.resume is None and not any((out / "models").glob("*.json")):  # nothing to resume
                    (out / "models").rmdir()
                    (out / "config.json").unlink()
                raise
            finally:
                bar.close()
            records = [found[task.name] for task in tasks]
            rows = results_table(records)
            write_text(out / "results.csv", _csv(rows))
            write_json(out / "metrics.json", self._metrics(records, rows, tasks))
            _show(rows, self.generators or tasks[0].generators)
            print(f"results in {out}: results.csv, metrics.json, models/; figures by: liederivative report {out}")

    def _tasks(self) -> list[Task]:
        """One task a model; everything a user can get wrong shows here, before anything is written."""
        from liederivative.actions import GENERATORS, resolve_generators
        from liederivative.images import load_photographs
        from liederivative.measurement import fingerprint
        from liederivative.sweep.backends import BACKENDS
        from liederivative.sweep.runner import processors
        from liederivative.sweep.selection import select_models
        from liederivative.sweep.worker import Task

        generators = tuple(each.name for each in resolve_generators(self.generators or tuple(GENERATORS)))
        layers = tuple(each.name for each in resolve_generators(self.layers)) if self.layers else ()
        if self.backend not in BACKENDS:
            raise unknown_name("backend", self.backend, BACKENDS)
        if self.address is not None and self.backend not in ("dask", "ray"):
            raise UserError(
                f"expected --address with --backend dask or ray; {self.backend} works on this machine alone"
            )
        device = str(resolve_device(self.device))
        # Last of the names: timm takes seconds to import.
        names = select_models(self.models, family=self.family, exclude=self.exclude, pretrained=self.pretrained)
        photographs = load_photographs(self.images, self.limit)
        decisive = {key: value for key, value in asdict(self).items() if key not in _NO_RESULT}
        stamp = fingerprint(decisive, photographs, None)
        local = max(1, processors() // self._workers())
        threads = self.threads or (local if self.backend in ("loky", "serial") else 1)
        images = self.images if self.images == "sample" else str(Path(self.images).resolve())
        return [
            Task(
                name,
                stamp,
                images,
                self.limit,
                tuple(photograph.sha256 for photograph in photographs),
                generators,
                layers,
                pretrained=self.pretrained,
                image_size=self.image_size,
                logits=self.logits,
                dtype=self.dtype,
                batch_size=self.batch_size,
                tangents_per_pass=self.tangents_per_pass,
                seed=self.seed,
                device=device,
                threads=threads,
            )
            for name in names
        ]

    def _workers(self) -> int:
        from liederivative.sweep.runner import default_workers

        return 1 if self.backend == "serial" else self.workers or default_workers()

    def _metrics(self, records: list[dict[str, Any]], rows: list[dict[str, Any]], tasks: list[Task]) -> dict[str, Any]:
        from liederivative.measurement import DEFINITIONS
        from liederivative.sweep.worker import DISTRIBUTIONS

        failures = {record["model"]: record["error"]["message"] for record in records if record["status"] != "ok"}
        return {
            "command": "sweep",
            "configuration": asdict(replace(self, resume=None)),
            "versions": provenance(*DISTRIBUTIONS),
            "seed": self.seed,
            "quantity": self.quantity,
            "definitions": DEFINITIONS,
            "images": list(tasks[0].checksums),
            "measured": len(records) - len(failures),
            "failed": failures,
            "models": {
                row["model"]: {k: v for k, v in row.items() if k != "model"} for row in rows if row["status"] == "ok"
            },
        }


def _csv(rows: list[dict[str, Any]]) -> str:
    import csv
    import io

    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _show(rows: list[dict[str, Any]], generators: tuple[str, ...]) -> None:
    """The models with the smallest and the largest error, and how many failed."""
    shown = 30
    key = f"{generators[0]}_mean_squared"
    good = sorted((row for row in rows if row["status"] == "ok"), key=lambda row: row[key])
    if good:
        chosen = good if len(good) <= shown else [*good[: shown // 2], *good[-shown // 2 :]]
        names = generators[:4]
        table = [
            [row["model"], f"{row['parameters'] / 1e6:.1f}", *(f"{row[f'{g}_mean_squared']:.3g}" for g in names)]
            for row in chosen
        ]
        title = f"LEE, mean |L f|^2, {len(good)} models by {generators[0]}"
        if len(good) > shown:
            title += f": the {shown // 2} smallest and the {shown // 2} largest"
        print_table(title, ["model", "M par.", *names], table)
        if len(generators) > len(names):
            print(f"{len(names)} of {len(generators)} generators; all are in results.csv")
    if failures := [row for row in rows if row["status"] != "ok"]:
        print(f"{len(failures)} of {len(rows)} models failed: {', '.join(row['model'] for row in failures[:10])}")
        print("their errors are in results.csv and models/; --resume with --retry-failed tries them again")
