"""Models of the timm library by name: random, downloaded or local weights, and their own preprocessing."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from lie.run import UserError, unknown_name
from torch import Tensor, nn

from liederivative.zoo.weights import load_checkpoint_file, weights_checksum

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Weights:
    """Where a model's weights come from."""

    kind: str
    """"random", "pretrained" or "checkpoint" """
    source: str
    """seed, timm tag or file"""
    sha256: str
    """of names, shapes and values"""

    def __str__(self) -> str:
        return f"{self.kind} ({self.source})"


@dataclass(frozen=True)
class ZooModel:
    """A timm model and what belongs to it."""

    name: str
    module: nn.Module
    weights: Weights
    preprocessing: dict[str, Any]
    """timm's data configuration: input_size, interpolation, mean, std, crop_pct, crop_mode"""

    @property
    def num_classes(self) -> int:
        """Classes of the head; 0 for a model without one."""
        return int(getattr(self.module, "num_classes", 0))

    def images(self, photographs: Sequence[Image]) -> Float[Tensor, "N C H W"]:
        """The photographs as the model takes them: resized, centre-cropped and normalised by timm."""
        from timm.data import create_transform  # pyright: ignore[reportPrivateImportUsage]

        transform: Callable[[Image], Any] = create_transform(**self.preprocessing, is_training=False)  # pyright: ignore
        return torch.stack([transform(photograph) for photograph in photographs])


def check_model_names(names: Sequence[str], *, pretrained: bool = False) -> None:
    """Raise `UserError`, with the nearest names, unless every name is an architecture (and tag) of timm.

    With ``pretrained``, weights must have been published for each.
    """
    import timm

    if not names:
        raise UserError("expected at least one timm model name, got none; for example: resnet18")
    for name in map(current_name, names):
        if ":" in name or "/" in name or not timm.is_model(name):
            raise unknown_name("timm model", name, timm.list_models())
        architecture, _, tag = name.partition(".")
        if tag and name not in timm.list_models(f"{architecture}.*", pretrained=True):
            known = timm.list_models(f"{architecture}.*", pretrained=True)
            raise unknown_name("timm model", name, [architecture, *known])
        if pretrained and not getattr(timm.get_pretrained_cfg(name), "has_weights", False):
            raise UserError(f"timm has no pretrained weights of {name}; leave --pretrained out, or give --checkpoint")
    twice = sorted({name for name in names if list(names).count(name) > 1})
    if twice:
        raise UserError(f"expected each model once, got {', '.join(twice)} more than once")


def current_name(name: str) -> str:
    """The name that timm knows a model by now, where it was renamed: architecture and tag; other names as they are.

    >>> current_name("convnext_tiny_in22ft1k")
    'convnext_tiny.fb_in22k_ft_in1k'
    """
    from timm.models import get_deprecated_models

    return get_deprecated_models().get(name) or name


def load_model(
    name: str,
    *,
    seed: int = 0,
    pretrained: bool = False,
    checkpoint: str | Path | None = None,
    num_classes: int | None = None,
    image_size: int | None = None,
) -> ZooModel:
    """The timm model ``name`` on the CPU, in evaluation mode.

    Args:
        name: an architecture of timm, with or without the tag of its weights.
        seed: of random weights; torch's global random state is left as it was.
        pretrained: download (or find in the cache) timm's weights.
        checkpoint: local weights, .safetensors or a PyTorch file.
        num_classes: size of the classifier where it is not the usual one.
        image_size: input resolution in pixels where it is not the model's own.

    Raises:
        UserError: for an unknown name, weights that cannot be had or do not fit, or a resolution the
            architecture does not take.
    """
    import timm
    from timm.data import resolve_model_data_config  # pyright: ignore[reportPrivateImportUsage]

    name = current_name(name)
    check_model_names([name], pretrained=pretrained)
    if pretrained and (checkpoint is not None or num_classes is not None):
        raise UserError("expected --pretrained alone, or --checkpoint with --num-classes; got both")
    if image_size is not None and image_size < 2:
        raise UserError(f"expected an image size of at least 2 pixels, got {image_size}")
    if num_classes is not None and num_classes < 1:
        raise UserError(f"expected at least one class, got {num_classes}")
    options: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
    fixed_size = bool(getattr(timm.get_pretrained_cfg(name), "fixed_input_size", False))
    if image_size is not None and fixed_size:  # its layers depend on the resolution
        options["img_size"] = image_size
    # timm and the hub report every retry; the one line at the end says it all.
    hub = logging.getLogger("huggingface_hub")
    level = hub.level
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            hub.setLevel(logging.ERROR)
            module = timm.create_model(name, pretrained=pretrained, **options).eval()
        except Exception as error:  # the network, the hub, the cache and the model may each fail in their own way
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            if pretrained:
                raise UserError(
                    f"cannot get the pretrained weights of {name} ({reason}); "
                    "check the network, or give a local file with --checkpoint"
                ) from None
            raise UserError(f"timm cannot build {name} with {options or 'its defaults'}: {reason}") from None
        finally:
            hub.setLevel(level)
    if checkpoint is not None:
        load_checkpoint_file(checkpoint, module, name)
    kind = "checkpoint" if checkpoint is not None else "pretrained" if pretrained else "random"
    source = {"checkpoint": str(checkpoint), "random": f"seed {seed}", "pretrained": _tag(module)}[kind]
    size = {} if image_size is None else {"input_size": (3, image_size, image_size)}
    preprocessing = resolve_model_data_config(module, args=size)
    if preprocessing["input_size"][0] != 3:
        raise UserError(f"expected a model of colour images, got {name} with {preprocessing['input_size'][0]} channels")
    return ZooModel(name, module, Weights(kind, source, weights_checksum(module)), preprocessing)


def describe(model: ZooModel) -> dict[str, Any]:
    """The model's weights, size and preprocessing, as JSON."""
    return {
        "weights": asdict(model.weights),
        "parameters": sum(p.numel() for p in model.module.parameters()),
        "num_classes": model.num_classes,
        "preprocessing": {
            key: list(value) if isinstance(value, tuple) else value for key, value in model.preprocessing.items()
        },
    }


def _tag(module: nn.Module) -> str:
    configuration: Any = getattr(module, "pretrained_cfg", None) or {}
    return f"{configuration.get('architecture', type(module).__name__)}.{configuration.get('tag', '')}"
