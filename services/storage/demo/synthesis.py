"""A small synthesizer that renders a prompt to a WAV file, with the standard library alone. Uses no database."""

import math
import os
import re
import wave
import zlib
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from operator import add, mul
from pathlib import Path
from random import Random
from typing import TypeAlias

SAMPLE_RATE = 32_000
CHANNELS = 2
SLOWEST_BPM = 40
FASTEST_BPM = 240

NOTES = ("C", "C#", "D", "Eb", "E", "F", "F#", "G", "Ab", "A", "Bb", "B")
SEMITONES = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}
SIGNS = {"#": 1, "♯": 1, "sharp": 1, "b": -1, "♭": -1, "flat": -1, "": 0}
MAJOR_SCALE = frozenset({0, 2, 4, 5, 7, 9, 11})
MINOR_SCALE = frozenset({0, 2, 3, 5, 7, 8, 10})
MAJOR_PROGRESSION = (0, 7, 9, 5)
MINOR_PROGRESSION = (0, 8, 3, 10)

# Sixteen steps per bar for kick, snare and hat; an x is a hit.
BEATS: dict[str, tuple[str, str, str]] = {
    "four": ("x...x...x...x...", "....x.......x...", "..x...x...x...x."),
    "back": ("x.....x.x.......", "....x.......x...", "x.x.x.x.x.x.x.x."),
    "half": ("x......x..x.....", "........x.......", "x.x.x.xxx.x.xxx."),
    "break": ("x.........x.....", "....x..x.x..x...", "x.x.x.x.x.x.x.x."),
    "one": ("......x.......x.", "........x.......", "..x...x...x...x."),
    "none": ("................", "................", "................"),
}
# Pattern, tempo, beat. The first pattern found in the prompt sets the beat, and the tempo if the prompt names none.
GENRES: tuple[tuple[str, int, str], ...] = (
    (r"drum (and|&|n) ?bass|\bdnb\b|jungle|breakbeat", 174, "break"),
    (r"ambient|drone|meditat|lullaby|requiem|choir|soundscape|\bsleep", 62, "none"),
    (r"trance|hardstyle", 138, "four"),
    (r"techno|industrial", 130, "four"),
    (r"dubstep|\btrap\b|drill", 140, "half"),
    (r"house|edm|electro|synthwave|synth-?pop", 122, "four"),
    (r"disco|funk|dance", 116, "four"),
    (r"lo-?fi|chill", 78, "back"),
    (r"hip[- ]?hop|\brap\b|boom bap|r&b|soul", 90, "back"),
    (r"reggae|\bdub\b|\bska\b", 76, "one"),
    (r"punk|metal|hardcore|bebop|bluegrass", 168, "back"),
    (r"rock|blues|country|\bpop\b|jazz|latin|salsa|samba|afrobeat", 112, "back"),
    (r"piano|harp|guitar|string|violin|cello|flute|orchestra|ballad|acoustic|fugue|waltz", 84, "none"),
)
SPEED_WORDS = ((r"\bslow|calm|gentle|mellow|sad", 0.85), (r"\bfast|rapid|energetic|upbeat|aggressive", 1.15))
MINOR_WORDS = r"minor|sad|dark|melanchol|eerie|horror|trap|dubstep|metal|techno|aggressive|tense|night|rain"
# Not from the middle of a number: of 10,000 digits, each would be tried as the first.
TEMPO = re.compile(r"(?<!\d)(\d+(?:\.\d+)?)[\s-]*(?:bpm|beats per minute)\b", re.IGNORECASE)
KEY = re.compile(r"\b([A-G])(#|b|♯|♭|[- ]sharp|[- ]flat)?[- ](minor|major|min|maj)\b")

Sound: TypeAlias = "array[float]"  # a string, because array cannot be subscripted before Python 3.12


@dataclass(frozen=True, slots=True)
class Style:
    """The style that a prompt asks for; `root` is in semitones above C, `seed` depends only on the prompt."""

    bpm: int
    root: int
    minor: bool
    beat: str
    seed: int

    @property
    def key(self) -> str:
        """The key in musical notation: C, F#m."""
        return NOTES[self.root] + ("m" if self.minor else "")


def read_style(prompt: str) -> Style:
    """Return the style that `prompt` asks for: the tempo and key it names, and the rest derived from its words."""
    words = prompt.lower()
    seed = zlib.crc32(prompt.encode("utf-8", "replace"))
    genre = next((genre for genre in GENRES if re.search(genre[0], words)), None)
    _, usual_bpm, beat = genre or ("", 80 + seed % 60, "back")
    if named := TEMPO.search(prompt):
        asked = float(named[1])  # infinite for more than 308 digits
        bpm = round(min(max(asked, SLOWEST_BPM), FASTEST_BPM)) if asked else 0
    else:
        bpm = round(usual_bpm * math.prod(factor for pattern, factor in SPEED_WORDS if re.search(pattern, words)))
    if key := KEY.search(prompt):
        letter, sign, mode = key.groups("")
        root, minor = (SEMITONES[letter] + SIGNS[sign.strip(" -")]) % 12, mode.startswith("min")
    else:
        root, minor = seed // 60 % 12, re.search(MINOR_WORDS, words) is not None
    return Style(bpm, root, minor, beat, seed)


def render(
    prompt: str,
    path: Path,
    duration_seconds: float,
    at_step: Callable[[float], None] = lambda fraction: None,
    *,
    sample_rate: int = SAMPLE_RATE,
    channels: int = CHANNELS,
) -> None:
    """Write a WAV of `duration_seconds` in the style of `prompt` to `path`, a new file, completely or not at all.

    Calls `at_step` with the fraction that is composed, from 0 to 1; an exception in it ends the rendering. Raises
    ValueError for a tempo of 0 BPM, FileExistsError if there is a file of other content.
    """
    style = read_style(prompt)
    if style.bpm == 0:
        raise ValueError("cannot render a tempo of 0 BPM: name one above 0")
    left, right = _compose(style, max(1, round(duration_seconds * SAMPLE_RATE)), at_step)
    if sample_rate != SAMPLE_RATE:
        left, right = _resample(left, sample_rate), _resample(right, sample_rate)
    tracks = (left, right) if channels == 2 else (array("d", [(a + b) / 2 for a, b in zip(left, right, strict=True)]),)
    frames = _interleave(tracks, sample_rate).tobytes()
    partial = path.with_name(path.name + ".part")
    partial.unlink(missing_ok=True)  # of a worker that was killed, or a link that somebody else has put there
    try:
        with partial.open("xb") as target, wave.open(target, "wb") as file:
            file.setnchannels(channels)
            file.setsampwidth(2)
            file.setframerate(sample_rate)
            file.writeframes(frames)
        _publish(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def measure_peaks(path: Path, count: int = 64) -> list[float]:
    """Return the loudest sample of each of `count` parts of a WAV that render() wrote, from 0 to 1, for a waveform."""
    with wave.open(str(path), "rb") as file:
        samples = array("h", file.readframes(file.getnframes()))
    edges = [number * len(samples) // count for number in range(count + 1)]
    parts = (samples[start : max(end, start + 1)] for start, end in pairwise(edges))
    return [round(max(map(abs, part), default=0) / 32_768, 3) for part in parts]


def _publish(partial: Path, path: Path) -> None:
    """Give a finished file its name unless another file has it; the same content is left by an earlier attempt."""
    try:
        os.link(partial, path)
    except FileExistsError:
        if path.is_symlink() or not path.is_file() or path.read_bytes() != partial.read_bytes():
            raise


def _compose(style: Style, frames: int, at_step: Callable[[float], None]) -> tuple[Sound, Sound]:
    left, right = _silence(frames), _silence(frames)
    step_frames = SAMPLE_RATE * 60 / style.bpm / 4
    random = Random(style.seed)
    arpeggio = [random.randrange(5) for _ in range(8)]
    drums = list(zip(BEATS[style.beat], (_kick(), _snare(), _hat()), strict=True))
    steps = math.ceil(frames / step_frames)
    for step in range(steps):
        at_step(step / steps)
        at = round(step * step_frames)
        chord = _chord(style, step // 8)
        for line, sound in drums:
            if line[step % 16] == "x":
                _mix(at, sound, left, right)
        if step % 8 == 0:
            _mix(at, _pad(chord, min(round(step_frames * 8), frames)), left, right)
        if style.beat != "none" and step % 4 == 2:
            _mix(at, _pluck(chord[0] - 24), left, right)
        if step % 2 == 0:
            note = _pluck((*chord, chord[0] + 12, chord[1] + 12)[arpeggio[step // 2 % 8]] + 12)
            near, far = (left, right) if step % 4 else (right, left)
            _mix(at, note, near)
            _mix(round(at + step_frames * 3), array("d", [0.4 * sample for sample in note]), far)
    at_step(1.0)
    return left, right


def _chord(style: Style, number: int) -> tuple[int, int, int]:
    """Return the MIDI notes of chord `number` of the progression, rooted below middle C."""
    progression, scale = (MINOR_PROGRESSION, MINOR_SCALE) if style.minor else (MAJOR_PROGRESSION, MAJOR_SCALE)
    degree = progression[number % len(progression)]
    third = 4 if (degree + 4) % 12 in scale else 3
    root = 48 + (style.root + degree) % 12
    return root, root + third, root + 7


def _mix(at: int, sound: Sound, *tracks: Sound) -> None:
    for track in tracks:
        end = min(at + len(sound), len(track))
        if at < end:
            track[at:end] = array("d", map(add, track[at:end], sound))


def _resample(track: Sound, sample_rate: int) -> Sound:
    """Return a track at another sample rate, by linear interpolation."""
    step = SAMPLE_RATE / sample_rate
    padded = track + track[-1:]
    places = [number * step for number in range(max(1, round(len(track) / step)))]
    low = [min(int(place), len(track) - 1) for place in places]
    return array("d", [padded[n] + (padded[n + 1] - padded[n]) * (x - n) for n, x in zip(low, places, strict=True)])


def _interleave(tracks: Sequence[Sound], sample_rate: int) -> "array[int]":
    """Return the tracks as 16-bit frames, with the loudest sample at 0.9 of full scale and a fade-out."""
    gain = 0.9 * 32_767 / max(1e-9, *(max(map(abs, track)) for track in tracks))
    length = len(tracks[0])
    fade = min(sample_rate // 20, length)
    gains = array("d", [gain]) * (length - fade) + array("d", [gain * level for level in _ramp(fade)])
    frames = array("h", bytes(2 * len(tracks) * length))
    for number, track in enumerate(tracks):
        frames[number :: len(tracks)] = array("h", map(int, map(mul, track, gains)))
    return frames


def _ramp(length: int) -> list[float]:
    return [1 - number / length for number in range(1, length + 1)]


def _silence(frames: int) -> Sound:
    return array("d", bytes(8 * frames))


@lru_cache(maxsize=64)
def _pluck(note: int) -> Sound:
    """Return a plucked string: noise in a loop that is smoothed each period (Karplus and Strong, 1983)."""
    period = round(SAMPLE_RATE / _frequency(note))
    string = [Random(note).uniform(-0.5, 0.5) for _ in range(period)]
    frames = round(SAMPLE_RATE * 0.5)
    sound = array("d")
    while len(sound) < frames:
        sound.extend(string)
        string = [0.498 * (one + other) for one, other in zip(string, [*string[1:], string[0]], strict=True)]
    return sound


@lru_cache(maxsize=16)
def _pad(chord: tuple[int, ...], frames: int) -> Sound:
    """Return the chord held for `frames`. Each note repeats one cycle of whole samples, so it is slightly detuned."""
    sound = _silence(frames)
    for note in chord:
        period = round(SAMPLE_RATE / _frequency(note))
        angles = [math.tau * number / period for number in range(period)]
        cycle = array("d", [0.10 * (math.sin(angle) + math.sin(2 * angle) / 3) for angle in angles])
        _mix(0, cycle * (frames // period + 1), sound)
    fade = min(SAMPLE_RATE // 10, frames // 2)
    gains = _ramp(fade)
    sound[:fade] = array("d", map(mul, sound[:fade], reversed(gains)))
    sound[frames - fade :] = array("d", map(mul, sound[frames - fade :], gains))
    return sound


@lru_cache(maxsize=1)
def _kick() -> Sound:
    seconds = [frame / SAMPLE_RATE for frame in range(round(SAMPLE_RATE * 0.22))]
    return array(
        "d", [0.9 * math.exp(-14 * t) * math.sin(math.tau * (46 * t - 4 * math.exp(-28 * t))) for t in seconds]
    )


@lru_cache(maxsize=1)
def _snare() -> Sound:
    hiss = Random(1)
    seconds = [frame / SAMPLE_RATE for frame in range(round(SAMPLE_RATE * 0.16))]
    return array(
        "d",
        [math.exp(-24 * t) * (0.35 * hiss.uniform(-1, 1) + 0.25 * math.sin(math.tau * 185 * t)) for t in seconds],
    )


@lru_cache(maxsize=1)
def _hat() -> Sound:
    hiss = Random(2)
    noise = [hiss.uniform(-1, 1) for _ in range(round(SAMPLE_RATE * 0.05))]
    return array(
        "d", [0.12 * math.exp(-70 * frame / SAMPLE_RATE) * (a - b) for frame, (a, b) in enumerate(pairwise(noise))]
    )


def _frequency(note: int) -> float:
    return float(440.0 * 2 ** ((note - 69) / 12))
