"""Robustness: metrics by hand, planted invariances come out, AUROC as sklearn has it, prototypes find planted clusters."""

from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import vjepa_lab as vl
from vjepa_lab import data, plots
from vjepa_lab.analysis import openset, readers, robustness, shifts, subjects, transfer
from vjepa_lab.analysis.readers import Reader
from vjepa_lab.data.corruptions import CORRUPTIONS
from vjepa_lab.data.sets import ucf101
from vjepa_lab.evaluation import features as features_of
from vjepa_lab.evaluation.features import Features, extract
from vjepa_lab.evidence import stats

MAPS = Path(__file__).parents[1] / "data" / "maps"


def features(x, y, classes=None, label="class", **more) -> Features:
    x, y = torch.as_tensor(np.asarray(x), dtype=torch.float32), torch.as_tensor(np.asarray(y))
    names = [f"c{k}" for k in range(classes or int(y.max()) + 1)]
    return Features(x, {label: y}, {label: names}, torch.arange(len(x)), grid=(1, 1, 1), **({"name": "planted", "split": "test"} | more))


def clusters(n=60, classes=4, d=8, apart=6.0, seed=0):
    """Clips around one point per class; the points are the same for every seed."""
    centres = np.random.default_rng(99).normal(size=(classes, d)) * apart
    y = np.arange(n) % classes
    return centres[y] + np.random.default_rng(seed).normal(size=(n, d)), y


@dataclass
class Planted:
    """A subject with an encoder of our own making."""

    encoder: nn.Module
    about: dict = field(default_factory=dict)

    def __post_init__(self):
        same = {"run": "planted-micro-s0", "variant": "planted", "edition": "sound", "seed": 0, "encoder": "student", "source": "run"}
        self.about = same | {"smoke": False, "regime": "none", "pretrain": "none"} | self.about

    def features(self, source, **how):
        return extract(self.encoder, source, **{k: v for k, v in how.items() if k == "progress"})


class Halves(nn.Module):
    """First half: what all frames have in common, whatever their order. Second half: how the picture moves, whatever its brightness."""

    def __init__(self, swapped=False):
        super().__init__()
        self.swapped = swapped

    def grid(self, clip):
        return 1, 1, 1

    def forward(self, clip):  # [b c f y x]
        mean = clip.double().mean(2).flatten(2)  # [b c y*x]
        still = mean.quantile(torch.tensor([0.1, 0.5, 0.9], dtype=mean.dtype), dim=-1).movedim(0, 1).flatten(1)  # [b 9]
        grey = clip.double().mean(1)  # [b f y x]
        grey = grey - grey.mean((1, 2, 3), keepdim=True)
        scale = grey.square().mean((1, 2, 3)) + 1e-9
        earlier, later = grey[:, :-1], grey[:, 1:]
        along = [(earlier.roll(s, dims) * later).mean((1, 2, 3)) / scale for dims in (-1, -2) for s in (-4, -3, -2, -1, 0, 1, 2, 3, 4)]
        moving = torch.stack(along, dim=1)  # [b 18]
        still = torch.nn.functional.pad(still, (0, moving.shape[1] - still.shape[1]))
        both = (moving, still) if self.swapped else (still, moving)
        return torch.cat(both, dim=1)[:, None].float()


# ----------------------------------------------------------------------------------------------------------------------------- metrics

CLEAN = np.array([1, 1, 1, 1, 1, 1, 1, 1, 0, 0])  # 80 %
FOG = np.array([[1, 1, 1, 1, 1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 0, 0, 0, 0, 0, 0]])  # 60 and 40 %
JUMBLE = np.array([[1, 1, 1, 0, 0, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0, 0, 0, 0]])  # 30 and 10 %


def test_corruption_metrics_by_hand():
    found = {name: x.value for name, x in shifts.metrics(CLEAN, {"fog": FOG, "jumble": JUMBLE}, chance=20).items()}
    assert found["clean"] == pytest.approx(80) and found["mPC"] == pytest.approx((60 + 40 + 30 + 10) / 4)
    assert found["rPC"] == pytest.approx(100 * 35 / 80)
    assert found["gamma_abs"] == pytest.approx(1 - (80 - 35) / 100) and found["gamma_rel"] == pytest.approx(1 - (80 - 35) / 80)
    assert found["corrected"] == pytest.approx(100 * (35 - 20) / 80) and found["retained"] == pytest.approx(100 * (35 - 20) / (80 - 20))


def test_relative_metrics_are_undefined_below_twice_chance():
    """A model that always names one class keeps all its accuracy; that must not read as robust."""
    found = shifts.metrics(CLEAN, {"fog": FOG}, chance=40.1)
    assert all(np.isnan(found[name][:3]).all() for name in ("rPC", "gamma_rel"))
    assert found["retained"].value == pytest.approx(100 * (50 - 40.1) / (80 - 40.1))  # 80 % is most of the way from 40.1 % to 100 %
    assert found["mPC"].value == pytest.approx(50) and found["gamma_abs"].value == pytest.approx(0.7)
    assert found["corrected"].value == pytest.approx(100 * (50 - 40.1) / 59.9)
    assert not np.isnan(shifts.metrics(CLEAN, {"fog": FOG}, chance=40)["rPC"].value)


def test_what_is_undefined_says_why_and_a_binary_label_is_read_beyond_chance():
    assert shifts.undefined(80, 20) == {} == shifts.undefined(100, 50)
    assert set(shifts.undefined(80, 50)) == {"rPC", "gamma_rel"}  # binary: what is known beyond chance is enough
    assert set(shifts.undefined(74.9, 50)) == set(shifts.undefined(10, 10)) == {"rPC", "gamma_rel", "retained"}
    assert shifts.undefined(74.9, 50)["rPC"].startswith("undefined: 74.9 % right on clean clips, chance 50.0 %; below twice chance")
    assert "retained" in shifts.undefined(100, 100)  # one class: there is nothing to know
    for chance in (2, 10, 30, 50, 90):
        clean = np.arange(1000) * 100 < 1000 * np.arange(chance, 100, 0.5)[:, None]
        for each in clean:
            known, found = shifts.undefined(100 * each.mean(), chance), shifts.metrics(each, {"fog": each[None] * 0.5}, chance, draws=2)
            assert {name for name, x in found.items() if np.isnan(x.value)} == set(known)


def test_undefined_rows_carry_their_reason_into_the_table():
    """A binary label read at 80 %, and one read at chance."""
    right = {"order": np.arange(200) % 10 < 8, "camera": np.arange(200) % 2 == 0}
    about = Planted(Halves()).about | {"part": "all", "benchmark": "x", "probe": "logistic", "chance": 50.0, "truth": "kept"}
    rows = [
        about | {"label": label, "shift": shift, "severity": 1, "kind": kind, "ordered": True, "each": each}
        for label, each in right.items()
        for shift, kind in (("clean", "clean"), ("fog", "appearance"))
    ]
    answers = pd.DataFrame(rows)
    found = robustness.summary(answers)
    table = robustness.overview(found).reset_index("variant", drop=True)
    assert table.loc["order", "retained"] == pytest.approx(100) and np.isnan(table.loc["order", "rPC"])
    assert table.loc["camera", ["rPC", "gamma_rel", "retained"]].isna().all() and table.loc["camera", "mPC"] == pytest.approx(50)
    assert "80.0 % right on clean clips, chance 50.0 %; below twice chance" in table.loc["order", "note"]
    assert "too little is known" in table.loc["camera", "note"] and "too little" not in table.loc["order", "note"]
    assert found["note"].ne("").equals(found["value"].isna())
    assert "1 of 2 readers know too little beyond chance" in robustness.verdict(answers, found)


def test_unequal_numbers_of_severities_weigh_every_shift_alike():
    found = shifts.metrics(CLEAN, {"fog": FOG, "reverse": CLEAN[None]}, chance=20)
    assert found["mPC"].value == pytest.approx((50 + 80) / 2)


def test_an_interval_over_clips_covers_the_truth():
    """A reader that is right on 80 % of clean clips and keeps 3 of 4 of them under a shift: rPC 75."""
    rng, inside, sets = np.random.default_rng(0), 0, 200
    for _ in range(sets):
        clean = rng.random(150) < 0.8
        found = shifts.metrics(clean, {"fog": (clean & (rng.random(150) < 0.75))[None]}, chance=10, draws=400)["rPC"]
        inside += found.lo <= 75 <= found.hi
    assert 0.9 <= inside / sets <= 0.99


def test_conditions_are_all_corruptions_once_where_severity_means_nothing():
    every = shifts.conditions()
    assert {c.shift for c in every} == set(CORRUPTIONS) and len(every) == 5 * len(CORRUPTIONS) - 4
    assert [c.ordered for c in shifts.conditions(["fog", "jumble", "reverse"], (1, 5))] == [True, True, False, False, False]
    kinds = {c.shift: c.kind for c in every}
    assert (kinds["fog"], kinds["freeze"], kinds["jpeg"], kinds["rotate"]) == ("appearance", "temporal", "codec", "camera")
    assert set(shifts.MOVED) <= set(CORRUPTIONS)
    with pytest.raises(data.DataError, match="'frog'"):
        shifts.conditions(["frog"])
    with pytest.raises(data.DataError, match="unknown severity 6"):
        shifts.conditions(["fog"], (6,))


def test_a_shift_that_changes_the_motion_is_no_fault_of_who_reads_it():
    jumble, fog = shifts.conditions(["jumble", "fog"], (1,))
    assert (jumble.truth("motion"), jumble.truth("shape"), fog.truth("motion")) == ("changed", "kept", "kept")


def test_clips_are_made_once_and_no_more_are_kept_than_allowed():
    class Counting(data.Source):
        name, fixed, classes, reads = "counting", True, {}, 0

        def __len__(self):
            return 4

        def read(self, index, epoch=0):
            self.reads += 1
            return data.Sample(torch.full((3, 2, 4, 4), index, dtype=torch.uint8), {}, index)

    source = Counting()
    kept = shifts.Kept(source, limit=2 * 96)
    clips = [[kept[i].clip for i in range(4)] for _ in range(3)]
    assert source.reads == 2 + 3 * 2 and all(torch.equal(a, b) for a, b in zip(clips[0], clips[2], strict=True))


# ------------------------------------------------------------------------------------------------------------------------------ reader


def test_a_reader_reads_its_part_alone():
    (x, y), (z, w) = clusters(120, seed=0), clusters(80, seed=1)
    noise = np.random.default_rng(5)
    train, test = (features(np.concatenate([a, noise.normal(size=a.shape)], 1), b) for a, b in ((x, y), (z, w)))
    score = {part: Reader.fit(train, part=part).correct(test).mean() for part in readers.PARTS}
    assert score["all"] == score["app"] == 1 and score["dyn"] < 0.5
    with pytest.raises(ValueError, match="unknown part 'half'"):
        Reader.fit(train, part="half")


def test_two_classes_and_a_class_never_shown():
    x, y = clusters(60, 2)
    reader = Reader.fit(features(x, y, classes=3))
    logits = reader.logits(features(x, y, classes=3))
    assert reader.correct(features(x, y, classes=3)).all() and np.isneginf(logits[:, 2]).all()
    assert np.allclose(logits[:, 0], -logits[:, 1])
    with pytest.raises(ValueError, match="needs two classes"):
        Reader.fit(features(x, np.zeros(60, int), classes=2))
    with pytest.raises(ValueError, match="numbers the classes of 'class' otherwise"):
        reader.correct(features(x, y))
    with pytest.raises(ValueError, match="1 clips have no 'class'"):
        reader.correct(features(x[:2], [0, -1], classes=3))


def test_a_constant_channel_disturbs_no_reader():
    x, y = clusters(80)
    with_constant = features(np.concatenate([x, np.full((80, 8), 3.0)], 1), y)
    assert Reader.fit(with_constant).correct(with_constant).all()


def test_differences_are_paired_by_clip_and_seed():
    rng = np.random.default_rng(0)
    each = {(v, s): rng.random(50) < p for v, p in (("baseline", 0.5), ("ld", 0.7)) for s in (0, 1)}
    table = pd.DataFrame([{"variant": v, "seed": s, "benchmark": "x", "each": e} for (v, s), e in each.items()])
    found = readers.differences(table.sample(frac=1, random_state=3)).iloc[0]
    known = stats.paired_interval(*(np.stack([each[v, s] for s in (0, 1)]) for v in ("ld", "baseline")))
    assert (found["delta"], found["lo"], found["hi"]) == pytest.approx(tuple(map(float, known[:3]))) and found["seeds"] == 2
    with pytest.raises(ValueError, match="no 'base' to compare with"):
        readers.differences(table, "base")


def test_an_untrained_encoders_differences_are_not_compatible_with_the_others():
    """It lies far below and scatters: what the other objectives leave open is theirs alone."""
    rng, rows = np.random.default_rng(1), []
    about = {
        "encoder": "student",
        "seed": 0,
        "panel": "x",
        "benchmark": "x",
        "metric": "top1",
        "chance": 25.0,
        "smoke": False,
        "probe": "linear",
    }
    for variant, share in (("baseline", 0.8), ("ld", 0.8), ("random-init", 0.75)):
        each = rng.random(400) < share
        encoder = "random-init" if variant == "random-init" else "student"
        rows.append(about | {"variant": variant, "each": each, "encoder": encoder, "run": f"{variant}-s0"})
    table = readers.differences(pd.DataFrame(rows), "baseline", ["panel"])
    assert readers.widest(table) == pytest.approx(table.set_index("variant").loc["ld", ["lo", "hi"]].abs().max())
    assert "compatible with" not in readers.verdict(pd.DataFrame([rows[0], rows[2]])), "no other objective, no others"


def test_two_seeds_that_happen_to_agree_are_no_certainty():
    """Both seeds gain one clip in fifty, another one each: the difference between seeds is zero, that between clips is not."""
    base, gain = np.zeros(50), np.eye(50)
    rows = [{"variant": "baseline", "seed": s, "benchmark": "x", "each": base} for s in (0, 1)]
    rows += [{"variant": "ld", "seed": s, "benchmark": "x", "each": gain[s]} for s in (0, 1)]
    found = readers.differences(pd.DataFrame(rows)).iloc[0]
    assert found["delta"] == pytest.approx(2) and found["lo"] < 0 and not found["significant"]


# ----------------------------------------------------------------------------------------------------------------- planted invariances


@pytest.fixture(scope="module")
def planted():
    """Answers of planted halves, and of the same halves swapped, on the plain factor world."""
    options = {"frames": 8, "size": 32, "sizes": (0.35, 0.65), "ground": 0.3}
    train, test = (data.open("synthetic", split, n=n, **options) for split, n in (("train", 600), ("test", 200)))
    wanted = shifts.conditions(["brightness", "contrast", "reverse", "jumble", "box_jumble"], (1, 3))
    found = [Planted(Halves()), Planted(Halves(swapped=True), {"variant": "swapped", "run": "swapped-micro-s0"})]
    return robustness.ask(found, train, test, ["tint", "motion"], wanted, progress=False)


def value(rows, **where):
    for name, wanted in where.items():
        rows = rows[rows[name].eq(wanted)]
    (found,) = rows["value"]
    return found


def test_what_is_blind_to_order_keeps_everything_under_temporal_shifts(planted):
    rows = robustness.summary(planted)
    for variant, part in (("planted", "app"), ("swapped", "dyn")):
        here = {"variant": variant, "part": part, "label": "tint"}
        assert value(rows, **here, metric="clean", kind="temporal") > 60
        assert value(rows, **here, metric="rPC", kind="temporal") == pytest.approx(100, abs=0.5)
        assert value(rows, **here, metric="gamma_abs", kind="temporal") == pytest.approx(1, abs=0.005)
        assert value(rows, **here, metric="retained", kind="appearance") < 80


def test_what_is_blind_to_brightness_keeps_motion_under_appearance_shifts_and_loses_it_with_the_order(planted):
    rows = robustness.summary(planted)
    for variant, part in (("planted", "dyn"), ("swapped", "app")):
        here = {"variant": variant, "part": part, "label": "motion"}
        assert value(rows, **here, metric="clean", kind="appearance") > 35
        assert value(rows, **here, metric="retained", kind="appearance") > 85
        assert value(rows, **here, metric="retained", kind="temporal", truth="changed") < 60
        assert not len(rows[rows["label"].eq("motion") & rows["kind"].eq("temporal") & rows["truth"].eq("kept")])


def test_rows_have_intervals_and_every_condition(planted):
    table = readers.tabulate(planted)
    assert len(table) == 2 * 2 * 3 * (1 + 2 * 4 + 1) and table["n"].eq(200).all() and not table["smoke"].any()
    assert ((table["lo"] <= table["value"]) & (table["value"] <= table["hi"])).all()
    rows = robustness.summary(planted)
    known = rows[rows["value"].notna()]
    assert ((known["lo"] <= known["value"]) & (known["value"] <= known["hi"])).all()
    means = table[table["part"].eq("app") & table["label"].eq("tint") & table["kind"].eq("appearance")].groupby("variant")["value"].mean()
    shown = rows[rows["metric"].eq("mPC") & rows["part"].eq("app") & rows["label"].eq("tint") & rows["kind"].eq("appearance")]
    assert shown.set_index("variant")["value"].to_dict() == pytest.approx(means.to_dict())


def test_the_halves_are_compared_where_both_know_something():
    """App keeps nine of ten right answers, dyn half of them, on the same clips."""
    n, rows = 200, []
    right = np.arange(n) % 10 < 8
    for part, kept in (("app", 0.9), ("dyn", 0.5)):
        shifted = right & (np.arange(n) % 10 < 8 * kept)
        for shift, kind, each in (("clean", "clean", right), ("freeze", "temporal", shifted)):
            about = Planted(Halves()).about | {"label": "shape", "part": part, "benchmark": "x", "probe": "logistic", "chance": 10.0}
            rows.append(about | {"shift": shift, "severity": 1, "kind": kind, "ordered": True, "truth": "kept", "each": each})
    found = robustness.summary(pd.DataFrame(rows))
    row = found[found["metric"].eq("retained-app-dyn") & found["kind"].eq("temporal")].iloc[0]
    share = {part: (np.mean(rows[i]["each"]) - 0.1) / 0.7 for part, i in (("app", 1), ("dyn", 3))}
    assert row["value"] == pytest.approx(100 * (share["app"] - share["dyn"])) and row["lo"] > 0
    assert "Under temporal shifts Z_app retains more than Z_dyn in 1 of 1 cases" in robustness.verdict(pd.DataFrame(rows), found)


def test_clips_of_one_recording_are_one_draw_of_the_intervals():
    """Each of 20 recordings, read right or wrong as a whole, is there ten times."""
    n, rows, origin = 200, [], np.arange(200) // 10
    right = np.random.default_rng(0).random(20)[origin] < 0.6
    for shift, kind, each in (("clean", "clean", right), ("freeze", "temporal", right & (origin % 2 == 0))):
        about = Planted(Halves()).about | {"label": "shape", "part": "all", "benchmark": "x", "probe": "logistic", "chance": 10.0}
        rows.append(about | {"shift": shift, "severity": 1, "kind": kind, "ordered": True, "truth": "kept", "each": each})
    width = {}
    for name, table in (("clips", rows), ("recordings", [row | {"origin": origin} for row in rows])):
        found = robustness.summary(pd.DataFrame(table))
        assert "origin" not in found and found["n"].eq(n).all()
        width[name] = (found["hi"] - found["lo"]).groupby(found["metric"]).first()
    assert (width["recordings"] > 2 * width["clips"]).loc[["clean", "mPC"]].all() and len(width["clips"]) > 2
    known, unknown = features(*clusters(), recordings=torch.arange(60) // 3), features(*clusters())
    reader = readers.Reader.fit(unknown, "class")
    assert robustness._each(reader, known)["origin"].tolist() == (np.arange(60) // 3).tolist()
    assert "origin" not in robustness._each(reader, unknown)


def test_what_is_read_elsewhere_or_unknown_keeps_its_recordings():
    """Of the clips that are asked about: those of a class that is not shared, or has no training clip, are gone."""
    (x, y), (z, w) = clusters(160), clusters(80, seed=1)
    origin = torch.arange(80) // 4
    test = features(z, w, recordings=origin)
    far = {"train": features(x, y), "test": test}
    names = [f"c{k}" for k in range(3)]
    common = transfer.ClassMap(dict(zip(names, names, strict=True)), dict(zip(names, names, strict=True)), names)
    rows = transfer.across_rows(Planted(Halves()), {"train": features(x, y), "test": features(z, w)}, far, ("class", "class"), common)
    origins = {row["protocol"]: row["origin"].tolist() if "origin" in row else None for row in rows}
    assert origins["in-domain"] is origins["prototypes in-domain"] is None
    assert origins["transfer"] == origins["re-probe"] == origin[w < 3].tolist() and origins["prototypes"] == origin.tolist()
    for row in openset.open_rows(Planted(Halves()), features(x[y < 3], y[y < 3]), test, "class"):
        assert row["origin"].tolist() == origin[w < 3].tolist() and len(row["each"]) == 60
    table = readers.tabulate(pd.DataFrame(rows))
    assert len(table) == 5 and "origin" not in table


def test_objectives_are_compared_in_their_fall_by_clip(planted):
    table = robustness.falls(planted, "planted")
    both = table[table["label"].eq("tint") & table["kind"].eq("temporal")].set_index("metric")
    assert both.loc["fall", "delta"] == pytest.approx(both.loc["mPC", "delta"] - table.loc[table["metric"].eq("clean"), "delta"].iloc[0])
    parts = planted[planted["part"].ne("all")]  # asked with parts=("app", "dyn")
    assert "of the differences" not in robustness.verdict(parts, robustness.summary(parts), "planted")
    # all channels hold the same numbers in another order
    assert table["delta"].abs().max() < 3 and not table["significant"].any()


def test_figures_draw_what_the_rows_hold(planted):
    rows, table = robustness.summary(planted), readers.tabulate(planted)
    figure = plots.robustness(rows, paper=True)
    assert len(figure.axes) == 2 * 3  # labels x (appearance, temporal, all)
    titles = [ax.get_title() for ax in plots.severities(table, "motion").axes if ax.get_visible()]
    assert titles == ["brightness", "contrast", "reverse *", "jumble *", "box jumble *"]
    with pytest.raises(ValueError, match="no rows of label 'hue' and part 'all'"):
        plots.severities(table, "hue")
    with pytest.raises(ValueError, match="no line to draw"):
        plots.shifted_on_clean(robustness.lines(planted))
    assert plots.shifted_on_clean({("shape", "codec"): shifts.line(accuracies(offset=0.6))}).axes
    clean = planted[planted["kind"].eq("clean") & planted["part"].eq("all")]
    assert len(plots.elsewhere(readers.tabulate(clean.assign(panel=clean["label"]))).axes) == 2
    assert "0 of 2 stand" in readers.verdict(clean.assign(panel=clean["label"]), "planted")


# -------------------------------------------------------------------------------------------------------------------------------- line


def accuracies(offset=0.0, noise=0.02, variants=6, seeds=2, seed=0):
    """Encoders on logit(shifted) = -1 + 0.8 logit(clean); the last variant lies `offset` logits above."""
    from scipy.special import expit, logit

    rng, rows = np.random.default_rng(seed), []
    for v in range(variants):
        for s in range(seeds):
            clean = 0.4 + 0.06 * v + 0.02 * s
            shifted = expit(-1 + 0.8 * logit(clean) + noise * rng.normal() + offset * (v == variants - 1))
            rows.append({"variant": f"v{v}", "seed": s, "clean": 100 * clean, "shifted": 100 * shifted, "n": 10**6})
    return pd.DataFrame(rows)


def test_the_line_is_found_with_its_interval_and_who_leaves_it():
    fitted = shifts.line(accuracies())
    assert fitted.slope.lo < 0.8 < fitted.slope.hi and fitted.slope.value == pytest.approx(0.8, abs=0.05)
    assert (fitted.residuals["p_adj"] > 0.01).all() and len(fitted.residuals) == 6
    off = shifts.line(accuracies(offset=0.6)).residuals.set_index("variant")
    assert off.loc["v5", "p_adj"] < 0.001 and off.loc["v5", "lo"] > 10
    assert off.loc["v5", "value"] == pytest.approx(14, abs=2)  # 0.6 logits at about 45 %


def test_the_line_agrees_with_an_independent_fit_of_the_variants_means():
    import statsmodels.api as sm

    points = accuracies(noise=0.2)
    fitted = shifts.line(points)
    x, y = (
        points.assign(x=shifts._logit(points[name], points["n"])).groupby("variant")["x"].mean().to_numpy() for name in ("clean", "shifted")
    )
    known = sm.OLS(y, sm.add_constant(x)).fit()
    assert (fitted.intercept, fitted.slope.value) == pytest.approx(tuple(known.params))
    assert (fitted.slope.lo, fitted.slope.hi) == pytest.approx(tuple(known.conf_int()[1])) and fitted.slope.p == pytest.approx(
        known.pvalues[1]
    )
    band = sm.OLS(y, sm.add_constant(x)).fit().get_prediction(np.array([[1.0, 0.0]])).conf_int()[0]
    from scipy.special import expit

    assert [float(z) for z in fitted.at(50.0)[1:]] == pytest.approx(list(100 * expit(band)))


def test_the_slopes_interval_covers_it_where_seeds_of_a_variant_share_its_offset():
    """Few variants, many seeds each, an offset that the seeds share: nine intervals in ten miss nothing, one point per seed fails."""
    import statsmodels.api as sm
    from scipy.special import expit, logit

    inside, naive, covered, studies = 0, 0, 0, 400
    for study in range(studies):
        rng = np.random.default_rng(study)
        x = logit(np.repeat(rng.uniform(0.3, 0.7, 6), 5)) + rng.normal(0, 0.05, 30)
        y = -1 + 0.8 * x + np.repeat(rng.normal(0, 0.3, 6), 5) + rng.normal(0, 0.05, 30)
        points = pd.DataFrame({"variant": np.repeat([f"v{v}" for v in range(6)], 5), "seed": [*range(5)] * 6, "n": 10**6})
        fitted = shifts.line(points.assign(clean=100 * expit(x), shifted=100 * expit(y)))
        inside += fitted.slope.lo < 0.8 < fitted.slope.hi
        lo, hi = sm.OLS(y, sm.add_constant(x)).fit().conf_int()[1]
        naive += lo < 0.8 < hi
        _, below, above = fitted.at(50.0)
        covered += below < 100 * expit(-1) < above
    assert 0.92 < inside / studies < 0.975 and 0.92 < covered / studies < 0.975
    assert naive / studies < 0.75


def test_leaving_the_line_by_chance_is_rare():
    """Without an effect the residuals' p-values are uniform: about 5 % lie below 0.05."""
    p = np.concatenate([shifts.line(accuracies(noise=0.2, seed=s)).residuals["p"] for s in range(150)])
    assert 0.03 < (p < 0.05).mean() < 0.075


def test_seeds_make_no_objective_a_stranger_to_the_line():
    """Objectives that scatter about the line, whose seeds agree: none is further off than its like, however many seeds there are."""
    p = []
    for seed in range(150):
        points = accuracies(noise=0.0, seeds=5)
        shift = dict(zip(points["variant"].unique(), np.random.default_rng(seed).normal(0, 3, 6), strict=True))
        found = shifts.line(points.assign(shifted=points["shifted"] + points["variant"].map(shift)))
        assert (found.residuals["seeds"] == 5).all()
        p.extend(found.residuals["p"])
    assert 0.025 < (np.array(p) < 0.05).mean() < 0.08


def test_untrained_encoders_are_shown_but_not_fitted():
    points = accuracies()
    strange = pd.DataFrame([{"variant": "random-init", "seed": 0, "clean": 30.0, "shifted": 90.0, "n": 10**6}])
    both = shifts.line(pd.concat([points, strange], ignore_index=True), [True] * len(points) + [False])
    assert both.slope.value == shifts.line(points).slope.value and len(both.points) == len(points) + 1
    with pytest.raises(ValueError, match="four variants of differing clean accuracy at least; there are 3: v0, v1, v2"):
        shifts.line(points[:6])  # three variants of two seeds


# ---------------------------------------------------------------------------------------------------------------------------- open set


@pytest.mark.parametrize("ties", [False, True])
def test_auroc_is_sklearns(ties):
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(1)
    known, unknown = rng.normal(0.5, 1, 70), rng.normal(0, 1, 40)
    if ties:
        known, unknown = known.round(), unknown.round()
    area = roc_auc_score([1] * 70 + [0] * 40, np.concatenate([known, unknown]))
    of_known, of_unknown = openset.placements(known, unknown)
    assert of_known.mean() == pytest.approx(area) and of_unknown.mean() == pytest.approx(area)
    assert openset.auroc_each(known, unknown).mean() == pytest.approx(area)


def test_the_interval_of_an_auroc_covers_the_truth():
    from scipy.stats import norm

    rng, truth, inside = np.random.default_rng(0), 100 * norm.cdf(1 / np.sqrt(2)), 0
    for _ in range(300):
        found = stats.t_interval(100 * openset.auroc_each(rng.normal(1, 1, 80), rng.normal(0, 1, 60)))
        inside += found.lo <= truth <= found.hi
    assert 0.91 <= inside / 300 <= 0.98
    with pytest.raises(ValueError, match="clips of both sides"):
        openset.placements([1.0], [])


def test_unknown_clusters_are_found_and_pure_noise_is_not():
    subject = Planted(Halves())
    (x, y), (z, w) = clusters(240, 6), clusters(120, 6, seed=1)
    rows = pd.DataFrame(openset.open_rows(subject, features(x, y), features(z, w), "class"))
    assert list(rows["probe"]) == list(openset.SCORES) and all(each.mean() > 0.8 for each in rows["each"])
    assert rows.set_index("probe").loc["prototype", "each"].mean() > 0.95
    noise = [features(np.random.default_rng(s).normal(size=(120, 8)), w) for s in (3, 4)]
    for row in openset.open_rows(subject, *noise, "class"):
        found = stats.t_interval(100 * row["each"])
        assert found.lo < 50 < found.hi and len(row["each"]) == 120


def test_a_class_that_no_reader_saw_is_not_among_the_known():
    (x, y), (z, w) = clusters(240, 6), clusters(120, 6, seed=1)
    subject, seen, asked = Planted(Halves()), features(x[y < 4], y[y < 4]), w < 4
    rows, alone = (openset.open_rows(subject, seen, test, "class") for test in (features(z, w), features(z[asked], w[asked])))
    for row, other in zip(rows, alone, strict=True):
        np.testing.assert_array_equal(row["each"], other["each"])


def test_every_class_is_held_out_once():
    parts = openset.folds(8, 3)
    assert sorted(chain(*parts)) == list(range(8)) and parts == openset.folds(8, 3) != openset.folds(8, 3, seed=1)
    with pytest.raises(ValueError, match="3 classes cannot be held out in 2 parts"):
        openset.folds(3, 2)


# --------------------------------------------------------------------------------------------------------------------------- data sets


def test_prototypes_find_planted_clusters_wherever_they_lie():
    (x, y), (z, w) = clusters(120, 5), clusters(100, 5, seed=1)
    far = 100 * np.ones(8)  # a direction that all clips share
    assert transfer.by_prototypes(features(x + far, y), features(z + far, w), "class").all()
    guess = transfer.by_prototypes(features(x, y), features(np.random.default_rng(0).normal(size=z.shape), w), "class")
    assert guess.mean() < 0.4
    centres = openset.prototypes(x, y, 6)
    assert np.allclose(centres[2], x[y == 2].mean(0)) and np.isnan(centres[5]).all()
    assert np.isneginf(openset.nearness(x, centres)[:, 5]).all()


def test_a_reader_goes_from_set_to_set_by_shared_classes():
    """The target has a class more, other numbers, and the features turned: the reader fails, re-probing and prototypes do not."""
    (x, y), (z, w) = clusters(160), clusters(80, seed=1)
    turn, order = np.linalg.qr(np.random.default_rng(7).normal(size=(8, 8)))[0], np.array([2, 0, 3, 1])
    source = {"train": features(x, y), "test": features(z, w)}
    names = ["t1", "t3", "t0", "t2", "t4"]  # source class k is called t<k> there
    target = {part: features(f.pooled.numpy() @ turn, order[f.labels["class"].numpy()], 5, name="elsewhere") for part, f in source.items()}
    for part in target.values():
        part.classes["class"] = names
    common = transfer.ClassMap(*({f"{side}{k}": f"shared{k}" for k in range(4)} for side in "ct"), [f"shared{k}" for k in range(4)])
    rows = pd.DataFrame(transfer.across_rows(Planted(Halves()), source, target, ("class", "class"), common)).set_index("protocol")
    got = {name: each.mean() for name, each in rows["each"].items()}
    assert got["in-domain"] == got["re-probe"] == got["prototypes"] == got["prototypes in-domain"] == 1 and got["transfer"] < 0.8
    straight = {part: features(f.pooled.numpy(), order[f.labels["class"].numpy()], 5) for part, f in source.items()}
    for part in straight.values():
        part.classes["class"] = names
    rows = transfer.across_rows(Planted(Halves()), source, straight, ("class", "class"), common)
    assert next(row["each"].mean() for row in rows if row["protocol"] == "transfer") == 1
    none = transfer.across_rows(Planted(Halves()), source, target, ("class", "class"), None)
    assert [row["protocol"] for row in none] == ["prototypes in-domain", "prototypes"]


def test_clips_of_classes_that_are_not_shared_are_left_out():
    x, y = clusters(40)
    kept = transfer.shared(features(x, y), "class", {"c1": "one", "c3": "odd"}, ["odd", "one"])
    assert len(kept) == 20 and kept.labels["shared"].tolist() == [1, 0] * 10
    with pytest.raises(ValueError, match="has no class called 'c9'"):
        transfer.shared(features(x, y), "class", {"c9": "one"}, ["one"])


def test_the_class_maps_speak_of_classes_that_exist(clips):
    assert transfer.ClassMap.read(MAPS / "ucf101-hmdb51.csv").note == ""
    labels = clips / "annotations" / "label_maps"
    known = {
        "ucf101": (labels / "ucf101_label_map.txt").read_text().split(),
        "hmdb51": (labels / "hmdb51_label_map.txt").read_text().split(),
        "moments": [line.rsplit(",", 1)[0] for line in (clips / "annotations/moments/category_momentsv2_305.txt").read_text().splitlines()],
    }
    assert len(known["ucf101"]) == ucf101.CLASSES and len(known["hmdb51"]) == 51
    for file in MAPS.glob("*.csv"):
        table, (source, target) = pd.read_csv(file), file.stem.split("-")
        assert set(table["source"]) <= set(known[source]) and set(table["target"]) <= set(known[target]), file.name


def test_class_maps_are_read_and_bad_ones_refused(tmp_path):
    twelve = transfer.ClassMap.read(MAPS / "ucf101-hmdb51.csv")
    assert len(twelve.shared) == 12 and len(twelve.source) == 15 and twelve.source["Biking"] == "ride_bike"
    strict, loose = (transfer.ClassMap.read(MAPS / "ucf101-moments.csv", status) for status in (("proposed-strict",), transfer.STATUS))
    assert strict.note == transfer.UNREVIEWED and len(strict.source) == 51 and len(strict.shared) == 35 and len(loose.source) > 80
    bad = tmp_path / "bad.csv"
    for text, message in (
        ("source,target\na,b\n", "lacks the column shared, status, origin"),
        ("source,target,shared,status,origin\na,b,c,guessed,x\n", "status 'guessed'"),
        ("source,target,shared,status,origin\na,b,c,published,x\na,d,e,published,x\n", "source class 'a' has two shared classes"),
        ("source,target,shared,status,origin\na,b,c,published,x\n", "fewer than two shared classes"),
    ):
        bad.write_text(text)
        with pytest.raises(ValueError, match=message):
            transfer.ClassMap.read(bad)
    with pytest.raises(ValueError, match="share 1 class names"):
        transfer.ClassMap.same(["a", "b"], ["b", "c"])


# ------------------------------------------------------------------------------------------------------------------------------ studies


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs of hardly any training."""
    folder = tmp_path_factory.mktemp("runs")
    source = data.open("synthetic", frames=8, size=32, n=24, cache="memory")
    return [vl.pretrain(name, source, "smoke", runs=folder, progress=False) for name in ("baseline", "fwm")]


SMALL = {"clips": (40, 20), "progress": False}


def test_the_study_runs_is_cached_and_says_what_it_is_not(runs, tmp_path):
    how = {"corruptions": ["fog", "jumble"], "severities": (1, 5), "cache": tmp_path, **SMALL}
    answers = robustness.corrupted(runs, **how)
    assert set(answers["variant"]) == {"baseline", "fwm", "random-init"} and set(answers["label"]) == {"shape", "motion"}
    assert set(answers["kind"]) == {"clean", "appearance", "temporal", "scene"}
    made = {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    again = robustness.corrupted(runs, **how)
    assert all((a == b).all() for a, b in zip(answers["each"], again["each"], strict=True))
    assert {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()} == made and len(made) == 3 * (2 + 4 + len(shifts.SCENES))
    said = robustness.verdict(answers, robustness.summary(answers))
    assert said.startswith("Demonstration size, which decides nothing.") and "one seed" in said
    with pytest.raises(ValueError, match="unknown scene 'rain'"):
        robustness.corrupted(runs, scenes=["rain"], **SMALL)


def test_a_misspelt_label_is_refused_before_a_clip_is_encoded(runs, monkeypatch):
    monkeypatch.setattr(subjects, "extract", lambda *_, **__: pytest.fail("encoded"))
    for ask in (lambda: robustness.corrupted(runs, labels=["shpe"], **SMALL), lambda: robustness.laws(runs, label="shpe", **SMALL),
                lambda: openset.held_out(runs, labels=["shpe"], **SMALL)):  # fmt: skip
        with pytest.raises(ValueError, match=r"\[train\] has no label 'shpe'; it has .*shape"):
            ask()


def test_every_source_is_read_in_the_precision_of_the_first(runs, monkeypatch):
    """What is learnt on the training clips is asked on others: both are rounded, or neither is."""
    run, source = runs[0], data.open("synthetic", "test", frames=8, size=32, n=6)
    monkeypatch.setattr(type(run), "config", run.config | {"bf16": True})
    read, true = [], features_of._extract
    monkeypatch.setattr(features_of, "_extract", lambda *a, **k: read.append(k.get("bf16", False)) or true(*a, **k))
    one, other = (subjects.Subject(run, "initial") for _ in range(2))
    monkeypatch.setattr(features_of, "deviation", lambda pooled, found=iter([0.0, 1.0, 0.0]): next(found))
    with pytest.warns(UserWarning, match="random-init: .* read in fp32"):
        one.features(source, progress=False)
    one.features(source, progress=False)
    assert read == [True, False, False] and one == other
    assert other.features(source, progress=False) and other.features(source, progress=False) and read[3:] == [True, True]


def test_runs_are_taken_by_their_folders(runs):
    found = subjects.subjects([runs[0].path, str(runs[1].path)])
    assert [subject.run for subject in found] == [*runs, runs[0]]
    with pytest.raises(FileNotFoundError, match="nowhere: not a run folder"):
        subjects.subjects(["nowhere"])


def test_laws_of_the_world_change_between_validation_and_test(runs):
    answers = robustness.laws(runs, progress=False, clips=(60, 30))
    assert set(answers["shift"]) == {"in-domain", "shifted"} and len(answers) == 2 * 3 * 2
    assert set(answers["benchmark"]) == {"synthetic/compositional/motion", "synthetic/spurious/motion"}
    with pytest.raises(ValueError, match="another law needs the factor world"):
        robustness.laws(runs, "kenburns:x")
    assert len(readers.differences(answers, by=["benchmark", "shift"])) == 8


def test_other_worlds_and_real_clips(runs, clips):
    answers = robustness.corrupted(
        runs[:1],
        str(clips / "ucf101_6cls_128p"),
        corruptions=["brightness"],
        severities=(2,),
        parts=("all",),
        clips=(24, 12),
        progress=False,
    )
    assert set(answers["label"]) == {"class"} and len(answers["each"].iloc[0]) == 12 and answers["chance"].iloc[0] < 40
    images = f"kenburns:{clips / 'tiny_imagenet_in100_14cls'}"
    across = transfer.across(runs[:1], "synthetic:trs8", images, clips=(48, 24), progress=False)
    assert set(across["protocol"]) == {"in-domain", "transfer", "re-probe", "prototypes in-domain", "prototypes"}
    unlike = transfer.across(
        runs[:1], str(clips / "ucf101_6cls_128p"), str(clips / "tennis7_160p"), ("class", "class"), clips=(24, 12), progress=False
    )
    assert set(unlike["protocol"]) == {"prototypes in-domain", "prototypes"}


def test_open_set_and_data_sets_from_runs(runs):
    found = openset.held_out(runs, clips=(80, 40), progress=False)
    assert len(found) == 3 * 2 * 3 and found["chance"].eq(50).all()
    table = readers.tabulate(found)
    assert table["metric"].eq("auroc").all() and (table["lo"] <= table["value"]).all()
    with pytest.raises(ValueError, match="synthetic has no label 'action'"):
        transfer.across(runs, labels=("action", "motion"), **SMALL)
