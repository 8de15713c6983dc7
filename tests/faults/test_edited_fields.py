"""Fields that random edits found: each wrong value is refused though all hashes of the file are right."""

from __future__ import annotations

import copy
import json
import random

import pytest
import torch
from artefacts import kinds
from damage import DEPTH
from forked import needs_fork
from judge import REFUSED, RIGHT, used
from suite import copied

pytestmark = needs_fork
NAN = float("nan")
NESTED = "[" * DEPTH


def every_third(cases):
    """Return the cases as parameters of a test, all but each third one of them in the slow tests alone."""
    return [pytest.param(*case, marks=() if i % 3 == 0 else pytest.mark.slow) for i, case in enumerate(cases)]


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    return {kind.name: kind for kind in kinds(tmp_path_factory.mktemp("intact"))}


def edited(state, path, value):
    """Return a copy of nested data with another value at a path; KeyError stands for no value."""
    state = copy.deepcopy(state)
    *above, last = path
    container = state
    for key in above:
        container = container[key]
    if value is KeyError:
        del container[last]
    else:
        container[last] = value
    return state


@pytest.mark.parametrize(
    ("path", "value"),
    every_third(
        [
            (("config",), "{"),
            (("config",), NESTED),
            (("position", "epoch"), "1"),
            (("position", "batch"), -1),
            (("position", "losses"), None),
            (("history", 0, "epoch"), KeyError),
            (("history", 0, "loss"), "x"),
            (("best", "state"), {"x": torch.zeros(2)}),
            (("best", "state"), [1]),
            (("rng",), torch.zeros(3)),
            (("rng",), 5),
            (("weights",), {}),
            (("gradients",), {"x": torch.zeros(2)}),
            (("optimizer", "state", 4), None),
            (("optimizer", "state", 4, "step"), KeyError),
            (("optimizer", "state", 4, "step"), torch.zeros(4)),
            (("optimizer", "state", 4, "exp_avg"), torch.zeros(1)),
            (("optimizer", "state", 4, "exp_avg"), [0.0]),
            (("optimizer", "state", 4, "exp_avg_sq"), torch.tensor(NAN)),
            (("optimizer", "state", 4, "step"), torch.tensor(-5.0)),
            (("optimizer", "state", 1000), {}),
            (("optimizer", "param_groups", 0, "maximize"), 1e9),
            (("optimizer", "param_groups", 0, "foreach"), "x"),
            (("optimizer", "param_groups", 0, "betas"), (0.9, NAN)),
            (("optimizer", "param_groups", 0, "params"), [0, 1]),
            (("optimizer", "param_groups", 0, "params", 0), 10**9),
            (("optimizer", "param_groups", 0, "params"), KeyError),
            (("optimizer", "param_groups", 0, "eps"), "x"),
            (("optimizer", "param_groups", 0, "eps"), NAN),
            (("optimizer", "param_groups", 0, "betas"), 0.9),
            (("optimizer", "param_groups"), []),
            (("rescheduled",), 5),
            (("callbacks",), 5),
            (("callbacks",), [{"name": None, "state": {}}]),
            (("stopped_at",), "x"),
        ]
    ),
    ids=str,
)
def test_a_wrong_entry_of_a_checkpoint_is_refused(stored, tmp_path, path, value):
    kind = stored["training: checkpoint"]
    with copied(kind, tmp_path) as folder:
        file = folder / kind.file
        torch.save(edited(torch.load(file, weights_only=True), path, value), file)
        kind.seal(file)
        use = used(kind.use, folder)
    assert use.verdict == REFUSED, use.detail
    assert "checkpoint.pt is damaged" in use.detail


@pytest.mark.parametrize("part", ["weights", "best"])
@pytest.mark.parametrize("change", [lambda t: t[..., None], lambda t: t * NAN, lambda t: t.double(), lambda t: [1]])
def test_other_weights_in_a_checkpoint_are_refused(stored, tmp_path, part, change):
    kind = stored["training: checkpoint"]
    with copied(kind, tmp_path) as folder:
        file = folder / kind.file
        state = torch.load(file, weights_only=True)
        weights = state["weights"] if part == "weights" else state["best"]["state"]
        name = next(iter(weights))
        weights[name] = change(weights[name])
        torch.save(state, file)
        kind.seal(file)
        use = used(kind.use, folder)
    assert use.verdict == REFUSED, use.detail


def test_a_setting_of_the_optimizer_that_an_older_torch_lacks_is_that_of_the_run(stored, tmp_path):
    kind = stored["training: checkpoint"]
    outcomes = []
    for name in (None, "eps", "fused"):
        with copied(kind, tmp_path) as folder:
            file = folder / kind.file
            state = torch.load(file, weights_only=True)
            state["optimizer"]["param_groups"][0].pop(name, None)
            torch.save(state, file)
            kind.seal(file)
            outcomes.append(used(kind.use, folder))
    assert [use.verdict for use in outcomes] == [RIGHT] * 3
    assert len({use.detail for use in outcomes}) == 1


@pytest.mark.parametrize(
    ("path", "value"),
    every_third(
        [
            (("similarity",), 0.5),
            (("task",), "nothing"),
            (("precision",), None),
            (("model", "base"), 5),
            (("data", "videos"), "12"),
            (("data", "hash"), None),
            (("data_config", "frames"), []),
            (("metrics", "t2v", "each", "R@1"), 5),
            (("metrics", "t2v", "each", "R@1", 0), "x"),
            (("metrics", "t2v", "each", "R@1", 0), KeyError),
            (("metrics", "t2v", "each", "R@1", 0), "\ud800"),
            (("metrics", "t2v", "\ud800"), 5.0),
            (("metrics", "v2t", "intervals", "R@1"), "9" * 5000),
            (("metrics", "v2t", "intervals", "R@1", 1), KeyError),
            (("metrics", "v2t", "intervals"), 0.5),
            (("metrics", "v2t", "queries"), "x"),
            (("adjusted",), {"dual softmax": 5}),
        ]
    ),
    ids=lambda value: str(value)[:60],
)
def test_a_wrong_entry_of_a_result_is_refused(stored, tmp_path, path, value):
    kind = stored["result: metrics"]
    with copied(kind, tmp_path) as folder:
        file = folder / kind.file
        file.write_text(json.dumps(edited(json.loads(file.read_text()), path, value)))
        kind.seal(file)
        use = used(kind.use, folder)
    assert use.verdict == REFUSED, use.detail
    assert "a.json is" in use.detail


def test_other_files_of_queries_are_refused(stored, tmp_path):
    import pandas as pd
    import pyarrow
    from pyarrow import parquet

    kind = stored["result: queries"]

    def without_directions(file):
        frame = pd.read_parquet(file)
        attributes = frame.attrs
        frame = frame.drop(columns="direction")
        frame.attrs = attributes
        frame.to_parquet(file)

    def nested_metadata(file):
        parquet.write_table(parquet.read_table(file).replace_schema_metadata({"pandas": NESTED}), file)

    def no_text(file):
        table = parquet.read_table(file)
        wrong = pyarrow.array([b"\xff"] * len(table)).view(pyarrow.string())
        parquet.write_table(table.set_column(table.schema.get_field_index("caption"), "caption", wrong), file)

    for change in (without_directions, nested_metadata, no_text):
        with copied(kind, tmp_path) as folder:
            change(folder / kind.file)
            kind.seal(folder / kind.file)
            use = used(kind.use, folder)
        assert use.verdict == REFUSED, use.detail


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("stamp",), KeyError),
        (("stamp", 0), "x"),
        (("content",), KeyError),
        (("info",), KeyError),
        (("info", "codec"), KeyError),
        (("info", "frames"), KeyError),
        (("info", "duration"), "x"),
        (("limit",), "x"),
        (("error",), "both an error and metadata"),
    ],
    ids=str,
)
def test_a_wrong_line_of_a_log_of_a_check_is_made_again(stored, tmp_path, path, value):
    kind = stored["data check: log"]
    with copied(kind, tmp_path) as folder:
        expected = used(kind.use, folder)
        file = folder / kind.file
        first, *others = file.read_text().splitlines()
        file.write_text("\n".join([json.dumps(edited(json.loads(first), path, value)), *others, ""]))
        kind.seal(file)
        use = used(kind.use, folder)
    assert (use.verdict, use.detail) == (RIGHT, expected.detail)


def test_a_report_of_nested_brackets_is_replaced(stored, tmp_path):
    kind = stored["data check: report"]
    with copied(kind, tmp_path) as folder:
        expected = used(kind.use, folder)
        (folder / kind.file).write_text(NESTED)
        use = used(kind.use, folder)
        assert (use.verdict, use.detail) == (RIGHT, expected.detail)
        assert json.loads((folder / kind.file).read_text())["name"]


def test_moments_that_were_swapped_are_refused(stored, tmp_path):
    kind = stored["training: checkpoint"]
    with copied(kind, tmp_path) as folder:
        file = folder / kind.file
        state = torch.load(file, weights_only=True)
        moments = state["optimizer"]["state"][4]
        moments["exp_avg"], moments["exp_avg_sq"] = moments["exp_avg_sq"], moments["exp_avg"]
        torch.save(state, file)
        kind.seal(file)
        use = used(kind.use, folder)
    assert use.verdict == REFUSED, use.detail


@pytest.mark.parametrize("change", ["list", "twice", "links", "entry", "levels"])
def test_an_index_that_refers_to_vectors_that_it_lacks_is_refused(stored, tmp_path, change):
    import faiss

    kind = stored["index: vectors, ivf" if change in ("list", "twice") else "index: vectors, hnsw"]
    with copied(kind, tmp_path) as folder:
        path = folder / kind.file
        index = faiss.read_index(str(path))
        if change in ("list", "twice"):
            number = next(number for number in range(index.nlist) if index.invlists.list_size(number))
            numbers = faiss.rev_swig_ptr(index.invlists.get_ids(number), index.invlists.list_size(number))
            numbers[0] = 10**6 if change == "list" else numbers[-1]
        elif change == "entry":
            index.hnsw.entry_point = 10**6
        else:
            vector = index.hnsw.neighbors if change == "links" else index.hnsw.levels
            values = faiss.vector_to_array(vector)
            values[0] = 10**6
            faiss.copy_array_to_vector(values, vector)
        faiss.write_index(index, str(path))
        kind.seal(path)
        use = used(kind.use, folder)
    assert use.verdict == REFUSED, use.detail
    assert "is damaged" in use.detail or "cannot be read" in use.detail


def test_a_search_index_of_an_absurd_size_is_refused_in_little_memory(stored, tmp_path):
    """Any number of eight bytes may be the size of a vector, which faiss would allocate before it reads."""
    kind = stored["index: vectors, hnsw"]
    content = (kind.artefact / kind.file).read_bytes()
    sizes = [at for at in range(0, 2000, 4) if 0 < int.from_bytes(content[at : at + 8], "little") < 10**4]
    assert len(sizes) > 3
    for at in random.sample(sizes, 4):
        with copied(kind, tmp_path) as folder:
            (folder / kind.file).write_bytes(content[:at] + (10**9).to_bytes(8, "little") + content[at + 8 :])
            kind.seal(folder / kind.file)
            use = used(kind.use, folder)
        assert use.verdict in (RIGHT, REFUSED), (at, use.detail)


@pytest.mark.parametrize("kind", [{}, [], None, 5, "no such kind"])
def test_a_model_of_a_branch_without_a_name_is_refused(stored, tmp_path, kind):
    config = stored["model: config"]
    with copied(config, tmp_path) as folder:
        file = folder / config.file
        file.write_text(json.dumps(edited(json.loads(file.read_text()), ("branch", "kind"), kind)))
        config.seal(file)
        use = used(config.use, folder)
    assert use.verdict == REFUSED, use.detail
    assert "has a branch that cannot be built here" in use.detail


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000, 16), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': 6, 16), }",
        "{'descr': '|O', 'fortran_order': False, 'shape': (6, 16), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (0, 16), }",
        "((((((((",
    ],
)
def test_a_wrong_header_of_an_array_is_refused(stored, tmp_path, header):
    kind = stored["plain store: vectors"]
    with copied(kind, tmp_path) as folder:
        content = (folder / kind.file).read_bytes()
        (folder / kind.file).write_bytes(content[:10] + header.ljust(117).encode() + b"\n" + content[128:])
        kind.seal(folder / kind.file)
        use = used(kind.use, folder)
    assert use.verdict == REFUSED, use.detail
    assert use.mib < 100
