"""Claims: the printed tables give the known truth values, other evidence verdicts that follow its noise, and predicates can do no harm."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats as sps

from vjepa_lab.evidence import claims, results
from vjepa_lab.evidence.claims import claim
from vjepa_lab.evidence.worlds import Worlds

PAPER = Path(__file__).parents[1] / "data" / "paper"


@pytest.fixture(scope="module")
def released():
    return {seed: {item["id"]: item for item in claims.evaluate(f"released@{seed}")} for seed in (42, 239)}


def runs(
    means: dict[str, dict[str, float]], seeds: int = 5, noise: float = 0.5, regime: str = "mixed", shared: float = 0.0
) -> pd.DataFrame:
    """Rows of own runs around `means[variant][benchmark]`, with noise per run and noise that all variants of a seed share."""
    rng = np.random.default_rng(0)
    common = rng.normal(0, shared, seeds) if shared else np.zeros(seeds)
    rows = [
        {
            "variant": v,
            "benchmark": b,
            "seed": s,
            "value": mean + common[s] + rng.normal(0, noise),
            "probe": results.PROBES.get(b, "linear"),
        }
        for v, benches in means.items()
        for b, mean in benches.items()
        for s in range(seeds)
    ]
    return results.tidy(pd.DataFrame(rows).assign(n=5000, regime=regime, source="run"))


def verdict(df, predicate: str, **kwargs) -> dict:
    (item,) = claims.evaluate(df, [claim("x", "x", predicate)], **kwargs)
    return item


# --- the paper's claims -----------------------------------------------------------------------------------------------


def test_printed_tables_give_exactly_the_expected_values():
    expected = {item.id: item.expected for item in claims.load()}
    judged = {item["id"]: item["predicates"] for item in claims.evaluate("paper")}
    assert judged == expected
    assert len(judged) == 35 and sum(map(len, judged.values())) == 76


@pytest.mark.parametrize(
    ("id", "expected"),
    [
        ("S01", "supported"),
        ("S02", "partly"),
        ("S05", "partly"),
        ("S10", "not testable"),
        ("S12", "partly"),
        ("F1a", "partly"),
        ("P01", "contradicted"),
        ("P09", "contradicted"),
        ("P14", "supported"),
        ("P16", "contradicted"),
    ],
)
def test_verdicts_on_the_printed_tables(id, expected):
    (item,) = [item for item in claims.evaluate("paper") if item["id"] == id]
    assert item["verdict"] == expected


def test_the_released_numbers_agree_with_the_printed_ones_within_their_noise(released):
    by_id = released[42]
    assert by_id["S04"]["verdict"] == "supported" and by_id["S01"]["verdict"] == "undecided"
    assert by_id["P13"]["verdict"] == "undecided"  # that two objectives are not "several" is about the text: no runs contradict it
    assert by_id["P13"]["predicates"] == {"both_hurt": None, "several": False}
    assert by_id["S02"]["verdict"] == "undecided"  # a window of 0.4 points, and a point of sampling noise: that refutes nothing
    assert by_id["P01"]["verdict"] == "not applicable" and by_id["P01"]["predicates"] == dict.fromkeys(by_id["P01"]["predicates"])
    assert "one seed" in by_id["S04"]["basis"]
    assert all(by_id["S05"]["point"][name] for name in ("count", "range_13_16"))


def test_an_accuracy_on_an_unknown_number_of_clips_is_no_evidence():
    df = runs({"baseline": {"SSv2": 50.0}, "ld": {"SSv2": 50.3}}, seeds=1)
    asked = [claim("m", "x", 'delta("SSv2","ld")>0')]
    (unknown,), (known,) = claims.evaluate(df.assign(n=np.nan), asked), claims.evaluate(df, asked)
    assert unknown["missing"] == {"p": "LD-JEPA on SSv2 (table 4)"} and known["point"] == {"p": True}


def test_seeds_that_tie_are_no_certainty():
    """Two arms that differ by as much in both seeds, or one that stands still: the share follows from the grid of the accuracies."""
    values = {"baseline": [50.0, 52.0], "ld": [50.5, 52.5], "fwm": [51.0, 54.0]}
    df = runs({v: {"SSv2": 0.0} for v in values}, seeds=2).assign(n=200)
    df["value"] = [values[v][int(s)] for v, s in zip(df["variant"], df["seed"], strict=True)]
    share = lambda df, text: verdict(df, text)["share"]["p"]
    expected = sps.t.cdf(0.5 / (0.5 / np.sqrt(12)), 1)  # grid 0.5, two roundings, two seeds
    assert share(df, 'delta("SSv2", "ld") > 0') == pytest.approx(expected, abs=0.05)
    still = df.assign(value=df["value"].where(df["variant"].ne("fwm"), 55.0))
    assert share(still, 'acc("SSv2", "fwm") > 55.1') == pytest.approx(sps.t.sf(0.1 / (0.5 / np.sqrt(24)), 1), abs=0.05)
    assert verdict(df, 'delta("SSv2", "ld") > 0')["verdict"] == "undecided"
    unknown = df.assign(n=np.nan)
    assert verdict(unknown, 'delta("SSv2", "ld") > 0')["missing"] and not verdict(unknown, 'delta("SSv2", "fwm") > 0')["missing"]


def test_what_does_not_tie_is_drawn_as_if_there_were_no_grid():
    df = runs({"baseline": {"SSv2": 10.0}, "ld": {"SSv2": 11.0}, "fwm": {"SSv2": 10.0}})
    fine, coarse = (claims._Cells(results.select(df.assign(n=n))).simulate(50, np.random.default_rng(0)) for n in (1e9, 500))
    assert np.array_equal(fine, coarse)


def test_the_same_seed_baseline_changes_what_holds(released):
    same_seed = released[239]
    assert same_seed["S05"]["predicates"]["count"] is False  # 5, not 10, of 14 lose more than 5 points
    assert same_seed["S06"]["verdict"] == "contradicted" and same_seed["S07"]["verdict"] == "contradicted"
    assert "Baseline on D-48" in " ".join(same_seed["F2"]["missing"].values()) and same_seed["F2"]["verdict"] == "undecided"


def test_printed_rows_with_intervals_are_the_released_ones():
    table = results.load(PAPER)
    judged = {item["id"]: item["verdict"] for item in claims.evaluate(table[table["source"].eq("paper")])}
    assert judged["S04"] == "supported" and judged["S01"] == "undecided"
    shuffled = claims.evaluate(table[table["source"].eq("paper")].sample(frac=1, random_state=0))
    assert {item["id"]: item["verdict"] for item in shuffled} == judged


def test_main_prints_json_and_text(capsys):
    assert claims.main("paper", as_json=True) == 0
    items = json.loads(capsys.readouterr().out)
    assert {"id", "predicates", "verdict"} <= set(items[0]) and len(items) == 35
    assert claims.main("paper") == 0
    assert "supported" in capsys.readouterr().out.splitlines()[-1]


def test_the_table_of_verdicts_has_a_row_per_claim():
    table = claims.table(claims.evaluate("paper"))
    assert len(table) == 35 and list(table.columns) == ["id", "where", "claim", "verdict", "predicates", "lacks", "basis"]


# --- own runs ---------------------------------------------------------------------------------------------------------


def test_a_clear_effect_a_null_and_a_loss_get_their_verdicts():
    df = runs({"baseline": {"SSv2": 10.0}, "ld": {"SSv2": 14.0}, "fwm": {"SSv2": 10.0}, "hw": {"SSv2": 6.0}})
    assert verdict(df, 'delta("SSv2", "ld") > 2')["verdict"] == "supported"
    assert verdict(df, 'delta("SSv2", "LD-JEPA") > 2')["verdict"] == "supported"
    assert verdict(df, 'delta("SSv2", "fwm") > 0')["verdict"] == "undecided"
    assert verdict(df, 'delta("SSv2", "hw") > 0')["verdict"] == "contradicted"
    item = verdict(df, 'delta("SSv2", "ld") == 5.0')
    assert item["seeds"] == 5 and item["basis"] == "seeds"


def test_equality_means_within_a_point():
    df = runs({"baseline": {"SSv2": 10.0}, "ld": {"SSv2": 15.02}}, noise=0.05)
    assert verdict(df, 'delta("SSv2", "ld") == 5.02')["verdict"] == "supported"
    assert verdict(df, 'delta("SSv2", "ld") == 8.0')["verdict"] == "contradicted"
    assert verdict(df, 'delta("SSv2", "ld") == -5.02')["verdict"] == "contradicted"
    assert verdict(df, 'delta("SSv2", "ld") == 6.02')["verdict"] == "undecided"


def test_pairing_by_seed_cancels_what_seeds_share():
    means = {"baseline": {"SSv2": 20.0}, "ld": {"SSv2": 21.5}}
    assert verdict(runs(means, noise=0.2, shared=5.0), 'delta("SSv2", "ld") > 0')["verdict"] == "supported"
    assert verdict(runs(means, noise=5.0), 'delta("SSv2", "ld") > 0')["verdict"] == "undecided"


def test_simulated_differences_are_the_paired_t_interval():
    from vjepa_lab.evidence import stats

    df = runs({"baseline": {"SSv2": 20.0}, "ld": {"SSv2": 22.0}}, seeds=4, noise=1.0, shared=3.0)
    drawn = claims.from_rows(df, draws=20_000).draws.together.delta("SSv2", "ld", "mixed")
    expected = stats.compare(df).iloc[0]
    assert np.quantile(drawn, [0.025, 0.975]) == pytest.approx([expected["lo"], expected["hi"]], abs=0.15)


def test_one_seed_is_simulated_by_jeffreys_posterior_of_its_clips():
    """Beta(hits + 1/2, misses + 1/2) in percent, its mean, its spread and its tail."""
    df = runs({"baseline": {"SSv2": 5.0}, "ld": {"SSv2": 40.0}}, seeds=1, noise=0.0).assign(n=20)
    drawn = claims.from_rows(df, draws=20_000).draws.together.acc("SSv2", "baseline", "mixed")
    posterior = sps.beta(1.5, 19.5)
    assert [drawn.mean(), drawn.std(), *np.quantile(drawn, [0.025, 0.975])] == pytest.approx(
        [100 * posterior.mean(), 100 * posterior.std(), *(100 * posterior.ppf([0.025, 0.975]))], rel=0.05
    )


def test_null_claims_are_rarely_called():
    """ "Better than the baseline" of equal variants: supported or contradicted in at most about 5 % of studies."""
    rng = np.random.default_rng(1)
    called = 0
    for _ in range(100):
        df = runs({"baseline": {"SSv2": 20.0}, "ld": {"SSv2": 20.0}}, seeds=4).assign(value=20 + rng.normal(0, 1, 8))
        worlds = claims.from_rows(df, draws=200)
        called += claims.evaluate(worlds, [claim("x", "x", 'delta("SSv2", "ld") > 0')])[0]["verdict"] != "undecided"
    assert called <= 13  # P(more | rate 0.05) < 0.1 %


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ('acc("SSv2", "a", "here") > 11 and (acc("SSv2", "b", "here") > 12 and 1 < 2)', 3),
        ('acc("SSv2", "a", "here") > 11 or acc("SSv2", "b", "here") > 12', 1),
        ('all(acc("SSv2", m, "here") > 11 for m in ["a", "b"])', 2),
        ('all(10 < acc("SSv2", m, "here") <= 20 for m in ["a", "b"])', 4),
        ('abs(delta("SSv2", "a", "here")) <= 1.5', 2),
        ('1.5 > abs(delta("SSv2", "a", "here"))', 2),
        ('delta("SSv2", "a", "here") == 1.5', 2),
        ('deltas("SSv2", None, "here") == [0.0, 0.0, 0.0]', 6),
        ('count(d > 1 for d in deltas("SSv2", None, "here")) == 2', 2),
        ('max(methods("here"), key=lambda m: delta("SSv2", m, "here")) == "b"', 2),
        ('rank_desc("SSv2", "b", "here") == 1', 3),
        ('methods("here")[0] == "a"', 1),
        ('set(methods("here")) == set(["a", "b", "c"])', 1),
        ('[delta("SSv2", m, "here") for m in methods("here")] == BENCH', 1),
    ],
)
def test_a_predicate_is_its_parts_together(text, count):
    """On any accuracies the predicate holds exactly when every part does."""
    rng = np.random.default_rng(0)
    whole, parts = claims.compile_predicate(text), claims.compile_parts(text)
    held = set()
    for _ in range(200):
        rows = {name: {"SSv2": float(np.round(rng.uniform(8, 14), 2))} for name in ("baseline", "a", "b", "c")}
        env = claims.World({"here": rows}, {}).env
        truths = parts(env)
        assert len(truths) == count and all(truths) == bool(whole(env))
        held.add(all(truths))
    assert held == {True, False} or count == 1


def test_the_papers_predicates_are_their_parts_together():
    env = claims.printed().point.env | {"near": 1}
    for item in claims.load():
        for text in item.predicates.values():
            try:
                truths = claims.compile_parts(text)(env)
            except claims.MissingEvidence:
                continue
            assert all(truths) == bool(claims.compile_predicate(text)(env)), text


TIES = np.round(np.random.default_rng(0).uniform(8, 14, (60, 4)), 1)
TIES[:3] = [[10, 11, 11, 11], [10, 10, 10, 10], [10.1, 10.45, 9.75, 10.1]]


@pytest.mark.parametrize(
    ("text", "at_once"),
    [
        ('delta("S", "a", "here") > 1 or not acc("S", "b", "here") > 11', True),
        ('1 < delta("S", "a", "here") <= 2', True),
        ('acc("S", "a", "here") > 9 and acc("S", "a", "here") > 12', True),
        ('any(delta("S", m, "here") > 2 for m in ["a", "b"])', True),
        ('any(delta("S", m, "here") > 2 and delta("S", m, "here") < 3 for m in ["a", "b"])', True),
        ('count(d > 0 for d in deltas("S", None, "here")) >= 2', True),
        ('sum(d > 0 for d in deltas("S", None, "here")) == 2', True),
        ('(delta("S", "a", "here") > 0) + (delta("S", "b", "here") > 0) >= 2', True),
        ('max(deltas("S", None, "here")) - min(deltas("S", None, "here")) > 2', True),
        ('max(delta("S", "a", "here"), 0) > 1', True),
        ('mean(deltas("S", None, "here")) > 0.5', True),
        ('round(delta("S", "a", "here"), 1) >= 0.4', True),
        ('round(-delta("S", "b", "here")) == 0', True),
        ('rank_desc("S", "a", "here") <= 2', True),
        ('max(methods("here"), key=lambda m: delta("S", m, "here")) == "a"', True),
        ('deltas("S", None, "here") == [1.0, 1.0, 1.0]', True),
        ('spearman([acc("S", m, "here") for m in methods("here")], [1, 2, 3]) > 0.6', True),
        ('(acc("S", "a", "here") if len(methods("here")) > 5 else acc("S", "b", "here")) > 11', True),
        ('(acc("S", "a", "here") if acc("S", "c", "here") > 11 else acc("S", "b", "here")) > 11', False),
        ('sorted(methods("here"), key=lambda m: delta("S", m, "here"))[0] == "c"', False),
        ('len([d for d in deltas("S", None, "here") if d > 0]) > 1 and [d for d in deltas("S", None, "here") if d > 0][1] > 1', False),
        ('set(deltas("S", None, "here")) == set([0])', False),
    ],
)
def test_many_worlds_at_once_are_each_by_itself(text, at_once):
    """Truth for truth, ties and halves too; what has no meaning for all at once says so, and is asked world by world."""
    many = Worlds(TIES, lambda row: claims.World({"here": {m: {"S": x} for m, x in zip(["baseline", *"abc"], row, strict=True)}}, {}))
    whole, parts = claims.compile_predicate(text), claims.compile_parts(text)
    each = [bool(whole(world.env)) for world in many]
    assert len(set(each)) == 2, "else this shows nothing"
    if at_once:
        assert np.all(np.broadcast_arrays(*parts(many.together.env)), axis=0).tolist() == each
    else:
        with pytest.raises((LookupError, TypeError, ValueError)):
            parts(many.together.env)
    evidence = claims.Evidence("here", many[0], many)
    (judged,) = claims.evaluate(evidence, [claim("x", "x", text)])
    assert judged["share"]["p"] >= np.mean(each) - 1e-12 and judged["point"]["p"] == each[0]
    if not at_once:
        assert judged["share"]["p"] == pytest.approx(np.mean(each))


def test_the_papers_predicates_mean_the_same_of_many_worlds_at_once():
    known = claims.from_rows(results.load(PAPER / "released.csv"), draws=20, baseline_seed=42)
    compared = 0
    for item in claims.load():
        for text in item.predicates.values():
            parts = claims.compile_parts(text)
            try:
                at_once = np.transpose(np.broadcast_arrays(*parts(known.draws.together.env), np.zeros(20)))[:, :-1].tolist()
            except (LookupError, TypeError, ValueError):
                continue
            assert at_once == [parts(world.env) for world in known.draws], text
            compared += 1
    assert compared > 50


def test_many_parts_that_are_undecided_contradict_nothing():
    """Six variants equal to the baseline: all of them better has a share of 1 in 64 at most, yet no evidence speaks against it; nor does
    coarse evidence speak against a narrow window. One part that clearly fails does."""
    names = [f"v{k}" for k in range(6)]
    rng = np.random.default_rng(0)
    everyone = f'all(delta("SSv2", m, "mixed") > 0 for m in [{", ".join(map(repr, names))}])'
    verdicts = []
    for _ in range(40):
        df = runs({"baseline": {"SSv2": 20.0}} | {name: {"SSv2": 20.0} for name in names}, seeds=4)
        known = claims.from_rows(df.assign(value=20 + rng.normal(0, 1, len(df))), draws=400)
        verdicts += [claims.evaluate(known, [claim("x", "x", everyone)])[0]["verdict"]]
    assert verdicts.count("contradicted") <= 5 and "supported" not in verdicts  # P(more | rate 0.025) < 0.1 %

    coarse = runs({"baseline": {"SSv2": 20.0}, "ld": {"SSv2": 22.0}}, seeds=3, noise=20.0)
    assert verdict(coarse, '1.9 <= delta("SSv2", "ld") <= 2.0')["verdict"] == "undecided"
    assert verdict(coarse, 'delta("SSv2", "ld") == 2.0')["verdict"] == "undecided"
    fails = runs({"baseline": {"SSv2": 20.0}} | {name: {"SSv2": 20.0} for name in names} | {"v5": {"SSv2": 15.0}})
    assert verdict(fails, everyone)["verdict"] == "contradicted"


def test_support_needs_every_part_and_adjusts_none():
    """Intersection-union: parts at 98 % each support their conjunction, though all hold together in 55 % of the evidence or so."""
    parts = {k: [0.98] for k in range(30)}
    assert set(claims._decide(parts).values()) == {True}
    assert set(claims._decide(parts | {30: None}).values()) == {None}
    assert claims._decide({0: [0.98] * 30}) == {0: True} and claims._decide({0: [0.98, 0.97]}) == {0: None}


def test_one_noisy_part_of_many_refutes_nothing():
    """Twelve true zeros, as twelve predicates or as one of twelve parts: the worst of them must fail at 97.5 % after Bonferroni."""
    for worst, value in ((0.5, None), (0.02, None), (0.001, False)):
        apart = claims._decide({k: [0.5] for k in range(11)} | {11: [worst]})
        assert apart[11] is value and claims._decide({0: [0.5] * 11 + [worst]}) == {0: value}
    assert claims._verdict(claims._decide({0: [1.0], 1: [0.0]}).values()) == "partly"
    assert claims._decide({0: [0.98], 1: [0.0]}) == {0: None, 1: False}, "a part that is picked as the one that holds needs more"


def test_a_part_that_guards_another_is_judged_with_it():
    df = runs({"baseline": {"SSv2": 10.0}, "ld": {"SSv2": 14.0}})
    ours = 'deltas("SSv2", None, "mixed")'
    assert verdict(df, f"len({ours}) > 3 and {ours}[3] > 0")["predicates"] == {"p": False}


def test_runs_too_small_are_no_evidence():
    df = runs({"baseline": {"SSv2": 10.0}, "ld": {"SSv2": 14.0}})
    with pytest.raises(ValueError, match="10 rows of runs too small"):
        claims.evaluate(df.assign(smoke=True))
    half = df.assign(smoke=df["seed"].ge(3))
    assert claims.from_rows(half).seeds == 3 and claims.from_rows(half).left_out == 4


def test_own_regimes_and_benchmarks_have_their_own_names():
    df = runs({"baseline": {"motion": 40.0}, "mine": {"motion": 50.0}}, regime="synthetic")
    assert verdict(df, 'delta("motion", "mine", "synthetic") > 5')["verdict"] == "supported"
    assert verdict(df, 'delta("motion", "mine", "mixed") > 5')["missing"] == {"p": "table or regime 'mixed'"}
    assert verdict(df, 'delta("SSv2", "ld") > 0')["verdict"] == "undecided"
    assert "LD-JEPA on SSv2" in verdict(df, 'delta("SSv2", "ld") > 0')["missing"]["p"]


def test_printed_and_released_rows_together_are_refused():
    with pytest.raises(ValueError, match="paper and released"):
        claims.evaluate(results.load(PAPER))


# --- the language -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "open('x')",
        "().__class__",
        "'a'.format(1)",
        "BENCH.__class__",
        "delta.__globals__",
        "(lambda: 1)()",
        "[].append(1)",
        "2**9999",
        "f'{BENCH}'",
        "(x := 3)",
        "{**T}",
        "max(*BENCH)",
        "sorted(BENCH, reverse=True, cmp=1)",
        "[x async for x in BENCH]",
        "BENCH is None",
        "1 if True",
        "import os",
        "near",
        "[a.b for a.b in BENCH]",
        "lambda *a: a",
        "1" + "+1" * 2000,
    ],
)
def test_what_the_language_lacks_is_refused_before_anything_runs(text):
    with pytest.raises(ValueError, match="claim x, predicate p"):
        claim("x", "x", text)


def test_a_misspelt_name_is_answered_by_near_ones():
    with pytest.raises(ValueError, match=r"unknown name 'dleta'; did you mean delta"):
        claim("x", "x", 'dleta("SSv2", "ld") > 0')


@pytest.mark.parametrize("text", ["'a' * 1000000 == 'a'", "BENCH + BENCH == BENCH", "[1] * 9 == [1]"])
def test_arithmetic_is_for_numbers(text):
    with pytest.raises(TypeError, match="numbers"):
        claims.evaluate("paper", [claim("x", "x", text)])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1 < 2 <= 2 != 3 and not 1 > 2", True),
        ("[b for b in BENCH if b != 'D-48'][0] == 'IN-100' and BENCH[1:] == ['IN-100', 'SSv2']", True),
        ("sum([x * y for x, y in zip([1, 2], [3, 4])]) == 11", True),
        ("max(methods(4), key=lambda m: delta('SSv2', m)) == 'LD-JEPA'", True),
        ("min([1, 2]) if 'ViT' in value(1, 'Backbone') else 5", 1),
        ("delta('SSv2', 'fwm-hw-ld') == delta('SSv2', 'FWM-HW-LD') == 3.21", True),
        ("delta('SSv2', 'Kin.-Huber', 3) == None", True),
        ("rank_desc('SSv2', 'ld') == 1 and rank_desc('IN-100', 'fac') == 14", True),
    ],
)
def test_the_language_means_what_python_means(text, expected):
    assert claims.compile_predicate(text)(claims.printed().point.env) == expected


def test_an_unreported_cell_is_missing_evidence_not_a_number():
    item = claims.evaluate("paper", [claim("x", "x", "delta('SSv2', 'Kin.-Huber', 3) > 0")])[0]
    assert item["verdict"] == "undecided" and item["missing"]
    assert verdict("paper", "delta('SSv2', 'nobody') > 0")["missing"] == {"p": "nobody in table 4"}


def test_a_claims_file_of_another_form_is_named(tmp_path):
    (tmp_path / "claims.json").write_text('{"claims": [{"id": "a"}]}')
    with pytest.raises(ValueError, match=r"claims\.json: not a claims file"):
        claims.load(tmp_path / "claims.json")
    with pytest.raises(ValueError, match="formalises names no predicate"):
        claims.Claim("a", "a", {"p": "1 < 2"}, formalises=("q",))


def test_a_baseline_seed_that_was_not_released_is_refused():
    with pytest.raises(ValueError, match="no mixed baseline of seed 7; its seeds: 42, 239"):
        claims.evaluate("released@7")
