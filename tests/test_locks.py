"""Who waits for another's lock is told for whom, once."""

import json
import math
import os
import time

import pytest

from vjepa_lab.evidence import results
from vjepa_lab.training import locks


def elsewhere(path, silent_s: float) -> None:
    """A lock of a machine of which nothing is heard."""
    path.write_text(json.dumps(vars(locks.Owner.me()) | {"host": "node7", "pid": 1, "since": "2026-01-02 03:04:05"}))
    os.utime(path, (time.time() - silent_s,) * 2)


def test_who_waits_for_rows_is_told_for_whom_and_until_when(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(locks, "TELL_S", 0.2)
    elsewhere(tmp_path / "rows.csv.lock", results.VOID_AFTER_S - 1.5)
    ends = time.time() + 1.5
    results.append_rows(tmp_path, [{"variant": "ld", "benchmark": "b", "value": 1.0}])
    said = capsys.readouterr().err
    assert time.time() > ends - 0.1 and (tmp_path / "rows.csv").is_file(), "it was taken over when it was void, not before"
    assert said.count("waiting") == 1
    assert f"vjepa-lab: waiting to write {tmp_path / 'rows.csv'} until process 1 on node7 (since 2026-01-02 03:04:05) is done" in said
    clocks = [time.strftime("%H:%M:%S", time.localtime(ends + late)) for late in (-1, 0, 1)]
    assert any(said.endswith(f"s ago), or, if it gives no further sign of life, until {clock}\n") for clock in clocks), said


def test_who_waits_for_a_while_only_is_told_the_end(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(locks, "TELL_S", 0.2)
    elsewhere(tmp_path / "lock", 0)
    with pytest.raises(locks.Locked), locks.hold(tmp_path, patience_s=0.5):
        pass
    said = capsys.readouterr().err
    assert f"waiting to write {tmp_path} until process 1 on node7" in said and "at the latest until" in said and "no further" not in said


@pytest.mark.parametrize(("name", "wanted"), [("collect.lock", ""), ("lock", ""), ("rows.csv.lock", "rows.csv")])
def test_what_is_waited_for_is_a_file_that_is_written_or_its_folder(tmp_path, name, wanted):
    elsewhere(tmp_path / name, 0)
    assert f"waiting to write {tmp_path / wanted} until process 1" in locks._waiting(tmp_path / name, math.inf, None)


def test_who_need_not_wait_long_is_told_nothing(tmp_path, capsys):
    with locks.hold(tmp_path, patience_s=math.inf):
        pass
    elsewhere(tmp_path / "lock", 0)
    with pytest.raises(locks.Locked), locks.hold(tmp_path, patience_s=0.3):
        pass
    assert capsys.readouterr().err == ""
