"""What foretells a gain over the rows of a collected study: rank and spread of the features, and the gradients' alignment."""

from __future__ import annotations

import pandas as pd

from vjepa_lab.analysis import collected
from vjepa_lab.analysis.collected import LEAST, LEAST_STD, ROW, UNTRAINED, Collected
from vjepa_lab.evidence import stats

FEW = 4
"Rows that a correlation over rows needs."
PREDICTORS = {"rankme": "rank of the features", "std": "spread of the features", "rank": "teacher's rank in training"}
"Metric -> its name in tables and figures. Features: pooled, as probed, over clips. Teacher: its tokens in training, over clips and places."


def predictors(study: Collected) -> pd.DataFrame:
    """What is known of each run's representation, edition sound, without the untrained encoder: columns run, variant, seed, metric,
    value. RankMe and standard deviation over clips of the pooled features as probed (`features`), and the participation ratio of the
    teacher's tokens averaged over the logged steps of training.

    Runs whose features differ too little for the bfloat16 that they were read in are left out (`features`): their rank is in part one of
    rounding. `attrs["left_out"]` names them."""
    own = study.rows[study.rows["source"].eq("run") & study.rows["edition"].eq("sound") & study.rows["variant"].ne(UNTRAINED)]
    about, spread = own.drop_duplicates("run")[["run", "variant", "seed"]], collected.features(study)
    tables = [spread.melt("run", ["rankme", "std"], "metric").dropna(subset=["value"])]
    if "rank" in study.curves:
        while_training = study.curves.groupby("run", observed=True)["rank"].mean().rename("value").reset_index()
        tables.append(while_training.astype({"run": str}).assign(metric="rank"))
    table = about.merge(pd.concat(tables, ignore_index=True), on="run")
    still = table["run"].isin(spread.loc[spread["rounded"], "run"])
    out = table[~still].assign(metric=table["metric"].map(PREDICTORS)).reset_index(drop=True)
    out.attrs["left_out"] = sorted(table.loc[still, "run"].unique())
    return out


def foretold(study: Collected, against: str = "baseline", least: int = LEAST) -> pd.DataFrame:
    """How well rank, spread and, where gradients were measured, alignment foretell a gain: `alignment.predictions` per benchmark.

    Rank and spread of the rows that have `least` runs with features of which they are known (`predictors`), if those are 4 or more;
    `attrs["left_out"]` says in a sentence what is missing for that. Raises ValueError with fewer than 4 rows of any predictor.
    """
    from vjepa_lab.analysis import alignment

    rows = collected.comparable(study, "sound", against, least)
    rows = rows[rows["source"].eq("run") & rows["variant"].ne(UNTRAINED)]
    known, runs = predictors(study), rows.loc[rows["variant"].ne(against)].drop_duplicates("run")[["run", *ROW]]
    still, seeds = runs["run"].isin(known.attrs["left_out"]), known.groupby("variant")["seed"].nunique()
    known = known[known["variant"].isin(seeds.index[seeds >= least])]
    left = int(runs.loc[runs["run"].isin(known["run"]), "variant"].nunique())
    said, tables = _says_left_out(runs, still, left, least), []
    if left >= FEW:
        tables.append(alignment.predictions(known, rows, against, names=tuple(PREDICTORS.values())))
    if len(study.alignment):
        watched = study.alignment.astype({"run": str, "variant": str, "edition": str, "metric": str, "term": str, "group": str})
        watched = watched[watched["edition"].eq("sound")]
        if watched.loc[watched["variant"].isin(rows["variant"]), "variant"].nunique() >= FEW:
            tables.append(alignment.predictions(alignment.averages(watched), rows, against))
    if not tables:
        raise ValueError(f"{study.name}: what foretells a gain takes {FEW} tested rows or more.{said}")
    found = pd.concat(tables, ignore_index=True)
    found.attrs["left_out"] = said
    return found


def _says_left_out(runs: pd.DataFrame, still: pd.Series, left: int, least: int) -> str:
    if not still.any():
        return ""
    few = f"; {left} rows with {least} others are too few to correlate rank and spread with anything" * (left < FEW)
    return (
        f" Rank and spread of {still.sum()} of {len(runs)} runs are left out, since their features, read in bfloat16, have a standard"
        f" deviation over clips below {LEAST_STD:g} ({collected.of_rows(runs, still)}){few}."
    )


def says_foretold(found: pd.DataFrame, aligned: bool) -> str:
    """What foretells a gain, from the rows of `foretold`: a predictor counts where its p, Holm-adjusted over the table, is below 5 %."""
    tested = found.dropna(subset=["p"])  # differences of two correlations have an interval only
    adjusted = tested.assign(p_adj=stats.holm(tested["p"]))
    sure = adjusted[adjusted["p_adj"] < 0.05]
    least, most = adjusted["variants"].agg(["min", "max"])
    count = f"{len(adjusted)} correlations over {least}{f' to {most}' * (most > least)} rows"
    head = "; ".join(f"{r.predictor} with {r.benchmark} {r.rho:+.2f} [{r.lo:+.2f}, {r.hi:+.2f}]" for r in sure.itertuples())
    stand = "stands" if len(sure) == 1 else "stand"
    said = f"Of {count}, {len(sure)} {stand} after correction (Holm)" + (f": {head}" if head else "") + "."
    open_ = " Whether the others are zero is undecided." if len(sure) < len(adjusted) else ""
    gradient = "" if aligned else " Gradients were not measured in these runs, so alignment is not among the predictors."
    said = collected.minus(said + open_) + found.attrs.get("left_out", "") + gradient
    return said + " A correlation over objectives does not tell what causes a gain."
