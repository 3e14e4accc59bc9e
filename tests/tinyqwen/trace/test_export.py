"""Exports: the same numbers in every format, and a page that needs nothing and runs nothing but its own script."""

import io
import json
import re
import shutil
import statistics
import subprocess
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
import pytest
from rich.console import Console

import backends
from backends.tracing import closed
from tests.checkpoints import write_tiny_checkpoint
from tests.helpers import CONFIGS
from tests.tinyqwen.trace.test_trace import start, traced
from tests.tinyqwen.trace.watching import MACHINE, captured, spell
from tinyqwen.cli.main import main
from tinyqwen.plan import shape_weights
from tinyqwen.sizes import SIZES
from tinyqwen.trace.attention_maps import AttentionMap, attention_maps
from tinyqwen.trace.export import chrome_events, write_jsonl, write_svg
from tinyqwen.trace.page import page
from tinyqwen.trace.pictures import heat_map, roofline
from tinyqwen.trace.record import record, rows
from tinyqwen.trace.routing import routing
from tinyqwen.trace.table import duration, print_trace, si

ATTACK = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)> &amp;"


@pytest.fixture(autouse=True)
def no_measuring(monkeypatch):
    """Two seconds saved in every test of the command; that a machine can be measured is tested elsewhere."""
    monkeypatch.setattr("tinyqwen.cli.trace.limits_of", lambda backend: MACHINE)


def make(config, steps, **settings):
    defaults = dict(title="a model", command="a command", prompt=None, config=config, machine=MACHINE, steps=steps)
    return page(**{**defaults, **settings})


class Reader(HTMLParser):
    """Every tag with its attributes, the text of each table row, and whether all tags close."""

    VOID = ("meta", "input", "br", "circle", "rect", "line", "polyline", "path")

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.rows, self.scripts, self.table = [], [], [], [], None
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "table":
            self.table = dict(attributes).get("id")
        if tag == "tr" and self.table == "operations":
            self.rows.append([])
        if tag == "td" and self.table == "operations":
            self.rows[-1].append([dict(attributes).get("data-v"), ""])

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "td" and self.table == "operations":
            self.rows[-1][-1][1] += data
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)


def harmless(text):
    """No way out of the page, and no script but the one that the policy names."""
    reader = Reader(text)
    assert not re.search(r"https?:|//[a-z]|url\(|@import", re.sub(r"(?s)<script>.*</script>", "", text))
    for tag, attributes in reader.tags:
        assert tag not in ("img", "link", "iframe", "object", "embed", "base", "form", "a")
        assert not {"src", "href", "xlink:href", "action", "srcdoc"} & attributes.keys()
        assert not [name for name in attributes if name.startswith("on")]
    assert len(reader.scripts) == 1 and "fetch" not in reader.scripts[0] and "import" not in reader.scripts[0]
    assert "alert" not in reader.scripts[0]
    return reader


# ---- HTML ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dense", "window", "moe"])
def test_the_pages_numbers_are_those_of_the_json_lines(name, tmp_path):
    config, steps = CONFIGS[name], traced(name)
    write_jsonl(steps, MACHINE, str(tmp_path / "lines"))
    lines = [json.loads(line) for line in (tmp_path / "lines").read_text().splitlines()]
    found = harmless(make(config, steps)).rows[1:]
    first_prefill = [line for line in lines if line["step"] == 0]
    decodes = [[line for line in lines if line["step"] == n] for n, step in enumerate(steps) if step.phase == "decode"]
    # a mixture of experts may open other experts in each step: then only the steps like the first are put together
    alike = [step for step in decodes if [one["path"] for one in step] == [one["path"] for one in decodes[0]]]
    chunks = [[line for line in lines if line["step"] == n] for n in range(3)]
    same = [step for step in chunks if [one["path"] for one in step] == [one["path"] for one in first_prefill]]
    expected = [("prefill", each) for each in zip(*same)] + [("decode", each) for each in zip(*alike)]
    assert len(found) == len(expected)
    for row, (phase, each) in zip(found, expected):
        values = [value for value, _ in row]
        texts = [text for _, text in row]
        assert texts[:3] == [phase, each[-1]["path"], each[-1]["operation"]]
        assert float(values[4]) == statistics.median(line["time_s"] for line in each)
        work = [each[-1].get(key, "") for key in ("flops", "read", "written")]
        assert [int(value) if value else "" for value in values[5:8]] == work
        assert (float(values[8]) if values[8] else "") == each[-1].get("floor_s", "")
        assert texts[9] == each[-1].get("bound", "")


@pytest.mark.parametrize("name", ["dense", "moe"])
def test_a_prompt_that_attacks_is_shown_and_does_nothing(name):
    config, steps = CONFIGS[name], traced(name)
    (running, *_), kept = captured(config)
    maps = [one for one in attention_maps(kept, 1) if one.sequence == 0]
    text = make(
        config, steps, title=ATTACK, command=ATTACK, prompt=ATTACK, maps=maps, layer=1, head=4, ids=running.ids,
        routes=list(routing(kept).values()), spell=lambda token: f"</text>{ATTACK}{spell(token)}",
    )  # fmt: skip
    harmless(text)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text and "\x1b" not in text
    assert ("Router" in text) == bool(config.num_experts)


def test_the_pages_totals_are_the_steps():
    steps = traced()
    decodes = [step for step in steps if step.phase == "decode"]
    row = next(line for line in make(CONFIGS["dense"], steps).split("<tr>") if line.startswith("<td class=n>decode<"))
    found = re.findall(r">([^<>]+)</td>", row)
    costs = [span.cost for span in closed(decodes[-1].spans)]
    assert found[:5] == ["decode", "4", "1", "15", duration(statistics.median(step.seconds for step in decodes))]
    assert found[6] == si(sum(cost.flops for cost in costs)) and found[8] == duration(sum(map(MACHINE.floor, costs)))


def test_the_page_can_be_read_without_its_script():
    """Everything is in the page itself; what only the script can do is hidden until it has run."""
    config, steps = CONFIGS["dense"], traced()
    text = re.sub(r"(?s)<script>.*</script>", "", make(config, steps))
    for word in ("Roofline", "layers.2", "gate_proj", "lm_head", "<details", "num_key_value_heads", "a command"):
        assert word in text
    assert text.count("<button") == 2 and text.count("<p class=script>") == 2 and ".script { display: none; }" in text


def test_a_page_of_the_smallest_model_is_small():
    """24 layers, prefill and decode, and seven heads of attention: less than 2 MB."""
    config = SIZES["0.5B"].config()
    backend = backends.get("meta")
    steps = record(backend, config, shape_weights(config), start(backend, config, prompt=40, decode=3))
    weights_HTS = np.tril(np.random.default_rng(0).dirichlet(np.ones(40), (14, 40))).astype(np.float32)
    maps = [AttentionMap(0, "prefill", 0, weights_HTS)]
    text = make(config, steps, times=False, maps=maps, ids=list(range(41)))
    assert len(harmless(text).rows) == 1 + 2 * len(steps[0].spans)
    assert 100_000 < len(text.encode()) < 1_500_000


def test_the_roof_is_above_every_point_of_a_plan():
    """On shapes alone every operation is as fast as the machine allows: all points lie on the roof."""
    config = SIZES["0.5B"].config()
    backend = backends.get("meta")
    steps = record(backend, config, shape_weights(config), start(backend, config, prompt=40, decode=3))
    tables = {"prefill": rows(steps[:1]), "decode": rows(steps[1:])}
    picture = roofline(tables, MACHINE, times=False)
    line = [tuple(map(float, point.split(","))) for point in re.search(r'points="([^"]+)"', picture)[1].split()]
    circles = re.findall(r"<circle class=prefill cx=(\S+) cy=(\S+) r=4", picture)
    squares = re.findall(r"<rect class=decode x=(\S+) y=(\S+) width=7", picture)
    assert len(circles) > 100 and len(squares) > 100
    points = [(float(x), float(y)) for x, y in circles] + [(float(x) + 3.5, float(y) + 3.5) for x, y in squares]
    for x, y in points:
        (x0, y0), (x1, y1) = next(pair for pair in pairwise(line) if pair[0][0] - 1 <= x <= pair[1][0] + 1)
        assert abs(y - (y0 + (x - x0) * (y1 - y0) / (x1 - x0))) < 1


def test_a_heat_map_draws_each_weight_once():
    weights_TS = np.array([[1, 0, 0], [0.5, 0.5, 0], [0.2, 0.005, 0.795]])
    picture = heat_map(weights_TS, 10, ["a", "b", "c"])
    ElementTree.fromstring(re.sub(r"=([^\"\s/>]+)", r'="\1"', picture))
    squares = re.findall(r"M(\d+) (\d+)h", picture)
    assert sorted((int(y) // 10, (int(x) - 110) // 10) for x, y in squares) == [(0, 0), (1, 0), (1, 1), (2, 0), (2, 2)]


# ---- timeline -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dense", "moe"])
def test_the_timeline_nests_and_has_the_spans_times(name):
    steps = traced(name)
    events = json.loads(json.dumps(chrome_events(steps, MACHINE)))["traceEvents"]
    spans = [span for step in steps for span in step.spans]
    complete = [event for event in events if event["ph"] == "X" and event["cat"] != "step"]
    assert len(complete) == len(spans)
    for event, span in zip(complete, spans):
        assert event["name"] == span.path and event["dur"] == span.seconds * 1e6
        assert event["args"].get("flops") == (span.cost.flops if span.cost else None)
    inside = []
    for event in [event for event in events if event["ph"] == "X"]:
        end = event["ts"] + event["dur"]
        while inside and event["ts"] >= inside[-1] - 1e-3:
            inside.pop()
        assert not inside or end <= inside[-1] + 1e-3, "an event ends within the one around it"
        if event["cat"] != "step":
            assert len(inside) == 1 + event["args"]["depth"]
        inside.append(end)
    names = {event["args"]["name"]: event["pid"] for event in events if event["name"] == "process_name"}
    assert set(names) == {"prefill", "decode"}
    assert {event["pid"] for event in events if event["cat" if "cat" in event else "ph"] == "step"} == set(
        names.values()
    )


# ---- picture ------------------------------------------------------------------------------------------------------


def test_a_view_as_svg_asks_for_nothing(tmp_path):
    console = Console(record=True, file=io.StringIO(), width=100)
    print_trace(console, traced(), MACHINE, opened=0, overhead=1e-6)
    write_svg(console, ATTACK, str(tmp_path / "view.svg"))
    text = (tmp_path / "view.svg").read_text(encoding="utf-8")
    elements = list(ElementTree.fromstring(text).iter())
    kinds = {element.tag.removeprefix("{http://www.w3.org/2000/svg}") for element in elements}
    assert kinds <= {"svg", "style", "defs", "clipPath", "g", "rect", "circle", "text"}
    assert not {"href", "src", "onload", "onerror"} & {name for element in elements for name in element.attrib}
    assert text.count("http") == 1 and "@font-face" not in text, "the only address is the name of the format"
    assert "gate_proj" in text


# ---- the command --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_checkpoint(
        folder, endless=True, model_type="qwen2_moe", num_experts=5, num_experts_per_tok=2, moe_intermediate_size=13,
        shared_expert_intermediate_size=17,
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def exported(folder, tmp_path_factory):
    """All exports of one run, whose prompt attacks."""
    target = tmp_path_factory.mktemp("exports")
    files = {name: target / f"trace.{name}" for name in ("jsonl", "chrome", "html", "svg")}
    flags = [word for name, file in files.items() for word in (f"--{name}", str(file))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tinyqwen.cli.trace.limits_of", lambda backend: MACHINE)
        flags += ["--head", "3", "--kv-dtype", "f32"]
        assert main(["trace", "-m", str(folder), "-q", "--raw", "--decode", "2", *flags, ATTACK]) == 0
    return files


def test_the_command_writes_all_exports(exported, capsys):
    text = exported["html"].read_text(encoding="utf-8")
    reader = harmless(text)
    lines = [json.loads(line) for line in exported["jsonl"].read_text().splitlines()]
    assert len(reader.rows) - 1 == len([line for line in lines if line["step"] < 2])
    assert (
        "python -m tinyqwen trace" in text
        and "--head 3 --kv-dtype f32 " in text
        and "<h3>head 3</h3>" in text
        and "Router" in text
    )
    assert len(json.loads(exported["chrome"].read_text())["traceEvents"]) == len(lines) + 3 + 4
    ElementTree.fromstring(exported["svg"].read_text(encoding="utf-8"))


def test_a_plan_makes_a_page_too(tmp_path, capsys):
    target = tmp_path / "plan.html"
    assert main(["trace", "--backend", "meta", "--size", "7B", "-q", "--html", str(target)]) == 0
    assert "Attention of" not in target.read_text() and harmless(target.read_text())


def test_the_embedded_model_is_traced_where_none_is_named(tmp_path, capsys):
    target = tmp_path / "embedded.html"
    assert main(["trace", "-q", "--decode", "1", "--html", str(target), "hello"]) == 0
    assert capsys.readouterr().out.startswith("TinyQwen, ") and "<title>TinyQwen, traced" in target.read_text()


def test_a_file_that_cannot_be_written_is_one_clear_line(folder, capsys, tmp_path):
    for place, words in ((tmp_path / "no" / "x.html", "no such folder"), (tmp_path, "is a directory")):
        assert main(["trace", "-m", str(folder), "-q", "--html", str(place), "hi"]) == 2
        assert words in capsys.readouterr().err.lower()


def browse(file, fragment=""):
    """The page after its script has run, as a real browser sees it, and what the browser complained about."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium on PATH: the page was not opened in a browser")
    done = subprocess.run(
        [
            chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
            "--enable-logging=stderr", "--virtual-time-budget=3000", "--dump-dom", f"{file.as_uri()}{fragment}",
        ],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def test_in_a_browser_the_page_sorts_folds_and_complains_about_nothing(exported):
    seen, complaints = browse(exported["html"], "#sort=time")
    assert complaints == []
    assert 'data-ready="yes"' in seen
    body = Reader(seen).rows[1:]
    column = [float(row[4][0] or -1) for row in body]
    assert column == sorted(column, reverse=True) and len(set(column)) > 20
    assert 'aria-sort="descending"' in seen
    opened, complaints = browse(exported["html"], "#open")
    assert complaints == [] and opened.count("<details") == opened.count("open=") > seen.count("open=")


def test_in_a_browser_the_policy_stops_what_escaping_would_miss(exported, tmp_path):
    """Were a script to slip in all the same, it would not run."""
    hole = tmp_path / "hole.html"
    text = exported["html"].read_text(encoding="utf-8")
    hole.write_text(text.replace("</body>", "<script>document.title = 'owned'</script></body>"), encoding="utf-8")
    seen, complaints = browse(hole)
    assert "<title>owned" not in seen and 'data-ready="yes"' in seen
    assert any("Content Security Policy" in line for line in complaints)
