"""`siglip2 watch` on the command line: terminal, page, JSON, stores."""

import io
import json
import re
import sys
import time
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import pytest
from watch.watched import alarm, end, lines, start, text, write

from siglip2_jax.cli import main
from siglip2_jax.train.metrics import EVENTS, METRICS


@pytest.fixture
def healthy(tmp_path):
    events = [
        start(),
        start(700, 1400.0),
        alarm(800, "<Low>."),
        alarm(900, ""),
        end(3000, "complete"),
    ]
    return write(tmp_path / "run", lines(300), events)


@pytest.fixture
def siglip2(capsys):
    def run(*args):
        code = main([str(arg) for arg in args])
        return code, *capsys.readouterr()

    return run


def test_once(siglip2, healthy):
    code, out, err = siglip2("watch", healthy)
    head, *rows = out.splitlines()
    assert (code, err) == (0, "")
    assert re.fullmatch(
        rf"HEALTHY  {healthy}: complete, step 3,000 of 3,000 \(100%\), stage naflex, loss 0\.\d+",
        head,
    )
    by_name = {row[:26].strip(): row[26:] for row in rows}
    loss = by_name["loss"]
    assert loss[0] == "█" and loss[20] == "▁" and "to 8.8" in loss and "log)" in loss
    assert by_name["val/text_to_image@10"].startswith("▁▃") and "█  0.5" in out
    assert by_name["stages"].startswith("|main ") and "|naflex" in by_name["stages"]
    assert by_name["restarts"].index("^") == 5  # 700 of 3,000 steps in 22 columns
    assert by_name["restarts"].endswith("  1") and by_name["alarms"].endswith("  1")


def test_without_utf_8(healthy, monkeypatch):
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", out)
    assert main(["watch", str(healthy)]) == 0
    assert re.search(r"^loss +#+\**", out.buffer.getvalue().decode("ascii"), re.MULTILINE)


def test_a_sick_run_has_exit_code_1(siglip2, tmp_path):
    workdir = write(tmp_path / "run", lines(50), [start(), end(500, "the disk is full")])
    code, out, _ = siglip2("watch", workdir, "--once")
    assert code == 1 and out.startswith("SICK") and "\n  failed: the disk is full\n" in out


class Page(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self):
        super().__init__()
        self.tags, self.links, self.words = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_data(self, data):
        self.words.append(data)


def test_page(siglip2, healthy, tmp_path):
    file = tmp_path / "new" / "run.html"
    assert siglip2("watch", healthy, "--html", file)[0] == 0
    source, page = file.read_text(), Page()
    page.feed(source)
    assert page.links == [] and "url(" not in source and "script" not in page.tags
    seen = " ".join(page.words)
    assert "HEALTHY" in seen and "<Low>." in seen and "killed, or its host lost" in seen
    for name in ("loss", "examples_per_s_per_chip", "eval/val/text_to_image@10", "stalled"):
        assert name in page.words
    charts = [ET.fromstring(x) for x in re.findall(r"<svg.*?</svg>", source)]
    assert len(charts) == 7
    for chart in charts:
        assert len(chart.findall("rect")) == 2  # stages
        assert len(chart.findall("line")) == 2  # a restart and an alarm
        x = float(chart.find("line").get("x1"))
        assert x == pytest.approx(440 * 700 / 3000, abs=0.1)
    places = [pair.split(",") for pair in charts[0].find("polyline").get("points").split()]
    heights = [float(y) for _, y in places]
    assert heights[0] < 20 and heights[-1] > 110 and float(places[-1][0]) == 440
    assert all(12 <= y <= 120 for y in heights)


def test_json(siglip2, healthy):
    with (healthy / METRICS).open("a") as file:
        file.write('{"step": 3001, "loss": NaN}\n{"step": 3')
    code, out, _ = siglip2("watch", healthy, "--json")
    found = json.loads(out, parse_constant=lambda name: pytest.fail(name))
    assert (code, found["verdict"], found["state"], found["step"]) == (1, "sick", "complete", 3001)
    assert [x["rule"] for x in found["findings"]] == ["not finite"]
    assert found["newest"]["loss"] is None and found["unreadable_lines"] == 0
    assert found["alarms"][0] == {
        "step": 800, "objective": "self_distill", "text": "<Low>.", "over": 900
    }  # fmt: skip
    curve = found["curves"]["loss"]
    assert len(curve) == 200 and curve[-1]["step"] == 3000
    assert max(x["high"] for x in curve) == max(row["loss"] for row in lines(300))


def test_it_follows_until_ctrl_c(healthy, tmp_path, capsys, monkeypatch):
    """Each look reads what is new and writes the page again."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    naps, page = [], tmp_path / "run.html"

    def sleep(seconds):
        naps.append(seconds)
        if len(naps) == 2:
            assert "HEALTHY" not in page.read_text()
            raise KeyboardInterrupt
        assert "HEALTHY" in page.read_text()
        with (healthy / EVENTS).open("a") as file:
            file.write(text([start(3000), end(3000, "the disk is full")]))

    monkeypatch.setattr(time, "sleep", sleep)
    command = ["watch", str(healthy), "--html", str(page), "--seconds", "7"]
    assert main(command) == 0 and naps == [7.0, 7.0]
    assert "the disk is full" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["0", "x", "nan", "1e9"])
def test_pauses_that_are_none(capsys, text):
    with pytest.raises(SystemExit):
        main(["watch", "x", "--seconds", text])
    assert "is not a number of seconds from 0.1 to 86400" in capsys.readouterr().err


def test_no_run_is_one_sentence(siglip2, tmp_path):
    code, out, err = siglip2("watch", tmp_path / "absent")
    assert (code, out) == (2, "") and err.count("\n") == 1
    assert "holds no run" in err


def test_in_a_store(siglip2, store, tmp_path):
    """Objects are uploaded whole, each time in place of the one before."""
    from siglip2_jax.watch.run import WatchedRun

    for name, rows in ((METRICS, lines(100)), (EVENTS, [start()])):
        store.put(f"w/run/{name}", text(rows).encode())
    run = WatchedRun("gs://bucket/w/run")
    assert run.step == 1000
    time.sleep(1.1)  # an object's time is in seconds
    store.put(f"w/run/{METRICS}", text(lines(120)).encode())
    run.refresh()
    assert run.step == 1200 and run.history.repeated == 0
    store.put(f"w/run/{EVENTS}", text([start(), end(1200, "SIGTERM")]).encode())
    page = "gs://bucket/w/run.html"
    code, out, _ = siglip2("watch", "gs://bucket/w/run", "--html", page)
    assert code == 0 and out.startswith("LOOK  gs://bucket/w/run: stopped, step 1,200")
    code, _, err = siglip2("watch", "gs://bucket/w/none")
    assert code == 2 and "gs://bucket/w/none holds no run" in err
