"""AVA's measure: mean average precision of person boxes with actions, frame by frame, at an overlap of one half.

As the official evaluation computes it (activitynet/ActivityNet, Evaluation/get_ava_performance.py): of each key frame the 50 best-scored
(box, action) pairs count; a pair is right if, among the true boxes of its action in its frame, the one that it overlaps most is overlapped
by half or more and no better-scored pair has taken it; average precision is the area under the precision made monotone (PASCAL VOC 2010);
actions without a true box are left out of the mean. Excluded key frames do not count, on either side.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

FRAME, BOX = ["film", "time"], ["x1", "y1", "x2", "y2"]
CAPACITY = 50


def read_boxes(path: str | Path, *, scored: bool = False) -> pd.DataFrame:
    """A table in AVA's form, `video_id,timestamp,x1,y1,x2,y2,action_id[,person_id or score]`: film, time, x1 ... y2, action[, score].

    Boxes in shares of the picture, times in whole seconds; action -1 where the column is empty (boxes of a person detector).
    scored  the eighth column is a score, and must be there
    Raises ValueError naming the file and its first bad line.
    """
    columns = [*FRAME, *BOX, "action", "score"]
    try:
        table = pd.read_csv(path, header=None, names=columns, dtype={"film": str}, na_values=[""], keep_default_na=False)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a table of boxes ({error})") from error
    numbers = table[columns[1:]].apply(pd.to_numeric, errors="coerce")
    needed = ["time", *BOX, *(["score"] if scored else [])]
    bad = numbers[needed].isna().any(axis=1) | (numbers["action"].isna() & table["action"].notna()) | (numbers["x2"] < numbers["x1"])
    bad |= numbers["y2"] < numbers["y1"]
    if bad.any():
        line = bad.idxmax()
        form, found = "video_id,timestamp,x1,y1,x2,y2,action_id" + (",score" if scored else ""), table.loc[line]
        text = ",".join("" if pd.isna(x) else str(x) for x in found)
        raise ValueError(f"{path}, line {line + 1}: expected {form} with x1 <= x2 and y1 <= y2, found {text}")
    numbers["action"] = numbers["action"].fillna(-1).astype(int)
    numbers["time"] = numbers["time"].astype(int)
    return numbers.assign(film=table["film"])[[*FRAME, *BOX, "action", *(["score"] if scored else [])]]


def persons(detected: pd.DataFrame, least: float = 0.8) -> pd.DataFrame:
    """The distinct boxes of a detector's table that it is at least so sure of: film, time, x1 ... y2."""
    return detected[detected["score"] >= least][[*FRAME, *BOX]].drop_duplicates(ignore_index=True)


def average_precision(hit: np.ndarray, positives: float, weight: np.ndarray | None = None) -> np.ndarray:
    """Area under the monotone precision over recall, for detections in falling order of score: hit bool [n], of `positives` true ones.

    weight  how often each detection counts, [n] or [draws n]; `positives` [draws] then. NaN without a positive.
    """
    weight = np.ones(len(hit)) if weight is None else np.asarray(weight, float)
    true, every = np.cumsum(weight * hit, -1), np.cumsum(weight, -1)
    precision = np.divide(true, every, out=np.zeros_like(true), where=every > 0)
    envelope = np.maximum.accumulate(precision[..., ::-1], -1)[..., ::-1]
    area, positives = (envelope * weight * hit).sum(-1), np.asarray(positives, float)
    return np.divide(area, positives, out=np.full(np.broadcast(area, positives).shape, np.nan), where=positives > 0)


def matched(truth: pd.DataFrame, detected: pd.DataFrame, iou: float = 0.5) -> pd.DataFrame:
    """`detected` in falling order of score, with the column `hit`: whether it is the best-scored one of a true box of its action."""
    detected = detected.sort_values("score", ascending=False, kind="stable", ignore_index=True)
    key = [*FRAME, "action"]
    pairs = detected.reset_index(names="_guess").merge(truth[[*key, *BOX]].reset_index(names="_true"), on=key, suffixes=("", "_t"))
    pairs["_iou"] = overlap(pairs[BOX].to_numpy(), pairs[[f"{name}_t" for name in BOX]].to_numpy())
    best = pairs.sort_values(["_guess", "_iou"], ascending=[True, False], kind="stable").drop_duplicates("_guess")
    taken = best[best["_iou"] >= iou].drop_duplicates("_true")  # _guess counts from the best score down
    return detected.assign(hit=detected.index.isin(taken["_guess"]))


def overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes a and b, row by row: [n 4], [n 4] -> [n]."""
    low, high = np.maximum(a[:, :2], b[:, :2]), np.minimum(a[:, 2:], b[:, 2:])
    shared = np.clip(high - low, 0, None).prod(1)
    union = (a[:, 2:] - a[:, :2]).prod(1) + (b[:, 2:] - b[:, :2]).prod(1) - shared
    return np.divide(shared, union, out=np.zeros(len(a)), where=union > 0)


@dataclass(frozen=True, eq=False)
class FrameMap:
    """Mean average precision `value` in percent with its 95 % interval over films (bootstrap; NaN with fewer than two), and `per_action`:
    action, name, ap (percent), n (true boxes)."""

    value: float
    lo: float
    hi: float
    per_action: pd.DataFrame


def frame_map(
    truth: pd.DataFrame,
    detected: pd.DataFrame,
    actions: Mapping[int, str],
    *,
    excluded: Iterable[tuple[str, int]] = (),
    iou: float = 0.5,
    draws: int = 200,
    seed: int = 0,
) -> FrameMap:
    """AVA's frame mAP of scored boxes `detected` (film, time, x1 ... y2, action, score) against `truth` (the same without score).

    actions   those evaluated, number -> name (60 in the challenge)
    excluded  key frames that do not count
    Raises ValueError where no true box of these actions is left.
    """
    truth, detected = (_counting(table, actions, excluded) for table in (truth, detected))
    if truth.empty:
        raise ValueError(f"no true box of the {len(actions)} evaluated actions lies outside of the excluded key frames")
    detected = detected.sort_values("score", ascending=False, kind="stable").groupby(FRAME, sort=False).head(CAPACITY)
    detected = matched(truth, detected, iou)
    films = sorted(set(truth["film"]) | set(detected["film"]))
    times = np.random.default_rng(seed).multinomial(len(films), np.full(len(films), 1 / len(films)), draws)  # [draws films]
    place = {film: i for i, film in enumerate(films)}
    rows, drawn = [], []
    for action, name in actions.items():
        true, guess = truth[truth["action"] == action], detected[detected["action"] == action]
        hit = guess["hit"].to_numpy()
        rows.append({"action": action, "name": name, "ap": 100 * float(average_precision(hit, len(true))), "n": len(true)})
        own, theirs = (table["film"].map(place).to_numpy(int) for table in (true, guess))
        drawn.append(100 * average_precision(hit, times[:, own].sum(1), times[:, theirs]))
    per_action = pd.DataFrame(rows)
    lo = hi = np.nan
    if len(films) > 1:
        with np.errstate(all="ignore"):
            means = np.nanmean(np.stack(drawn)[(per_action["n"] > 0).to_numpy()], 0)
        lo, hi = np.nanpercentile(means, [2.5, 97.5])
    return FrameMap(float(per_action["ap"].mean()), float(lo), float(hi), per_action)


def _counting(table: pd.DataFrame, actions: Mapping[int, str], excluded: Iterable[tuple[str, int]]) -> pd.DataFrame:
    """The rows of evaluated actions in key frames that count."""
    table = table[table["action"].isin(list(actions))]
    excluded = set(excluded)
    if not excluded:
        return table.reset_index(drop=True)
    return table[~pd.MultiIndex.from_frame(table[FRAME]).isin(excluded)].reset_index(drop=True)
