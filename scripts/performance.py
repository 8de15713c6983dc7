"""The tables of docs/performance.md and of the README's section on speed, from benchmarks/results/*.json.

Contract: results as read from JSON in, Markdown out; a result that is not there has no table. Knows nothing of pages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def steps(found: Mapping[str, Any]) -> str:
    """Inference and training beside the plain model."""
    head = (
        "",
        "clipvid",
        "plain, bf16",
        "plain, fp32",
        "times as fast (bf16 / fp32)",
        "peak MiB (clipvid / bf16 / fp32)",
    )
    rows = []
    for name, row in found["rows"].items():
        times, ratio, peak = row["ms a clip"], row["times as fast as"], row["peak MiB"]
        sides = "clipvid", "plain bf16", "plain fp32"
        memory = " / ".join(f"{peak[side]:.0f}" for side in sides)
        speed = f"**{ratio['plain bf16']:.2f}** / **{ratio['plain fp32']:.1f}**"
        rows.append((name, *(f"{times[side]:.0f}" for side in sides), speed, memory))
    what = f"{found['model']}, K={found['depth']}, batch {found['batch']}"
    note = f"Milliseconds a clip of {found['frames']} frames; {what}."
    return _table(head, rows) + _measured(found, note)


def tower(found: Mapping[str, Any]) -> str:
    head = ("", "ms a clip", "GFLOP/s of its linears")
    rates = found["GFLOP/s of the linears"]
    rows = [(name, f"{ms:.0f}", f"{rates[name]:.0f}") for name, ms in found["ms a clip"].items()]
    share = found["share of the bare products' rate"]
    note = f"clipvid reaches {100 * share:.0f} % of the bare products' rate. Where its time goes: {_shares(found)}."
    return _table(head, rows) + _measured(found, note)


def branch(found: Mapping[str, Any]) -> str:
    head = ("", "ms a clip", "bare products", "share of their rate", "where the time goes")
    rows = []
    for name, row in found["rows"].items():
        times = row["ms a clip"]
        share = f"{100 * row[_SHARE]:.0f} %"
        rows.append((name, f"{times['clipvid']:.0f}", f"{times['bare products']:.0f}", share, _shares(row)))
    return _table(head, rows) + _measured(found, f"{found['model']}, {found['frames']} frames.")


def attention(found: Mapping[str, Any]) -> str:
    head = ("sequences x tokens", "pass: fused", "products", "with the way back: fused", "products")
    rows = []
    for row in found["attention, ms"]:
        forth, back = row["pass"], row["with the way back"]
        cells = (forth["fused"], forth["products"], back["fused"], back["products"])
        rows.append((f"{row['sequences']} x {row['tokens']}", *(f"{cell:.1f}" for cell in cells)))
    return _table(head, rows) + _measured(found, "Milliseconds, 12 heads of 64.")


def peers(found: Mapping[str, Any]) -> str:
    head = ("", "clipvid, ms a clip", "transformers", "times as fast")
    rows = [
        (
            name,
            f"{row['ms a clip']['clipvid']:.0f}",
            f"{row['ms a clip']['transformers']:.0f}",
            f"{row['times as fast']:.2f}",
        )
        for name, row in found["rows"].items()
    ]
    return _table(head, rows) + _measured(found, "bf16 autocast on both sides.")


_SHARE = "share of the bare products' rate"


def _shares(row: Mapping[str, Any]) -> str:
    """The operations that take most, in words."""
    largest = list(row["where the time goes"].items())[:6]
    return ", ".join(f"{name.rpartition('::')[2].strip('_')} {100 * share:.0f} %" for name, share in largest)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [" | ".join(head), "|".join("---" for _ in head), *(" | ".join(row) for row in rows)]
    return "\n".join(f"|{line}|" if i == 1 else f"| {line} |" for i, line in enumerate(lines))


def _measured(found: Mapping[str, Any], note: str) -> str:
    return f"\n\n{note} {found['machine']}; measured by `{found['command']}` at commit {found['commit']}."


TABLES = {
    "train_step": {"steps": steps},
    "tower": {"tower": tower},
    "branch": {"branch": branch, "attention": attention},
    "transformers_peers": {"peers": peers},
}
"""Result file -> marker of the page -> its table."""
