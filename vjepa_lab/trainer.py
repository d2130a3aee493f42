"""The training step: model, loss, optimiser and schedules of one run."""

import math
from pathlib import Path

import torch
from timm.optim import param_groups_weight_decay
from timm.scheduler import CosineLRScheduler
from torch import Tensor, nn

from vjepa_lab import data as video
from vjepa_lab.model import VJEPA
from vjepa_lab.objective import Loss, Recipe
from vjepa_lab.presets import Preset
from vjepa_lab.runs import replacing


def device_of(name: str) -> torch.device:
    """ "auto": CUDA, else Apple's MPS, else the CPU; or a device by name. Raises ValueError if it is not there."""
    if name != "auto":
        kind = torch.device(name).type
        there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}.get(kind, False)
        if not there:
            raise ValueError(f"device {name!r} is not available here; use 'auto' or 'cpu'")
        return torch.device(name)
    return torch.device("cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu")


def fast_bf16(device: torch.device) -> bool:
    """Whether bf16 passes pay on this device: CUDA from Ampere on, CPUs with AMX tiles."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and torch.cpu._is_amx_tile_supported()


class Trainer:
    """Model, loss, optimiser and schedules of one run; `step` is the whole training step."""

    def __init__(self, recipe: Recipe, model: VJEPA, loss: Loss, size: Preset, seed: int, device: torch.device):
        self.recipe, self.model, self.loss, self.size, self.seed, self.device = recipe, model, loss, size, seed, device
        self.full = "full" in recipe.objective.views
        both = nn.ModuleDict({"model": model, "loss": loss})
        groups = param_groups_weight_decay(both, size.weight_decay)  # biases and 1-D parameters do not decay
        self.parameters = [p for group in groups for p in group["params"]]
        self.optimizer = torch.optim.AdamW(groups, lr=size.lr, betas=(0.9, 0.999), eps=1e-8, fused=device.type in ("cpu", "cuda"))
        warmup = min(size.warmup, size.steps // 2)
        self.schedule = CosineLRScheduler(
            self.optimizer, t_initial=max(size.steps - warmup, 2), lr_min=size.final_lr, warmup_t=warmup,
            warmup_lr_init=size.start_lr, warmup_prefix=True, t_in_epochs=False,
        )  # fmt: skip
        self.done = 0
        self.whole = True  # False in the middle of an update: such weights must not be saved

    def step(self, step: int, clip: Tensor, log: bool = False) -> dict | None:
        """One optimiser step on uint8 clips [b c f y x]; with `log`, what to write down about it."""
        clip = video.normalize(clip.to(self.device, non_blocking=True))
        masks = self.recipe.masks.draw(len(clip), self.model.student.grid(clip), seed=self.seed, step=step, clip=clip, device=self.device)
        latents = self.model.latents(clip, masks, step=step, progress=step / max(self.size.steps, 1), full=self.full)

        total, parts = self.loss(latents)
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        self.schedule.step_update(step)
        record = self._record(step, total, parts, latents) if log else None
        if self.device.type == "cpu" and not log and not math.isfinite(total.item()):
            self._record(step, total, parts, latents)
        self.whole = False
        self.optimizer.step()
        self.model.update_teacher(self.size.ema)
        self.done, self.whole = step + 1, True
        return record

    def _record(self, step: int, total: Tensor, parts: dict[str, Tensor], latents) -> dict:
        """Numbers of this step; raises FloatingPointError naming the terms that are not finite."""
        values = {name: part.item() for name, part in parts.items()}
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients).item()
        if not math.isfinite(norm) and all(map(math.isfinite, values.values())):
            values["the gradient"] = norm
        if bad := [name for name, value in values.items() if not math.isfinite(value)]:
            raise FloatingPointError(
                f"{' and '.join(bad)} became {values[bad[0]]} at step {step}; try a smaller lr or weight. The last checkpoint is intact."
            )
        return {
            "step": step,
            "loss": total.item(),
            "parts": values,
            "lr": self.optimizer.param_groups[0]["lr"],
            "grad_norm": norm,
            # Spread of the teacher's channels over clips and tokens: it falls towards 0 when the representation collapses.
            "std": latents.h.flatten(0, 3).std(0).mean().item(),
        } | ({} if self.loss.weigher is None else self.loss.weigher.report(self.loss.objective.names))

    def save(self, path: Path, step: int) -> None:
        """Checkpoint, put in place at once."""
        state = {
            "step": step,
            "model": self.model.state_dict(),
            "loss": self.loss.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rng": torch.get_rng_state(),
        }
        with replacing(path) as part:
            torch.save(state, part)

    def restore(self, path: Path) -> int:
        """Load a checkpoint if there is one; the step to go on with."""
        if not path.exists():
            return 0
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.loss.load_state_dict(state["loss"])
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["rng"].cpu())
        self.done = state["step"]
        return state["step"]
