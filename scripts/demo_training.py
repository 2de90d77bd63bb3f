"""The training loop that all stages of the demo model share: a budget of wall time, checkpoints, and
one process a core where there is no GPU."""

from __future__ import annotations

import argparse
import math
import os
import time
from pathlib import Path
from typing import Callable

import numpy as np
import torch
import torch.distributed as distributed
from torch import Tensor, nn

CHECKPOINT_SECONDS = 180

LONGEST_STEP_SECONDS = 30
"""A step that seems to take longer was suspended meanwhile; that time is not charged to the budget."""


def begin(options: argparse.Namespace) -> None:
    """Chooses the device, joins the other processes, makes the folder for checkpoints; all draw the same first numbers."""
    options.device = "cuda" if torch.cuda.is_available() else "cpu"
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:  # set by torchrun
        distributed.init_process_group("gloo")
    options.work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)


def rank() -> int:
    return distributed.get_rank() if distributed.is_initialized() else 0


def process_count() -> int:
    return distributed.get_world_size() if distributed.is_initialized() else 1


def share(batch: int) -> int:
    """This process's part of a batch."""
    return max(1, batch // process_count())


def say(line: str) -> None:
    if rank() == 0:
        print(line, flush=True)


def wait_for_all() -> None:
    if distributed.is_initialized():
        distributed.barrier()


def synchronise(parameters: list[nn.Parameter], elapsed: float) -> float:
    """Averages the gradients over all processes and returns the first one's `elapsed` to all."""
    if not distributed.is_initialized():
        return elapsed
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    clock = torch.tensor([elapsed if rank() == 0 else 0.0], device=gradients[0].device)
    flat = torch.cat([clock, *(gradient.flatten() for gradient in gradients)])
    distributed.all_reduce(flat)
    flat[1:] /= process_count()
    parts = flat[1:].split([gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts):
        gradient.copy_(part.view(gradient.shape))
    return flat[0].item()


class Stage:
    """One stage: modules to train, a checkpoint file, and a budget of wall time.

    The modules are filled from the checkpoint at once, if there is one.
    Time spent in earlier runs counts, so an interrupted stage ends after its budget in total.
    Of several processes the first keeps the clock, writes checkpoints and prints.
    """

    def __init__(self, name: str, work: Path, minutes: float, modules: dict[str, nn.Module], learning_rate: float):
        self.name = name
        self.file = work / f"{name}.pt"
        self.budget = 60 * minutes
        self.modules = modules
        self.learning_rate = learning_rate
        self.elapsed = 0.0
        self.steps = 0
        self.done = False
        self._optimizer_state: dict | None = None
        if self.file.exists():
            self._load()
        # Differs between processes, and after an interruption lest the same batches come again.
        self.seed = [sum(name.encode()), rank(), self.steps]

    def _load(self) -> None:
        saved = torch.load(self.file, map_location="cpu", weights_only=True)
        for name, module in self.modules.items():
            module.load_state_dict(saved["modules"][name])
        self.elapsed, self.steps, self.done = saved["elapsed"], saved["steps"], saved["done"]
        self._optimizer_state = saved["optimizer"]

    def run(
        self,
        parameters: list[nn.Parameter],
        loss_of_batch: Callable[[], Tensor],
        after_step: Callable[[], None] = lambda: None,
        at_end: Callable[[], None] = lambda: None,
    ) -> None:
        """Trains until the budget is spent. `at_end` may still change the modules before the last save."""
        if self.done and self.elapsed >= self.budget:
            return
        optimizer = torch.optim.AdamW(parameters, lr=self.learning_rate, betas=(0.9, 0.99), weight_decay=0.01)
        if self._optimizer_state:
            optimizer.load_state_dict(self._optimizer_state)
        torch.manual_seed(int(np.random.default_rng(self.seed).integers(2**62)))
        last_saved = last_step = time.monotonic()
        recent: list[float] = []
        while self.elapsed < self.budget:
            for group in optimizer.param_groups:
                group["lr"] = self._current_learning_rate()
            loss = loss_of_batch()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            now = time.monotonic()
            step_seconds = min(now - last_step, LONGEST_STEP_SECONDS)
            last_step = now
            self.elapsed = synchronise(parameters, self.elapsed + step_seconds)
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            after_step()
            self.steps += 1
            recent.append(loss.detach().item())
            if len(recent) == 100:
                say(f"{self.name} step {self.steps} {self.elapsed / 60:.1f} min loss {np.mean(recent):.4f}")
                recent.clear()
            if time.monotonic() - last_saved > CHECKPOINT_SECONDS:
                self._save(optimizer)
                last_saved = time.monotonic()
        at_end()
        self.done = True
        self._save(optimizer)
        wait_for_all()
        self._load()
        say(f"{self.name} done after {self.steps} steps")

    def _current_learning_rate(self) -> float:
        warm = min(1.0, (self.steps + 1) / 100)
        return self.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * min(1.0, self.elapsed / self.budget)))

    def _save(self, optimizer: torch.optim.Optimizer) -> None:
        if rank() != 0:
            return
        state = {
            "modules": {name: module.state_dict() for name, module in self.modules.items()},
            "optimizer": optimizer.state_dict(),
            "elapsed": self.elapsed,
            "steps": self.steps,
            "done": self.done,
        }
        # Written aside and renamed, so that a reader or a crash never meets half a checkpoint.
        aside = self.file.with_suffix(".tmp")
        torch.save(state, aside)
        aside.replace(self.file)
