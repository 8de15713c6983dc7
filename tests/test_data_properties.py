"""Properties of splits of data, filters, names as they are printed, and hashes of content, over random examples."""

from __future__ import annotations

import operator
import os
import tempfile
import unicodedata
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipvid.data.probing import content
from clipvid.data.probing.content import HashLog, content_hash, stamp_of
from clipvid.data.records import Record, VideoDataset
from clipvid.runtime.display.names import as_utf8, printable, show
from clipvid.runtime.storage import stamps
from clipvid.search.queries.filters import Both, Compare, Either, Filter, Not, OneOf, columns_of, parse

SEEDS = st.integers(0, 2**32)


# --- splits ---


@st.composite
def labelled_clips(draw, *, without_class: bool = True) -> VideoDataset:
    """Return a data set of up to 24 clips of up to 12 files; the clips of a file may have different classes."""
    n_classes = draw(st.integers(1, 4))
    labels = st.integers(0, n_classes - 1)
    pairs = draw(st.lists(st.tuples(st.integers(0, 11), labels | st.none() if without_class else labels), max_size=24))
    records = [
        Record(Path(f"{file}.mp4"), label=label, start=float(number), end=number + 1.0)
        for number, (file, label) in enumerate(pairs)
    ]
    return VideoDataset(tuple(records), tuple("abcd"[:n_classes]), "random")


@given(labelled_clips(), st.floats(0.01, 0.99), SEEDS)
def test_a_split_is_a_partition_by_file_that_trains_every_class(data, fraction, seed):
    try:
        train, validation = data.split(fraction, seed=seed)
    except ValueError:
        by_file = {record.path: {each.label for each in data if each.path == record.path} for record in data}
        counts = Counter(label for labels in by_file.values() for label in labels)
        assert all(any(counts[label] == 1 for label in labels) for labels in by_file.values())
        return
    assert {record.path for record in train}.isdisjoint(record.path for record in validation)
    for part in (train, validation):
        assert [record for record in data if record in part.records] == list(part.records)
        assert part.classes == data.classes
    assert len(train) + len(validation) == len(data)
    assert {record.label for record in train} == {record.label for record in data}
    assert data.split(fraction, seed=seed) == (train, validation)


@given(st.lists(st.integers(2, 30), min_size=1, max_size=5), st.floats(0.01, 0.99), SEEDS)
def test_a_split_holds_out_the_fraction_of_every_class(sizes, fraction, seed):
    records = [Record(Path(f"{label}-{i}.mp4"), label=label) for label, size in enumerate(sizes) for i in range(size)]
    validation = VideoDataset(tuple(records), tuple("abcde"[: len(sizes)])).split(fraction, seed=seed)[1]
    most = sum(size - 1 for size in sizes)
    assert len(validation) == min(max(1, round(fraction * sum(sizes))), most)
    counts = Counter(record.label for record in validation)
    if len(validation) < most:
        assert all(counts[label] >= min(int(fraction * size), size - 1) for label, size in enumerate(sizes))


@given(labelled_clips(without_class=False), st.integers(1, 3), SEEDS)
def test_few_shot_takes_complete_files_and_the_same_number_of_each_class(data, shots, seed):
    files = {label: {record.path for record in data if record.label == label} for label in range(len(data.classes))}
    if min(map(len, files.values())) < shots:
        with pytest.raises(ValueError, match=f"classes with fewer than {shots} videos"):
            data.few_shot(shots, seed=seed)
        return
    few = data.few_shot(shots, seed=seed)
    assert few == data.few_shot(shots, seed=seed)
    for label in files:
        chosen = {record.path for record in few if record.label == label}
        assert len(chosen) == shots
        assert [r for r in data if r.label == label and r.path in chosen] == [r for r in few if r.label == label]


@given(labelled_clips())
def test_base_and_novel_classes_are_the_frequent_and_the_rare_half(data):
    if len(data.classes) < 2:
        with pytest.raises(ValueError, match="needs at least 2"):
            data.base_novel()
        return
    base, novel = data.base_novel()
    assert sorted(base.classes + novel.classes) == sorted(data.classes)
    assert len(base.classes) - len(novel.classes) in (0, 1)
    counts = Counter(data.classes[record.label] for record in data if record.label is not None)
    assert min(counts[name] for name in base.classes) >= max(counts[name] for name in novel.classes)
    for part in (base, novel):
        names = [(record.path, record.start, part.classes[record.label]) for record in part]
        assert names == [
            (record.path, record.start, data.classes[record.label])
            for record in data
            if record.label is not None and data.classes[record.label] in part.classes
        ]


# --- filters ---

VALUES = {
    "path": st.text(max_size=6) | st.text("ab\\\"'\n ", max_size=6),
    "size": st.integers(-(10**20), 10**20) | st.integers(0, 3) | st.floats(allow_nan=False, allow_infinity=False),
    "länge_2": st.floats(-3, 3) | st.sampled_from([0, 1, 0.5]),
    "marked": st.booleans(),
}
OPERATORS = {"=": "==", "!=": "!=", "<": "<", "<=": "<=", ">": ">", ">=": ">="}
COMPARISONS = st.one_of(
    *(st.builds(Compare, st.just(name), st.sampled_from([*OPERATORS]), values) for name, values in VALUES.items()),
    *(
        st.builds(OneOf, st.just(name), st.lists(values, min_size=1, max_size=3).map(tuple), st.booleans())
        for name, values in VALUES.items()
    ),
)
FILTERS = st.recursive(
    COMPARISONS,
    lambda parts: st.one_of(
        st.builds(Not, parts),
        st.builds(Both, st.lists(parts, min_size=2, max_size=3).map(tuple)),
        st.builds(Either, st.lists(parts, min_size=2, max_size=3).map(tuple)),
    ),
    max_leaves=8,
)
ROWS = st.fixed_dictionaries({name: st.none() | values for name, values in VALUES.items()})


def printed(value: object) -> str:
    """Return a value as the grammar writes it; in text, every third character has a backslash that it may have."""
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, str):
        return repr(value)
    quote = "'" if '"' in value else '"'
    needed = (quote, "\\")
    escaped = (f"\\{c}" if c in needed or i % 3 == 0 else c for i, c in enumerate(value))
    return quote + "".join(escaped) + quote


def written(condition: Filter, *, python: bool) -> str:
    """Return a condition in the grammar of filters, or as an expression of Python."""
    match condition:
        case Compare(name, sign, value):
            if not python:
                return f"{name}{sign} {printed(value)}"
            return f"(row[{name!r}] is not None and row[{name!r}] {OPERATORS[sign]} {value!r})"
        case OneOf(name, values, negated):
            if not python:
                return f"{name} {'NOT ' * negated}in ({', '.join(map(printed, values))})"
            return f"(row[{name!r}] is not None and row[{name!r}] {'not ' * negated}in {values!r})"
        case Not(part):
            return f"not ({written(part, python=python)})"
        case Both(parts) | Either(parts):
            word = " and " if isinstance(condition, Both) else " or "
            return word.join(f"({written(part, python=python)})" for part in parts)
    raise TypeError(condition)


def parsed(text: str) -> Filter | None:
    """Return the filter that a text describes, None where it is refused by a ValueError."""
    try:
        return parse(text)
    except ValueError:
        return None


@given(FILTERS)
def test_a_printed_filter_is_parsed_as_itself(condition):
    assert parse(written(condition, python=False)) == condition
    assert parse(written(condition, python=False), sorted(VALUES)) == condition
    assert columns_of(condition) <= set(VALUES)


@given(FILTERS, ROWS)
def test_a_filter_matches_what_python_says(condition, row):
    assert condition.matches(row) is bool(eval(written(condition, python=True), {"row": row}))
    assert Not(condition).matches(row) is not condition.matches(row)


@given(
    st.lists(st.sampled_from(["a", "and", "or", "not", "in", "(", ")", ",", "=", "<", '"x"', "1", "-1.5e3", "true"]))
)
def test_and_binds_more_than_or_and_other_texts_are_refused_in_words(words):
    """Any sequence of words is a filter that has the value of the same words in Python, or is a ValueError."""
    condition = parsed(" ".join(words))
    if condition is None:
        return
    python = " ".join({"=": "==", "true": "True", ",": ","}.get(word, word) for word in words)
    for value in ("x", 1, True):
        try:
            outcome = condition.matches({"a": value})
        except ValueError:
            continue
        if " in ( " not in python:
            assert outcome is eval(python, {"a": value})


@given(st.text(max_size=30))
def test_any_text_is_a_filter_or_a_value_error(text):
    condition = parsed(text)
    assert condition is None or columns_of(condition)


# --- names ---

FILE_NAMES = st.one_of(
    st.binary(min_size=1, max_size=12),
    st.text(min_size=1, max_size=8).map(lambda text: text.encode(errors="replace")),
    st.lists(st.sampled_from([b"\x85", b"\xc2", b"\xc2\x85", b"\n", b"a"]), min_size=1, max_size=3).map(b"".join),
)


def is_harmless(text: str) -> bool:
    """Return True for one line without controls and marks of direction; words may have joiners."""
    hidden = [c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")]
    return set(hidden) <= set("\u200c\u200d")


@given(FILE_NAMES)
def test_any_name_is_printed_on_one_line_in_utf8(name):
    shown = show(os.fsdecode(name))
    assert is_harmless(shown)
    assert shown.encode().decode() == shown
    assert show(shown) == shown
    if os.fsdecode(name).isprintable():
        assert shown == os.fsdecode(name)


@given(st.lists(FILE_NAMES.filter(lambda name: b"\\" not in name), unique=True, min_size=2, max_size=6))
def test_different_names_without_backslash_are_printed_differently(names):
    assert len({show(os.fsdecode(name)) for name in names}) == len(names)


@given(st.lists(st.characters() | st.sampled_from("\ud800\udc80\udfff\udcff"), max_size=8).map("".join))
def test_any_text_can_be_encoded_and_printed(text):
    as_utf8(text).encode()
    assert is_harmless(show(text))
    assert is_harmless(printable(text).replace("\n", "").replace("\t", ""))
    if not any("\ud800" <= character <= "\udfff" for character in text):
        assert as_utf8(text) == text


# --- content ---

BYTES = st.binary(max_size=40)


@given(st.lists(BYTES, min_size=1, max_size=5), st.data())
def test_a_hash_tells_contents_apart_after_any_changes(contents, data):
    """Files are written, replaced, moved and touched in any order; equal hashes always mean equal bytes."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = [folder / f"{number}.mp4" for number in range(3)]
        for path in paths:
            path.write_bytes(b"")
        for new in contents:
            first, second = data.draw(st.permutations(paths))[:2]
            match data.draw(st.sampled_from(["write", "replace", "append", "touch"])):
                case "write":
                    first.write_bytes(new)
                case "replace":
                    (folder / "new").write_bytes(new)
                    os.replace(folder / "new", first)
                case "append":
                    second.write_bytes(first.read_bytes() + new)
                case "touch":
                    os.utime(first, ns=(10**18, 10**18))
            hashes = {path: content_hash(path) for path in paths}
            for a in paths:
                for b in paths:
                    assert (hashes[a] == hashes[b]) is (a.read_bytes() == b.read_bytes())


@given(st.lists(BYTES.filter(len), min_size=1, max_size=4), st.lists(BYTES.filter(len), min_size=1, max_size=4))
def test_folders_of_pictures_are_equal_if_their_pictures_are_in_order(first, second):
    with tempfile.TemporaryDirectory() as name:
        hashes = []
        for number, pictures in enumerate((first, second)):
            folder = Path(name, str(number))
            folder.mkdir()
            for index, picture in enumerate(pictures):
                (folder / f"{index}.png").write_bytes(picture)
            hashes.append(content_hash(folder))
    assert operator.eq(*hashes) is (first == second)


@given(st.binary(min_size=1, max_size=20), st.integers(0, 10_000), st.integers(1, 255), st.booleans())
def test_a_damaged_log_never_gives_another_hash(written_bytes, position, change, cut):
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(content, "_hashes", {})
        patch.setattr(stamps.Stamp, "is_settled", True)
        path, log = Path(name, "a.mp4"), Path(name, "hashes.jsonl")
        path.write_bytes(written_bytes)
        right = {stamp_of(path): content_hash(path)}
        HashLog(log).add([path])
        damaged = bytearray(log.read_bytes())
        assert damaged
        damaged[position % len(damaged)] ^= change
        log.write_bytes(damaged[: position % len(damaged)] if cut else damaged)
        patch.setattr(content, "_hashes", {})
        HashLog(log)
        assert content._hashes.items() <= right.items()
