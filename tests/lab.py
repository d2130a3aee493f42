"""JupyterLab on loopback and a headless Chromium to look at it: what the browser tests drive."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-sync"]
PATIENCE = 120_000  # ms: both cores may be busy
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

RUN_ALL = """async () => {
    const app = window.jupyterapp, panel = app.shell.currentWidget;
    await panel.sessionContext.ready;
    await app.commands.execute('notebook:run-all-cells');
}"""
CELLS = """() => {
    const cells = window.jupyterapp.shell.currentWidget.content.model.cells, found = [];
    for (let i = 0; i < cells.length; i++) {
        const cell = cells.get(i);
        if (cell.type !== 'code') continue;
        const outputs = [];
        for (let k = 0; k < cell.outputs.length; k++) outputs.push(cell.outputs.get(k).toJSON());
        found.push({count: cell.executionCount, outputs});
    }
    return found;
}"""


@contextmanager
def server(folder: Path, home: Path):
    """JupyterLab over `folder`, with settings of its own below `home`: its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    places = {
        name: str(home / name.lower())
        for name in ("JUPYTER_CONFIG_DIR", "JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")
    }
    quiet = Path(places["JUPYTERLAB_SETTINGS_DIR"]) / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
    quiet.parent.mkdir(parents=True, exist_ok=True)
    quiet.write_text('{"fetchNews": "false", "checkForUpdates": false}')
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}",
        "--ServerApp.port_retries=0", "--IdentityProvider.token=", "--ServerApp.password=", "--ServerApp.disable_check_xsrf=True",
        f"--ServerApp.root_dir={folder}", "--LabApp.expose_app_in_browser=True",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate", "--LabApp.extension_manager=readonly",
    ]  # fmt: skip
    log = (home / "lab.log").open("w")
    process = subprocess.Popen(command, env=os.environ | places, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            if process.poll() is not None:
                raise RuntimeError(f"JupyterLab ended at once:\n{(home / 'lab.log').read_text()[-2000:]}")
            try:
                urllib.request.urlopen(f"{address}/api", timeout=2)
                break
            except OSError:
                time.sleep(0.5)
        yield address
    finally:
        process.terminate()
        process.wait(30)


@contextmanager
def page(address: str, *, size=(1280, 800), dark: bool = False):
    """A page of a headless Chromium, and the list of errors that its console and scripts raise."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as player:
        browser = player.chromium.launch(executable_path=CHROMIUM, args=FLAGS, chromium_sandbox=False)
        shown = browser.new_page(viewport={"width": size[0], "height": size[1]}, color_scheme="dark" if dark else "light")
        shown.set_default_timeout(PATIENCE)
        errors = []
        shown.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
        shown.on("pageerror", lambda error: errors.append(str(error)))
        try:
            yield shown, errors
        finally:
            browser.close()


def open_notebook(shown, address: str, name: str) -> None:
    shown.goto(f"{address}/lab/tree/{name}?reset")
    shown.wait_for_selector(".jp-NotebookPanel .jp-Cell")


def run_all(shown) -> list[dict]:
    """Run every cell; each code cell's number and outputs. Raises AssertionError with the traceback of a cell that failed."""
    shown.evaluate(RUN_ALL)
    cells = shown.evaluate(CELLS)
    for cell in cells:
        for output in cell["outputs"]:
            assert output["output_type"] != "error", "\n".join(output.get("traceback", []))
    return cells


def theme(shown, name: str) -> None:
    """ "JupyterLab Dark" or "JupyterLab Light"."""
    shown.evaluate("name => window.jupyterapp.commands.execute('apputils:change-theme', {theme: name})", name)
    shown.wait_for_timeout(500)
