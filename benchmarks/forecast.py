"""What knowing the notebook is worth: figures of the forecasts on public traces.

Next cell and GPU soon are cross-validated by owner, with 95 % intervals from a bootstrap over whole
sessions; demand by owner and by time, with intervals from a bootstrap over whole series. The traces
are not part of the project; without them nothing is measured. Each case is a module of
`forecast_cases` that returns rows.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from forecast_cases.demand import demand_rows
from forecast_cases.gpu_soon import fit_content, gpu_soon_rows
from forecast_cases.intervals import interval_rows
from forecast_cases.next_cell import next_cell_rows
from forecast_cases.notebooks import DOCUMENTS, FILE, read_sessions
from forecast_cases.use_series import use_series
from rich.console import Console
from rich.table import Table

DATA = Path(os.environ.get("GPU_PREDICT_TRACES", "../shared/data/dev"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--quick", action="store_true", help="end within 45 s on 2 cores")
    parser.add_argument("--data", type=Path, default=DATA, help=f"folder of traces ({DATA})")
    parser.add_argument("--fit", type=Path, help="fit the notebook model on all, and write it here")
    options = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 150)
    if not (options.data / FILE).is_file():
        console.print(f"[bold red]SKIPPED[/]: no {FILE} in {options.data}; give --data FOLDER")
        return
    rounds = 300 if options.quick else 2000
    rows = []
    for document in DOCUMENTS[:1] if options.quick else DOCUMENTS:
        sessions, left_out = read_sessions(options.data, document)
        case = f"code cells of the {document}"
        rows += next_cell_rows(sessions, f"next cell, {case}", rounds)
        rows += gpu_soon_rows(sessions, f"GPU within 30 s, {case}", rounds)
        if options.fit and document == DOCUMENTS[0]:
            fitted = fit_content(sessions).to_record()
            owners = len({s.owner for s in sessions})
            about = f"cell times of public notebooks: {len(sessions)} sessions of {owners} owners"
            record = {"fitted_on": about, **fitted}
            options.fit.write_text(json.dumps(record, indent=1) + "\n")
    splits = ("users",) if options.quick else ("users", "time")
    rows += demand_rows(use_series(options.data), splits, quick=options.quick)
    rows += interval_rows(options.data)
    console.print("Left out:", ", ".join(f"{n} {what}" for what, n in left_out.items() if n))
    table = Table(title="Forecasts on public traces")
    for name in ("case", "method", "metric"):
        table.add_column(name)
    table.add_column("value", justify="right")
    table.add_column("unit")
    for r in rows:
        table.add_row(r["case"], r["method"], r["metric"], f"{r['value']:.4g}", r["unit"])
    console.print(table)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
