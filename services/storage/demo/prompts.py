"""The prompts of the demo: built-in ones, or those of a text, CSV or JSON file."""

import csv
import json
from collections.abc import Iterable
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from ..file_reading import open_file

FAILING_PROMPT = "a doom metal riff so slow that it never starts, 0 BPM"

# Some prompts repeat, as in real use, so that the prompt statistics show something.
BUILT_IN_PROMPTS = (
    "hip hop beat at 140 BPM",
    "lofi rain on a night train, 78 BPM",
    "uplifting trance anthem at 138 BPM in F# minor",
    "minimalist piano piece exploring silence and space",
    "trap beat 140 BPM",
    "drum and bass roller, 174 BPM",
    "hip hop beat at 140 BPM",
    "baroque harpsichord fugue in D minor",
    FAILING_PROMPT,
    "slow blues guitar in A minor, 68 BPM",
    "synthwave driving music at 118 BPM",
    "lofi rain on a night train, 78 BPM",
    "afrobeat percussion ensemble, 112 BPM",
    "dark ambient drone for a horror film",
    "hip hop beat at 140 BPM",
    "celtic harp meditation with gentle arpeggios",
    "industrial techno for a warehouse, 132 BPM",
    "bebop saxophone over restless changes, 210 BPM",
    "trap beat 140 BPM",
    "roots reggae one drop, 76 BPM",
    "bluegrass banjo breakdown in G major",
    "lofi rain on a night train, 78 BPM",
    "string quartet waltz in Eb major",
    "deep house at 122 BPM in C minor",
    "hip hop beat at 140 BPM",
    "a lullaby for a GPU",
)
COLUMNS = ("prompt", "overall_prompt", "caption", "text", "description")


def read_prompts(path: Path) -> list[str]:
    """Return the prompts in the file at `path`, in order, without blank ones.

    The extension tells CSV, TSV, JSON and JSON Lines; any other file has one prompt per line. Prompts are in the first
    column or key of `COLUMNS` that exists, or in the only one. Raises ValueError if there are no prompts, OSError if
    the file cannot be read.
    """
    try:
        with TextIOWrapper(open_file(path), encoding="utf-8-sig") as file:
            text = file.read()
    except UnicodeDecodeError:
        raise ValueError(f"{path.name} is not UTF-8 text") from None
    try:
        match path.suffix.lower():
            case ".csv" | ".tsv":
                prompts = _from_rows(list(csv.DictReader(text.splitlines(keepends=True), dialect=_dialect(path))))
            case ".json":
                prompts = _from_rows(json.loads(text))
            case ".jsonl" | ".ndjson":
                prompts = _from_rows([json.loads(line) for line in text.splitlines() if line.strip()])
            case _:
                prompts = [line.strip() for line in text.splitlines()]
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{path.name} cannot be read as {path.suffix[1:].upper()}: {error}") from None
    prompts = [prompt for prompt in prompts if prompt.strip()]
    if not prompts:
        raise ValueError(f"{path.name} contains no prompts")
    return prompts


def _dialect(path: Path) -> str:
    return "excel-tab" if path.suffix.lower() == ".tsv" else "excel"


def _from_rows(rows: Any) -> Iterable[str]:
    if isinstance(rows, dict):
        rows = next((value for value in rows.values() if isinstance(value, list)), None)
    if not isinstance(rows, list):
        raise ValueError("expected a list of texts or of objects")
    if all(isinstance(row, str) for row in rows):
        return list(rows)
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError("expected every row to be a text, or every row to be an object")
    keys = {key.lower(): key for key in rows[0] if isinstance(key, str)}
    key = next((keys[name] for name in COLUMNS if name in keys), None)
    if key is None:
        if len(keys) != 1:
            raise ValueError(f"found none of {', '.join(COLUMNS)} among {', '.join(keys) or 'no columns'}")
        key = next(iter(keys.values()))
    return [value for value in (row.get(key) for row in rows) if isinstance(value, str)]
