"""Show how runs went: the curve of a figure of their logs, one below the other, or in one picture.

tinyqwen train curve OUT
tinyqwen train curve OUT ANOTHER --figure loss --svg curves.svg
"""

from __future__ import annotations

import argparse

from tinyqwen.errors import UsageError
from tinyqwen.files import check_target, write
from tinyqwen.train.curve import chart, read_curve, span_of, svg

SUMMARY = "show how a run went"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", metavar="OUT", nargs="+", help="a folder that train wrote into, or its log")
    parser.add_argument("--figure", default="loss", metavar="NAME", help="which figure of the log (default: loss)")
    parser.add_argument("--width", type=int, default=72, metavar="N", help="characters (default: 72)")
    parser.add_argument("--svg", metavar="FILE", help="write all as one picture (- for standard output)")


def run(arguments: argparse.Namespace) -> int:
    if arguments.width < 10:
        raise UsageError(f"--width must be at least 10, is {arguments.width}")
    if arguments.svg:
        check_target(arguments.svg)
    curves = [read_curve(path, arguments.figure) for path in arguments.runs]
    if arguments.svg:
        write(svg(curves, figure=arguments.figure, title=", ".join(curve.name for curve in curves)), arguments.svg)
    if arguments.svg != "-":
        last, span = max(int(curve.step_N[-1]) for curve in curves), span_of(curves, 2 * arguments.width)
        for curve in curves:
            print(f"{curve.name}: {arguments.figure} {curve.value_N[-1]:.4g} after step {curve.step_N[-1]:,}")
            print(chart(curve, width=arguments.width, last=last, span=span))
    return 0
