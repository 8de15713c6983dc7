"""Write the tables of benchmarks/results/*.json into README.md and docs/performance.md, between their markers.

Run it after a new measurement.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from performance import TABLES

from clipvid.demo.tour import COLUMNS

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
STRUCTURES = RESULTS / "structures.json"


def demo_table(results: dict, others: list[dict]) -> str:
    """Return the demo's table in Markdown, with its settings and the results of other seeds."""
    table = results["table"]
    lines = ["| | " + " | ".join(COLUMNS.values()) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name, row in table.items():
        cells = [f"{c['value']:.1f} [{c['low']:.1f}, {c['high']:.1f}]" for c in (row[column] for column in COLUMNS)]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    config = results["config"]
    lines.append("")
    lines.append(
        f"Percent, with 95 % bootstrap intervals, on {config['test_clips']} test clips; trained on "
        f"{config['train_clips']} clips of 8 frames; {results['seconds']['total']:.0f} s in total on "
        f"{results['machine']}. Measured by `bash scripts/demo.sh` at commit {results['commit']} (clipvid "
        f"{results['clipvid']}, "
        f"torch {results['torch']})."
    )
    if others:
        stan = [run["table"]["STAN, trained"] for run in others]
        seeds = ", ".join(str(run["config"]["seed"]) for run in others)
        values = {heading: [row[column]["value"] for row in stan] for column, heading in COLUMNS.items()}
        spans = "; ".join(f"{heading} {min(scores):.1f} to {max(scores):.1f}" for heading, scores in values.items())
        lines += ["", f"STAN with other seeds of videos, weights and order (`clipvid demo --seed`, {seeds}): {spans}."]
    return "\n".join(lines)


FEW = "few-shot "


def structures_table(results: dict) -> str:
    """Return the comparison of structures in Markdown: mean and standard deviation over seeds, and cost per step."""
    columns = ("R@1", "R@5", "v2t R@1", "v2t R@5", "motion top-1")
    heads = ("R@1", "R@5", "R@1 v2t", "R@5 v2t", "motion top-1", "lr", "trained", "MACs", "ms per step", "peak MiB")
    lines = ["| | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for name, row in results["rows"].items():
        if name.startswith(FEW):
            continue
        cells = [_cell(row["metrics"].get(column)) for column in columns]
        cells.append("-" if row["lr"] is None else f"{row['lr']:g}")
        cost = row["cost"]
        seconds, peak = cost.get("seconds_per_step"), cost.get("peak_mib")
        cells += [f"{cost['parameters'] / 1e6:.2f} M", f"{cost['macs'] / 1e9:.2f} G"]
        cells += ["-" if seconds is None else f"{1000 * seconds:.0f}", "-" if peak is None else f"{peak:.0f}"]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    budget = results["budget"]
    rates = ", ".join(f"{rate:g}" for rate in budget["rates"])
    lines += [
        "",
        f"Percent, mean ± standard deviation over {len(budget['seeds'])} seeds of weights and order, on "
        f"{budget['test_clips']} test clips. Every row had the same {budget['train_clips']} training clips, "
        f"{budget['retrieval_epochs']} epochs of retrieval followed by {budget['recognition_epochs']} of motion "
        f"recognition, batch size {budget['batch_size']}, and the learning rate among {rates} that was best on "
        "validation clips. The column *trained* counts parameters; MACs are per clip of 8 frames, ms and peak MiB per "
        f"training step from cached taps. {results['machine']}, {results['core_seconds'] / 3600:.1f} core hours in "
        f"total; measured by `{results['command']}` at commit {results['commit']}.",
        "",
        _few_labels(results),
    ]
    return "\n".join(lines)


def _few_labels(results: dict) -> str:
    """Return a sentence on the gain from ConST-CL on unlabelled clips when there are few labels."""
    few = results["budget"]["few"]
    rows = {name.removeprefix(FEW): row for name, row in results["rows"].items() if name.startswith(FEW)}
    scores = {name: _cell(row["metrics"]["motion top-1"]) for name, row in rows.items()}
    start = rows["scratch"]["metrics"]["motion top-1"]["mean"]
    gains = {name: row["metrics"]["motion top-1"]["mean"] - start for name, row in rows.items()}
    return (
        f"With {few['shots']} labelled clips per motion (`{few['structure']}`, {few['epochs']} epochs), motion top-1 "
        f"is {scores['scratch']} without pre-training, {scores['constcl']} ({gains['constcl']:+.1f}) after ConST-CL as "
        f"released on {few['clips']} unlabelled clips ({few['pretrain_epochs']} epochs, the better of the learning "
        f"rates {', '.join(f'{rate:g}' for rate in few['pretrain_rates'])} by validation) and "
        f"{scores['constcl, unmirrored']} ({gains['constcl, unmirrored']:+.1f}) after ConST-CL with `flip=0`."
    )


def _cell(metric: dict | None) -> str:
    if metric is None:
        return "-"
    return f"{metric['mean']:.1f}" + ("" if metric["std"] is None else f" ± {metric['std']:.1f}")


def structures_plot(results: dict, path: Path) -> None:
    """Plot quality against the cost of a training step."""
    from clipvid.plots import TradeOffPoint, save, trade_off

    points = [
        TradeOffPoint(name, 1000 * row["cost"]["seconds_per_step"], metric["mean"], metric["std"] or 0.0, row["where"])
        for name, row in results["rows"].items()
        if (metric := row["metrics"].get("motion top-1")) and row.get("cost", {}).get("seconds_per_step")
    ]
    figure = trade_off(
        points,
        title="Temporal structures on CLIP: motion accuracy and cost of a training step",
        cost="milliseconds per training step of 32 clips, from cached taps",
        quality="motion top-1 (%)",
        mark=(50.0, "limit without the order of frames"),
    )
    save(figure, path)


def fill(text: str, name: str, content: str) -> str:
    """Return `text` with the part between the markers of `name` replaced by `content`."""
    pattern = re.compile(rf"(<!-- {name}:begin -->\n).*?(<!-- {name}:end -->)", re.DOTALL)
    if not pattern.search(text):
        raise SystemExit(f"the page has no markers {name}:begin and {name}:end; add both where the table should stand")
    return pattern.sub(lambda m: m[1] + content + "\n" + m[2], text)


def filled(text: str) -> str:
    """Return README.md with the tables of the stored results of the demo and of the comparison of structures."""
    results = json.loads((RESULTS / "demo.json").read_text(encoding="utf-8"))
    others = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("demo-seed-*.json"))]
    for run in others:
        differing = [k for k, v in run["config"].items() if k != "seed" and v != results["config"][k]]
        if differing:
            raise SystemExit(
                f"seed {run['config']['seed']} was run with other settings ({', '.join(differing)}); run it again"
            )
    text = fill(text, "demo", demo_table(results, others))
    if STRUCTURES.exists():
        text = fill(text, "structures", structures_table(json.loads(STRUCTURES.read_text(encoding="utf-8"))))
    return text


def with_performance(text: str) -> str:
    """Return a page with the tables of all stored results whose markers it has."""
    for result, tables in TABLES.items():
        path = RESULTS / f"{result}.json"
        for name, table in tables.items() if path.exists() else ():
            if f"<!-- {name}:begin -->" in text:
                text = fill(text, name, table(json.loads(path.read_text(encoding="utf-8"))))
    return text


def main() -> None:
    for page in (ROOT / "README.md", ROOT / "docs" / "performance.md"):
        text = with_performance(page.read_text(encoding="utf-8"))
        page.write_text(filled(text) if page.name == "README.md" else text, encoding="utf-8")
    if STRUCTURES.exists():
        structures_plot(json.loads(STRUCTURES.read_text(encoding="utf-8")), ROOT / "assets" / "structures.png")


if __name__ == "__main__":
    main()
