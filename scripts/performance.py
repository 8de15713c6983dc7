"""Tables of docs/performance.md and of the README's section on speed, made from benchmarks/results/*.json.

Contract: a result as read from JSON in, a Markdown table and the sentence below it out. Knows nothing about pages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def steps(result: Mapping[str, Any]) -> str:
    """Return inference and training steps of clipvid and of the plain model, compiled ones too if they were run."""
    sides = ("clipvid", "clipvid_compiled", "plain_bf16", "plain_fp32")
    digits = 2 if _on_gpu(result) else 0
    rows = []
    for name, row in result["rows"].items():
        times, peak = row["ms_per_clip"], row["peak_mib"]
        cells = (f"{times[side]:.{digits}f}" if side in times else "-" for side in sides)
        ratios = (row.get(key) for key in ("speedup_over", "compiled_speedup_over"))
        speed = (f"**{r['plain_bf16']:.2f}** / **{r['plain_fp32']:.1f}**" if r else "-" for r in ratios)
        memory = " / ".join(f"{peak[side]:.0f}" if side in peak else "-" for side in (sides[0], *sides[2:]))
        rows.append((name, *cells, *speed, memory))
    head = ("", *map(_label, sides))
    head = (*head, "speed-up over plain (bf16 / fp32)", "speed-up, compiled", "peak MiB (clipvid / bf16 / fp32)")
    setup = f"{result['model']}, K={result['depth']}, batch {result['batch']}"
    rates = "" if _on_gpu(result) else _matmul_rates(result)
    note = f"Milliseconds per clip of {result['frames']} frames; {setup}.{rates}"
    return _table(head, rows) + _measured(result, note)


def _matmul_rates(result: Mapping[str, Any]) -> str:
    """Return a sentence with the range of the machine's matrix multiplication rates during the run."""
    rates = [row["bare_products_gflop_per_s"] for row in result["rows"].values()]
    spans = (f"{min(r[kind] for r in rates):.0f} to {max(r[kind] for r in rates):.0f} in {kind}" for kind in rates[0])
    return f" Between the measurements, matrix products alone ran at {' and '.join(spans)} GFLOP/s."


def tower(result: Mapping[str, Any]) -> str:
    head = ("", "ms per clip", "GFLOP/s of its linears")
    rates = result["linears_gflop_per_s"]
    rows = [(_label(name), _digits(ms), f"{rates[name]:.0f}") for name, ms in result["ms_per_clip"].items()]
    share = result["share_of_bare_products_rate"]
    note = f"clipvid reaches {100 * share:.0f} % of the rate of the bare products. Its time by operation: "
    return _table(head, rows) + _measured(result, f"{note}{_shares(result)}.")


def branch(result: Mapping[str, Any]) -> str:
    head = ("", "ms per clip", "bare products", "share of their rate", "time by operation")
    rows = []
    for name, row in result["rows"].items():
        times = row["ms_per_clip"]
        share = f"{100 * row['share_of_bare_products_rate']:.0f} %"
        rows.append((name, _digits(times["clipvid"]), _digits(times["bare_products"]), share, _shares(row)))
    return _table(head, rows) + _measured(result, f"{result['model']}, {result['frames']} frames.")


def attention(result: Mapping[str, Any]) -> str:
    head = (
        "sequences x tokens",
        "forward pass: fused",
        "forward pass: products",
        "forward and backward: fused",
        "forward and backward: products",
    )
    rows = []
    for row in result["attention"]:
        forward, both = row["forward_ms"], row["forward_backward_ms"]
        cells = (forward["fused"], forward["products"], both["fused"], both["products"])
        rows.append((f"{row['sequences']} x {row['tokens']}", *(f"{cell:.1f}" for cell in cells)))
    return _table(head, rows) + _measured(result, "Milliseconds, 12 heads of width 64.")


def peers(result: Mapping[str, Any]) -> str:
    head = ("", "clipvid, ms per clip", "transformers, ms per clip", "speed-up")
    rows = [
        (
            name,
            _digits(row["ms_per_clip"]["clipvid"]),
            _digits(row["ms_per_clip"]["transformers"]),
            f"{row['speedup']:.2f}",
        )
        for name, row in result["rows"].items()
    ]
    return _table(head, rows) + _measured(result, "bf16 autocast on both sides.")


def scoring(result: Mapping[str, Any]) -> str:
    """Return time and memory of the retrieval metrics, beside the usual full sort."""
    head = (
        "captions x videos",
        "clipvid, s",
        "full sort, s",
        "clipvid, MiB",
        "full sort, MiB",
        "speed-up",
        "memory, relative",
    )
    rows = []
    for row in result["rows"]:
        ours, theirs, memory = row["clipvid"], row.get("plain"), "beyond_embeddings_mib"
        size = f"{row['size']:,} x {row['size']:,}"
        if theirs is None:
            rows.append((size, f"{ours['seconds']:.1f}", "-", f"{ours[memory]:.0f}", "-", "-", "-"))
            continue
        cells = (f"{ours['seconds']:.2f}", f"{theirs['seconds']:.2f}", f"{ours[memory]:.0f}", f"{theirs[memory]:.0f}")
        rows.append((size, *cells, f"**{row['speedup']:.1f}**", f"{100 * row['memory_share']:.0f} %"))
    note = f"Embeddings of width {result['width']}; MiB in addition to the embeddings."
    return _table(head, rows) + _measured(result, note)


def kinds(result: Mapping[str, Any]) -> str:
    """Return size and effect of each kind and mode of the tap cache."""
    head = ("kind, mode", "KiB per clip", "largest difference", "R@1 text to video", "R@1 video to text")
    rows = []
    for row in result["rows"]:
        size = f"{row['bytes_per_clip'] / 1024:.0f}" if "bytes_per_clip" in row else "-"
        away = f"{row['largest_difference']:.1e}" if "largest_difference" in row else "-"
        rows.append((f"{row['kind']}, {row['mode']}", size, away, f"{row['t2v R@1']:.1f}", f"{row['v2t R@1']:.1f}"))
    clips = f"{result['test_clips']} MotionShapes clips, {result['frames']} frames, clipvid-mini, "
    note = f"{clips}depth {result['depth']}; the embeddings have length 1."
    return _table(head, rows) + _measured(result, note)


def epoch(result: Mapping[str, Any]) -> str:
    rows = [(_label(name), _digits(seconds)) for name, seconds in result["seconds_per_epoch"].items()]
    ratio = result["cache_vs_branch_compute"]
    waiting, live = 100 * result["waiting_share"], result["live_vs_cache"]
    note = (
        f"{result['model']}, {result['clips']} clips: training from the cache takes {ratio:.2f} times the branch's own "
        f"compute, and waits for data {waiting:.1f} % of the time; live training takes {live:.1f} times as long as "
        "from the cache."
    )
    return _table(("", "seconds per epoch"), rows) + _measured(result, note)


def pipeline(result: Mapping[str, Any]) -> str:
    head = ("", "seconds", "core seconds", "clips per second")
    rows = [
        (_label(name), *map(_digits, (part["seconds"], part["core_seconds"], result["clips_per_second"][name])))
        for name, part in result["parts"].items()
    ]
    least = f", and {result['time_vs_min_on_cores']:.2f} times the minimum that the cores allow"
    least = "" if _on_gpu(result) else least
    note = (
        f"{result['model']}, {result['clips']} clips of {result['frames']} frames: the pipeline takes "
        f"{result['time_vs_slower_part']:.2f} times the time of its slower part{least}."
    )
    return _table(head, rows) + _measured(result, note)


def micro_batches(result: Mapping[str, Any]) -> str:
    """Return peak memory and time of a contrastive step, with and without micro-batches."""
    head = ("batch_size", "micro_batch_size", "activation_checkpointing", "peak MiB", "seconds per step")
    rows = [
        (str(row["batch"]), str(row["micro_batch_size"] or "-"), "yes" if row["activation_checkpointing"] else "no",
         f"{row['peak_mib']:.0f}",
         _digits(row["seconds_per_step"]))
        for row in result["rows"]
    ]  # fmt: skip
    note = (
        f"{result['model']}; the embeddings of the large batch take {result['embeddings_mib']:.1f} MiB, the gradient "
        f"of the weights {result['gradient_mib']:.1f} MiB; the gradients with and without micro-batches differ by at "
        f"most {result['largest_gradient_difference']:.0e} of the largest entry."
    )
    return _table(head, rows) + _measured(result, note)


def index(result: Mapping[str, Any]) -> str:
    """Return build time, memory, latency and recall of each kind of search index."""
    batched = f"ms per query in batches of {result['batch']}"
    recall = next(name for name in result["rows"][0]["flat"] if name.startswith("recall@"))
    head = ("vectors", "kind", "build, s", "MiB", "ms per query, p50 / p99", batched, recall)
    rows = []
    for row in result["rows"]:
        for kind in (name for name in row if name != "size"):
            measured, single = row[kind], row[kind]["single_ms_per_query"]
            latency = f"{single['p50']:.2f} / {single['p99']:.2f}"
            cells = (f"{measured['build_seconds']:.0f}", f"{measured['memory_mib']:.0f}", latency)
            cells = (*cells, f"{measured['batched_ms_per_query']['p50']:.2f}", f"{measured[recall]:.3f}")
            rows.append((f"{row['size']:,} x {result['width']}", kind, *cells))
    note = f"Vectors clustered around {result['clusters']} centres; faiss {result['faiss']}."
    return _table(head, rows) + _measured(result, note)


def decode(result: Mapping[str, Any]) -> str:
    """Return the speed of each decoder and the share of files that it accepts."""
    clips = f"clips ({result['frames']} frames) per second"
    head = ("", clips, "frames per second, full videos", "files accepted")
    rows = [
        (f"{name} {row['version']}", f"{row['clips_per_second']:.1f}", f"{row['full_videos_frames_per_second']:.0f}",
         f"{100 * row['accepted_share']:.0f} %")
        for name, row in result["decoders"].items()
    ]  # fmt: skip
    absent = f" Not installed: {', '.join(result['absent'])}." if result["absent"] else ""
    files = f"{result['files']} {result['videos']} videos; the rates are over the {result['compared']}"
    return _table(head, rows) + _measured(result, f"{files} that every decoder accepts.{absent}")


def windows(result: Mapping[str, Any]) -> str:
    """Return the time of a sliding pass over a long video, and of its parts."""
    rows = [(_label(name), _digits(seconds)) for name, seconds in result["seconds"].items()]
    share = 100 * result["share_of_allowed_time"]
    note = (
        f"{result['model']}, {result['windows']} windows one frame apart over {result['frames']} frames: the total is "
        f"{share:.0f} % of the time of decoding, two passes of the tower and the branch together; peak memory "
        f"{result['peak_mib']:.0f} MiB."
    )
    return _table(("", "seconds"), rows) + _measured(result, note)


def _on_gpu(result: Mapping[str, Any]) -> bool:
    """Return True for a result from a GPU: small products are bound by kernel launches, and decoding runs elsewhere."""
    return "--device cuda" in result["command"]


LABELS = {
    "clipvid_compiled": "clipvid, compiled",
    "plain_bf16": "plain, bf16",
    "plain_fp32": "plain, fp32",
    "bare_products": "bare products",
    "from_cache": "from cache",
    "branch_compute": "branch's own compute",
    "decoding": "decoding alone",
    "tower": "tower alone",
    "branch": "branch alone",
    "tower_and_branch": "tower and branch alone",
}
"""Labels in the tables for keys of results that are not printed as they are."""


def _label(key: str) -> str:
    return LABELS.get(key, key)


def _digits(value: float) -> str:
    """Format a number with three significant digits, or with all digits before the point."""
    return f"{value:.0f}" if value >= 99.95 else f"{value:#.3g}"


def _shares(row: Mapping[str, Any]) -> str:
    """Return the operations that take the most time, with their shares, as text."""
    largest = list(row["time_share_by_operation"].items())[:6]
    return ", ".join(f"{name.rpartition('::')[2].strip('_')} {100 * share:.0f} %" for name, share in largest)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [" | ".join(head), "|".join("---" for _ in head), *(" | ".join(row) for row in rows)]
    return "\n".join(f"|{line}|" if i == 1 else f"| {line} |" for i, line in enumerate(lines))


def _measured(result: Mapping[str, Any], note: str) -> str:
    return f"\n\n{note} {result['machine']}; measured by `{result['command']}` at commit {result['commit']}."


TABLES = {
    "train_step": {"steps": steps},
    "tower": {"tower": tower},
    "branch": {"branch": branch, "attention": attention},
    "transformers_peers": {"peers": peers},
    "retrieval_eval": {"scoring": scoring},
    "cache_kinds": {"kinds": kinds},
    "epoch": {"epoch": epoch},
    "pipeline": {"pipeline": pipeline},
    "grad_cache": {"micro_batches": micro_batches},
    "index": {"index": index},
    "decode": {"decode": decode},
    "windows": {"windows": windows},
}
TABLES |= {
    f"{name}-cuda": {f"gpu_{marker}": table for marker, table in tables.items()} for name, tables in TABLES.items()
}
"""Functions that make the tables of each result file, by the marker in the page; GPU results have their own markers."""
