"""Cost of searching a large index: comparing every vector (flat), or only promising ones (IVF, HNSW).

    python benchmarks/index.py                                  # 1,000,000 x 512; writes benchmarks/results/index.json
    python benchmarks/index.py --sizes 50000 --out small.json

The vectors are clustered around `--clusters` centres in 32 of the 512 dimensions, with a little noise in all; so are
the queries, which are not among the vectors. Measured for each kind, in a separate process: seconds to build, memory in
addition to the input vectors, latency per query alone and in batches of 64, and the share of the ten nearest vectors
that it finds, with flat as reference.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import faiss
import numpy as np
from cells import COMMIT, machine, peak_memory, write_json
from numpy import ndarray

from clipvid.search.stores.faiss import KINDS, Vectors

RESULTS = Path(__file__).parent / "results" / "index.json"
WIDTH, INNER, NEAREST, BATCH, CHUNK = 512, 32, 10, 64, 10_000
SPREAD, NOISE = 0.5, 0.1


def clustered(total: int, clusters: int, *, seed: int) -> ndarray:
    """Return unit vectors (total, WIDTH) around centres that are the same for every seed."""
    fixed, rng = np.random.default_rng(0), np.random.default_rng((1, seed))
    centres = fixed.standard_normal((clusters, INNER), np.float32)
    outwards = fixed.standard_normal((INNER, WIDTH), np.float32) / np.sqrt(INNER)
    rows = np.empty((total, WIDTH), np.float32)
    for start in range(0, total, CHUNK):
        part = rows[start : start + CHUNK]
        inner = centres[rng.integers(clusters, size=len(part))]
        inner += SPREAD * rng.standard_normal(inner.shape, np.float32)
        part[:] = inner @ outwards + NOISE * rng.standard_normal(part.shape, np.float32)
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    return rows


def latency(vectors: Vectors, queries: ndarray, *, batch: int) -> dict[str, float]:
    """Return milliseconds per query when `batch` queries are searched at a time."""
    milliseconds = []
    for start in range(0, len(queries) - batch + 1, batch):
        start_time = time.perf_counter()
        vectors.search(queries[start : start + batch], NEAREST)
        milliseconds.append(1e3 * (time.perf_counter() - start_time) / batch)
    middle, slow = np.percentile(milliseconds, [50, 99])
    return {"p50": float(middle), "p99": float(slow), "searches": len(milliseconds)}


def measure(kind: str, size: int, *, clusters: int, queries: int, exact: Path) -> dict[str, Any]:
    """Measure one kind; flat writes its results to `exact`, and the other kinds are compared with them."""
    rows, vectors_of_queries = clustered(size, clusters, seed=0), clustered(queries, clusters, seed=1)
    before = resident()
    with peak_memory("cpu") as peak:
        start_time = time.perf_counter()
        vectors = Vectors(WIDTH, kind=kind)
        for start in range(0, size, CHUNK):
            vectors.add(rows[start : start + CHUNK])
        vectors.settle()
        built = time.perf_counter() - start_time
    held = resident() - before
    nearest = vectors.search(vectors_of_queries, NEAREST)[1]
    if kind == "flat":
        np.save(exact, nearest)
    shared = [len(set(ours) & set(reference)) for ours, reference in zip(nearest, np.load(exact), strict=True)]
    return {
        "build_seconds": built,
        "memory_mib": held,
        "build_peak_mib": peak[0],
        "single_ms_per_query": latency(vectors, vectors_of_queries[:200], batch=1),
        "batched_ms_per_query": latency(vectors, vectors_of_queries, batch=BATCH),
        f"recall@{NEAREST}": float(np.mean(shared)) / NEAREST,
    }


def resident() -> float:
    """Return the resident memory of this process in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1024


def compare(size: int, options: Sequence[str]) -> dict[str, Any]:
    """Measure all kinds, each in a separate process; flat comes first, as the reference."""
    row: dict[str, Any] = {"size": size}
    with TemporaryDirectory() as folder:
        for kind in KINDS:
            command = [sys.executable, __file__, "--one", kind, "--sizes", str(size), *options]
            command += ["--exact", str(Path(folder) / "exact.npy")]
            row[kind] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
            print(size, kind, row[kind], flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000_000])
    parser.add_argument("--clusters", type=int, default=1000)
    parser.add_argument("--queries", type=int, default=640)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--one", choices=KINDS, help=argparse.SUPPRESS)
    parser.add_argument("--exact", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.queries < BATCH:
        parser.error(f"--queries must be {BATCH} or more, got {args.queries}")
    if args.one:
        size, options = args.sizes[0], {"clusters": args.clusters, "queries": args.queries, "exact": args.exact}
        print(json.dumps(measure(args.one, size, **options)))
        return
    rows = [compare(size, ["--clusters", str(args.clusters), "--queries", str(args.queries)]) for size in args.sizes]
    setup = {
        "width": WIDTH,
        "clusters": args.clusters,
        "queries": args.queries,
        "batch": BATCH,
        "faiss": faiss.__version__,
    }
    write_json(
        args.out, {"command": "python benchmarks/index.py", **setup, "commit": COMMIT, **machine(), "rows": rows}
    )


if __name__ == "__main__":
    main()
