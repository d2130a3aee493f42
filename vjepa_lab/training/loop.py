"""The training loop: steps, records, checkpoints, and how it ends, well or not."""

from contextlib import suppress
from dataclasses import asdict, dataclass

import torch

from vjepa_lab import data as video
from vjepa_lab.files import write_json
from vjepa_lab.training import checkpoint, meters, provenance
from vjepa_lab.training.health import CollapseAlarm, NotFinite
from vjepa_lab.training.locks import Held, Locked
from vjepa_lab.training.logbook import Log, Meter
from vjepa_lab.training.processes import Interrupted, Stop, Team
from vjepa_lab.training.runs import Run
from vjepa_lab.training.trainer import Trainer, own_randomness, seed_step


@dataclass(frozen=True)
class Habits:
    """How often the loop writes, how it reads, and who looks in."""

    log_every: int = 10
    save_every: int = 200
    keep: int = 2
    workers: int = 0
    tensorboard: bool = False
    probe: object = None


@dataclass
class Spent:
    """What all sessions of a run together took, the joules those of all processes; goes with the checkpoint."""

    wall_s: float = 0.0
    clips: int = 0
    gpu_j: float = 0.0
    processors_j: float = 0.0


def train(run: Run, trainer: Trainer, source: video.Source, share: int, habits: Habits, watch, held: Held | None = None) -> None:
    """All steps from the last checkpoint on, `share` clips each in this process; then report.json.

    watch  is told of the beginning, each step and each record (`logbook.Bar`, `launch.Relay`)
    held   the lock on the folder, in the process that writes
    Raises Interrupted after a signal, with everything saved; NotFinite with the batch kept for inspection; Locked, with nothing more
    written, once another process has taken the folder over; what the clips, `watch` or a probe raise, with the steps until then saved.
    """
    size, team, device = trainer.size, trainer.team, trainer.device
    before, raised = restore(run, trainer)
    start, alarm = trainer.done, CollapseAlarm(trainer.warmup, raised=raised)
    meter = Meter(trainer.recipe, size, device, trainer.model.bf16, team.world)
    energy = meters.Energy(device, packages=team.local == 0)
    log = Log(run.path, start, habits.tensorboard) if team.first else None
    place = {"rank": team.rank, "world": team.world}
    batches = video.loader(source, share, seed=trainer.seed, start=start, workers=habits.workers, pin=device.type == "cuda", **place)

    saved, others = start, {}

    def save() -> None:
        nonlocal saved
        saved = trainer.done  # also where it fails: it is not tried again
        if team.first:
            if held:
                held.check()
            more = {"spent": asdict(so_far(before, meter, energy, others)), "alarms": alarm.raised}
            trainer.save(run.path / "last.pt", habits.keep, **more)

    with own_randomness(device), Stop(team) as stop:
        try:
            watch.begin(size.steps, start)
            if size.steps == 0:
                save()
            for step in range(start, size.steps):
                if habits.probe and team.first:
                    habits.probe(run, trainer, step)
                with meter.waiting():
                    batch = next(batches)
                seed_step(trainer.seed, step, team.rank)
                saving = (step + 1) % habits.save_every == 0 or step + 1 == size.steps
                record = trainer.step(step, batch, log=saving or step % habits.log_every == 0)
                meter.add(len(batch) * team.world)
                watch.advance()
                if record:
                    record |= meter.read()
                    others = spent_elsewhere(team, energy.add())
                    alarm.look(record, warn=team.first)
                    if team.first:
                        if held:
                            held.check()
                        log(record)
                        watch.record(record)
                if saving:  # a step whose record was checked: a checkpoint never holds a loss that is not finite
                    save()
                if number := stop.asked():
                    raise Interrupted("", number)
            stop.settle()
            if habits.probe and team.first:
                habits.probe(run, trainer, size.steps)
        except NotFinite as error:
            raise kept_for_inspection(run, trainer, error) from None
        except KeyboardInterrupt as error:
            if sound := trainer.sound:
                save()
            if stop.agreed:
                team.wait()  # a launcher ends all when one ends, and the first may still be saving
            raise stopped(run, trainer, sound, getattr(error, "signal", 2)) from None
        except Locked:
            raise
        except Exception:  # of a callback, say, or of the clips: nothing that was computed is lost
            with suppress(Exception):
                if team.world == 1 and trainer.done > saved and trainer.sound:  # of several, others wait for this one to end
                    save()
            raise
        finally:
            batches.close()
            if log:
                log.close()
    if held:
        held.check()
    report(run, trainer, source, alarm, start, so_far(before, meter, energy))


def restore(run: Run, trainer: Trainer) -> tuple[Spent, list[str]]:
    """Go on from the newest readable checkpoint, if any, the same one in all processes: what was spent, which alarms were raised.

    What was spent is all processes' and given to the first alone: what they spend is added up in the end."""
    path = run.path / "last.pt"
    found = trainer.team.lead(lambda: (newest := checkpoint.newest(path)) and newest[0])
    if found is None:
        return Spent(), []
    state = checkpoint.load(found, trainer.device)
    trainer.load(state)
    return Spent(**state.get("spent", {}) if trainer.team.first else {}), state.get("alarms", [])


def so_far(before: Spent, meter: Meter, energy: meters.Energy, others: dict[str, float] | None = None) -> Spent:
    """What was spent until now: `before`, by this process, and by the `others` (`spent_elsewhere`)."""
    used, more = energy.add(), others or {}
    return Spent(
        before.wall_s + meter.seconds,
        before.clips + meter.clips,
        before.gpu_j + used.get("gpu", 0.0) + more.get("gpu", 0.0),
        before.processors_j + used.get("processors", 0.0) + more.get("processors", 0.0),
    )


def spent_elsewhere(team: Team, own: dict[str, float]) -> dict[str, float]:
    """Joules that the other processes of this session have spent, by kind; `own` are this one's. Asked with each record, by all of them: a
    checkpoint after an interruption must not wait for the others, so it lacks what they spent since the last one."""
    if team.world == 1:
        return {}
    kinds = "gpu", "processors"
    mine = torch.tensor([own.get(kind, 0.0) for kind in kinds], dtype=torch.float64)
    return dict(zip(kinds, (team.mean(mine) * team.world - mine).tolist(), strict=True))


def stopped(run: Run, trainer: Trainer, sound: bool, number: int) -> Interrupted:
    """What to say after an interruption."""
    why = "its weights are not finite" if trainer.whole else "in the middle of an update"
    saved = f"saved after step {trainer.done}" if sound else f"not saved after step {trainer.done}, {why}"
    return Interrupted(f"interrupted, {saved}; the same call goes on from the last checkpoint in {run.path}", number)


def kept_for_inspection(run: Run, trainer: Trainer, error: NotFinite) -> NotFinite:
    """Save what the step was made of, for torch.load(..., weights_only=True); the error that names the file.

    The weights are those that the step began with; on a GPU, where the loss is read later, perhaps those after it.
    """
    team = trainer.team
    path = run.path / (f"failed-step-{error.step}" + ("" if team.first else f"-rank-{team.rank}") + ".pt")
    parts = [error.batch] if isinstance(error.batch, torch.Tensor) else [part.clip for part in error.batch.to("cpu").parts]
    checkpoint.save(
        {
            "step": error.step, "terms": error.terms, "seed": trainer.seed, "clips": parts, "rank": team.rank, "world": team.world,
            "accumulate": trainer.accumulate, "recipe": repr(trainer.recipe), "preset": trainer.size.plain(),
            "model": trainer.model.state_dict(), "loss": trainer.loss.state_dict(),
        },
        path,
    )  # fmt: skip
    return NotFinite(
        f"{error}. Its clips, weights and recipe, and the seed of its masks, are in {path}", error.step, error.terms, error.batch
    )


def report(run: Run, trainer: Trainer, source: video.Source, alarm: CollapseAlarm, start: int, spent: Spent) -> None:
    """Write report.json: what the whole run took, what was wrong with the data, and whether it collapsed."""
    team = trainer.team
    found = team.collected((spent.gpu_j, spent.processors_j, provenance.peak_gb(trainer.device), source.report()))
    if not team.first:
        return
    gpu, processors, memory, sources = zip(*found, strict=True)
    files = dict(item for one in sources for item in one.get("files", {}).items())
    joules = {name: round(sum(values)) for name, values in (("gpu", gpu), ("processors", processors)) if sum(values)}
    write_json(
        run.path / "report.json",
        {
            "steps": trainer.size.steps,
            "resumed_at": start,
            "wall_s": round(spent.wall_s, 1),
            "clips_per_s": round(spent.clips / max(spent.wall_s, 1e-9), 2),
            "peak_gb": round(max(memory), 3),
            "energy_j": joules or None,
            "processes": team.world,
            "alarms": alarm.raised,
            "data": sources[0] | {"unreadable": len(files), "files": files},
        },
    )
