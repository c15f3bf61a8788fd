"""Writes what is made from other files of the chart: values.schema.json, README.md and dashboards.

python helm/generate.py            write them
python helm/generate.py --check    write nothing; 1 and their names when some are not current
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from chart_values import read_values, schema_of, table_of
from dashboard import dashboards

CHART = Path(__file__).parent


def outputs() -> dict[Path, str]:
    """Return every made file and its text."""
    values = read_values((CHART / "values.yaml").read_text(encoding="utf-8"))
    template = (CHART / "README.template.md").read_text(encoding="utf-8")
    made = {
        CHART / "values.schema.json": _json(schema_of(values)),
        CHART / "README.md": template.replace("<!-- values -->", table_of(values)),
    }
    for name, content in dashboards().items():
        made[CHART / "dashboards" / f"{name}.json"] = _json(content)
    return made


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    stale = [
        path
        for path, text in outputs().items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    ]
    if "--check" in arguments:
        for path in stale:
            sys.stderr.write(
                f"{path.relative_to(CHART.parent)} is not current: run helm/generate.py\n"
            )
        return 1 if stale else 0
    for path in stale:
        path.parent.mkdir(exist_ok=True)
        path.write_text(outputs()[path], encoding="utf-8")
    return 0


def _json(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
