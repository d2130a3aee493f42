"""What the run monitor does by itself while a kernel is idle."""

import asyncio
import json

import pytest

import vjepa_lab as vl
from vjepa_lab.widgets import monitor


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return vl.pretrain("ld", preset="smoke", runs=tmp_path_factory.mktemp("runs"), progress=False, log_every=1)


def test_the_watch_draws_only_what_has_changed_and_leaves_the_kernel_its_time(run, monkeypatch):
    drawn, naps, real = [], [], asyncio.sleep
    curves = monitor.curves
    monkeypatch.setattr(monitor, "curves", lambda *args, **how: drawn.append(1) or curves(*args, **how))

    async def sleep(seconds):
        naps.append(seconds)
        await real(0)

    monkeypatch.setattr(monitor.asyncio, "sleep", sleep)

    async def watched():
        monitor.run_monitor(run.path.parent, every=0.01)
        first = len(drawn)
        for _ in range(20):
            await real(0)
        assert first and len(drawn) == first and len(naps) > 5, "nothing has changed: looked at, not drawn"
        (run.path / "report.json").unlink()
        last = json.loads((run.path / "metrics.jsonl").read_text().splitlines()[-1])
        with (run.path / "metrics.jsonl").open("a") as log:
            log.write(json.dumps(last | {"step": last["step"] + 1}) + "\n")
        for _ in range(20):
            await real(0)
        assert len(drawn) == first + 1, "another step is another picture, once"
        assert max(naps) > 0.05, "after a picture, which takes long, it waits longer"

    asyncio.run(watched())


def test_ages_are_in_whole_units():
    ages = {0.2: "just now", 59.9: "just now", 60: "1 min ago", 7300: "2 h ago", 2e5: "2 d ago"}
    assert {seconds: monitor._ago(seconds, training=True) for seconds in ages} == ages
    ages |= dict.fromkeys((0.2, 59.9, 60), "this hour")
    assert {seconds: monitor._ago(seconds, training=False) for seconds in ages} == ages, "what is over changes once an hour"
