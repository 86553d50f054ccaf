"""The demo's synthesizer: the style follows the prompt, and the file has the requested format."""

import wave
from array import array
from itertools import pairwise
from pathlib import Path

import pytest

from services.storage.demo.prompts import BUILT_IN_PROMPTS, FAILING_PROMPT
from services.storage.demo.synthesis import CHANNELS, SAMPLE_RATE, read_style, render


@pytest.mark.parametrize(
    ("prompt", "bpm"),
    [
        ("hip hop beat at 140 BPM", 140),
        ("trance, 138bpm", 138),
        ("90-100 BPM boom bap", 100),
        ("92.6 bpm", 93),
        ("72 beats per minute", 72),
        ("a 120-bpm house groove", 120),
        ("1 BPM", 40),
        ("9999 BPM", 240),
        pytest.param("1" * 10_000 + " BPM", 240, id="10,000 digits"),
    ],
)
def test_a_tempo_named_in_the_prompt_is_used_within_limits(prompt: str, bpm: int) -> None:
    assert read_style(prompt).bpm == bpm


def test_words_set_the_tempo_when_no_number_does() -> None:
    drum_and_bass, lullaby = read_style("drum and bass roller").bpm, read_style("a lullaby").bpm
    assert lullaby < 80 < 160 < drum_and_bass
    assert read_style("slow techno").bpm < read_style("techno").bpm < read_style("fast techno").bpm


def test_a_prompt_without_a_known_word_has_a_usual_tempo() -> None:
    assert all(60 <= read_style(f"xyzzy {number}").bpm <= 160 for number in range(200))


@pytest.mark.parametrize(
    ("prompt", "key"),
    [
        ("fugue in D minor", "Dm"),
        ("anthem in F# minor", "F#m"),
        ("waltz in E flat major", "Eb"),
        ("nocturne in Db maj", "C#"),
        ("ballad in Cb major", "B"),
        ("a song in A min", "Am"),
    ],
)
def test_a_key_named_in_the_prompt_is_used(prompt: str, key: str) -> None:
    assert read_style(prompt).key == key


def test_dark_words_give_a_minor_key() -> None:
    assert read_style("sad melody").minor
    assert not read_style("happy melody").minor


@pytest.mark.parametrize("seconds", [0.00001, 0.01, 0.25, 1.5])
def test_the_file_is_stereo_pcm_of_exactly_the_requested_length(tmp_path: Path, seconds: float) -> None:
    render("trap beat 140 BPM", tmp_path / "music.wav", seconds)
    with wave.open(str(tmp_path / "music.wav")) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (CHANNELS, 2, SAMPLE_RATE)
        assert file.getnframes() == max(1, round(seconds * SAMPLE_RATE))


@pytest.mark.parametrize("prompt", ["house 124 BPM", "ambient", "drum and bass", "🎹🎶", "x", "a" * 10_000])
def test_the_music_is_loud_but_never_clipped_and_ends_in_silence(tmp_path: Path, prompt: str) -> None:
    samples = rendered(tmp_path, prompt, 0.5)
    assert 0.5 * 32_767 < max(map(abs, samples)) <= 0.9 * 32_767
    assert abs(samples[-1]) < 500


def test_left_and_right_differ(tmp_path: Path) -> None:
    samples = rendered(tmp_path, "house 124 BPM", 0.5)
    assert samples[0::2] != samples[1::2]


@pytest.mark.parametrize("bpm", [80, 100, 120, 150])
def test_the_beat_is_heard_at_the_tempo_of_the_prompt(tmp_path: Path, bpm: int) -> None:
    loudness = envelope(rendered(tmp_path, f"techno at {bpm} BPM", 4.0))
    heard = max(range(70, 190), key=lambda candidate: autocorrelation(loudness, 60 / candidate * WINDOWS_PER_SECOND))
    assert heard == pytest.approx(bpm, rel=0.04)


def test_the_same_prompt_always_sounds_the_same_and_another_does_not(tmp_path: Path) -> None:
    first = rendered(tmp_path, "deep house at 122 BPM", 0.5)
    assert rendered(tmp_path, "deep house at 122 BPM", 0.5) == first
    (tmp_path / "music.wav").unlink()
    assert rendered(tmp_path, "deep house at 122 BPM please", 0.5) != first


@pytest.mark.parametrize("prompt", [FAILING_PROMPT, "0 BPM", "000.0bpm"])
def test_zero_bpm_cannot_be_rendered_and_leaves_no_file(tmp_path: Path, prompt: str) -> None:
    with pytest.raises(ValueError, match="0 BPM"):
        render(prompt, tmp_path / "music.wav", 1.0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["file", "link", "dangling link", "folder"])
def test_an_existing_file_is_never_replaced(tmp_path: Path, kind: str) -> None:
    target, music = tmp_path / "target", tmp_path / "music.wav"
    target.write_bytes(b"precious")
    if kind == "file":
        target.rename(music)
    elif kind == "folder":
        music.mkdir()
    else:
        music.symlink_to(target if kind == "link" else tmp_path / "nowhere")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(FileExistsError):
        render("jazz", music, 0.1)
    assert sorted(tmp_path.iterdir()) == before
    assert [path.read_bytes() for path in before if path.is_file()] in ([b"precious"], [b"precious"] * 2)


def test_the_same_content_of_an_earlier_attempt_is_accepted(tmp_path: Path) -> None:
    assert rendered(tmp_path, "jazz", 0.1) == rendered(tmp_path, "jazz", 0.1)


def test_a_link_in_place_of_the_partial_file_is_not_written_through(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"precious")
    (tmp_path / "music.wav.part").symlink_to(target)
    rendered(tmp_path, "jazz", 0.1)
    assert target.read_bytes() == b"precious"


@pytest.mark.parametrize(("sample_rate", "channels"), [(8_000, 1), (44_100, 2), (96_000, 1), (32_000, 1)])
def test_the_requested_sample_rate_and_channels_are_rendered(tmp_path: Path, sample_rate: int, channels: int) -> None:
    render("house 124 BPM", tmp_path / "music.wav", 0.5, sample_rate=sample_rate, channels=channels)
    with wave.open(str(tmp_path / "music.wav")) as file:
        assert (file.getnchannels(), file.getframerate()) == (channels, sample_rate)
        assert file.getnframes() == sample_rate // 2
        assert max(map(abs, array("h", file.readframes(file.getnframes())))) > 10_000  # not silence


def test_exactly_one_built_in_prompt_fails_and_some_repeat() -> None:
    assert [prompt for prompt in BUILT_IN_PROMPTS if read_style(prompt).bpm == 0] == [FAILING_PROMPT]
    assert len(set(BUILT_IN_PROMPTS)) < len(BUILT_IN_PROMPTS)


WINDOWS_PER_SECOND = 200


def rendered(folder: Path, prompt: str, seconds: float) -> "array[int]":
    render(prompt, folder / "music.wav", seconds)
    with wave.open(str(folder / "music.wav")) as file:
        return array("h", file.readframes(file.getnframes()))


def envelope(samples: "array[int]") -> list[float]:
    """Return the increase in loudness of each window of 5 ms over the previous one."""
    left = samples[0::2]
    size = SAMPLE_RATE // WINDOWS_PER_SECOND
    levels = [sum(map(abs, left[at : at + size])) / size for at in range(0, len(left) - size, size)]
    return [max(0.0, after - before) for before, after in pairwise(levels)]


def autocorrelation(loudness: list[float], beat: float) -> float:
    """Return the autocorrelation of the onsets at one, two and three beats."""
    total = 0.0
    for beats in (1, 2, 3):
        lag = round(beat * beats)
        pairs = list(zip(loudness, loudness[lag:], strict=False))
        total += sum(before * after for before, after in pairs) / len(pairs)
    return total
