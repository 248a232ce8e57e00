"""A bar chart of encoder records, as an SVG file for the README.

    python -m benchmarks.chart docs/records.jsonl docs/encoder.svg

Reads the last JSON lines that `benchmarks.encoder` printed, one a line. Drawn by hand, because a plotting library
would be the project's largest dependency.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

_WIDTH, _LEFT, _BAR, _GAP = 760, 210, 16, 14
_COLOURS = {"transformers": "#9aa0a6", "Patchwire": "#1a73e8", "Patchwire, float8": "#12a36d"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """Milliseconds of one way on one request."""

    request: str
    way: str
    milliseconds: float


def bars_of(records: Sequence[dict]) -> list[Bar]:
    """Bars in the order of the requests; transformers once a request, from the bfloat16 record."""
    bars = {}
    for record in records:
        way = "Patchwire, float8" if any("float8" in text for text in record["config"]["settings"]) else "Patchwire"
        for result in record["results"]:
            request = f"{result['model'].removeprefix('random:').upper()}, {result['grid']}"
            bars[request, way] = result["ours"]["median_seconds"] * 1e3
            bars.setdefault((request, "transformers"), result["transformers"]["median_seconds"] * 1e3)
    requests = dict.fromkeys(request for request, _ in bars)
    return [
        Bar(request=request, way=way, milliseconds=bars[request, way])
        for request in requests
        for way in _COLOURS
        if (request, way) in bars
    ]


def svg(bars: Sequence[Bar], title: str) -> str:
    """The chart: a group of bars a request, each with its milliseconds."""
    longest = max(bar.milliseconds for bar in bars)
    body, top, last = [_text(10, 22, title, weight="bold")], 36, ""
    for index, (way, colour) in enumerate(_COLOURS.items()):
        left = _LEFT + index * 150
        body += [_rect(left, top, 12, colour), _text(left + 18, top + 11, way)]
    top += 2 * _GAP
    for bar in bars:
        if bar.request != last:
            top, last = top + _GAP, bar.request
            body.append(_text(10, top + 13, bar.request))
        length = round(bar.milliseconds / longest * (_WIDTH - _LEFT - 80), 1)
        body += [_rect(_LEFT, top, length, _COLOURS[bar.way])]
        body += [_text(_LEFT + length + 6, top + 12, f"{bar.milliseconds:.1f} ms")]
        top += _BAR
    height = top + _GAP
    size = f'viewBox="0 0 {_WIDTH} {height}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">'
    return "\n".join([head, f'<rect width="{_WIDTH}" height="{height}" fill="white"/>', *body, "</svg>", ""])


def _text(left: float, top: float, text: str, weight: str = "normal") -> str:
    return f'<text x="{left}" y="{top}" font-weight="{weight}">{escape(text)}</text>'


def _rect(left: float, top: float, width: float, colour: str) -> str:
    return f'<rect x="{left}" y="{top}" width="{width}" height="{_BAR - 3}" fill="{colour}"/>'


def main() -> None:
    """Draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", type=Path)
    parser.add_argument("target", type=Path)
    arguments = parser.parse_args()
    records = [json.loads(line) for line in arguments.records.read_text().splitlines()]
    encoders = [record for record in records if record["benchmark"] == "encoder"]
    gpu = encoders[0]["hardware"].get("gpu", "CPU")
    title = f"One request, from bytes on the host to the vector on the host ({gpu})"
    arguments.target.write_text(svg(bars_of(encoders), title))


if __name__ == "__main__":
    main()
