"""JupyterLab in a real browser: explorers that follow their controls, and stay whole while the machine is busy (`make test-browser`).

Screenshots land in the folder that BROWSER_SHOTS names, by default the tests' temporary one.
"""

import multiprocessing
import os
import shutil
import statistics
from pathlib import Path

import lab
import nbformat
import pytest

pytestmark = [
    pytest.mark.browser,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(lab.CHROMIUM is None, reason="no Chromium on this machine (Debian: apt-get install chromium)"),
]
ROOT = Path(__file__).parents[1]
NAMES = sorted(path.name for path in (ROOT / "notebooks").glob("*.ipynb"))
SMALL = {"preset": '"smoke"', "steps": "4", "batch": "4", "clips": "48"}
PICTURES = "() => [...document.querySelectorAll('.jp-OutputArea-output img')].map(i => i.src).join('|')"
BARS = "() => [...document.querySelectorAll('.js-plotly-plot .bars .point path')].map(p => p.getAttribute('d')).join('|')"


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A copy of the project's notebooks with small parameters, beside the paper's tables."""
    folder = tmp_path_factory.mktemp("project")
    shutil.copytree(ROOT / "notebooks", folder / "notebooks", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    (folder / "data").symlink_to(ROOT / "data")
    shutil.copy(ROOT / "pyproject.toml", folder)
    for path in (folder / "notebooks").glob("*.ipynb"):
        nb = nbformat.read(path, as_version=4)
        for cell in nb.cells:
            if "parameters" in cell.metadata.get("tags", []):
                cell.source = "\n".join(_smaller(line) for line in cell.source.splitlines())
        nbformat.write(nb, path)
    return folder


def _smaller(line: str) -> str:
    name = line.partition(":")[0].partition("=")[0].strip()
    return f"{name} = {SMALL[name]}" if name in SMALL else line


@pytest.fixture(scope="module")
def address(project, tmp_path_factory):
    with lab.server(project, tmp_path_factory.mktemp("home")) as found:
        yield found


@pytest.fixture(scope="module")
def shots(tmp_path_factory) -> Path:
    folder = Path(os.environ.get("BROWSER_SHOTS") or tmp_path_factory.mktemp("shots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


ROOM = """() => Math.min(...[...document.querySelectorAll('.js-plotly-plot')].flatMap(plot =>
    [...plot.querySelectorAll('.yaxislayer-above text')].map(text =>
        text.getBoundingClientRect().left - plot.getBoundingClientRect().left)))"""
"Pixels between the figure's left edge and the longest name of a row."
WATCH = """(look) => {
    const seen = eval(look), before = seen();
    window.reaction = null;
    const begin = () => {
        const start = performance.now();
        const frame = () => {
            const now = seen();
            if (now && now !== before) window.reaction = performance.now() - start;
            else requestAnimationFrame(frame);
        };
        requestAnimationFrame(frame);
    };
    for (const kind of ['change', 'keydown', 'click']) document.addEventListener(kind, begin, {capture: true, once: true});
}"""
"From the first use of a control to the first frame that shows another picture, as the page itself sees it."


def reaction(shown, look: str, act) -> float:
    """Milliseconds from `act`, the use of one control, to the first frame in which what `look` returns is there and differs."""
    shown.wait_for_timeout(1000)  # what the control before set off is over: plotly draws several times, the old figure beside the new
    shown.evaluate(WATCH, look)
    act()
    shown.wait_for_function("() => window.reaction !== null")
    return shown.evaluate("() => window.reaction")


CHOICES = (
    (0, "filtering", ("with Kinematic", "with Hard", "with Dynamics", "with masks", "all objectives")),
    (1, "sorting", ("by SSv2", "by D-48", "by IN-100", "by SSv2", "by mean")),
)


def by_own_menus(shown, shot: Path) -> str:
    """Use the own menus of the first figure that has some; the median reactions, in words."""
    figure = shown.locator(".js-plotly-plot:has(.updatemenu-header)").first
    figure.scroll_into_view_if_needed()
    taken = {}
    for menu, kind, labels in CHOICES:
        for label in labels:
            figure.locator(".updatemenu-header").nth(menu).click()
            button = figure.locator(f".updatemenu-dropdown-button:has-text('{label}')")
            button.wait_for()
            taken.setdefault(kind, []).append(reaction(shown, BARS, button.click))
            if label == "with Dynamics":
                shown.wait_for_timeout(500)
                shown.screenshot(path=shot)
    return ", ".join(f"{kind} {statistics.median(times):.0f} ms" for kind, times in taken.items())


def test_explorers_follow_their_controls(address, shots):
    with lab.page(address) as (shown, errors):
        lab.open_notebook(shown, address, "notebooks/13_explorers.ipynb")
        lab.run_all(shown)
        shown.wait_for_selector(".js-plotly-plot .bars .point path", state="attached")
        masks = []
        for _ in range(7):
            handle = shown.locator(".widget-slider:has-text('draw') .noUi-handle").first
            handle.focus()
            masks.append(reaction(shown, PICTURES, lambda: shown.keyboard.press("ArrowRight")))
        menus = by_own_menus(shown, shots / "explored.png")
        trades = []
        sort = shown.locator(".widget-dropdown:has-text('sorted') select").first
        for label in ("by SSv2", "by D-48", "by IN-100", "by SSv2", "by mean"):
            trades.append(reaction(shown, BARS, lambda label=label: sort.select_option(label=label)))
        shown.wait_for_timeout(1000)  # plotly draws again after the first frame
        assert 0 <= shown.evaluate(ROOM) < 100, "a name runs out of the figure, or none is there"
        bar = shown.locator(".js-plotly-plot .bars .point path").first
        bar.scroll_into_view_if_needed()
        bar.hover(force=True)
        bar.click(force=True)
        shown.wait_for_selector(".js-plotly-plot .annotation-text:has-text('Recipe(')", state="attached")
        shown.screenshot(path=shots / "clicked.png")
        print(f"\nmedian reaction: mask explorer {statistics.median(masks):.0f} ms; trade-off explorer: {menus} by the figure's own menus,")
        print(f"{statistics.median(trades):.0f} ms by the kernel's controls")
        assert not errors, errors


def test_the_figures_own_menus_act_in_the_page(address, shots):
    with lab.page(address) as (shown, errors):
        lab.open_notebook(shown, address, "notebooks/03_tradeoffs.ipynb")
        lab.run_all(shown)
        print(f"\nmedian reaction of the figure's own menus: {by_own_menus(shown, shots / 'filtered.png')}")
        assert not errors, errors


@pytest.mark.parametrize(("size", "dark"), [((1280, 800), False), ((1280, 800), True), ((1920, 1080), False), ((1920, 1080), True)])
def test_screenshots(address, shots, size, dark):
    with lab.page(address, size=size) as (shown, errors):
        lab.open_notebook(shown, address, "notebooks/13_explorers.ipynb")
        lab.theme(shown, "JupyterLab Dark" if dark else "JupyterLab Light")
        lab.run_all(shown)
        shown.wait_for_selector(".js-plotly-plot .bars .point path", state="attached")
        shown.wait_for_timeout(1500)
        cells = shown.locator(".jp-CodeCell")
        for number in range(cells.count()):
            cells.nth(number).scroll_into_view_if_needed()
            shown.wait_for_timeout(400)
            shown.screenshot(path=shots / f"explorers-{size[0]}-{'dark' if dark else 'light'}-{number}.png")
        lab.theme(shown, "JupyterLab Light")
        assert not errors, errors


def test_quickstart_runs_in_the_browser(address, shots):
    with lab.page(address) as (shown, errors):
        lab.open_notebook(shown, address, "notebooks/00_quickstart.ipynb")
        cells = lab.run_all(shown)
        assert all(cell["count"] for cell in cells)
        pictures = "flatMap(cell => cell.outputs).filter(output => output.data && 'image/png' in output.data).length"
        shown.wait_for_function(f"() => ({lab.CELLS})().{pictures} >= 4")  # plotly adds its own when it has drawn
        shown.wait_for_selector(".js-plotly-plot .bars .point path", state="attached")
        shown.screenshot(path=shots / "quickstart.png")
        assert not errors, errors


@pytest.mark.parametrize("name", NAMES)
def test_every_notebook_opens_without_a_warning(address, name):
    with lab.page(address) as (shown, errors):
        lab.open_notebook(shown, address, f"notebooks/{name}")
        shown.wait_for_timeout(2000)
        assert shown.locator(".jp-Dialog").count() == 0, shown.locator(".jp-Dialog").inner_text()
        assert not errors, errors


def test_no_figure_is_empty_in_twenty_loads_on_a_busy_machine(address, project):
    nb = nbformat.v4.new_notebook(metadata=nbformat.read(project / "notebooks" / "13_explorers.ipynb", 4).metadata)
    nb.cells = [
        nbformat.v4.new_code_cell("from vjepa_lab import notebook, widgets\nnotebook.home()\nwidgets.tradeoff_explorer('data/paper')")
    ]
    nbformat.write(nb, project / "notebooks" / "one.ipynb")
    busy = [multiprocessing.get_context("spawn").Process(target=_spin, daemon=True) for _ in range(os.cpu_count() or 2)]
    for process in busy:
        process.start()
    try:
        with lab.page(address) as (shown, errors):
            for load in range(20):
                lab.open_notebook(shown, address, "notebooks/one.ipynb")
                lab.run_all(shown)
                shown.wait_for_selector(".js-plotly-plot", state="attached")
                shown.wait_for_timeout(3000)
                assert shown.locator(".js-plotly-plot .bars .point path").count() > 20, f"load {load}: the figure is empty"
            assert not errors, errors
    finally:
        for process in busy:
            process.kill()


def _spin() -> None:
    while True:
        sum(range(100_000))
