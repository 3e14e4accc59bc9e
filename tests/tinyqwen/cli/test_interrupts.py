"""Ctrl-C at places where Python would forget it."""

import sys
import time


def test_an_interrupt_in_a_destructor_is_not_lost(tinyqwen, monkeypatch):
    """Python shows such a one and goes on; loading kernels throws so much away that two of 18 were lost."""

    class Thing:
        def __del__(self):
            raise KeyboardInterrupt

    def run(arguments):
        Thing()
        for _ in range(10**6):
            time.sleep(0)
        return 0

    hook = sys.unraisablehook
    monkeypatch.setattr("tinyqwen.cli.doctor.run", run)
    code, _, err = tinyqwen("doctor")
    assert (code, err.strip()) == (130, "interrupted") and sys.unraisablehook is hook
