"""Models of timm by name, glob, family or list file."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from lie.run import UserError, regular_file, unknown_name

from liederivative.zoo import check_model_names, current_name

PAPER = Path(__file__).with_name("paper_models.txt")
"""the models of the paper's sweep, ``@paper``"""


@functools.cache
def families() -> dict[str, tuple[str, ...]]:
    """timm's modules, each with the architectures that it defines: ``{"vgg": ("vgg11", ...), ...}``."""
    import timm

    return {module: tuple(timm.list_models(module=module)) for module in timm.list_modules()}


@functools.cache
def _family_by_architecture() -> dict[str, str]:
    return {architecture: module for module, members in families().items() for architecture in members}


def family_of(name: str) -> str:
    """The timm module that defines ``name``, given with or without the tag of its weights.

    >>> family_of("deit_tiny_patch16_224.fb_in1k")
    'deit'
    """
    return _family_by_architecture()[current_name(name).partition(".")[0]]


def select_models(
    patterns: Sequence[str],
    *,
    family: Sequence[str] = (),
    exclude: Sequence[str] = (),
    pretrained: bool = False,
) -> tuple[str, ...]:
    """The models that ``patterns`` and ``family`` name together, each once, in the order given.

    Args:
        patterns: names (``resnet18``), with a tag or without; globs (``resnet*``, ``*.fb_in1k``); and ``@FILE``,
            a text file of names and globs, one a line, ``#`` before a remark; ``@paper``, the 480 models of the
            paper's sweep that timm still has. Names that timm changed since are replaced by those of today.
        family: timm modules, all of whose models are taken.
        exclude: globs of what is left out.
        pretrained: only models with published weights (of a name given in full, an error if there are none).

    Raises:
        UserError: for a name, glob or family that is not in timm, with the nearest names; a list file that
            cannot be read; or nothing left.

    >>> select_models(["vgg1[16]"], exclude=["*_bn"])
    ('vgg11', 'vgg16')
    """
    import timm

    chosen: dict[str, None] = {}
    for pattern in _expanded(patterns, pretrained):
        if not any(character in pattern for character in "*?["):
            check_model_names([pattern], pretrained=pretrained)
            chosen[current_name(pattern)] = None
            continue
        known = timm.list_models(pretrained=True) if "." in pattern else timm.list_models()
        found = [name for name in known if fnmatchcase(name, pattern)]
        if not found:
            near = difflib.get_close_matches(pattern.replace("*", "").replace("?", ""), timm.list_models(), n=3)
            hint = f"did you mean one like {' or '.join(near)}?" if near else "timm.list_models() names all of them"
            raise UserError(f"no timm model matches {pattern!r}; {hint}")
        chosen |= dict.fromkeys(found if not pretrained else [name for name in found if _has_weights(name)])
    for name in family:
        if name not in families():
            raise unknown_name("timm family", name, families())
        chosen |= dict.fromkeys(each for each in families()[name] if not pretrained or _has_weights(each))
    names = tuple(name for name in chosen if not any(fnmatchcase(name, pattern) for pattern in exclude))
    if not names:
        asked = ", ".join([*patterns, *(f"--family {name}" for name in family)]) or "nothing"
        weights = " with published weights" if pretrained else ""
        raise UserError(
            f"expected at least one timm model{weights}, got none from {asked}; for example: resnet18 'vgg*'"
        )
    return names


def _expanded(patterns: Iterable[str], pretrained: bool) -> Iterable[str]:
    """``patterns`` with the contents of list files in their place; of the paper's, those whose weights can be had."""
    for pattern in patterns:
        if not pattern.startswith("@"):
            yield pattern
            continue
        path = PAPER if pattern == "@paper" else Path(pattern[1:])
        try:
            lines = regular_file(path, max_bytes=2**24).read_text(encoding="utf-8").splitlines()
        except (OSError, UserError, UnicodeDecodeError) as error:
            raise UserError(
                f"cannot read the list of models {path} ({error}); expected a text file of one name a line"
            ) from None
        names = (name for line in lines if (name := line.partition("#")[0].strip()))
        yield from (n for n in names if path != PAPER or not pretrained or _has_weights(current_name(n)))


def _has_weights(name: str) -> bool:
    import timm

    return bool(getattr(timm.get_pretrained_cfg(name), "has_weights", False))
