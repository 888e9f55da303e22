"""What the commands that measure models have in common: their settings, and how a run is resumed."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from lie.run import Count, Seed, UserError, read_json, validate
from msgspec import Meta

if TYPE_CHECKING:
    from liederivative.zoo import ZooModel

NumClasses = Annotated[int, Meta(ge=0, le=100_000)]
"""Size of a classifier; the largest of timm has 21,843."""


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Settings of every command that runs models of timm on images."""

    images: str = "sample"
    """'sample', the photographs inside scikit-learn and scikit-image, or a folder of images (that every worker can
    read)"""
    limit: Count | None = None
    """use the first so many images"""
    generators: tuple[str, ...] = ()
    """names of generators; all ten by default: translate_x translate_y rotate shear_x shear_y stretch_x
    stretch_y hyperbolic scale saturate"""
    pretrained: bool = False
    """use timm's weights, from its cache or the network; random ones otherwise"""
    image_size: Annotated[int, Meta(ge=2, le=4096)] | None = None
    """resolution in pixels, where it is not each model's own"""
    logits: bool = False
    """measure the outputs as they are; softmax probabilities otherwise, as in the paper"""
    dtype: Literal["float32", "float64"] = "float32"
    """float32 or float64"""
    seed: Seed = 0
    """of random weights"""
    device: str = "auto"
    """cpu, cuda, mps, or auto: the accelerator if there is one"""

    @property
    def quantity(self) -> str:
        """What is measured, in words."""
        return "outputs" if self.logits else "softmax probabilities"

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
    """Settings of a measurement of whole models, and how a run is resumed."""

    batch_size: Count = 4
    """images at once"""
    tangents_per_pass: Annotated[int, Meta(ge=1, le=1000)] = 7
    """tangents at once, 1 to 7; fewer take less memory and more time"""

    def resumed(self, folder: str, *, kind: str, done: str, free: Collection[str], name: str | None = None) -> Self:
        """The settings of the run in ``folder``; those given beside --resume must agree with them.

        Args:
            folder: the ``--out`` of the run.
            kind, done: what an error calls the run and what was done with it: "sweep", "swept".
            free: settings that may be chosen anew, as they do not change a result.
            name: of the command, where the stored settings say it.

        Raises:
            UserError: where the folder holds no such run, a setting of it has another type or is out of range, or one
                given differs from the run's.
        """
        stored = read_json(Path(folder) / "config.json")
        known = {field.name for field in fields(self)}
        if not isinstance(stored, dict) or stored.pop("command", None) != name or stored.keys() != known:
            raise UserError(f"{folder}/config.json is not that of a {kind}; give the --out of the {kind} to resume")
        before = validate(type(self), stored, f"{folder}/config.json")
        changes: dict[str, Any] = {"out": folder, "resume": folder}
        default = type(self)()
        for setting in sorted(known):
            given = getattr(self, setting)
            if given == getattr(default, setting):
                continue
            if setting in free:
                changes[setting] = given
            elif given != changes.get(setting, getattr(before, setting)):
                raise UserError(
                    f"{folder} was {done} with {setting}={getattr(before, setting)!r}, got {given!r}; "
                    f"give --resume alone, or start a new {kind} with another --out"
                )
        return replace(before, **changes)
