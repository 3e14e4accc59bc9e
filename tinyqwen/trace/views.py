"""Pictures of what a generation did: who looked at whom, which experts worked, when the answer was found.

Shades and letters carry the meaning, never colour alone, so that a pipe, a printout and every eye see the same.
A token's text is the model's or a stranger's: it is shown, never interpreted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from rich.cells import set_cell_size
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tinyqwen.errors import UsageError
from tinyqwen.tokenizer import harmless
from tinyqwen.trace.attention_maps import AttentionMap, joined
from tinyqwen.trace.lens import Lens
from tinyqwen.trace.routing import Routing

Spell = Callable[[int], str]  # a token's text

SHADES = " ░▒▓█"
FROM = (0.02, 0.1, 0.3, 0.6)  # the least weight of each shade but the first
EIGHTHS = " ▁▂▃▄▅▆▇█"
ROWS = 40  # queries drawn at most, the last ones
QUERIES = 256  # and looked at for entropy and shares; all of a long prompt's would take gigabytes


def label(text: str, width: int) -> Text:
    """A token's text in that many columns, with white space and control characters visible.

    >>> label(" sky\\n", 8).plain, label("\\x1b[31m[bold]", 10).plain, label("你好", 3).plain
    ('·sky␊   ', '␛[31m[bold', '你 ')
    """
    shown = harmless(text).replace("\n", "␊").replace("\t", "␉").replace(" ", "·")
    shown = "".join(character if character.isprintable() else "\ufffd" for character in shown)
    return Text(set_cell_size(shown, width))


def say(console: Console, text: str, style: str = "") -> None:
    """A line of our own: no markup, no guessed highlights, wrapped at the console's width."""
    console.print(Text(text), style=style, highlight=False)


def choose(what: str, wanted: int, available: Sequence[int]) -> int:
    """One of the available numbers, or a UsageError that names the nearest.

    >>> choose("head", 5, range(14))
    5
    >>> choose("layer", 4, [1, 3, 5])
    Traceback (most recent call last):
    tinyqwen.errors.UsageError: no layer 4 here; the nearest are 3, 5, and 3 are there, from 1 to 5
    """
    if wanted in available:
        return wanted
    near = ", ".join(str(number) for number in sorted(sorted(available, key=lambda one: abs(one - wanted))[:2]))
    raise UsageError(
        f"no {what} {wanted} here; the nearest are {near}, and {len(available)} are there, "
        f"from {min(available)} to {max(available)}"
    )


# ---- attention ----------------------------------------------------------------------------------------------------


def print_attention(
    console: Console,
    maps: Sequence[AttentionMap],
    ids: Sequence[int],
    spell: Spell,
    *,
    layer: int,
    head: int = 0,
    kv_heads: int,
    sequence: int = 0,
) -> None:
    """One sequence's attention in that layer: the heads that share a KV head together, then one head large.

    maps      of `attention_maps`
    ids       the sequence's, as far as its cache goes
    kv_heads  G

    Errors: UsageError for a head or sequence that is not there.
    """
    whole = joined(maps, sequence, last=QUERIES)
    H, T, S = whole.weights_HTS.shape
    choose("head", head, range(H))
    R = H // kv_heads
    group = head // R
    say(
        console,
        f"attention of layer {layer}: {'the last ' if whole.position else ''}{T} queries, {S} keys, {H} heads, "
        f"{R} to each of {kv_heads} KV heads",
        "bold",
    )
    say(console, f"rows: queries; columns: keys; weight {legend()}\n", "dim")
    entropy_HT, sink_HT = whole.entropy_HT, whole.sink_HT
    say(console, f"KV head {group}: heads {group * R} to {group * R + R - 1}, the last {min(T, 12)} queries each")
    print_small_maps(console, whole, range(group * R, group * R + R), entropy_HT, sink_HT)
    for other in range(kv_heads):
        heads = slice(other * R, other * R + R)
        entropy_R, sink_R = entropy_HT[heads].mean(1), sink_HT[heads].mean(1)
        say(
            console,
            f"KV head {other}: entropy {entropy_R.min():.2f} to {entropy_R.max():.2f} bits, "
            f"first key's share {100 * sink_R.min():.0f} to {100 * sink_R.max():.0f} %",
        )
    say(
        console,
        f"\nhead {head}: entropy {entropy_HT[head].mean():.2f} bits, first key {100 * sink_HT[head].mean():.0f} %",
    )
    print_map(console, whole.weights_HTS[head], ids, spell)
    say(console, f"\nhead {head}, the last query ({whole.phase}): its heaviest keys")
    print_bars(console, whole.weights_HTS[head, -1], ids, spell)


def legend() -> str:
    return "  ".join(f"{shade} from {least}" for shade, least in zip(SHADES[1:], FROM))


def shaded(weights_TS: np.ndarray) -> list[str]:
    """
    >>> shaded(np.array([[1, 0, 0], [0.25, 0.7, 0.05]]))
    ['█  ', '▒█░']
    """
    return ["".join(SHADES[level] for level in row) for row in np.digitize(weights_TS, FROM)]


def pooled(weights_TS: np.ndarray, columns: int) -> np.ndarray:
    """At most that many columns: the first key stays alone, neighbours among the others are added up.

    >>> pooled(np.array([[0.5, 0.1, 0.1, 0.2, 0.1]]), 3)
    array([[0.5, 0.2, 0.3]])
    """
    S = weights_TS.shape[1]
    if columns >= S:
        return weights_TS
    starts = [0, *(1 + np.arange(columns - 1) * (S - 1) // (columns - 1))]
    return np.add.reduceat(weights_TS, starts, axis=1)


def print_small_maps(console: Console, whole: AttentionMap, heads: Sequence[int], entropy_HT, sink_HT) -> None:
    width = max(16, min(24, whole.weights_HTS.shape[2]))
    across = max(1, (console.width + 2) // (width + 2))
    for first in range(0, len(heads), across):
        some = heads[first : first + across]
        titles = [f"h{h} {entropy_HT[h].mean():.1f} b {100 * sink_HT[h].mean():.0f} %" for h in some]
        blocks = [[line.ljust(width) for line in shaded(pooled(whole.weights_HTS[h, -12:], width))] for h in some]
        say(console, "  ".join(title.ljust(width) for title in titles).rstrip(), "dim")
        for lines in zip(*blocks):
            say(console, "  ".join(lines).rstrip())


def print_map(console: Console, weights_TS: np.ndarray, ids: Sequence[int], spell: Spell) -> None:
    """Rows with their position and text; columns one or two characters wide, neighbours pooled if they do not fit."""
    T, S = weights_TS.shape
    left = 5 + 13
    room = console.width - left
    drawn_TS = pooled(weights_TS[-ROWS:], room)
    wide = 2 if room >= 2 * S else 1
    if room < S:
        say(console, f"{S} keys in {room} columns: key 0 alone, then about {(S - 1) / (room - 1):.1f} keys each", "dim")
    else:
        ruler = "".join(str(key).ljust(5 * wide) for key in range(0, S, 5))
        say(console, " " * left + ruler[:room].rstrip(), "dim")
    if T > ROWS:
        say(console, f"the last {ROWS} of {T} queries", "dim")
    for row, line in enumerate(shaded(drawn_TS), S - len(drawn_TS)):
        cells = "".join(shade * wide for shade in line)
        console.print(Text(f"{row:>4} ") + label(spell(ids[row]), 12) + Text(f" {cells.rstrip()}"), highlight=False)


def print_bars(console: Console, weights_S: np.ndarray, ids: Sequence[int], spell: Spell, count: int = 8) -> None:
    heaviest = np.argsort(-weights_S, kind="stable")[:count]
    room = console.width - 26
    for key in sorted(heaviest):
        bar = "█" * round(room * float(weights_S[key]))
        text = Text(f"{key:>4} ") + label(spell(ids[key]), 12) + Text(f" {weights_S[key]:6.3f} {bar}".rstrip())
        console.print(text, highlight=False)
    if len(weights_S) > count:
        say(console, f"     {'all others':<12} {1 - weights_S[heaviest].sum():6.3f}", "dim")


# ---- experts ------------------------------------------------------------------------------------------------------


def print_route(console: Console, route: Routing, spell: Spell) -> None:
    """Each token with its experts; then how evenly the experts were used."""
    T, A = route.expert_TA.shape
    E = route.probability_TE.shape[1]
    say(console, f"router of layer {route.layer}: {A} of {E} experts for each of {T} tokens", "bold")
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1, 0, 0))
    several = len(set(route.sequence_T.tolist())) > 1
    table.add_column("at", justify="right", no_wrap=True)
    table.add_column("token", no_wrap=True)
    table.add_column("expert:weight, the heaviest first", ratio=1)
    table.add_column("sum", justify="right", no_wrap=True)
    table.add_column("margin", justify="right", no_wrap=True)
    table.add_column("shared", justify="right", no_wrap=True)
    margin_T, tied_T = route.margin_T, route.tied_T
    for t in np.lexsort((route.position_T, route.sequence_T))[-ROWS:].tolist():
        chosen = " ".join(f"{e}:{w:.2f}".replace("0.", ".") for e, w in zip(route.expert_TA[t], route.weight_TA[t]))
        margin = "tie" if tied_T[t] else "-" if np.isnan(margin_T[t]) else f"{margin_T[t]:.3f}"
        at = f"{route.sequence_T[t]}/{route.position_T[t]}" if several else str(route.position_T[t])
        table.add_row(
            at, label(spell(int(route.token_T[t])), 10), Text(chosen), f"{route.weight_TA[t].sum():.2f}", margin,
            f"{route.gate_T[t]:.2f}",
        )  # fmt: skip
    if T > ROWS:
        say(console, f"the last {ROWS} of {T} tokens", "dim")
    console.print(table, highlight=False)
    say(
        console,
        "margin: the last chosen expert's lead over the next; shared: the shared expert's gate",
        "dim",
    )
    print_load(console, route.load_E, T)


def print_load(console: Console, load_E: np.ndarray, tokens: int) -> None:
    """How many tokens each expert worked on: a column per expert, in order of number."""
    most = int(load_E.max())
    columns = "".join(EIGHTHS[-(-8 * int(load) // most)] for load in load_E)
    say(console, f"\nload of experts 0 to {len(load_E) - 1}, of {tokens} tokens (full height: {most})")
    for first in range(0, len(columns), console.width):
        say(console, columns[first : first + console.width])
    busiest = ", ".join(f"{e}: {load_E[e]}" for e in np.argsort(-load_E, kind="stable")[:5])
    say(
        console,
        f"busiest {busiest}; {int((load_E == 0).sum())} idle; the busiest has {most / load_E.mean():.1f} x the mean",
    )


# ---- logit lens ---------------------------------------------------------------------------------------------------


def print_lens(console: Console, found: Sequence[Lens], ids: Sequence[int], spell: Spell, sequence: int = 0) -> None:
    """One row per layer, one column per token that was chosen: what that layer would have said, and how surely.

    ids   the sequence's: the heading says what was chosen in the end
    """
    mine = [one for one in found if one.sequence == sequence]
    if not mine:
        raise UsageError(f"no sequence {sequence} was captured")
    across = (console.width - 6) // 19
    say(console, "logit lens: final norm and head on each layer's output; > a new opinion", "bold")
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("layer", justify="right", no_wrap=True)
    for one in mine[:across]:
        table.add_column(Text(f"  {one.phase} at {one.position}"), no_wrap=True)
    for layer in range(len(mine[0].token_L)):
        cells = []
        for one in mine[:across]:
            cell = Text("> " if one.flip_L[layer] else "  ") + label(spell(int(one.token_L[layer])), 10)
            cells.append(cell + Text(f" {one.probability_L[layer]:.2f}"))
        table.add_row(str(layer), *cells)
    chosen = [Text("  ") + label(spell(ids[one.position + 1]), 10) for one in mine[:across]]
    table.add_row(Text("said", style="bold"), *chosen)
    console.print(table, highlight=False)
    if len(mine) > across:
        say(console, f"{len(mine) - across} later tokens do not fit in {console.width} columns", "dim")
