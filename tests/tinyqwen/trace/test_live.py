"""The live frame: it fits, shows what is true, and changes no token."""

import io

import pytest
from rich.cells import cell_len
from rich.console import Console

from tests.checkpoints import write_tiny_checkpoint
from tinyqwen.runtime import load
from tinyqwen.trace.live import frame, shares, sparkline, watch
from tinyqwen.trace.record import Recorder


@pytest.fixture(scope="module")
def runtime(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_checkpoint(folder, endless=True)
    return load(folder)


def watched(runtime, width, terminal):
    running = runtime.start(runtime.tokenizer.encode("hello [/x] world"), max_new_tokens=30)
    recorder = Recorder(runtime.backend, runtime.checkpoint.weights, running)
    console = Console(file=io.StringIO(), width=width, force_terminal=terminal, no_color=True)
    events = runtime.generate([running], backend=recorder.backend, before_step=recorder.before_step)
    return watch(console, events, recorder, runtime.tokenizer), recorder, console.file.getvalue()


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("terminal", [True, False])
def test_the_frame_fits_and_the_text_is_the_plain_one(runtime, width, terminal):
    plain = runtime.start(runtime.tokenizer.encode("hello [/x] world"), max_new_tokens=30)
    for _ in runtime.generate([plain]):
        pass
    text, recorder, shown = watched(runtime, width, terminal)
    assert recorder.running.ids == plain.ids
    assert text == runtime.tokenizer.decode(plain.new_ids)
    assert "of 512 tokens" in shown and "feed-forward" in shown
    if not terminal:
        assert max(map(cell_len, shown.splitlines())) <= width
        assert "\x1b" not in shown


def test_parts_of_a_step_add_up_to_no_more_than_the_step(runtime):
    _, recorder, _ = watched(runtime, 80, False)
    for step in recorder.steps():
        parts = shares(step)
        assert all(seconds >= 0 for seconds in parts.values())
        assert 0 < sum(parts.values()) <= step.seconds * (1 + 1e-9)  # sums of clock readings round


def test_before_the_first_step_there_is_a_frame_too(runtime):
    running = runtime.start([1, 2, 3])
    console = Console(file=io.StringIO(), width=80)
    console.print(frame("", Recorder(runtime.backend, runtime.checkpoint.weights, running), 80))
    assert "0 of 512 tokens" in console.file.getvalue()
    assert sparkline([]) == ""
