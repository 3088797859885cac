"""Writes the files: `python -m monitoring [--docs URL]`, from the root of the repository."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from monitoring.rules import GROUPS
from monitoring.rules.rule import DOCS, rules_file

ROOT = Path(__file__).parents[1]


def files(docs: str = DOCS) -> Iterator[tuple[str, str]]:
    """(path below the root, text) of every file."""
    from monitoring.alerts_page import alerts_page
    from monitoring.dashboards import BOARDS

    for board in BOARDS:
        yield f"grafana/dashboards/{board.file}", board.as_json()
    yield "prometheus/rules/gpumon.yml", rules_file(GROUPS, docs)
    yield "docs/alerts.md", alerts_page()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m monitoring", description=__doc__)
    parser.add_argument(
        "--docs", default=DOCS, metavar="URL", help="where docs/alerts.md is served; default: %(default)s"
    )
    for path, text in files(parser.parse_args().docs):
        (ROOT / path).parent.mkdir(parents=True, exist_ok=True)
        (ROOT / path).write_text(text, encoding="utf-8")
        sys.stdout.write(f"wrote {path}\n")


if __name__ == "__main__":
    main()
