"""Train a classifier of point sets, visibly.

    lieconv train --data digits --group se2 --out RUN

On the digits, trained on upright scans only, expect about 98 % on upright test digits; under random rotation the
so2 and se2 networks keep it exactly, t2 and trivial fall to about a third.
"""

from __future__ import annotations

import torch
from lie.run import RunFolder, seeded_generator
from torch import nn
from tqdm import tqdm

from lieconv.data import PointSets
from lieconv.models import LieResNet
from lieconv.training.config import DataFacts, RunConfig, build_model


def train(
    config: RunConfig, data: DataFacts, train_sets: PointSets, run: RunFolder[RunConfig], device: torch.device
) -> LieResNet:
    """Train the network of ``config`` in the folder of a run, or resume it there, bit for bit.

    Writes ``config.json``, ``train.jsonl`` (a line an epoch), ``checkpoint.safetensors`` (after every epoch) and at
    the end ``model.safetensors``.

    Raises:
        UserError: if the loss or a weight stops being finite, or a checkpoint to resume is broken or of another run.
    """
    model = build_model(config, data).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    steps = -(-len(train_sets) // config.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps * config.epochs)
    order = seeded_generator(config.seed)
    assert model.generator is not None  # build_model gives one
    start = run.begin(
        "epoch", config.epochs, model=model, optimizer=optimizer, schedule=schedule, order=order, lift=model.generator
    )

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
                raise run.diverged(f"the loss is not finite in epoch {epoch + 1}")
            bar.set_postfix(loss=f"{mean_loss:.3f}", accuracy=f"{accuracy:.3f}")
            run.log.append({"epoch": epoch + 1, "loss": mean_loss, "accuracy": accuracy})
            run.save(epoch + 1)
    run.finish(model)
    return model
