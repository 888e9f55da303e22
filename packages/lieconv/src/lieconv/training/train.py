"""Train a classifier of point sets, visibly.

    lieconv train --data digits --group se2 --out RUN

On the digits, trained on upright scans only, expect about 98 % on upright test digits; under random rotation the
so2 and se2 networks keep it exactly, t2 and trivial fall to about a third.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

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
from torch import nn
from tqdm import tqdm

from lieconv.data import PointSets
from lieconv.models import LieResNet
from lieconv.training.config import RunConfig, build_model


def train(
    config: RunConfig, train_sets: PointSets, out: Path, device: torch.device, *, num_classes: int, resume: bool = False
) -> LieResNet:
    """Train the network of ``config`` and leave it in ``out``.

    Writes ``config.json``, ``train.jsonl`` (a line an epoch), ``checkpoint.safetensors`` (after every epoch;
    a resumed run continues from it bit for bit) and at the end ``model.safetensors``.

    Raises:
        UserError: if the loss stops being finite, or a checkpoint to resume is broken or of another run.
    """
    _, _, d = train_sets.coords.shape
    model = build_model(config, d, train_sets.values.shape[-1], num_classes).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    steps = -(-len(train_sets) // config.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps * config.epochs)
    order = seeded_generator(config.seed)
    log, checkpoint = RunLog(out / "train.jsonl"), out / "checkpoint.safetensors"
    start = 0
    if resume and checkpoint.exists():
        start = _restore(load_checkpoint(checkpoint), model, optimizer, schedule, order)
        log.rewind("epoch", start)
    else:
        log.rewind("epoch", 0)
        write_json(out / "config.json", {"config": asdict(config), "versions": provenance("lieconv")})

    train_sets = train_sets.to(device)
    model.train()
    with tqdm(total=config.epochs * steps, initial=start * steps, desc=f"train {config.group}", unit="step") as bar:
        for epoch in range(start, config.epochs):
            shuffled = torch.randperm(len(train_sets), generator=order)
            total, correct = torch.zeros((), device=device), torch.zeros((), device=device)
            for index in shuffled.split(config.batch_size):
                batch = train_sets[index.to(device)]
                logits = model(batch.coords, batch.values, batch.mask)  # (B, classes)
                loss = nn.functional.cross_entropy(logits, batch.labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                total += loss.detach() * len(batch)
                correct += (logits.detach().argmax(-1) == batch.labels).sum()
                bar.update()
            mean_loss, accuracy = float(total) / len(train_sets), float(correct) / len(train_sets)
            if not torch.isfinite(total):
                raise UserError(f"the loss is not finite in epoch {epoch + 1}; try a smaller --learning-rate")
            bar.set_postfix(loss=f"{mean_loss:.3f}", accuracy=f"{accuracy:.3f}")
            log.append({"epoch": epoch + 1, "loss": mean_loss, "accuracy": accuracy})
            save_checkpoint(
                checkpoint,
                {
                    "config": asdict(config),
                    "epoch": epoch + 1,
                    "model": dict(model.state_dict()),
                    "optimizer": optimizer.state_dict(),
                    "schedule": schedule.state_dict(),
                    "order": order.get_state(),
                    "lift": _lift_state(model),
                },
            )
    save_weights(out / "model.safetensors", model, {"format": "lieconv"})
    return model


def _lift_state(model: LieResNet) -> torch.Tensor:
    assert model.generator is not None  # build_model gives one
    return model.generator.get_state()


def _restore(
    tree: dict,
    model: LieResNet,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    order: torch.Generator,
) -> int:
    """Put a checkpoint into the objects of a run; returns the number of finished epochs."""
    try:
        model.load_state_dict(tree["model"])
        optimizer.load_state_dict(tree["optimizer"])
        schedule.load_state_dict(tree["schedule"])
        order.set_state(tree["order"])
        if model.generator is not None:
            model.generator.set_state(tree["lift"])
        return tree["epoch"]
    except (KeyError, RuntimeError, ValueError, TypeError) as error:
        raise UserError(f"the checkpoint is not of this run: {str(error).splitlines()[0]}") from None
