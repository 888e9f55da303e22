"""A system from the flags of a command."""

from __future__ import annotations

import json
from typing import Any

from lie.run import UserError


def system_of_flags(flags: Any) -> Any:
    """The system that ``--links``, ``--set NAME=VALUE`` and their like describe."""
    from chnn.systems import system_by_name

    try:
        return system_by_name(flags.system, **parameters_of_flags(flags))
    except (TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{flags.system} cannot be made of {flags.set}: {error}") from None


def parameters_of_flags(flags: Any) -> dict[str, Any]:
    """The parameters of a system in ``--links``, ``--set NAME=VALUE`` and their like; None where not given."""
    names = ("links", "bobs", "masses", "lengths", "spring_constant")
    parameters = {name: getattr(flags, name) for name in names}
    for pair in flags.set:
        name, equals, text = pair.partition("=")
        if not equals or not name:
            raise UserError(f"expected --set NAME=VALUE, got {pair!r}")
        try:
            parameters[name.replace("-", "_")] = json.loads(text)
        except json.JSONDecodeError:
            parameters[name.replace("-", "_")] = text  # a name, such as surface=torus
    return parameters
