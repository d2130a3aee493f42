"""The gradients of finished runs, at both ends of their training: `alignment` for runs that were not watched while they trained.

    rows = align(["runs/reference"], labels=("motion", "shape"))

Model and heads are built anew as they were before the first step, and read from the last checkpoint; what lies between is unknown.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from tqdm.auto import tqdm

from vjepa_lab.analysis import alignment, subjects
from vjepa_lab.data import pair
from vjepa_lab.files import replacing
from vjepa_lab.objective import Recipe
from vjepa_lab.training.runs import Run


def align(
    runs: Run | str | Path | Sequence[Run | str | Path],
    labels: Sequence[str] = (),
    data: str | None = None,
    clips: int = 64,
    fit: int = 256,
    device: str = "auto",
) -> pd.DataFrame:
    """Measure the gradients of finished runs before their first and after their last step, into alignment.csv of each one's folder.

    runs    a run, a run folder or a folder of them; or several
    labels  what read-outs are fitted to; without any, only JEPA and the auxiliaries are held against each other
    data    clips to measure on; by default what each run was trained on
    clips   test clips that gradients are taken of, in micro-batches of 4
    fit     training clips that the read-outs are fitted to

    After the last step of a converged training the auxiliaries together have cosine -1 with the main gradient and norm ratio 1, whatever
    they do, since the total gradient is zero there (`alignment`): the end tells how far training has come, the start how terms agree.

    A run that has its measurements keeps them; one of no steps is passed over, and so, with a warning, is one that cannot be rebuilt:
    it uses terms defined elsewhere (`ends` takes its recipe), or its weights were deleted. Returns all, as `alignment.load` does.
    Raises FileNotFoundError where there is no finished run, ValueError where none can be rebuilt.
    """
    from vjepa_lab.training.processes import Team

    found, probes, on = finished(runs), {}, Team().device(device)
    wanted = [run for run in found if not (run.path / alignment.FILE).exists()]
    lacking = {run.path: why for run in wanted if (why := _lacking(run))}
    if len(lacking) == len(found):
        raise ValueError(f"no run can be measured; {'; '.join(lacking.values())}")
    for why in lacking.values():
        warnings.warn(f"passed over: {why}", stacklevel=2)
    bar = tqdm([run for run in wanted if run.path not in lacking], desc="alignment", unit="run")
    for run in bar:
        bar.set_postfix_str(run.name)
        size, spec = run.preset, data or run.config["spec"]
        asked = (spec, size.frames, size.size, size.stride)
        if asked not in probes:
            probes[asked] = alignment.ProbeSet.of(*pair(spec, ("train", "test"), labels, size), labels, clips, fit)
        table = ends(run, probes[asked], on)
        with replacing(run.path / alignment.FILE) as part:
            table.to_csv(part, index=False)
    return alignment.load([run for run in found if run.path not in lacking])


def _lacking(run: Run) -> str:
    """Why a run cannot be rebuilt; empty where it can."""
    if not any(run.path.glob("last*.pt")):
        return f"{run.path}: its weights were deleted"
    own = run.config.get("own_terms")
    return f"{run.path} uses {', '.join(own)}, defined elsewhere: ends.ends(run, probe, recipe=...) measures it" if own else ""


def ends(run: Run, probe: alignment.ProbeSet, device="cpu", recipe: Recipe | None = None) -> pd.DataFrame:
    """`alignment.measure` of a run before its first and after its last step, with its own masks; columns step and progress beside.

    recipe  what the run trained, where it uses terms of your own; by default what its folder says.

    The metric `adam` is missing: the optimiser has not stepped at one end, and its state is rarely kept at the other.
    """
    recipe, tables = recipe or run.recipe, []
    masks = run.preset.masks_of(recipe.masks)
    for trained in (False, True):
        model, loss = run.model(trained).to(device), run.loss(recipe, trained).to(device)
        at = {"step": run.preset.steps * trained, "progress": float(trained)}
        tables.append(alignment.measure(model, loss, probe, masks, **at).assign(**at))
    return pd.concat(tables, ignore_index=True)


def finished(runs: Run | str | Path | Sequence[Run | str | Path]) -> list[Run]:
    """The finished runs of some steps among these or in these folders. Raises FileNotFoundError naming the paths where there is none."""
    asked = [runs] if isinstance(runs, Run | str | Path) else runs
    paths, found = [run.path if isinstance(run, Run) else Path(run) for run in asked], []
    for path in paths:
        found += [Run(path)] if (path / "report.json").is_file() else subjects.finished(path)
    if not (found := [run for run in found if run.preset.steps]):
        raise FileNotFoundError(f"{', '.join(map(str, paths))}: no finished run there")
    return found
