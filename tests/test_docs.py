"""The documentation's Python runs: all blocks of a page in order, as one script, at the smallest size and on few clips."""

import re
import runpy
from functools import partial
from pathlib import Path

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
