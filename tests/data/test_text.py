"""Text of files: marks and ends that are no part of it, lines, rows of JSON."""

import json

import pytest
from data.samples import POINTER

from siglip2_jax.benchmarks.tasks.held_out import held_out
from siglip2_jax.data.sources import Folder
from siglip2_jax.data.text import plain_text, read_json, read_lines, read_rows

# Characters within a line at which str.splitlines cuts.
WITHIN = "\v\f\x1c\x1d\x1e\x85\u2028\u2029"


@pytest.mark.parametrize("data", [b"a red car", b"a red car\n", b"\xef\xbb\xbfa red car\r\n\n"])
def test_plain_text(data):
    assert plain_text(data) == plain_text(data.decode()) == "a red car"


def test_spaces_and_inner_ends_are_text():
    assert plain_text(b" a\nb \f\n") == " a\nb \f"
    with pytest.raises(ValueError, match=r"^not text in UTF-8 \(.* at byte 1\); save it as UTF-8$"):
        plain_text("Müll".encode("latin-1"))


def test_lines(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_bytes("\ufeffeine Katze\r\n\n  \n ein Hund \r猫\rein Ast".encode())
    assert read_lines(path) == ["eine Katze", " ein Hund ", "猫", "ein Ast"]
    path.write_bytes("eins\nMüll".encode("latin-1"))
    with pytest.raises(ValueError, match=r"texts.txt, line 2: not text in UTF-8 \(.* at byte 1\)"):
        read_lines(path)
    path.write_bytes(POINTER)
    with pytest.raises(ValueError, match=r"texts.txt: it is a Git LFS pointer.*git lfs pull"):
        read_lines(path)
    with pytest.raises(FileNotFoundError, match=r"absent.txt"):
        read_lines(tmp_path / "absent.txt")


def test_nothing_else_ends_a_line(tmp_path):
    assert len(f"a{'b'.join(WITHIN)}c".splitlines()) == 9
    texts = [f"before{character}after" for character in WITHIN]
    path = tmp_path / "captions.jsonl"
    path.write_text("\n".join(texts), encoding="utf-8", newline="")
    assert read_lines(path) == texts
    # JSON lets some of them stand in a text as they are.
    texts = [text for text in texts if text[6] >= " "]
    rows = [{"file": "a.jpg", "caption": text, "split": "test"} for text in texts]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\ufeff" + "\r\n\n".join(lines), encoding="utf-8", newline="")
    assert list(read_rows(path)) == [(1 + 2 * i, row) for i, row in enumerate(rows)]
    assert len(Folder(str(tmp_path)).open()) == len(texts) == 3
    assert held_out(path) == (("split", "test"),)


def test_json_file(tmp_path):
    path = tmp_path / "names.json"
    path.write_text('\ufeff["猫"]', encoding="utf-8")
    assert read_json(path) == ["猫"]
    for content, problem in ((b'["cat"', r"not JSON \("), (POINTER, "a Git LFS pointer")):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"names.json: {problem}"):
            read_json(path)
    with pytest.raises(ValueError, match="absent.json: no such file; expected JSON"):
        read_json(tmp_path / "absent.json")


def test_row_that_is_not_json(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n\n{"a": ')
    with pytest.raises(ValueError, match=r"rows.jsonl, line 3: not JSON \("):
        list(read_rows(path))
