"""Where prompts come from: the file formats, the paper's own prompts, and HPSv2's sets."""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from raydense.files.hub import hub_file
from raydense.files.locations import resolve

SET_SCHEME = "set://"
COLUMN = "prompt"
BOM = b"\xef\xbb\xbf"  # some editors begin a UTF-8 file with it
LINE_END = re.compile(r"\r\n|\r|\n")

# METHOD §6: the single-prompt setting, each trained on alone, and what it is tested on.
PAPER_TRAIN = ("A cat and a dog.", "A dog on the moon.", "A green colored rabbit.", "Four wolves in the park.")
PAPER_UNSEEN = ("A cat and a cup.", "A lion on the moon.", "A green colored cat.", "Four birds in the park.")

HPSV2_STYLES = ("anime", "concept-art", "paintings", "photo")
HPSV2_BENCHMARK_REPOSITORY = "zhwang/HPDv2"
HPSV2_TRAIN_REPOSITORY = "ymhao/HPDv2"
HUB_ADVICE = "download it where the hub can be reached, and give its directory with ?dir=/path"


class Entry(NamedTuple):
    """One prompt as it stands in its source: where (`line 3`), the text, and what it can be selected by."""

    where: str
    prompt: str
    labels: Mapping[str, str] = {}


def read_entries(source: str) -> tuple[list[Entry], list[str]]:
    """All entries of a file or a built-in set, in order, and notes on what was ignored.

    Raises: ValueError in one line, without the source's name.
    """
    if source.startswith(SET_SCHEME):
        return _read_set(source)
    try:
        return _read_file(Path(resolve(source)))
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror or error}); give a file of prompts") from None


def _read_set(source: str) -> tuple[list[Entry], list[str]]:
    name, _, query = source.removeprefix(SET_SCHEME).partition("?")
    if name not in SETS:
        raise ValueError(f"there is no such set; allowed: {', '.join(SET_SCHEME + known for known in SETS)}")
    key, _, directory = query.partition("=")
    if query and (key != "dir" or not directory or not name.startswith("hpsv2")):
        raise ValueError(f"?{query} is not understood; allowed: ?dir=/path, after an hpsv2 set")
    return SETS[name](directory), []


def _hpsv2_train(directory: str) -> list[Entry]:
    return list(_json_entries(_hpsv2_file(directory, HPSV2_TRAIN_REPOSITORY, "train.json")))


def _hpsv2_benchmark(directory: str) -> list[Entry]:
    """The four files in a row, each entry with its style."""
    entries = []
    for style in HPSV2_STYLES:
        folder = "" if directory else "benchmark/"
        path = _hpsv2_file(directory, HPSV2_BENCHMARK_REPOSITORY, f"{folder}{style}.json")
        entries += [Entry(f"{path.name} {e.where}", e.prompt, {"style": style}) for e in _json_entries(path)]
    return entries


def _hpsv2_file(directory: str, repository: str, filename: str) -> Path:
    if not directory:
        try:
            return hub_file(repository, filename, kind="dataset", instead=HUB_ADVICE)
        except FileNotFoundError as error:
            raise ValueError(str(error)) from None
    if not (path := Path(directory).expanduser() / filename).is_file():
        raise ValueError(f"there is no {path}; put {filename} of the dataset {repository} there")
    return path


SETS: Mapping[str, Callable[[str], list[Entry]]] = {
    "paper-train": lambda _: [Entry(f"item {i}", prompt) for i, prompt in enumerate(PAPER_TRAIN)],
    "paper-unseen": lambda _: [Entry(f"item {i}", prompt) for i, prompt in enumerate(PAPER_UNSEEN)],
    "hpsv2-train": _hpsv2_train,
    "hpsv2-benchmark": _hpsv2_benchmark,
}


def _read_file(path: Path) -> tuple[list[Entry], list[str]]:
    ending = path.suffix.lower()
    if ending in ("", ".txt"):
        lines, notes = _lines(path)
        return [Entry(f"line {number}", line) for number, line in enumerate(lines, 1)], notes
    if ending == ".jsonl":
        lines, notes = _lines(path)
        return [_jsonl_entry(number, line) for number, line in enumerate(lines, 1)], notes
    if ending not in READERS:
        allowed = ", ".join([".txt", ".jsonl", *READERS])
        raise ValueError(f"files of the kind {ending} are not read; allowed: {allowed}")
    return list(READERS[ending](path)), []


def _text(path: Path) -> str:
    data = path.read_bytes().removeprefix(BOM)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = len(LINE_END.findall(data[: error.start].decode("utf-8"))) + 1
        raise ValueError(f"line {line} is not UTF-8; save the file as UTF-8") from None


def _lines(path: Path) -> tuple[list[str], list[str]]:
    """Without the blank ones at the end, which a note names. Only CR and LF end a line: prompts may hold others."""
    lines = LINE_END.split(_text(path))
    if not lines[-1]:  # what follows the last line's end is no line
        lines.pop()
    total = len(lines)
    while lines and not lines[-1].strip():
        lines.pop()
    blank = [str(number) for number in range(len(lines) + 1, total + 1)]
    if not blank:
        return lines, []
    named = f"line {blank[0]} at the end is" if len(blank) == 1 else f"lines {blank[0]}-{blank[-1]} at the end are"
    return lines, [f"{named} empty; ignored"]


def _jsonl_entry(number: int, line: str) -> Entry:
    where = f"line {number}"
    if not line.strip():
        raise ValueError(f"{where} is empty; remove it")
    return Entry(where, _prompt_of(where, _parsed(line, f"{where} ")))


def _json_entries(path: Path) -> Iterator[Entry]:
    """A list of prompts or of objects with one, or an object of prompts with a category each (as DrawBench's)."""
    content = _parsed(_text(path), "")
    if isinstance(content, list):
        for position, item in enumerate(content):
            where = f"item {position}"
            yield Entry(where, item if isinstance(item, str) else _prompt_of(where, item))
    elif isinstance(content, dict):
        for position, (prompt, about) in enumerate(content.items()):
            if not isinstance(about, dict) or not isinstance(about.get("category"), str):
                raise ValueError(
                    f'item {position} ({prompt!r}) has no category; expected {{prompt: {{"category": …}}}}'
                )
            yield Entry(f"item {position}", prompt, {"category": about["category"].strip()})
    else:
        raise ValueError(f"holds {_kind(content)}; expected a list of prompts")


def _csv_entries(path: Path) -> Iterator[Entry]:
    reader = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
    begins = 1  # of a row, which may end some lines later
    try:
        columns = next(reader, [])
        _check_columns(columns)
        begins = reader.line_num + 1
        for row in reader:
            where, begins = f"line {begins}", reader.line_num + 1
            if row:  # a blank line is none
                _check_fields(where, row, columns)
                yield Entry(where, row[columns.index(COLUMN)])
    except csv.Error as error:
        raise ValueError(f"line {begins} is not CSV ({error})") from None


def _parquet_entries(path: Path) -> Iterator[Entry]:
    import pyarrow
    import pyarrow.parquet

    try:
        _check_columns(pyarrow.parquet.read_schema(path).names)
        prompts = pyarrow.parquet.read_table(path, columns=[COLUMN])[COLUMN].to_pylist()
    except pyarrow.ArrowException as error:
        raise ValueError(f"is not a Parquet file that can be read ({str(error).splitlines()[0]})") from None
    except UnicodeDecodeError:
        raise ValueError(f"its {COLUMN} column holds what is not UTF-8; write the file anew from texts") from None
    for position, prompt in enumerate(prompts):
        where = f"row {position}"
        yield Entry(where, _prompt_of(where, {COLUMN: prompt}))


READERS: Mapping[str, Callable[[Path], Iterator[Entry]]] = {
    ".json": _json_entries,
    ".csv": _csv_entries,
    ".parquet": _parquet_entries,
}


def _check_columns(columns: list[str]) -> None:
    if COLUMN not in columns:
        raise ValueError(f"has no column {COLUMN!r}; its columns: {', '.join(columns) or 'none'}")
    if columns.count(COLUMN) > 1:
        raise ValueError(f"has the column {COLUMN!r} twice; its columns: {', '.join(columns)}; rename or remove one")


def _check_fields(where: str, row: list[str], columns: list[str]) -> None:
    """A prompt with a comma and without quotes would end at the comma. Raises: ValueError."""
    if len(row) != len(columns):
        noun = "field" if len(row) == 1 else "fields"
        raise ValueError(
            f"{where} has {len(row)} {noun} and the header {len(columns)} ({', '.join(columns)}); put a text with a "
            "comma between double quotes, or correct the row"
        )


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        place = where or f"line {error.lineno} "
        raise ValueError(f"{place}is not JSON ({error.msg}, column {error.colno})") from None
    except KeyError as error:
        raise ValueError(f"{where}has the key {error} twice in one object; remove one") from None
    except RecursionError:
        raise ValueError(f"{where}is nested too deeply for a list of prompts") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object's content; the last of equal keys would win in silence. Raises: KeyError with the key."""
    for key, times in Counter(key for key, _ in pairs).items():
        if times > 1:
            raise KeyError(key)
    return dict(pairs)


def _prompt_of(where: str, item: Any) -> str:
    """The text of an item's prompt. Raises: ValueError saying what is there instead."""
    if not isinstance(item, Mapping) or COLUMN not in item:
        given = f"keys {', '.join(map(str, item)) or 'none'}" if isinstance(item, Mapping) else _kind(item)
        raise ValueError(f'{where} has no "{COLUMN}" but {given}; give it one')
    if not isinstance(item[COLUMN], str):
        raise ValueError(f"{where}: its {COLUMN} is {_kind(item[COLUMN])}; give a text")
    return str(item[COLUMN])


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"the {type(value).__name__} {str(value)[:40]!r}"
