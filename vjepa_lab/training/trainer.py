"""The training step: model, loss, optimiser and schedules of one run, in one process or as one of several."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from timm.optim import param_groups_weight_decay
from timm.scheduler import CosineLRScheduler
from torch import Tensor, nn

from vjepa_lab import data as video
from vjepa_lab.masks import Mask
from vjepa_lab.model import VJEPA, Latents
from vjepa_lab.objective import Loss, Recipe
from vjepa_lab.presets import Preset
from vjepa_lab.training import checkpoint, health
from vjepa_lab.training.allocator import keep_freed_memory
from vjepa_lab.training.processes import ALONE, Team


def fast_bf16(device: torch.device) -> bool:
    """Whether bf16 passes pay on this device: CUDA from Ampere on, CPUs with AMX tiles or AVX-512's products of bf16 (`bench step`)."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and (torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())


def warmup_and_cosine(optimizer: torch.optim.Optimizer, steps: int, warmup: int, *, first: float, last: float) -> CosineLRScheduler:
    """Learning rate from `first` linearly to the optimiser's own in `warmup` steps, then down to `last` by half a cosine."""
    return CosineLRScheduler(
        optimizer, t_initial=max(steps - warmup, 2), lr_min=last, warmup_t=warmup, warmup_lr_init=first, warmup_prefix=True,
        t_in_epochs=False,
    )  # fmt: skip


class Part(NamedTuple):
    """Clips of one shape [b c f y x], normalised, with their masks; which of them are images (None: none is); see `Latents.share`."""

    clip: Tensor
    masks: list[Mask]
    still: Tensor | None = None
    share: float | Tensor = 1.0


class Passes(nn.Module):
    """From clips to the loss in one call: what a group of processes wraps, heads and all."""

    def __init__(self, model: VJEPA, loss: Loss, full: bool):
        super().__init__()
        self.model, self.loss, self.full = model, loss, full

    def forward(self, parts: list[Part], step: int, progress: float) -> tuple[Tensor, dict[str, Tensor], list[Latents]]:
        known = {"step": step, "progress": progress, "full": self.full}
        latents = [self.model.latents(part.clip, part.masks, still=part.still, share=part.share, **known) for part in parts]
        return *self.loss(*latents), latents


class Trainer:
    """Model, loss, optimiser and schedules of one run; `step` is the whole training step.

    accumulate  micro-batches to a step, one after the other: less memory, the same step for objectives that are linear in the batch
    warmup      steps in which the learning rate goes up: the preset's, at most half of all
    clip        the norm that gradients are scaled down to; None: as they are
    team        the processes that share each batch. Masks are drawn for the whole batch, so that each clip's do not depend on how many
                processes or micro-batches there are
    """

    def __init__(
        self,
        recipe: Recipe,
        model: VJEPA,
        loss: Loss,
        size: Preset,
        seed: int,
        device: torch.device,
        *,
        accumulate: int = 1,
        clip: float | None = None,
        team: Team = ALONE,
    ):
        self.recipe, self.model, self.loss, self.size, self.seed, self.device = recipe, model, loss, size, seed, device
        self.accumulate, self.clip, self.team = accumulate, clip, team
        if device.type == "cpu":
            keep_freed_memory()
        passes = Passes(model, loss, "full" in recipe.objective.views)
        groups = param_groups_weight_decay(passes, size.weight_decay)  # biases and 1-D parameters do not decay
        self.parameters = [p for group in groups for p in group["params"]]
        self.optimizer = torch.optim.AdamW(groups, lr=size.lr, betas=(0.9, 0.999), eps=1e-8, fused=device.type in ("cpu", "cuda"))
        self.warmup = min(size.warmup, size.steps // 2)  # of a short run, half: else its rate would never come down
        last = size.lr if recipe.lr == "constant" else size.final_lr
        self.schedule = warmup_and_cosine(self.optimizer, size.steps, self.warmup, first=size.start_lr, last=last)
        self.passes = team.parallel(passes)
        self.finite, self.counts = health.FiniteWatch(device), health.CountAlarm(size.steps)
        self.done = 0
        self.whole = True  # False in the middle of an update: such weights must not be saved

    def step(self, step: int, batch, log: bool = False) -> dict | None:
        """One optimiser step on this process's clips, a batch of `data.loader` or uint8 [b c f y x]; with `log`, what to write down.

        Raises NotFinite for a loss or a gradient that is NaN or infinite; ValueError for a batch that does not divide as asked.
        """
        self.optimizer.zero_grad(set_to_none=True)
        pieces = self.pieces(step, batch)
        values, tokens = torch.zeros(1, device=self.device), []
        for number, piece in enumerate(pieces, start=1):
            with self.team.sharing(), self.team.holding(self.passes, number < len(pieces)):
                total, parts, latents = self.passes(piece, step, step / max(self.size.steps, 1))
                (total / len(pieces)).backward()
            values = values + torch.stack([total, *parts.values()]).detach() / len(pieces)
            if log:
                tokens.append(health.sampled(latents[0].h, number - 1, len(pieces)))
        names = ("the loss", *parts)
        self.schedule.step_update(step)
        norm = self._gradient_norm() if log or self.clip else None
        if log:
            record = self._record(step, names, values, norm, latents, torch.cat(tokens), batch)
        else:
            self.finite.send(step, names, values, batch)
            record = None
        self.counts.look(step, self.loss, latents, lambda: self.team.mean(values).tolist()[1:], warn=self.team.first)
        self.whole = False
        if self.clip:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, self.clip, norm)
        self.optimizer.step()
        self.model.update_teacher(self.size.ema)
        self.done, self.whole = step + 1, True
        return record

    # ------------------------------------------------------------------------------------------------------------------------ batches

    def pieces(self, step: int, batch) -> list[list[Part]]:
        """The micro-batches of a batch, each in parts of one clip shape."""
        parts = [(batch, None)] if isinstance(batch, Tensor) else self._moved(batch)
        shared = self.team.world * self.accumulate > 1
        if shared and len(parts) > 1:
            raise ValueError("clips of different shapes in one batch need one process and accumulate=1; open images with images='repeat'")
        if len(parts[0][0]) % self.accumulate:
            raise ValueError(f"{len(parts[0][0])} clips in a process do not divide into accumulate={self.accumulate} micro-batches")
        ready = [self._part(step, clip, still) for clip, still in parts]
        if self.accumulate == 1:
            return [ready]
        (whole,), rows = ready, len(parts[0][0]) // self.accumulate
        cuts = [slice(i * rows, (i + 1) * rows) for i in range(self.accumulate)]
        if whole.still is None:
            return [[Part(whole.clip[cut], [m.rows(cut) for m in whole.masks])] for cut in cuts]
        moving = self.team.mean((~whole.still).float().view(self.accumulate, -1).sum(1))
        shares = moving / moving.mean().clamp_min(1e-12)
        return [
            [Part(whole.clip[cut], [m.rows(cut) for m in whole.masks], whole.still[cut], share)]
            for cut, share in zip(cuts, shares, strict=True)
        ]

    def _moved(self, batch) -> list[tuple[Tensor, Tensor | None]]:
        """The clips of each part on the device, and which are images; None where none is, asked before the move: after it a GPU waits."""
        shared = self.team.world > 1  # then all processes take the same path, whatever their clips
        moved = batch.to(self.device).parts
        if self.recipe.images == "in":
            return [(part.clip, None) for part in moved]
        if isinstance(batch, video.Uncut):
            asked = [shared or any(sample.still for sample in batch.samples)] * len(moved)
        else:
            asked = [part.still is not None and (shared or bool(part.still.any())) for part in batch.parts]
        return [(part.clip, part.still if some else None) for part, some in zip(moved, asked, strict=True)]

    def _part(self, step: int, clip: Tensor, still: Tensor | None) -> Part:
        """Clips uint8 of this process -> normalised, with this process's share of the masks that are drawn for the whole batch."""
        clip = video.normalize(clip.to(self.device, non_blocking=True))
        grid, masks, rows = self.model.student.grid(clip), self.recipe.masks, len(clip)
        score = self.team.gathered(masks.where.score(clip, grid)) if masks.needs_clip else None
        drawn = masks.draw(rows * self.team.world, grid, seed=self.seed, step=step, score=score)
        own = slice(self.team.rank * rows, (self.team.rank + 1) * rows)
        return Part(clip, [mask.rows(own).to(self.device) for mask in drawn], still)

    # ------------------------------------------------------------------------------------------------------------------------ numbers

    def _gradient_norm(self) -> Tensor:
        return torch.nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])

    def _record(
        self, step: int, names: tuple[str, ...], values: Tensor, norm: Tensor, latents: list[Latents], tokens: Tensor, batch
    ) -> dict:
        """Numbers of this step, of all processes and micro-batches together, but for `ess`: that is of the last micro-batch, since terms
        may draw random numbers, and a look at the others would change what comes after it. Of a batch of clips of several shapes, `std` and
        `rank` are of the first. Raises NotFinite."""
        self.finite.receive(wait=True)
        own = dict(zip(names, values.tolist(), strict=True))
        health.check_finite(step, own, batch)
        health.check_finite(step, {"the gradient": norm.item()}, batch)
        total, *parts = self.team.mean(values).tolist()
        std, rank = health.spread(tokens, self.team)
        record = {"step": step, "loss": total, "parts": dict(zip(names[1:], parts, strict=True))}
        record |= {"lr": self.optimizer.param_groups[0]["lr"], "ema": self.size.ema, "grad_norm": norm.item(), "std": std, "rank": rank}
        record |= health.effective_samples(self.loss, latents, self.team)
        return record | ({} if self.loss.weigher is None else self.loss.weigher.report(self.loss.objective.names))

    # ---------------------------------------------------------------------------------------------------------------------- checkpoints

    def state(self) -> dict:
        """All that the next step depends on. Random numbers, masks and the order of clips follow from the seed and the step."""
        parts = {"model": self.model, "loss": self.loss, "optimizer": self.optimizer}
        return {"step": self.done} | {name: part.state_dict() for name, part in parts.items()}

    def load(self, state: dict) -> None:
        """Take over a state of `state`."""
        self.model.load_state_dict(state["model"])
        self.loss.load_state_dict(state["loss"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.done = state["step"]

    @property
    def sound(self) -> bool:
        """Whether the weights of now may be saved: no update is half done, and all are finite, which a step that nobody looked at may have
        ended (a gradient that broke; on a GPU also a loss that is not read yet)."""
        return self.whole and health.all_finite(self.parameters)

    def save(self, path: Path, keep: int = 1, **more) -> None:
        """Checkpoint, put in place at once; `keep` - 1 older ones stay."""
        checkpoint.save(self.state() | more, path, keep)


# ---------------------------------------------------------------------------------------------------------------------- random numbers


@contextmanager
def own_randomness(device: torch.device) -> Iterator[None]:
    """Leave the global generators (torch, numpy, random) after the block as they were before it, also where it is interrupted."""
    numbers, plain = np.random.get_state(), random.getstate()
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        np.random.set_state(numbers)
        random.setstate(plain)


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed the global generators for one step of one process: what a term draws there is the same in every run, resumed or not."""
    key = np.random.SeedSequence((seed, step, rank, 0x57E9)).generate_state(2, np.uint32)
    torch.manual_seed(int(key[0]) << 32 | int(key[1]))
    np.random.seed(key)
    random.seed(key.tobytes())
