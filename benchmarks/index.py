"""What searching very many videos costs: every vector compared (flat), or the promising ones alone (IVF, HNSW).

    python benchmarks/index.py                                  # 1,000,000 x 512; writes benchmarks/results/index.json
    python benchmarks/index.py --sizes 50000 --out small.json

The vectors lie about `--clusters` centres in 32 dimensions of the 512, with a little noise in all, and so do the
queries, which are none of them. For each kind, in a process of its own: seconds to build, memory beside the vectors
that came in, latency a query alone and in batches of 64, and the share of the ten nearest that flat finds.
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
    """Unit vectors (total, WIDTH) about centres that are the same for every seed."""
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
    """Milliseconds a query, of searches for so many queries at a time."""
    spent = []
    for start in range(0, len(queries) - batch + 1, batch):
        began = time.perf_counter()
        vectors.search(queries[start : start + batch], NEAREST)
        spent.append(1e3 * (time.perf_counter() - began) / batch)
    middle, slow = np.percentile(spent, [50, 99])
    return {"p50": float(middle), "p99": float(slow), "searches": len(spent)}


def measure(kind: str, size: int, *, clusters: int, queries: int, exact: Path) -> dict[str, Any]:
    """One kind; flat writes what it finds to `exact`, and the others are compared with that."""
    rows, asked = clustered(size, clusters, seed=0), clustered(queries, clusters, seed=1)
    before = resident()
    with peak_memory("cpu") as peak:
        began = time.perf_counter()
        vectors = Vectors(WIDTH, kind=kind)
        for start in range(0, size, CHUNK):
            vectors.add(rows[start : start + CHUNK])
        vectors.settle()
        built = time.perf_counter() - began
    held = resident() - before
    found = vectors.search(asked, NEAREST)[1]
    if kind == "flat":
        np.save(exact, found)
    shared = [len(set(some) & set(other)) for some, other in zip(found, np.load(exact), strict=True)]
    return {
        "build seconds": built,
        "MiB held": held,
        "MiB at most while built": peak[0],
        "ms per query alone": latency(vectors, asked[:200], batch=1),
        f"ms per query in batches of {BATCH}": latency(vectors, asked, batch=BATCH),
        f"recall@{NEAREST}": float(np.mean(shared)) / NEAREST,
    }


def resident() -> float:
    """MiB of this process in memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1024


def compare(size: int, options: Sequence[str]) -> dict[str, Any]:
    """All kinds, each in a process of its own; flat first, which says what is right."""
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
        size, told = args.sizes[0], {"clusters": args.clusters, "queries": args.queries, "exact": args.exact}
        print(json.dumps(measure(args.one, size, **told)))
        return
    rows = [compare(size, ["--clusters", str(args.clusters), "--queries", str(args.queries)]) for size in args.sizes]
    facts = {"width": WIDTH, "clusters": args.clusters, "queries": args.queries, "faiss": faiss.__version__}
    write_json(
        args.out, {"command": "python benchmarks/index.py", **facts, "commit": COMMIT, **machine(), "rows": rows}
    )


if __name__ == "__main__":
    main()
