"""Train a dynamics model on short chunks of true trajectories, visibly.

    chnn train chain-pendulum --links 2 --model chnn --out RUN

The loss is the mean absolute error of the integrated chunk, as in Finzi, Wang, Wilson 2020 (CHNN), arXiv 2010.13581;
AdamW with a cosine. With the default budget expect a rollout error (geometric mean) of a few 1e-3 for CHNN on the
2-link pendulum, and ten times that for HNN.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from lie.run import (
    RunLog,
    UserError,
    load_checkpoint,
    provenance,
    save_checkpoint,
    save_weights,
    seeded_generator,
    write_json,
)
from torch import Tensor
from tqdm import tqdm

from chnn.models import DynamicsModel
from chnn.systems import System
from chnn.training.config import TrainConfig, build_model
from chnn.training.data import training_chunks

LOG_EVERY = 50
CHECKPOINT_EVERY = 250


def train(
    config: TrainConfig, system: System, out: Path, device: torch.device, *, resume: bool = False
) -> DynamicsModel:
    """Train the model of ``config`` on ``system`` and leave it in ``out``.

    Writes ``config.json``, ``train.jsonl``, ``checkpoint.safetensors`` (a resumed run goes on from it bit for
    bit) and at the end ``model.safetensors``.

    Raises:
        UserError: if the loss stops being finite, or a checkpoint to resume is broken or of another run.
    """
    chunks = training_chunks(config, system).to(device)  # (S, chunk, 2, n, d)
    model = build_model(config, system).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=config.steps)
    order = seeded_generator(config.seed)
    log, checkpoint = RunLog(out / "train.jsonl"), out / "checkpoint.safetensors"
    start = 0
    if resume and checkpoint.exists():
        start = _restore(load_checkpoint(checkpoint), model, optimizer, schedule, order)
    else:
        write_json(out / "config.json", {"config": asdict(config), "versions": provenance("chnn")})
    log.rewind("step", start)

    with tqdm(total=config.steps, initial=start, desc=f"train {config.model}", unit="step") as bar:
        for step in range(start + 1, config.steps + 1):
            index = torch.randint(len(chunks), (config.batch_size,), generator=order)
            batch = chunks[index.to(device)]
            predicted = model.rk4_rollout(batch[:, 0], config.dt, config.chunk - 1)
            loss = (predicted - batch).abs().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            bar.update()
            if step % LOG_EVERY == 0 or step == config.steps:
                _log(log, bar, step, loss.detach())
            if step % CHECKPOINT_EVERY == 0 or step == config.steps:
                save_checkpoint(checkpoint, _state(step, model, optimizer, schedule, order))
    save_weights(out / "model.safetensors", model, {"format": "chnn"})
    return model


def _log(log: RunLog, bar: Any, step: int, loss: Tensor) -> None:
    value = float(loss)
    if not torch.isfinite(loss):
        raise UserError(f"the loss is not finite at step {step}; try a smaller --learning-rate")
    log.append({"step": step, "loss": value})
    bar.set_postfix(loss=f"{value:.2e}")


def _state(step: int, model: Any, optimizer: Any, schedule: Any, order: torch.Generator) -> dict[str, Any]:
    return {
        "step": step,
        "model": dict(model.state_dict()),
        "optimizer": optimizer.state_dict(),
        "schedule": schedule.state_dict(),
        "order": order.get_state(),
    }


def _restore(tree: Any, model: Any, optimizer: Any, schedule: Any, order: torch.Generator) -> int:
    try:
        model.load_state_dict(tree["model"])
        optimizer.load_state_dict(tree["optimizer"])
        schedule.load_state_dict(tree["schedule"])
        order.set_state(tree["order"])
        return tree["step"]
    except (KeyError, RuntimeError, ValueError, TypeError) as error:
        raise UserError(f"the checkpoint is not of this run: {str(error).splitlines()[0]}") from None
