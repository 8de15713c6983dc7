"""Write the figures of benchmarks/results/*.json into README.md, between its markers. Run after a new measurement."""

from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def demo_table(results: dict, others: list[dict]) -> str:
    """The demo's table in Markdown, with its settings, and what other seeds gave."""
    table = results["table"]
    columns = list(next(iter(table.values())))
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, row in table.items():
        cells = [f"{c['value']:.1f} [{c['low']:.1f}, {c['high']:.1f}]" for c in (row[k] for k in columns)]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    plan = results["plan"]
    lines.append("")
    lines.append(
        f"Percent, with 95 % bootstrap intervals, on {plan['test_clips']} test clips; trained on {plan['train_clips']} "
        f"clips of 8 frames; {results['seconds']['in all']:.0f} s in all on {results['machine']}. Measured by "
        f"`bash scripts/demo.sh` (clipvid {results['clipvid']}, torch {results['torch']})."
    )
    if others:
        stan = [run["table"]["STAN, trained"] for run in others]
        seeds = ", ".join(str(run["plan"]["seed"]) for run in others)
        values = {column: [row[column]["value"] for row in stan] for column in columns}
        spans = "; ".join(f"{column} {min(found):.1f} to {max(found):.1f}" for column, found in values.items())
        lines += ["", f"STAN with other videos, weights and order (`clipvid demo --seed`, {seeds}): {spans}."]
    return "\n".join(lines)


def fill(text: str, name: str, content: str) -> str:
    """`text` with what stands between the markers of `name` replaced."""
    pattern = re.compile(rf"(<!-- {name}:begin -->\n).*?(<!-- {name}:end -->)", re.DOTALL)
    if not pattern.search(text):
        raise SystemExit(f"README.md has no markers {name}:begin and {name}:end")
    return pattern.sub(lambda m: m[1] + content + "\n" + m[2], text)


def main() -> None:
    readme = ROOT / "README.md"
    results = json.loads((RESULTS / "demo.json").read_text(encoding="utf-8"))
    others = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("demo-seed-*.json"))]
    for run in others:
        differing = [k for k, v in run["plan"].items() if k != "seed" and v != results["plan"][k]]
        if differing:
            raise SystemExit(
                f"seed {run['plan']['seed']} was run with another plan ({', '.join(differing)}); run it again"
            )
    table = demo_table(results, others)
    readme.write_text(fill(readme.read_text(encoding="utf-8"), "demo", table), encoding="utf-8")


if __name__ == "__main__":
    main()
