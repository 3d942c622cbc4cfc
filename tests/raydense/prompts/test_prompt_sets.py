"""Prompt sets from every source: what is read, what is noted, and what is refused in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from raydense.prompts import sources as prompt_sources
from raydense.prompts.prompt_sets import load_prompts, read_prompts, report_truncated, truncation_notes

DRAWBENCH = {
    "A red colored car.": {"category": "Colors"},
    "A black colored car.": {"category": "Colors"},
    "One car on the street.": {"category": "Counting"},
}


def write(path: Path, content: str | bytes | Any) -> str:
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_bytes((content if isinstance(content, str) else json.dumps(content)).encode())
    return str(path)


def refusal(location: str) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the text is what the tests look at
        load_prompts(location)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{location}: ")
    return message.removeprefix(f"{location}: ")


class TestText:
    def test_one_prompt_a_line_without_surrounding_blanks(self, tmp_path: Path) -> None:
        assert read_prompts(write(tmp_path / "p.txt", " a cat\t\r\na dog\n")) == ("a cat", "a dog")
        assert read_prompts(write(tmp_path / "none", "a cat")) == ("a cat",)

    def test_only_line_ends_end_a_line(self, tmp_path: Path) -> None:
        assert read_prompts(write(tmp_path / "p.txt", "a\u2028b\x0cc\rd")) == ("a\u2028b\x0cc", "d")

    def test_a_byte_order_mark_is_no_part_of_the_first_prompt(self, tmp_path: Path) -> None:
        assert read_prompts(write(tmp_path / "p.txt", b"\xef\xbb\xbfa cat\n")) == ("a cat",)

    def test_empty_lines_at_the_end_are_noted_others_refused(self, tmp_path: Path) -> None:
        location = write(tmp_path / "p.txt", "a\nb\n\n  \n\n")
        assert load_prompts(location).prompts == ("a", "b")
        assert load_prompts(location).notes == (f"{location}: lines 3-5 at the end are empty; ignored",)
        location = write(tmp_path / "one.txt", "a\n\n")
        assert load_prompts(location).notes == (f"{location}: line 2 at the end is empty; ignored",)
        assert refusal(write(tmp_path / "q.txt", "a\n \nb\n")) == "line 2 is empty; remove it"

    def test_duplicates_are_dropped_and_noted(self, tmp_path: Path) -> None:
        location = write(tmp_path / "p.txt", "a\nb\na \nc\nb\n")
        assert load_prompts(location).prompts == ("a", "b", "c")
        assert load_prompts(location).notes == (f"{location}: 2 duplicates dropped: line 3, line 5",)
        many = write(tmp_path / "many.txt", "a\n" * 9)
        expected = "8 duplicates dropped: line 2, line 3, line 4, line 5, line 6 and 3 more"
        assert load_prompts(many).notes == (f"{many}: {expected}",)

    def test_other_encodings_are_refused_with_the_line(self, tmp_path: Path) -> None:
        assert refusal(write(tmp_path / "p.txt", b"a\r\nb\nc\xe9\n")) == "line 3 is not UTF-8; save the file as UTF-8"

    def test_nothing_to_read_is_refused(self, tmp_path: Path) -> None:
        assert refusal(write(tmp_path / "p.txt", "\n")) == "holds no prompt; give at least one"
        assert refusal(str(tmp_path / "no.txt")).startswith("cannot be read (No such file or directory)")
        assert refusal("pkg://raydense/no.txt").startswith("cannot be read (pkg://raydense/no.txt: no 'no.txt'")
        assert refusal(write(tmp_path / "p.yaml", "a")) == (
            "files of the kind .yaml are not read; allowed: .txt, .jsonl, .json, .csv, .parquet"
        )


class TestJson:
    def test_a_list_of_prompts_or_objects(self, tmp_path: Path) -> None:
        location = write(tmp_path / "p.json", ["a", {"prompt": "b", "image": "1.png"}, "a"])
        assert load_prompts(location).prompts == ("a", "b")
        assert load_prompts(location).notes == (f"{location}: 1 duplicate dropped: item 2",)

    def test_categories_can_be_selected(self, tmp_path: Path) -> None:
        location = write(tmp_path / "drawbench.json", DRAWBENCH)
        assert read_prompts(location) == tuple(DRAWBENCH)
        assert read_prompts(f"{location}#category=Colors") == tuple(DRAWBENCH)[:2]
        assert read_prompts(f"{location}#category=Colors&index=1") == ("A black colored car.",)
        assert refusal(f"{location}#category=colors") == "#category=colors is not here; allowed: Colors, Counting"
        assert refusal(f"{location}#style=anime") == "#style= selects nothing here; allowed: index, category"

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ('["a",\n "b"', "line 2 is not JSON (Expecting ',' delimiter, column 5)"),
            ('"a"', "holds the str 'a'; expected a list of prompts"),
            ('["a", 3]', "item 1 has no \"prompt\" but the int '3'; give it one"),
            ('["a", {"text": "b"}]', 'item 1 has no "prompt" but keys text; give it one'),
            ('[{"prompt": null}]', "item 0: its prompt is nothing; give a text"),
            ('["a", " "]', "item 1 is empty; remove it"),
            ('{"prompts": ["a"]}', "item 0 ('prompts') has no category; expected {prompt: {\"category\": …}}"),
            ("[]", "holds no prompt; give at least one"),
            ('[{"prompt": "a", "prompt": "b"}]', "has the key 'prompt' twice in one object; remove one"),
            ('{"a": {"category": "x"}, "a": {"category": "y"}}', "has the key 'a' twice in one object; remove one"),
            ('["a", "\\ud83d"]', "item 1 holds \\ud83d, half of a character; write the whole one"),
            ("[" * 10**5, "is nested too deeply for a list of prompts"),
        ],
    )
    def test_other_content_is_refused(self, tmp_path: Path, content: str, message: str) -> None:
        assert refusal(write(tmp_path / "p.json", content)) == message


class TestJsonLines:
    def test_one_object_a_line(self, tmp_path: Path) -> None:
        location = write(tmp_path / "p.jsonl", '{"prompt": "a\u2028b"}\n{"prompt": "c", "id": 1}\n\n')
        assert load_prompts(location).prompts == ("a\u2028b", "c")
        assert load_prompts(location).notes == (f"{location}: line 3 at the end is empty; ignored",)

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ("{", "line 2 is not JSON (Expecting property name enclosed in double quotes, column 2)"),
            ('"b"', "line 2 has no \"prompt\" but the str 'b'; give it one"),
            ("", "line 2 is empty; remove it"),
            ('{"prompt": ["b"]}', "line 2: its prompt is the list \"['b']\"; give a text"),
            ('{"text": "b"}', 'line 2 has no "prompt" but keys text; give it one'),
            ('{"prompt": "b", "prompt": "c"}', "line 2 has the key 'prompt' twice in one object; remove one"),
            ('{"prompt": "b"}{"prompt": "c"}', "line 2 is not JSON (Extra data, column 16)"),
            ('{"prompt": "\\udc80"}', "line 2 holds \\udc80, half of a character; write the whole one"),
        ],
    )
    def test_other_lines_are_refused(self, tmp_path: Path, line: str, message: str) -> None:
        content = f'{{"prompt": "a"}}\n{line}\n{{"prompt": "c"}}\n'
        assert refusal(write(tmp_path / "p.jsonl", content)) == message


class TestTables:
    def test_csv_column_prompt(self, tmp_path: Path) -> None:
        content = 'id,prompt\n1,"a cat, and ""a"" dog"\n2,a hen\n'
        assert read_prompts(write(tmp_path / "p.csv", content)) == ('a cat, and "a" dog', "a hen")

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("id,text\n1,a\n", "has no column 'prompt'; its columns: id, text"),
            ("prompt;id\na;1\n", "has no column 'prompt'; its columns: prompt;id"),
            ("", "has no column 'prompt'; its columns: none"),
            ("prompt,id,prompt\na,1,b\n", "has the column 'prompt' twice; its columns: prompt, id, prompt; rename or"),
            ('prompt\n"a\n', "line 2 is not CSV (unexpected end of data)"),
            ("prompt,id\na,1\n,2\n", "line 3 is empty; remove it"),
            # more or fewer fields than columns: what was behind a comma would be lost
            (
                "prompt\na red circle, photo, detailed\n",
                "line 2 has 3 fields and the header 1 (prompt); put a text with",
            ),
            ("id,prompt\n1,a\n2,b, photo\n", "line 3 has 3 fields and the header 2 (id, prompt); put a text with"),
            ("prompt,id\na, photo,1\n", "line 2 has 3 fields and the header 2"),
            ('id,prompt\n1, "a, b"\n', "line 2 has 3 fields and the header 2"),  # a blank before the quote
            ('prompt\n"a\nb"\n\n"c\nd",e\n', "line 5 has 2 fields and the header 1"),  # where the row begins
            ("prompt,\na\n", "line 2 has 1 field and the header 2 (prompt, )"),
            ("id,prompt\n1\n", "line 2 has 1 field and the header 2"),
            ("id,prompt,style\n1,a\n", "line 2 has 2 fields and the header 3"),
        ],
    )
    def test_other_csv_is_refused(self, tmp_path: Path, content: str, message: str) -> None:
        assert refusal(write(tmp_path / "p.csv", content)).startswith(message)

    def test_blank_lines_of_a_csv_are_no_rows(self, tmp_path: Path) -> None:
        assert read_prompts(write(tmp_path / "p.csv", "prompt,id\n\na,1\r\n\r\nb,2\n\n")) == ("a", "b")

    def test_parquet_column_prompt(self, tmp_path: Path) -> None:
        table = pyarrow.table({"id": [1, 2], "prompt": ["a cat", "a dog"]})
        pyarrow.parquet.write_table(table, tmp_path / "p.parquet")
        assert read_prompts(str(tmp_path / "p.parquet")) == ("a cat", "a dog")

    def test_other_parquet_is_refused(self, tmp_path: Path) -> None:
        pyarrow.parquet.write_table(pyarrow.table({"prompt": ["a", None]}), tmp_path / "a.parquet")
        assert refusal(str(tmp_path / "a.parquet")) == "row 1: its prompt is nothing; give a text"
        pyarrow.parquet.write_table(pyarrow.table({"text": ["a"]}), tmp_path / "b.parquet")
        assert refusal(str(tmp_path / "b.parquet")) == "has no column 'prompt'; its columns: text"
        assert refusal(write(tmp_path / "c.parquet", "no")).startswith("is not a Parquet file that can be read (")
        twice = pyarrow.table([["a"], ["b"]], names=["prompt", "prompt"])
        pyarrow.parquet.write_table(twice, tmp_path / "e.parquet")
        assert refusal(str(tmp_path / "e.parquet")).startswith("has the column 'prompt' twice; its columns: prompt, p")
        pyarrow.parquet.write_table(pyarrow.table({"prompt": [["a", "b"]]}), tmp_path / "f.parquet")
        assert refusal(str(tmp_path / "f.parquet")).startswith("row 0: its prompt is the list")
        bytes_ = [None, pyarrow.py_buffer(b"\0\0\0\0\1\0\0\0"), pyarrow.py_buffer(b"\xff")]
        no_text = pyarrow.table({"prompt": pyarrow.Array.from_buffers(pyarrow.string(), 1, bytes_)})
        pyarrow.parquet.write_table(no_text, tmp_path / "g.parquet")
        assert refusal(str(tmp_path / "g.parquet")).startswith("its prompt column holds what is not UTF-8")
        assert refusal(str(tmp_path / "d.parquet")).startswith("cannot be read (")


class TestBuiltInSets:
    def test_the_papers_single_prompts(self) -> None:
        assert read_prompts("set://paper-train") == (
            "A cat and a dog.",
            "A dog on the moon.",
            "A green colored rabbit.",
            "Four wolves in the park.",
        )
        assert read_prompts("set://paper-unseen#index=3") == ("Four birds in the park.",)
        assert refusal("set://paper-train#index=4") == "#index=4 is not one of its 4 prompts; allowed: 0 to 3"
        assert refusal("set://paper-train#index=-1") == "#index=-1 is not one of its 4 prompts; allowed: 0 to 3"

    def test_unknown_sets_and_queries_are_refused(self) -> None:
        assert refusal("set://paper").startswith("there is no such set; allowed: set://paper-train, set://paper-unseen")
        assert refusal("set://paper-train?dir=/tmp").startswith("?dir=/tmp is not understood")
        assert refusal("set://hpsv2-train?folder=/tmp").startswith("?folder=/tmp is not understood")

    def test_hpsv2_benchmark_from_a_directory(self, tmp_path: Path) -> None:
        for style in prompt_sources.HPSV2_STYLES:
            write(tmp_path / f"{style}.json", [f"{style} {i}" for i in range(3)] + ["the same"])
        location = f"set://hpsv2-benchmark?dir={tmp_path}"
        assert read_prompts(f"{location}#style=photo") == ("photo 0", "photo 1", "photo 2", "the same")
        everything = load_prompts(location)
        assert everything.prompts[:5] == ("anime 0", "anime 1", "anime 2", "the same", "concept-art 0")
        assert everything.notes == (
            f"{location}: 3 duplicates dropped: concept-art.json item 3, paintings.json item 3, photo.json item 3",
        )
        assert refusal(f"{location}#style=oil").endswith("allowed: anime, concept-art, paintings, photo")
        (tmp_path / "photo.json").unlink()
        assert refusal(location).startswith(f"there is no {tmp_path}/photo.json; put photo.json of the dataset zhwang/")

    def test_hpsv2_train_holds_each_prompt_once(self, tmp_path: Path) -> None:
        write(tmp_path / "train.json", [{"prompt": p, "human_preference": [1, 0]} for p in ("a", "b", "a")])
        assert read_prompts(f"set://hpsv2-train?dir={tmp_path}") == ("a", "b")

    def test_hpsv2_sets_come_from_the_hub(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        asked = []

        def download(repository: str, filename: str, *, repo_type: str) -> str:
            asked.append((repository, filename, repo_type))
            return write(tmp_path / Path(filename).name, [filename])

        monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
        monkeypatch.setattr("raydense.files.hub.probe_hub", lambda: None)
        assert read_prompts("set://hpsv2-benchmark#style=anime") == ("benchmark/anime.json",)
        assert read_prompts("set://hpsv2-train") == ("train.json",)
        assert asked[0] == ("zhwang/HPDv2", "benchmark/anime.json", "dataset")
        assert asked[-1] == ("ymhao/HPDv2", "train.json", "dataset")

    def test_without_a_hub_the_error_says_what_to_do(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def download(*_: Any, **__: Any) -> str:
            raise ConnectionError("no\nroute")

        monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
        monkeypatch.setattr("raydense.files.hub.probe_hub", lambda: None)
        assert refusal("set://hpsv2-train") == (
            "train.json cannot be had from ymhao/HPDv2 (no route); download it where the hub can be reached, "
            "and give its directory with ?dir=/path"
        )


def test_a_hash_that_selects_nothing_belongs_to_the_path(tmp_path: Path) -> None:
    assert read_prompts(write(tmp_path / "a#1.txt", "a cat\n")) == ("a cat",)


def test_truncated_prompts_are_reported_with_what_is_cut(pipeline_dir: Path) -> None:
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(pipeline_dir / "tokenizer")  # 12 tokens, a letter each
    exact, long = "a b c d e f g h i j", "a b c d e f g h i j k l"
    assert len(tokenizer(exact).input_ids) == 12
    assert report_truncated(["a cat", exact, long], tokenizer) == [(2, long, "k l")]
    cut = "prompt 3: the model reads 10 tokens of 'a b c d e f g h i j k l'; cut off: 'k l'"
    assert truncation_notes(["a cat", exact, long], tokenizer) == [cut]
    many = truncation_notes([f"{long} {letter}" for letter in "abcdefgh"], tokenizer)
    assert (len(many), many[-1]) == (6, "3 more prompts are cut off")
