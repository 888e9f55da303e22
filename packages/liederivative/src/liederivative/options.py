"""What the commands that measure models have in common: their settings, and how a run is gone on with."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from lie.run import UserError, read_json, unknown_name

if TYPE_CHECKING:
    from liederivative.zoo import ZooModel

DTYPES = ("float32", "float64")


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Settings of every command that runs models of timm on images."""

    images: str = "sample"
    """'sample', the photographs inside scikit-learn and scikit-image, or a folder of images (that every worker can
    read)"""
    limit: int | None = None
    """use the first so many images"""
    generators: tuple[str, ...] = ()
    """names of generators; all ten by default: translate_x translate_y rotate shear_x shear_y stretch_x
    stretch_y hyperbolic scale saturate"""
    pretrained: bool = False
    """use timm's weights, from its cache or the network; random ones otherwise"""
    image_size: int | None = None
    """resolution in pixels, where it is not each model's own"""
    logits: bool = False
    """measure the outputs as they are; softmax probabilities otherwise, as in the paper"""
    dtype: str = "float32"
    """float32 or float64"""
    seed: int = 0
    """of random weights"""
    device: str = "auto"
    """cpu, cuda, mps, or auto: the accelerator if there is one"""

    @property
    def quantity(self) -> str:
        """What is measured, in words."""
        return "outputs" if self.logits else "softmax probabilities"

    def check(self) -> None:
        """Raise for settings that make no sense."""
        if self.dtype not in DTYPES:
            raise unknown_name("dtype", self.dtype, DTYPES)
        if self.image_size is not None and self.image_size < 2:
            raise UserError(f"expected --image-size of at least 2 pixels, got {self.image_size}")

    def load(self, name: str, *, checkpoint: str | None = None, num_classes: int | None = None) -> ZooModel:
        """The model ``name`` with the weights that are asked for, at the resolution that is asked for."""
        from liederivative.zoo import load_model

        return load_model(
            name,
            seed=self.seed,
            pretrained=self.pretrained,
            checkpoint=checkpoint,
            num_classes=num_classes,
            image_size=self.image_size,
        )


@dataclass(frozen=True, kw_only=True)
class MeasureOptions(ModelOptions):
    """Settings of a measurement of whole models, and how a run is gone on with."""

    batch_size: int = 4
    """images at once"""
    tangents_per_pass: int = 7
    """tangents at once, 1 to 7; fewer take less memory and more time"""

    def check(self) -> None:
        """Raise for settings that make no sense."""
        super().check()
        if min(self.batch_size, self.tangents_per_pass) < 1:
            raise UserError(f"expected --batch-size and --tangents-per-pass of at least 1, got {self.batch_size} and "
                            f"{self.tangents_per_pass}")  # fmt: skip

    def resumed(self, folder: str, *, kind: str, done: str, free: Collection[str], name: str | None = None) -> Self:
        """The settings of the run in ``folder``; those given beside --resume must agree with them.

        Args:
            folder: the ``--out`` of the run.
            kind, done: what an error calls the run and what was done with it: "sweep", "swept".
            free: settings that may be chosen anew, as they do not change a result.
            name: of the command, where the stored settings say it.

        Raises:
            UserError: where the folder holds no such run, or a setting given differs from the run's.
        """
        stored = read_json(Path(folder) / "config.json")
        known = {field.name for field in fields(self)}
        if not isinstance(stored, dict) or stored.pop("command", None) != name or stored.keys() != known:
            raise UserError(f"{folder}/config.json is not that of a {kind}; give the --out of the {kind} to go on with")
        before: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in stored.items()
        }
        before |= {"out": folder, "resume": folder}
        default = type(self)()
        for setting in sorted(known):
            given = getattr(self, setting)
            if given == getattr(default, setting):
                continue
            if setting in free:
                before[setting] = given
            elif given != before[setting]:
                raise UserError(
                    f"{folder} was {done} with {setting}={before[setting]!r}, got {given!r}; "
                    f"give --resume alone, or start a new {kind} with another --out"
                )
        return type(self)(**before)
