"""The documentation's Python runs: all blocks of a page in order, as one script, at the smallest size and on few clips."""

import re
import runpy
from functools import partial
from pathlib import Path

import pandas as pd
import pytest

import vjepa_lab as vl

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "data" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path) -> list[str]:
    """Python blocks of a page; one that needs a data set, weights or a cluster says ```python no-run."""
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), flags=re.M | re.S)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_block_runs(page, tmp_path, monkeypatch):
    (tmp_path / "data").symlink_to(ROOT / "data")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(vl, "probe", partial(vl.probe, limit=200))
    script = tmp_path / "page.py"
    script.write_text("\n\n".join(blocks(page)).replace('"micro"', '"smoke"').replace('"tiny"', '"smoke"'))
    runpy.run_path(str(script), run_name="__main__")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        if not target.startswith(("http", "mailto:")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}, which is not there"


def test_the_table_of_the_reference_study_is_what_the_notebook_wrote():
    """Each objective once, with each difference, its interval and whether it stands."""
    found = pd.read_csv(ROOT / "figures" / "reference" / "differences.csv")
    found = found[found["edition"].eq("sound") & found["variant"].ne("random-init")]
    text = (ROOT / "docs" / "reference-study.md").read_text()
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if re.match(r"\| `[\w-]+`.*, \d \| \**[+-]", line)]
    assert sorted(re.match(r"`([\w-]+)`", row[0])[1] for row in rows) == sorted(found["variant"].unique())
    order = ["motion", "speed", "shape", "texture", "order", "order/motion"]
    for name, *cells in rows:
        own = found[found["variant"].eq(re.match(r"`([\w-]+)`", name)[1])].set_index("benchmark").loc[order]
        mark = own["significant"].map({True: "**", False: ""})
        said = [f"{m}{r.delta:+.1f} [{r.lo:+.1f}, {r.hi:+.1f}]{m}" for m, r in zip(mark, own.itertuples(), strict=True)]
        assert cells == said and name.endswith(f", {own['seeds'].iloc[0]}"), name
