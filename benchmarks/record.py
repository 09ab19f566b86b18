"""Results carry the command, the commit, the machine and the date."""

from __future__ import annotations

import datetime
import json
import sys
from pathlib import Path
from typing import Any

from pipelines.tracking import machine, source_tags

RESULTS = Path(__file__).parent / "results"
SOURCE = source_tags()  # when the measuring starts, not when it ends


def write(name: str, figures: dict[str, Any]) -> Path:
    """``figures`` as benchmarks/results/NAME.json, with where they come from."""
    # Where something lies on one machine tells nobody anything.
    arguments = [f".../{Path(word).name}" if Path(word).is_absolute() else word for word in sys.argv[1:]]
    command = " ".join([f"python benchmarks/{Path(sys.argv[0]).name}", *arguments])
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    record = {"command": command, "date": date, "source": SOURCE, "machine": machine(), **figures}
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path
