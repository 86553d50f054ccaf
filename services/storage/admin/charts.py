"""Charts as SVG: numbers in, markup out. No text of a user gets here, and no style or script leaves here."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

from markupsafe import Markup

from ..analytics import Usage

KINDS: Final = ("completed", "failed", "cancelled")
HEIGHT: Final = 100
STEP: Final = 12  # from one bar to the next, in units of the drawing, which is stretched to its place
FEW_BARS: Final = 12  # so few are wide anyway
PEAKS: Final = 64  # bars of a waveform
PEAKS_LIMIT: Final = 4_096


@dataclass(frozen=True)
class Chart:
    """Bars of completed and failed generations: the drawing, the top of its scale, and its summary in words."""

    svg: Markup
    top: int
    summary: str
    first: str
    last: str
    is_empty: bool


def draw_usage(usage: Sequence[Usage], form: str) -> Chart:
    """Draw one bar for each bucket; `form` is the strftime format that names a bucket."""
    top = _round_up(max((each.completed + each.failed + each.cancelled for each in usage), default=0))
    bar = 8 if len(usage) > FEW_BARS else 5
    width = len(usage) * STEP
    pieces = [f'<path class="grid" d="M0 {HEIGHT / 2}H{width}"/>']
    for number, each in enumerate(usage):
        name = f"{each.start:{form}}: {each.completed:,} completed, {each.failed:,} failed"
        if each.cancelled:
            name += f", {each.cancelled:,} cancelled"
        x, base = number * STEP + (STEP - bar) / 2, float(HEIGHT)
        bars = f'<rect class="reach" x="{number * STEP}" y="0" width="{STEP}" height="{HEIGHT}"/>'
        for kind in KINDS:
            if count := getattr(each, kind):
                height = max(count / top * HEIGHT, 1.0)
                base -= height
                bars += f'<rect class="{kind}" x="{x:g}" y="{base:.2f}" width="{bar}" height="{height:.2f}"/>'
        pieces.append(f"<g><title>{name}</title>{bars}</g>")
    completed, failed, cancelled = (sum(getattr(each, kind) for each in usage) for kind in KINDS)
    svg = f'<svg viewBox="0 0 {width} {HEIGHT}" preserveAspectRatio="none" aria-hidden="true">{"".join(pieces)}</svg>'
    first, last = (f"{usage[place].start:{form}}" if usage else "" for place in (0, -1))
    summary = f"{completed:,} completed and {failed:,} failed"
    return Chart(Markup(svg), top, summary, first, last, not completed + failed + cancelled)


def draw_waveform(metadata: dict[str, Any]) -> Markup | None:
    """Draw the `peaks` of a generation's metadata, numbers from 0 to 1 in order of time; None if there are none."""
    stored = metadata.get("peaks")
    if not isinstance(stored, list) or not 2 <= len(stored) <= PEAKS_LIMIT:
        return None
    if not all(type(peak) in (int, float) and math.isfinite(peak) and 0 <= peak <= 1 for peak in stored):
        return None
    count = min(PEAKS, len(stored))
    edges = [number * len(stored) // count for number in range(count + 1)]
    halves = [46 * max(stored[start:end]) + 2 for start, end in pairwise(edges)]
    lines = "".join(f"M{3 * x + 1.5:g} {50 - half:.0f}V{50 + half:.0f}" for x, half in enumerate(halves))
    drawing = f'viewBox="0 0 {3 * count} 100" preserveAspectRatio="none" aria-hidden="true"'
    return Markup(f'<svg {drawing}><path d="{lines}"/></svg>')


def _round_up(number: int) -> int:
    """Return the next number that reads well on an axis and has a whole half: 2, 4, 10, 20, 40, 100 …"""
    size = 1
    while True:
        for step in (2, 4, 6, 10):
            if number <= step * size:
                return step * size
        size *= 10
