"""The playground's commands refuse wrong arguments in a sentence, before they work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from training.playground import compare_methods, shards, units


@pytest.mark.parametrize(
    ("command", "words", "message"),
    [
        (units.main, ["--scenes", "0"], "--scenes: '0' is not a whole number of at least 1"),
        (units.main, ["--points", "-1"], "--points: '-1' is not a whole number of at least 1"),
        (compare_methods.main, ["--steps", "1"], "--steps: '1' is not a whole number of at least 2"),
        (compare_methods.main, ["--set", "[1]"], "--set: '[1]' is not a JSON object"),
        (compare_methods.main, ["--set", "regions=1"], "--set: 'regions=1' is not a JSON object"),
    ],
)
def test_wrong_arguments(
    command: Callable[[list[str]], Any], words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        command(words)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err.replace("\n", " ")


@pytest.mark.parametrize("option", ["--count", "--per-shard"])
def test_shards_of_nothing(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["shards", str(tmp_path / "shards"), option, "0"])
    with pytest.raises(SystemExit):
        shards.main()
    assert f"{option}: '0' is not a whole number of at least 1" in capsys.readouterr().err
    assert not (tmp_path / "shards").exists()


def test_settings_are_checked_before_anything_is_drawn_or_scored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("work began")

    monkeypatch.setattr(compare_methods, "draw", refuse)
    monkeypatch.setattr(units, "scores", refuse)
    words = ["--work", str(tmp_path), "--runs", "mgca-style-pixel", "--set", '{"regions": 0}']
    assert compare_methods.main(words) == 2
    assert "regions" in capsys.readouterr().err
    assert units.main(["--models", "playground", "--thresholds", "2"]) == 2
    assert "option unit_threshold is 2.0" in capsys.readouterr().err
