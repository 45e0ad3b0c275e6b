"""The demo's one progress bar: what it forecasts, and output that stays whole above it."""

import io
import sys

import pytest

from caskd.cli.demo import bar as bar_module
from caskd.cli.demo.bar import DemoBar, Forecast
from caskd.store.io import progress, tell

EXPECTED = {"prepare": 10.0, "train": 60.0, "eval": 30.0}


def test_the_forecast_follows_the_speed_of_this_machine() -> None:
    forecast = Forecast(EXPECTED)
    assert (forecast.fraction, forecast.seconds_left) == (0.0, 100.0)
    forecast.begin("train")
    forecast.report(0.0, 1000.0)
    forecast.report(0.5, 1090.0)  # three times as long as expected
    assert forecast.fraction == pytest.approx(0.4)
    # Ten seconds count as measured before the first report.
    assert forecast.seconds_left == pytest.approx(60 * (90 + 10) / (30 + 10))
    forecast.begin("eval")
    assert forecast.fraction == pytest.approx(0.7)


def test_work_of_an_earlier_demo_measures_no_speed() -> None:
    forecast = Forecast(EXPECTED)
    forecast.begin("train")
    forecast.report(0.9, 5.0)
    assert forecast.fraction == pytest.approx((10 + 54) / 100)
    assert forecast.seconds_left == pytest.approx(36.0)
    forecast.begin("eval")  # the next stage's clock begins anew
    forecast.report(0.0, 500.0)
    assert forecast.seconds_left == pytest.approx(30.0)


class _Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def test_one_bar_for_all_tasks_and_whole_lines_above_it(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = _Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(bar_module, "_SECONDS_BETWEEN_DRAWS", 0.0)
    with DemoBar(EXPECTED) as bar:
        bar.begin("train")
        with progress("train", 4, "steps") as shown:
            shown.advance(3, "loss 1.5")
        with progress("tokenise", 4, "records") as shown:
            shown.advance(4)  # no task that measures its stage
        sys.stdout.write("half a ")
        bar.report("train", 0.75)  # draws nothing into the line
        tell("line")
    *lines, end = screen.getvalue().split("\n")
    assert "55%" in lines[0]
    assert "loss 1.5" in lines[0]
    assert lines[0].endswith("\r\x1b[2Khalf a line")
    assert end.endswith("\r\x1b[2K")
    assert sys.stdout is screen


def test_without_a_terminal_it_is_a_line_a_minute(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with DemoBar(EXPECTED) as bar:
        bar.begin("train")
        bar.report("train", 0.25)
        monkeypatch.setattr(bar_module, "SECONDS_BETWEEN_LINES", 0.0)
        bar.report("train", 0.5, "loss 1.5")
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = said.err.splitlines()
    assert line.startswith("demo: 40%, ")
    assert line.endswith("left: train  loss 1.5")
