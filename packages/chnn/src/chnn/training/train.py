"""Train a dynamics model on short chunks of true trajectories, visibly.

    chnn train chain-pendulum --links 2 --model chnn --out RUN

The loss is the mean absolute error of the integrated chunk, as in Finzi, Wang, Wilson 2020 (CHNN), arXiv 2010.13581;
AdamW with a cosine. With the default budget expect a rollout error (geometric mean) of a few 1e-3 for CHNN on the
2-link pendulum, and ten times that for HNN.
"""

from __future__ import annotations

import math

import torch
from lie.run import RunFolder, seeded_generator
from tqdm import tqdm

from chnn.models import DynamicsModel
from chnn.systems import System
from chnn.training.config import TrainConfig, build_model
from chnn.training.data import training_chunks

LOG_EVERY = 50
CHECKPOINT_EVERY = 250


def train(config: TrainConfig, system: System, run: RunFolder[TrainConfig], device: torch.device) -> DynamicsModel:
    """Train the model of ``config`` on ``system`` in the folder of a run, or resume it there, bit for bit.

    Writes ``config.json``, ``train.jsonl``, ``checkpoint.safetensors`` and at the end ``model.safetensors``.

    Raises:
        UserError: if the loss or a weight stops being finite, or a checkpoint to resume is broken or of another run.
    """
    chunks = training_chunks(config, system).to(device)  # (S, chunk, 2, n, d)
    model = build_model(config, system).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=config.steps)
    order = seeded_generator(config.seed)
    start = run.begin("step", config.steps, model=model, optimizer=optimizer, schedule=schedule, order=order)

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
                value = float(loss.detach())
                if not math.isfinite(value):
                    raise run.diverged(f"the loss is not finite at step {step}")
                run.log.append({"step": step, "loss": value})
                bar.set_postfix(loss=f"{value:.2e}")
            if step % CHECKPOINT_EVERY == 0 or step == config.steps:
                run.save(step)
    run.finish(model)
    return model
