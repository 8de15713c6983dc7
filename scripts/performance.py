"""The tables of docs/performance.md and of the README's section on speed, from benchmarks/results/*.json.

Contract: results as read from JSON in, Markdown out; a result that is not there has no table. Knows nothing of pages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def steps(found: Mapping[str, Any]) -> str:
    """Inference and training beside the plain model; where the branch was compiled too, with those figures."""
    sides = ("clipvid", "clipvid, compiled", "plain bf16", "plain fp32")
    digits = 2 if _on_gpu(found) else 0
    rows = []
    for name, row in found["rows"].items():
        times, peak = row["ms a clip"], row["peak MiB"]
        cells = (f"{times[side]:.{digits}f}" if side in times else "-" for side in sides)
        ratios = (row.get(key) for key in ("times as fast as", "compiled, times as fast as"))
        speed = (f"**{r['plain bf16']:.2f}** / **{r['plain fp32']:.1f}**" if r else "-" for r in ratios)
        memory = " / ".join(f"{peak[side]:.0f}" if side in peak else "-" for side in (sides[0], *sides[2:]))
        rows.append((name, *cells, *speed, memory))
    head = ("", *(side.replace("plain ", "plain, ") for side in sides))
    head = (*head, "times as fast (bf16 / fp32)", "compiled", "peak MiB (clipvid / bf16 / fp32)")
    what = f"{found['model']}, K={found['depth']}, batch {found['batch']}"
    note = f"Milliseconds a clip of {found['frames']} frames; {what}.{'' if _on_gpu(found) else _rates(found)}"
    return _table(head, rows) + _measured(found, note)


def _rates(found: Mapping[str, Any]) -> str:
    rates = [row["GFLOP/s of bare products"] for row in found["rows"].values()]
    spans = (f"{min(r[kind] for r in rates):.0f} to {max(r[kind] for r in rates):.0f} in {kind}" for kind in rates[0])
    return f" Beside these turns the machine multiplied bare matrices at {' and '.join(spans)} GFLOP/s."


def tower(found: Mapping[str, Any]) -> str:
    head = ("", "ms a clip", "GFLOP/s of its linears")
    rates = found["GFLOP/s of the linears"]
    rows = [(name, _digits(ms), f"{rates[name]:.0f}") for name, ms in found["ms a clip"].items()]
    share = found["share of the bare products' rate"]
    note = f"clipvid reaches {100 * share:.0f} % of the bare products' rate. Where its time goes: {_shares(found)}."
    return _table(head, rows) + _measured(found, note)


def branch(found: Mapping[str, Any]) -> str:
    head = ("", "ms a clip", "bare products", "share of their rate", "where the time goes")
    rows = []
    for name, row in found["rows"].items():
        times = row["ms a clip"]
        share = f"{100 * row[_SHARE]:.0f} %"
        rows.append((name, _digits(times["clipvid"]), _digits(times["bare products"]), share, _shares(row)))
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
            _digits(row["ms a clip"]["clipvid"]),
            _digits(row["ms a clip"]["transformers"]),
            f"{row['times as fast']:.2f}",
        )
        for name, row in found["rows"].items()
    ]
    return _table(head, rows) + _measured(found, "bf16 autocast on both sides.")


def scoring(found: Mapping[str, Any]) -> str:
    """Retrieval figures beside the field's full sort."""
    head = (
        "captions x videos",
        "clipvid, s",
        "full sort, s",
        "clipvid, MiB",
        "full sort, MiB",
        "times as fast",
        "memory",
    )
    rows = []
    for row in found["rows"]:
        ours, theirs, beside = row["clipvid"], row.get("plain"), "MiB above the embeddings"
        size = f"{row['size']:,} x {row['size']:,}"
        if theirs is None:
            rows.append((size, f"{ours['seconds']:.1f}", "-", f"{ours[beside]:.0f}", "-", "-", "-"))
            continue
        cells = (f"{ours['seconds']:.2f}", f"{theirs['seconds']:.2f}", f"{ours[beside]:.0f}", f"{theirs[beside]:.0f}")
        rows.append((size, *cells, f"**{row['times faster']:.1f}**", f"{100 * row['share of the memory']:.0f} %"))
    return _table(head, rows) + _measured(found, f"Width {found['width']}; MiB above the embeddings.")


def kinds(found: Mapping[str, Any]) -> str:
    """What kinds and modes of the cache cost and change."""
    head = ("kind, mode", "KiB a clip", "largest difference", "R@1 text to video", "R@1 video to text")
    rows = []
    for row in found["rows"]:
        size = f"{row['bytes a clip'] / 1024:.0f}" if "bytes a clip" in row else "-"
        away = f"{row['largest difference']:.1e}" if "largest difference" in row else "-"
        rows.append((f"{row['kind']}, {row['mode']}", size, away, f"{row['t2v R@1']:.1f}", f"{row['v2t R@1']:.1f}"))
    clips = f"{found['test clips']} MotionShapes clips, {found['frames']} frames, clipvid-mini, depth {found['depth']}"
    return _table(head, rows) + _measured(found, f"{clips}; embeddings of length 1.")


def epoch(found: Mapping[str, Any]) -> str:
    rows = [(name, _digits(seconds)) for name, seconds in found["seconds an epoch"].items()]
    ratio = found["cache, times the branch's own compute"]
    waiting, live = 100 * found["share of waiting"], found["live, times the cache"]
    note = (
        f"{found['model']}, {found['clips']} clips: from the cache {ratio:.2f} times the branch's own compute, "
        f"{waiting:.1f} % of it waiting for data; live {live:.1f} times the cache."
    )
    return _table(("", "seconds an epoch"), rows) + _measured(found, note)


def pipeline(found: Mapping[str, Any]) -> str:
    head = ("", "seconds", "core seconds", "clips a second")
    rows = [
        (name, *map(_digits, (part["seconds"], part["core seconds"], found["clips a second"][name])))
        for name, part in found["parts"].items()
    ]
    least = f", {found['times the least that the cores allow']:.2f} times the least that the cores allow"
    least = "" if _on_gpu(found) else least
    note = (
        f"{found['model']}, {found['clips']} clips of {found['frames']} frames: "
        f"{found['times the slower of decoding and tower']:.2f} times the slower of the two{least}."
    )
    return _table(head, rows) + _measured(found, note)


def chunks(found: Mapping[str, Any]) -> str:
    head = ("batch", "micro_batch_size", "layers recomputed", "peak MiB", "seconds a step")
    rows = [
        (str(row["batch"]), str(row["micro_batch_size"] or "-"), "yes" if row["activation_checkpointing"] else "no",
         f"{row['peak MiB']:.0f}",
         _digits(row["s a step"]))
        for row in found["rows"]
    ]  # fmt: skip
    note = (
        f"{found['model']}; embeddings of the large batch {found['embeddings MiB']:.1f} MiB, gradient of the weights "
        f"{found['gradient MiB']:.1f} MiB; gradients {found['gradients apart']:.0e} of the largest entry apart."
    )
    return _table(head, rows) + _measured(found, note)


def index(found: Mapping[str, Any]) -> str:
    """Kinds of search index beside each other."""
    alone, together = "ms a query alone", next(k for k in found["rows"][0]["flat"] if k.startswith("ms a query in"))
    recall = next(name for name in found["rows"][0]["flat"] if name.startswith("recall@"))
    head = ("vectors", "kind", "build, s", "MiB held", "ms a query, p50 / p99", together, recall)
    rows = []
    for row in found["rows"]:
        for kind in (name for name in row if name != "size"):
            told = row[kind]
            spent = f"{told[alone]['p50']:.2f} / {told[alone]['p99']:.2f}"
            cells = (f"{told['build seconds']:.0f}", f"{told['MiB held']:.0f}", spent, f"{told[together]['p50']:.2f}")
            rows.append((f"{row['size']:,} x {found['width']}", kind, *cells, f"{told[recall]:.3f}"))
    return _table(head, rows) + _measured(found, f"Vectors about {found['clusters']} centres; faiss {found['faiss']}.")


def decode(found: Mapping[str, Any]) -> str:
    """Decoders beside each other."""
    first = next(iter(found["decoders"].values()))
    clips, whole = (next(k for k in first if k.startswith(start)) for start in ("clips of", "frames a second"))
    head = ("", clips, whole, "files accepted")
    rows = [
        (f"{name} {row['version']}", f"{row[clips]:.1f}", f"{row[whole]:.0f}",
         f"{100 * row['share of files accepted']:.0f} %")
        for name, row in found["decoders"].items()
    ]  # fmt: skip
    absent = f" Not here: {', '.join(found['absent'])}." if found["absent"] else ""
    note = f"{found['files']} {found['videos']} videos; rates over the {found['compared']} that all accept.{absent}"
    return _table(head, rows) + _measured(found, note)


def windows(found: Mapping[str, Any]) -> str:
    """Sliding over a long video, beside its parts."""
    rows = [(name, _digits(seconds)) for name, seconds in found["seconds"].items()]
    share = 100 * found["share of what is allowed"]
    note = (
        f"{found['model']}, {found['windows']} windows one frame apart over {found['frames']} frames: in all "
        f"{share:.0f} % of what decoding, two passes of the tower and the branch take; at most "
        f"{found['peak MiB']:.0f} MiB."
    )
    return _table(("", "seconds"), rows) + _measured(found, note)


def _on_gpu(found: Mapping[str, Any]) -> bool:
    """Where products as small as a turn's are bound by their launching, and cores decode while the GPU computes."""
    return "--device cuda" in found["command"]


def _digits(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:.0f}" if value >= 99.95 else f"{value:#.3g}"


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
    "retrieval_eval": {"scoring": scoring},
    "cache_kinds": {"kinds": kinds},
    "epoch": {"epoch": epoch},
    "pipeline": {"pipeline": pipeline},
    "grad_cache": {"chunks": chunks},
    "index": {"index": index},
    "decode": {"decode": decode},
    "windows": {"windows": windows},
}
TABLES |= {
    f"{name}-cuda": {f"gpu_{marker}": table for marker, table in tables.items()} for name, tables in TABLES.items()
}
"""Result file -> marker of the page -> its table; those of a GPU have a place of their own."""
