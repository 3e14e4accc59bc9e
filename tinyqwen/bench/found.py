"""What the stages of a long check have found: in a file all the time, for programs and, beside it, for people."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Found = dict[str, Any]


def kept(file: Path) -> Found:
    return json.loads(file.read_text()) if file.exists() else {}


def keep(file: Path, stage: str, found: Found) -> None:
    """What a stage has found, in the results file and as text beside it, never half written."""
    everything = {**kept(file), stage: found}
    texts = {".json": json.dumps(everything, indent=1), ".txt": "\n".join(words(everything))}
    file.parent.mkdir(parents=True, exist_ok=True)
    for suffix, text in texts.items():
        beside = file.with_suffix(f"{suffix}.new")
        beside.write_text(text + "\n")
        beside.replace(file.with_suffix(suffix))


def words(found: Any, indent: str = "") -> list[str]:
    """Nested results as lines for people.

    >>> words({"ceilings": {"read": 4.2e12}, "decode": {"rows": [{"model": "0.5B", "tokens_s": 2000.0}]}})
    ['ceilings', '  read: 4.2e+12', 'decode', '  model 0.5B, tokens_s 2000']
    """
    lines = []
    for name, value in found.items():
        if isinstance(value, dict):
            lines += [f"{indent}{name}", *words(value, indent + "  ")]
        elif isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
            lines += [indent + ", ".join(f"{key} {short(x)}" for key, x in row.items()) for row in value]
        else:
            lines.append(f"{indent}{name}: {short(value)}")
    return lines


def short(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}".replace(",", "") if 1000 <= abs(value) < 1e6 else f"{value:.4g}"
