"""Stores of vectors: every registered one against a plain list, and the filter grammar against Python."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from clipvid.errors import CheckpointError
from clipvid.registry import STORES
from clipvid.search.queries.filters import parse
from clipvid.search.stores.base import Match, Store

WIDTH = 16
COLUMNS = [{"label": "dog" if i % 3 else "cat", "seconds": i / 2, "number": i, "good": i % 2 == 0} for i in range(60)]


def unit(total, seed=0):
    rows = np.random.default_rng(seed).normal(size=(total, WIDTH))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


class PlainStore:
    """The oracle: a list of rows, sorted again for each query."""

    def __init__(self):
        self.rows = {}

    def add(self, ids, vectors, metadata):
        self.rows |= {name: (vector, each) for name, vector, each in zip(ids, vectors, metadata, strict=True)}

    def search(self, query, k, where=None):
        passing = [(n, float(query @ v)) for n, (v, each) in self.rows.items() if where is None or where.matches(each)]
        return [name for name, _ in sorted(passing, key=lambda pair: -pair[1])[:k]]


@pytest.fixture(params=[(name, kind) for name in STORES for kind in STORES[name].kinds], ids="-".join)
def stores(request):
    """A store of each kind and the oracle, with the same sixty rows."""
    name, kind = request.param
    store, plain = STORES[name](WIDTH, kind=kind), PlainStore()
    ids, rows = [f"row {i}" for i in range(60)], unit(60)
    for part in (slice(0, 20), slice(20, 60)):
        store.add(ids[part], rows[part], COLUMNS[part])
        plain.add(ids[part], rows[part], COLUMNS[part])
    return store, plain


WHERE = [None, 'label = "cat"', "seconds > 5 and not good = true", "number in (3, 5, 8) or number >= 55", "number < 0"]


@pytest.mark.parametrize("where", WHERE)
def test_a_search_finds_the_rows_that_a_plain_list_finds(stores, where):
    store, plain = stores
    condition = where and parse(where)
    queries = unit(5, seed=1)
    matches = store.search(queries, 7, condition)
    assert [[match.id for match in each] for each in matches] == [plain.search(q, 7, condition) for q in queries]
    assert store.count(condition) == len(plain.search(queries[0], 100, condition))
    for query, each in zip(queries, matches, strict=True):
        assert [m.score for m in each] == pytest.approx([float(query @ plain.rows[m.id][0]) for m in each], abs=1e-5)


def test_rows_are_replaced_removed_and_read(stores):
    store, plain = stores
    store.upsert(["row 4", "new"], unit(2, seed=2), [{"label": "bird"}, {"label": None}])
    assert store.count() == 61
    vectors, metadata = store.get(["new", "row 4", "row 5"])
    np.testing.assert_allclose(vectors, [*unit(2, seed=2)[::-1], plain.rows["row 5"][0]], atol=1e-6)
    assert metadata == [{"label": None}, {"label": "bird"}, COLUMNS[5]]
    assert store.search(vectors[:1], 1)[0][0] == Match("new", pytest.approx(1))
    assert store.remove(["row 4", "no such row", "row 0"]) == 2
    assert store.count() == 59
    assert store.count(parse('label = "bird"')) == 0
    with pytest.raises(KeyError):
        store.get(["row 0"])


def test_an_id_in_use_is_refused_and_nothing_changes(stores):
    store, _ = stores
    for ids in (["other", "row 7"], ["other", "other"]):
        with pytest.raises(ValueError, match=f"id '{ids[1]}' is in the store already, or given twice"):
            store.add(ids, unit(2))
    assert store.count() == 60
    with pytest.raises(ValueError, match="must be of one length, got 1, 2 and 1"):
        store.add(["other"], unit(2))
    with pytest.raises(ValueError, match=r"metadata 'x' must be a text, a finite number, .* got \[1\]"):
        store.add(["other"], unit(1), [{"x": [1]}])


def test_a_saved_store_answers_as_before(stores, tmp_path):
    store, _ = stores
    store.save(tmp_path)
    again = type(store).load(tmp_path)
    queries, where = unit(3, seed=3), parse("seconds <= 20")
    assert again.search(queries, 9) == store.search(queries, 9)
    assert again.search(queries, 9, where) == store.search(queries, 9, where)
    assert (again.kind, again.width, again.count()) == (store.kind, WIDTH, 60)
    again.close()


def directions(*signs):
    """Return rows along the first axis (1), the second (2), or between them (0)."""
    return np.array([{0: (0.6, 0.8), 1: (1, 0), 2: (0, 1)}[sign] for sign in signs], dtype=np.float32)


@pytest.mark.parametrize("where", [None, "number >= 0"])
@pytest.mark.parametrize(("name", "kind"), [(name, kind) for name in STORES for kind in STORES[name].kinds])
def test_ties_at_the_last_place_are_in_the_order_of_adding(name, kind, where):
    store = STORES[name](2, kind=kind)
    store.add(list("abcd"), directions(0, 0, 0, 1), [{"number": i} for i in range(4)])
    store.add([str(i) for i in range(50)], directions(*[0] * 50), [{"number": i} for i in range(50)])
    queries, condition = directions(1, 0, 2), where and parse(where)
    for k, best in ((1, ["d", "a", "a"]), (2, ["da", "ab", "ab"]), (3, ["dab", "abc", "abc"])):
        if kind == "hnsw" and where is None:
            continue  # a walk along the graph need not reach every tie
        assert ["".join(m.id for m in each) for each in store.search(queries, k, condition)] == best


def test_ties_of_a_trained_ivf_index_are_in_order_under_a_filter():
    store = STORES["faiss"](WIDTH, kind="ivf")
    store.add([str(i) for i in range(600)], np.repeat(unit(300), 2, axis=0), [{"number": i} for i in range(600)])
    store.optimize()
    best = store.search(unit(300), 1, parse("number != 0"))
    assert [each[0].id for each in best] == ["1", *(str(i) for i in range(2, 600, 2))]


def test_a_filter_does_not_copy_the_vectors(monkeypatch):
    monkeypatch.setattr("clipvid.search.stores.faiss.Vectors.get", None)
    for kind in STORES["faiss"].kinds:
        store = STORES["faiss"](WIDTH, kind=kind)
        store.add([str(i) for i in range(400)], unit(400), [{"number": i} for i in range(400)])
        store.optimize()
        assert [m.id for m in store.search(unit(400)[7:8], 1, parse("number < 9"))[0]] == ["7"]


@pytest.mark.parametrize(
    ("ids", "vectors", "metadata", "message"),
    [
        (["row 7", "row 7"], unit(2), None, "id 'row 7' is in the store already, or given twice; give it once"),
        (["row 7"], unit(2), None, "must be of one length, got 1, 2 and 1; give one entry per row"),
        (["row 7"], unit(1)[:, :3], None, "vectors must have 16 components, got 3; make another store"),
        (["row 7"], unit(1), [{"x": [1]}], "metadata 'x' must be a text"),
    ],
)
def test_rows_survive_a_refused_replacement(stores, ids, vectors, metadata, message):
    store, plain = stores
    with pytest.raises(ValueError, match=message):
        store.upsert(ids, vectors, metadata)
    np.testing.assert_array_equal(store.get(["row 7"])[0][0], plain.rows["row 7"][0])
    assert store.ids() == list(plain.rows)


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_a_filter_on_an_approximate_index_misses_no_row(kind, monkeypatch):
    monkeypatch.setattr("clipvid.search.stores.faiss.BLOCK", 64)
    rows, ids = unit(400), [str(i) for i in range(400)]
    store = STORES["faiss"](WIDTH, kind=kind)
    store.add(ids, rows, [{"number": i} for i in range(400)])
    store.optimize()
    store.remove(["7", "300"])
    query = unit(1, seed=4)
    passing = [i for i in range(400) if (i < 20 or i > 390) and i != 7]
    best = sorted(passing, key=lambda i: -float(rows[i] @ query[0]))[:30]
    matches = store.search(query, 30, parse("number < 20 or number > 390"))[0]
    assert [match.id for match in matches] == [str(i) for i in best]
    np.testing.assert_array_equal(store.get(["399", "8"])[0], rows[[399, 8]])


def test_damaged_files_of_the_faiss_store_are_refused(tmp_path):
    store = STORES["faiss"](WIDTH)
    store.add(["a", "b"], unit(2))
    store.save(tmp_path)
    rows = (tmp_path / "rows.json").read_text()
    for old, new in (
        ('"b"', '"a"'),
        ('"b"', "3"),
        ('"format": 1', '"format": 2'),
        ("{}, {}", "{}"),
        ("flat", "tree"),
        ("[", ""),
    ):
        assert old in rows
        (tmp_path / "rows.json").write_text(rows.replace(old, new, 1))
        with pytest.raises(CheckpointError, match="build the index again"):
            type(store).load(tmp_path)
    (tmp_path / "rows.json").unlink()
    with pytest.raises(CheckpointError, match="is damaged"):
        type(store).load(tmp_path)


def test_a_kind_that_a_store_lacks_is_refused():
    with pytest.raises(ValueError, match="kind must be one of flat, ivf, hnsw, got 'tree'; choose one"):
        STORES["faiss"](WIDTH, kind="tree")
    with pytest.raises(ValueError, match="an ivf index needs at least 312 videos"):
        STORES["faiss"].check("ivf", 10)


PYTHON = {
    'label = "cat"': lambda r: r["label"] == "cat",
    "number>=5 and number < 9": lambda r: 5 <= r["number"] < 9,
    "number = 3 or number = 4 and good = true": lambda r: r["number"] == 3 or (r["number"] == 4 and r["good"]),
    "(number = 3 or number = 4) and good = true": lambda r: r["number"] in (3, 4) and r["good"],
    "not (label in ('dog', 'bird') or seconds != 4.5)": lambda r: (
        not (r["label"] in ("dog", "bird") or r["seconds"] != 4.5)
    ),
    "not not good = false": lambda r: not r["good"],
    "number not in (1, 2.0, 3e0, -4)": lambda r: r["number"] not in (1, 2, 3),
    'LABEL_2 = "cat"': lambda r: False,
    "number NOT IN (1) AND good = TRUE": lambda r: r["number"] != 1 and r["good"],
}


@pytest.mark.parametrize("text", PYTHON)
def test_filters_choose_the_rows_that_python_chooses(text):
    condition = parse(text)
    chosen = [row["number"] for row in COLUMNS if condition.matches(row)]
    assert chosen == [row["number"] for row in COLUMNS if PYTHON[text](row)]


def test_text_in_a_filter_may_hold_quotes_and_words_of_the_grammar():
    assert parse(r'label = "a \"b\" and \\ (c"').matches({"label": r'a "b" and \ (c'})
    assert parse('label = "a\\\nb"').matches({"label": "a\nb"})
    assert parse("label = 'or'").matches({"label": "or"})
    assert not parse("label != 'x'").matches({})
    assert parse("not label = 'x'").matches({})


@pytest.mark.parametrize("word", ["or", "and"])
def test_a_chain_of_many_terms_is_one_condition(word):
    sign = "=" if word == "or" else "!="
    condition = parse(f" {word} ".join(f'label {sign} "{i}"' for i in range(2000)))
    assert len(condition.parts) == 2000
    assert [condition.matches({"label": label}) for label in ("0", "1999", "x")] == [word == "or"] * 2 + [word == "and"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has the end where the name of a column must be"),
        ("label", "has the end where one of = != < <= > >= or in must be"),
        ("label = ", 'has the end where a value'),
        ("label == 'x'", "has '=' at character 8 where a value"),
        ("label = dog", "has 'dog' at character 9 where a value"),
        ("label = 'x' number = 3", "has 'number' at character 13 where and, or, or the end must be"),
        ("(label = 'x'", "has the end where '\\)' must be"),
        ("number in ()", "has '\\)' at character 12 where a value"),
        ("number not = 3", "has '=' at character 12 where 'in' must be"),
        ("number = 3; drop", "has ';' at character 11"),
        ("label = 'x", "has \"'\" at character 9"),
        ("number = 3x", "has '3' at character 10"),
        ("and = 3", "has 'and' at character 1 where the name of a column"),
        ("(" * 60 + "a = 1" + ")" * 60, "nested at most 50 deep"),
        ("not " * 2000 + "a = 1", "nested at most 50 deep"),
    ],
)  # fmt: skip
def test_a_wrong_filter_is_refused_with_its_position(text, message):
    with pytest.raises(ValueError, match=message):
        parse(text)


@pytest.mark.parametrize("text", ["label = 3", "number = 'x'", "good = 1", "number = true", "label in (1, 'x')"])
def test_a_value_of_another_type_than_the_column_is_refused(text):
    with pytest.raises(ValueError, match="which cannot be compared with"):
        assert any(parse(text).matches(row) for row in itertools.islice(COLUMNS, 1))


@pytest.mark.parametrize("base", [False, True])
def test_rows_get_other_ids_in_their_order(stores, base):
    store, _ = stores
    kind = Store if base else type(store)
    vectors, metadata = store.get(store.ids())
    kind.rename(store, {"row 3": "three", "row 4": "row 3"}, column="label")
    ids = [{3: "three", 4: "row 3"}.get(i, f"row {i}") for i in range(60)]
    assert store.ids() == ids
    again, renamed = store.get(ids)
    np.testing.assert_array_equal(again, vectors)
    assert renamed == [each if i not in (3, 4) else {**each, "label": ids[i]} for i, each in enumerate(metadata)]
    assert store.search(vectors[4:5], 1)[0][0].id == "row 3"
    with pytest.raises(ValueError, match="id 'row 9' is in the store already, or given twice"):
        kind.rename(store, {"row 8": "row 9"}, column="label")
    assert store.ids() == ids


@pytest.mark.parametrize("base", [False, True])
def test_a_store_says_which_ids_it_has(stores, base):
    store, _ = stores
    kind = Store if base else type(store)
    assert kind.existing(store, ["row 3", "none", "row 59"]) == {"row 3", "row 59"}


@pytest.mark.parametrize("kind", ["flat", "hnsw"])
def test_adding_and_reading_few_rows_looks_at_no_others(kind, monkeypatch):
    store = STORES["faiss"](WIDTH, kind=kind)
    store.add([str(i) for i in range(50)], unit(50))
    monkeypatch.setattr("clipvid.search.stores.faiss.BLOCK", None)  # no block can be copied
    monkeypatch.setattr(type(store), "ids", None)
    store.upsert(["new"], unit(1, seed=1))
    np.testing.assert_array_equal(store.get(["new", "7"])[0], [unit(1, seed=1)[0], unit(50)[7]])
