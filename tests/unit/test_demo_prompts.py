"""read_prompts(): text, CSV and JSON files."""

import json
from pathlib import Path

import pytest

from services.storage.demo.prompts import read_prompts


def test_any_other_file_has_one_prompt_per_line(tmp_path: Path) -> None:
    assert read(tmp_path, "prompts.txt", "\ufefftrap beat\r\n\n  lofi, rain \njazz") == [
        "trap beat",
        "lofi, rain",
        "jazz",
    ]


@pytest.mark.parametrize("column", ["prompt", "Prompt", "overall_prompt", "caption", "text", "description"])
def test_a_csv_file_is_read_by_its_prompt_column(tmp_path: Path, column: str) -> None:
    rows = f'id,{column},stars\n1,"quiet, slow",5\n2,"two\nlines",4\n3,,3\n'
    assert read(tmp_path, "prompts.csv", rows) == ["quiet, slow", "two\nlines"]


def test_the_first_known_column_name_is_used(tmp_path: Path) -> None:
    assert read(tmp_path, "prompts.csv", "text,caption,prompt\na,b,c\n") == ["c"]


def test_a_single_column_can_have_any_name(tmp_path: Path) -> None:
    assert read(tmp_path, "prompts.csv", "wish\nfunk\n") == ["funk"]


def test_a_tsv_file_is_read_by_its_prompt_column(tmp_path: Path) -> None:
    assert read(tmp_path, "prompts.tsv", "id\tcaption\n1\tfunk, please\n") == ["funk, please"]


@pytest.mark.parametrize(
    "value",
    [
        ["funk", "soul"],
        [{"overall_prompt": "funk", "instrumental": True}, {"overall_prompt": "soul", "instrumental": False}],
        {"version": 1, "prompts": [{"text": "funk"}, {"text": "soul"}, {"text": None}, {}]},
    ],
)
def test_json_can_be_a_list_of_texts_or_objects_or_an_object_with_a_list(tmp_path: Path, value: object) -> None:
    assert read(tmp_path, "prompts.json", json.dumps(value)) == ["funk", "soul"]


def test_json_lines_have_one_object_per_line(tmp_path: Path) -> None:
    assert read(tmp_path, "prompts.jsonl", '{"prompt": "funk"}\n\n{"prompt": "soul"}\n') == ["funk", "soul"]


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("prompts.txt", " \n\n", "prompts.txt contains no prompts"),
        ("prompts.csv", "", "prompts.csv contains no prompts"),
        ("prompts.csv", "id,stars\n1,5\n", "found none of prompt, .* among id, stars"),
        ("prompts.json", "[1, 2]", "every row"),
        ("prompts.json", '["funk", {"prompt": "soul"}]', "every row"),
        ("prompts.json", '"funk"', "expected a list"),
        ("prompts.json", "{", "prompts.json cannot be read as JSON"),
        ("prompts.json", "[]", "prompts.json contains no prompts"),
    ],
)
def test_a_file_without_prompts_is_refused_with_the_reason(
    tmp_path: Path, name: str, content: str, complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        read(tmp_path, name, content)


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "music.wav").write_bytes(b"RIFF\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"music\.wav is not UTF-8 text"):
        read_prompts(tmp_path / "music.wav")


def read(folder: Path, name: str, content: str) -> list[str]:
    (folder / name).write_text(content, encoding="utf-8")
    return read_prompts(folder / name)
