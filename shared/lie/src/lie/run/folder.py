"""The folder of a training run: what was asked for, how far it is, and what came out.

``config.json`` holds the configuration, what is to be known of the data, and versions; ``train.jsonl`` the log;
``checkpoint.safetensors`` all that training goes on from, bit for bit; ``model.safetensors`` the trained weights.
Weights and checkpoint name the configuration that they are of, so that a ``config.json`` that was changed since is
noticed.
"""

from __future__ import annotations

import copy
import inspect
import json
import math
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Generic, Protocol, Self, TypeVar

import torch
from torch import Tensor, nn

from lie.run.checkpoints import check_state, load_checkpoint, load_weights, save_checkpoint, save_weights
from lie.run.errors import UserError
from lie.run.files import output_directory, read_json, write_json
from lie.run.log import RunLog
from lie.run.provenance import provenance
from lie.run.schema import validate

C = TypeVar("C")
_CONFIG, _LOG, _CHECKPOINT, _WEIGHTS = "config.json", "train.jsonl", "checkpoint.safetensors", "model.safetensors"
_MOVING = ("last_epoch", "_step_count", "_last_lr", "_get_lr_called_within_step")  # of a schedule, while it runs


class Stateful(Protocol):
    """What a checkpoint holds: modules, optimisers, schedules."""

    def state_dict(self) -> dict[str, Any]:
        """The state, as a nested structure with tensors."""
        ...

    def load_state_dict(self, state_dict: Any) -> Any:
        """Take a state."""
        ...


@dataclass(frozen=True, kw_only=True)
class RunFlags:
    """Where a run is written, or which one goes on; the flags of every command that trains."""

    out: Path | None = None
    """Folder for the run."""
    resume: Path | None = None
    """Folder of an interrupted run to resume, with its own configuration."""

    def folder(self) -> Path:
        """The folder of the run.

        Raises:
            UserError: unless exactly one of the two is given.
        """
        if self.out is not None and self.resume is None:
            return self.out
        if self.resume is not None and self.out is None:
            return self.resume
        raise UserError("give either --out DIR for a new run or --resume DIR to resume one")

    def check_unchanged(self, config: Any, *, free: Collection[str] = ()) -> None:
        """Verify that no flag beside --resume asks for another configuration than that of the run.

        Args:
            config: the configuration of the run; fields of the same name are flags.
            free: flags that may differ.

        Raises:
            UserError: names the flag.
        """
        defaults = {field.name: field.default for field in fields(self)}
        for name in defaults.keys() & asdict(config).keys() - set(free):
            value, before = getattr(self, name), getattr(config, name)
            if value not in (defaults[name], before):
                raise UserError(
                    f"the run in {self.resume} has {name} {before!r}, got --{name.replace('_', '-')} {value!r}; a run "
                    "goes on by its own configuration: leave the flag out, or begin another run with --out"
                )


class RunFolder(AbstractContextManager["RunFolder[Any]"], Generic[C]):
    """The folder of one training run, locked while it is open.

    >>> import tempfile
    >>> from torch import nn
    >>> @dataclass(frozen=True)
    ... class Config:
    ...     steps: int = 2
    >>> model = nn.Linear(1, 1)
    >>> with RunFolder(tempfile.mkdtemp(), Config(), program="lie-core") as run:
    ...     for step in range(run.begin("step", 2, model=model), 2):
    ...         run.log.append({"step": step + 1})
    ...         run.save(step + 1)
    ...     run.finish(model)
    >>> load_run(run.path, Config, program="lie-core")[0]
    Config(steps=2)
    """

    def __init__(
        self,
        path: str | Path,
        config: C,
        *,
        program: str,
        resume: bool = False,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        """Args:
        path: the folder, made if it is not there.
        config: a dataclass of plain values, all choices that the results depend on.
        program: distribution of the command, for versions and errors.
        resume: resume the run in the folder.
        facts: what `load_run` is to know beside the configuration, such as the number of classes; plain values.
        """
        self.path = Path(path)
        self.config = config
        self.program = program
        self.resume = resume
        self.facts = dict(facts or {})
        self.log = RunLog(self.path / _LOG)
        self._parts: dict[str, Any] = {}
        self._folder = output_directory(self.path)

    def __enter__(self) -> Self:
        self._folder.__enter__()
        try:
            if not self.resume:
                check_free(self.path)
            for name in map(Path, (_CONFIG, _LOG, _CHECKPOINT, _WEIGHTS)):
                for leftover in self.path.glob(f".{name.stem}-*{name.suffix}"):  # of a process killed while writing
                    leftover.unlink()
        except BaseException as error:
            self._folder.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def __exit__(self, *error: Any) -> bool | None:
        return self._folder.__exit__(*error)

    def begin(self, unit: str, total: int, **parts: Stateful | torch.Generator) -> int:
        """Restore ``parts`` from the checkpoint of a resumed run, or write ``config.json`` of a new one.

        Args:
            unit: key of the log's records that counts, "step" or "epoch".
            total: how many of them the run has.
            parts: what training changes.

        Returns:
            How many units are done.

        Raises:
            UserError: if the checkpoint is damaged, or of another configuration or other parts.
        """
        self._parts, self._unit = parts, unit
        checkpoint = self.path / _CHECKPOINT
        if self.resume and checkpoint.exists():
            done = self._restore(load_checkpoint(checkpoint), total)
        else:
            done = 0
            self._write_config("running")
        self.log.rewind(unit, done)
        return done

    def save(self, done: int) -> None:
        """Write the checkpoint after ``done`` units.

        Raises:
            UserError: if a weight is not finite: the run has diverged.
        """
        for part in self._parts.values():
            if isinstance(part, nn.Module) and not _is_finite(part):
                raise self.diverged(f"a weight is not finite after {self._unit} {done}")
        state = {name: _state(part) for name, part in self._parts.items()}
        save_checkpoint(self.path / _CHECKPOINT, {"done": done, "config": self._config_text(), "parts": state})

    def diverged(self, what: str) -> UserError:
        """Mark the run as one that neither goes on nor stands in the way of another; returns the error to raise."""
        self._write_config(f"diverged: {what}")
        return UserError(f"{what}; try a smaller --learning-rate (with the same --out: this run gives way)")

    def finish(self, model: nn.Module) -> None:
        """Write the trained weights."""
        save_weights(self.path / _WEIGHTS, model, {"format": self.program, "config": self._config_text()})

    def _write_config(self, status: str) -> None:
        value = {"config": asdict(self.config), **self.facts, "status": status, "versions": provenance(self.program)}  # type: ignore[call-overload]
        write_json(self.path / _CONFIG, value)

    def _config_text(self) -> str:
        return _text(self.config)

    def _restore(self, tree: Any, total: int) -> int:
        where = str(self.path / _CHECKPOINT)
        if (
            not isinstance(tree, dict)
            or tree.keys() != {"done", "config", "parts"}
            or not isinstance(tree["parts"], dict)
        ):
            raise UserError(f"{where} is not the checkpoint of a {self.program} run of this version")
        done, parts = tree["done"], tree["parts"]
        _same_config(self.config, tree["config"], where)
        if isinstance(done, bool) or not isinstance(done, int) or not 0 <= done <= total:
            raise UserError(f"{where} is damaged: expected 0 to {total} finished {self._unit}s, got {done!r}"[:300])
        if parts.keys() != self._parts.keys():
            raise UserError(
                f"{where} is not of this run: expected {', '.join(self._parts)}, got {', '.join(parts)}"[:300]
            )
        for name, part in self._parts.items():
            _restore_part(part, parts[name], f"{name} in {where}")
        return done


def check_free(path: Path) -> None:
    """Verify that a new run may be written to ``path``.

    Raises:
        UserError: if there is a run in it that has not diverged.
    """
    if not (path / _CONFIG).exists():
        return
    try:
        stored = read_json(path / _CONFIG)
    except UserError:  # damaged, and somebody's
        stored = None
    if isinstance(stored, dict) and str(stored.get("status")).startswith("diverged"):
        return
    raise UserError(f"{path} already holds a run; resume it with --resume {path}, or give another --out")


def load_config(path: Path, kind: type[C], *, program: str) -> tuple[C, dict[str, Any]]:
    """The configuration of the run at ``path``, and the other entries of its ``config.json``.

    Raises:
        UserError: if there is no run of this program, its file is damaged, or a value has another type or is out of
            range.
    """
    if not path.is_dir():
        raise UserError(f"no run at {path}: the folder does not exist")
    stored = read_json(path / _CONFIG)
    config = stored.get("config") if isinstance(stored, dict) else None
    names = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    if not isinstance(config, dict) or not names & config.keys():
        raise UserError(f"{path / _CONFIG} is not of a {program} training run; give the folder of one")
    return validate(kind, config, str(path / _CONFIG)), {k: v for k, v in stored.items() if k != "config"}


def load_run(path: Path, kind: type[C], *, program: str) -> tuple[C, dict[str, Any]]:
    """As `load_config`, of a run that is finished.

    Raises:
        UserError: also if the run is not finished.
    """
    config, facts = load_config(path, kind, program=program)
    if str(facts.get("status")).startswith("diverged"):
        raise UserError(f"the run in {path} diverged; train again with a smaller --learning-rate")
    if not (path / _WEIGHTS).exists() and ((path / _CHECKPOINT).exists() or facts.get("status") == "running"):
        raise UserError(f"the run in {path} is not finished; resume with: {program} train --resume {path}")
    return config, facts


def load_model(path: Path, config: Any, model: nn.Module) -> None:
    """Load the weights of the run at ``path`` into ``model``, and compare ``config`` with that they were trained by.

    Raises:
        UserError: if the weights are missing, damaged, do not fit, or are of another configuration.
    """
    metadata = load_weights(path / _WEIGHTS, model)
    _same_config(config, metadata.get("config"), str(path / _WEIGHTS))


def check_resumable(path: Path, facts: Mapping[str, Any]) -> None:
    """Verify that the run at ``path`` can go on.

    Raises:
        UserError: if it diverged: from its checkpoint it would do so again.
    """
    if str(facts.get("status")).startswith("diverged"):
        raise UserError(
            f"the run in {path} {facts['status']}; it would again: begin anew with --out {path} and a smaller "
            "--learning-rate"
        )


@contextmanager
def _named(where: str) -> Iterator[None]:
    """What torch says of a state that it does not take, on one line that names the file."""
    try:
        yield
    except (KeyError, RuntimeError, ValueError, TypeError, AttributeError, IndexError) as error:
        if isinstance(error, UserError):
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{where} is not of this run: {reason}") from None


def _text(config: Any) -> str:
    return json.dumps(asdict(config), sort_keys=True)


def _same_config(config: Any, stored: Any, where: str) -> None:
    """Raise where ``stored``, the configuration in a checkpoint or weights file, is not ``config``."""
    own = _text(config)
    if stored == own:
        return
    try:
        before = json.loads(stored)
        now = json.loads(own)
        changed = [name for name in now if before.get(name, now) != now[name]]
        said = "; ".join(f"{name} was {before[name]!r}, is {now[name]!r}" for name in changed)[:200]
    except (TypeError, ValueError, AttributeError, KeyError):
        said = "it names none"
    raise UserError(f"config.json is not that of {where} ({said}); bring it back as it was")


def _is_finite(module: nn.Module) -> bool:
    floating = [tensor.detach() for tensor in module.state_dict().values() if tensor.is_floating_point()]
    # One synchronisation with the device for all.
    return not floating or bool(torch.stack([torch.isfinite(tensor).all() for tensor in floating]).all())


def _state(part: Any) -> Any:
    if isinstance(part, torch.Generator):
        return part.get_state()
    return dict(part.state_dict()) if isinstance(part, nn.Module) else part.state_dict()


def _restore_part(part: Any, state: Any, where: str) -> None:
    """Check a state as far as damage to it would show as anything but a clear error, and load it."""
    if isinstance(part, torch.Generator):
        if not isinstance(state, Tensor):
            raise UserError(f"{where} is not of this run: expected the state of a generator")
        with _named(where):
            part.set_state(state)
        return
    if not isinstance(state, dict):
        raise UserError(f"{where} is not of this run: expected a state, got {type(state).__name__}")
    if isinstance(part, nn.Module):
        check_state(part, state, where)
    elif isinstance(part, torch.optim.Optimizer):
        _check_optimizer(part, state, where)
    elif isinstance(part, torch.optim.lr_scheduler.LRScheduler):
        _check_schedule(part, state, where)
    with _named(where):
        part.load_state_dict(state)


def _check_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any], where: str) -> None:
    """The hyperparameters must be those of the optimiser, and the moments have the shapes of its parameters."""
    own = optimizer.state_dict()
    with _named(where):
        groups, moments = state["param_groups"], state["state"]
        if len(groups) != len(own["param_groups"]):
            raise ValueError(f"expected {len(own['param_groups'])} groups of parameters, got {len(groups)}")
        for group, before in zip(own["param_groups"], groups, strict=True):
            rate = before["lr"]
            if isinstance(rate, bool) or not isinstance(rate, float | int) or not 0.0 <= rate < math.inf:
                raise ValueError(f"expected a learning rate, got {rate!r}")
            # A schedule changes the rate; all else is of the configuration.
            if _plain({**before, "lr": 0}) != _plain({**group, "lr": 0}):
                raise ValueError("other hyperparameters than those of config.json")
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        names = _moments(optimizer)
        for index, entry in moments.items():
            shape = parameters[index].shape
            if isinstance(index, bool) or index < 0 or entry.keys() != names.keys():
                raise ValueError(f"expected {', '.join(names)} of parameter {index}, got {', '.join(map(str, entry))}")
            for name, value in entry.items():
                wanted = shape if names[name] else torch.Size()
                if not isinstance(value, Tensor) or value.shape != wanted or not bool(torch.isfinite(value).all()):
                    raise ValueError(f"expected finite {name} of shape {tuple(wanted)} for parameter {index}")


def _moments(optimizer: torch.optim.Optimizer) -> dict[str, bool]:
    """What an optimiser of this class stores of a parameter after one step: name, and whether it has its shape."""
    options = inspect.signature(type(optimizer).__init__).parameters
    parameter = nn.Parameter(torch.zeros(2))
    parameter.grad = torch.zeros(2)
    given = {key: value for key, value in optimizer.defaults.items() if key in options}
    probe = type(optimizer)([parameter], **copy.deepcopy(given))
    probe.step()
    return {name: value.shape == parameter.shape for name, value in probe.state[parameter].items()}


def _check_schedule(schedule: torch.optim.lr_scheduler.LRScheduler, state: dict[str, Any], where: str) -> None:
    """All but the counters and the last rates must be as the configuration makes it."""
    own = schedule.state_dict()
    with _named(where):
        if own.keys() != state.keys():
            raise ValueError(f"expected {', '.join(own)}, got {', '.join(map(str, state))}")
        for name, value in own.items():
            before = state[name]
            if name not in _MOVING:
                if _plain(before) != _plain(value):
                    raise ValueError(f"expected {name} {value!r}, got {before!r}")
            elif type(before) is not type(value):
                raise ValueError(f"expected {name} to be a {type(value).__name__}, got {before!r}")
            elif isinstance(before, int) and not 0 <= before < 2**53:
                raise ValueError(f"expected {name} of at least 0, got {before}")
            elif isinstance(before, list) and not (
                len(before) == len(value) and all(isinstance(rate, float) and 0 <= rate < math.inf for rate in before)
            ):
                raise ValueError(f"expected {len(value)} learning rates, got {before!r}")


def _plain(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=repr)
