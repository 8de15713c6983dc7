"""Write the figures of benchmarks/results/*.json into README.md, between its markers. Run after a new measurement."""

from __future__ import annotations

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def demo_table(results: dict) -> str:
    """The demo's table in Markdown, with its settings."""
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
    readme.write_text(fill(readme.read_text(encoding="utf-8"), "demo", demo_table(results)), encoding="utf-8")


if __name__ == "__main__":
    main()
