# SPDX-License-Identifier: BSD-3-Clause
"""Every form in which sequences come is read alike, and mirrored in what goes back."""

import sys
import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from scipy import sparse
from sklearn.base import BaseEstimator
from sklearn.utils.validation import validate_data

from sksvae.sequences import SequenceWarning, read_sequences

NAN, INF = np.nan, np.inf
N_SEQUENCES, N_STEPS, N_FEATURES = 3, 4, 2
STACKED = np.random.default_rng(0).normal(size=(N_SEQUENCES * N_STEPS, N_FEATURES))
ARRAY = STACKED.reshape(N_SEQUENCES, N_STEPS, N_FEATURES)
TABLE = STACKED[:6]

# Row of STACKED in each row of a table in which the sequences take turns.
TURNS = np.arange(len(STACKED)).reshape(N_SEQUENCES, N_STEPS).T.ravel()
IDS = np.repeat([7, 3, 5], N_STEPS)


def frame(rows, ids):
    """DataFrame with the ids of sequences in level 0 of its index."""
    index = pd.MultiIndex.from_arrays([ids, np.arange(len(rows))], names=["id", "step"])
    return pd.DataFrame(rows, columns=["speed", "angle"], index=index)


def in_turn(ids):
    return {"X": STACKED[TURNS], "groups": ids[TURNS]}


FORMS = {
    "3-D array": {"X": ARRAY},
    "3-D array in Fortran order": {"X": np.asfortranarray(ARRAY)},
    "nested lists": {"X": ARRAY.tolist()},
    "list": {"X": list(ARRAY)},
    "tuple": {"X": tuple(ARRAY)},
    "array of arrays": {"X": np.array([*ARRAY, None], dtype=object)[:-1]},
    "list of nested lists and an array": {"X": [ARRAY[0], *ARRAY[1:].tolist()]},
    "list of DataFrames": {"X": [pd.DataFrame(x, columns=["speed", "angle"]) for x in ARRAY]},
    "groups": {"X": STACKED, "groups": IDS},
    "groups in turn": in_turn(IDS),
    "groups as a list": {"X": STACKED.tolist(), "groups": IDS.tolist()},
    "groups of text": in_turn(IDS.astype(str)),
    "groups of floats": in_turn(IDS / 2),
    "groups of dates": in_turn(np.datetime64("2020-01-01") + IDS),
    "groups of categories": in_turn(pd.Categorical(IDS.astype(str), categories=["5", "3", "7"])),
    "groups of nullable integers": in_turn(pd.array(IDS, dtype="Int64")),
    "groups in a Series": {"X": STACKED[TURNS], "groups": pd.Series(IDS[TURNS], index=TURNS)},
    "groups for a DataFrame": {"X": pd.DataFrame(STACKED), "groups": IDS},
    "MultiIndex": {"X": frame(STACKED, IDS)},
    "MultiIndex in turn": {"X": frame(STACKED[TURNS], IDS[TURNS])},
    "MultiIndex of one level": {
        "X": pd.DataFrame(STACKED, index=pd.MultiIndex.from_arrays([IDS.astype(str)]))
    },
}


@pytest.mark.parametrize("form", FORMS.values(), ids=list(FORMS))
def test_every_form_gives_the_same_rows(form):
    sequences = read_sequences(**form)
    assert_array_equal(sequences.values, STACKED)
    assert_array_equal(sequences.lengths, [N_STEPS] * N_SEQUENCES)
    assert (sequences.n_sequences, sequences.n_rows) == (N_SEQUENCES, len(STACKED))
    assert sequences.rows == "consecutive"
    batch, mask = sequences.padded()
    assert_array_equal(batch, ARRAY)
    assert mask.all()


@pytest.mark.parametrize("form", FORMS.values(), ids=list(FORMS))
@pytest.mark.parametrize("trailing", [(), (5,), (2, 2)])
def test_outputs_mirror_the_form(form, trailing):
    outputs = np.random.default_rng(1).normal(size=(len(STACKED), *trailing))
    restored = read_sequences(**form).restore(outputs)
    X = form["X"]
    if isinstance(X, pd.DataFrame) or "groups" in form:
        in_turn = np.array_equal(np.asarray(X), STACKED[TURNS])
        assert_array_equal(restored, outputs[TURNS] if in_turn else outputs)
        return
    is_array = np.ndim(X) == 3 and (isinstance(X, np.ndarray) or isinstance(X[0], list))
    assert isinstance(restored, np.ndarray if is_array else list)
    assert_array_equal(restored, outputs.reshape(N_SEQUENCES, N_STEPS, *trailing))


def test_outputs_need_one_entry_per_row():
    with pytest.raises(ValueError, match=r"rows must have 12 entries, got shape \(3, 4\)"):
        read_sequences(ARRAY).restore(np.zeros((3, 4)))


@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=6),
    shuffled=st.randoms(use_true_random=False),
    missing=st.booleans(),
)
def test_ragged_sequences_in_any_order_of_their_rows(lengths, shuffled, missing):
    values = np.arange(2.0 * sum(lengths)).reshape(-1, 2)
    if missing:
        values[:: len(lengths)] = NAN
    entries = np.split(values, np.cumsum(lengths)[:-1])
    # Whose turn it is: ids in a random order, the steps of each in theirs.
    turns = np.repeat(np.arange(len(lengths)), lengths).tolist()
    shuffled.shuffle(turns)
    steps = [iter(entry) for entry in entries]
    table = np.array([next(steps[i]) for i in turns])
    first_come = list(dict.fromkeys(turns))

    listed = read_sequences(entries)
    for grouped in (
        read_sequences(table, groups=turns),
        read_sequences(pd.DataFrame(table, index=pd.MultiIndex.from_arrays([turns, turns]))),
    ):
        assert_array_equal(grouped.lengths, listed.lengths[first_come])
        expected = [entries[i] for i in first_come]
        assert_array_equal(grouped.values, np.concatenate(expected))
        assert_array_equal(grouped.restore(grouped.values), table)
        batch, mask = grouped.padded()
        assert_array_equal(mask.sum(axis=1), grouped.lengths)
        assert_array_equal(batch[mask], grouped.values)
        assert not batch[~mask].any()
    for entry, restored in zip(entries, listed.restore(listed.values), strict=True):
        assert_array_equal(restored, entry)


def test_a_list_of_equal_lengths_stays_a_list():
    assert isinstance(read_sequences([TABLE, TABLE]).restore(np.zeros(12)), list)


def test_nested_lists_of_unequal_lengths_are_a_list():
    sequences = read_sequences([[[1, 2], [3, 4]], [[5, 6]]])
    assert [x.tolist() for x in sequences.restore(sequences.values)] == [
        [[1, 2], [3, 4]],
        [[5, 6]],
    ]


@pytest.mark.parametrize(
    "X",
    [TABLE.tolist(), list(TABLE), tuple(map(tuple, TABLE)), [pd.Series(row) for row in TABLE]],
    ids=["lists", "arrays", "tuples", "Series"],
)
def test_one_dimensional_entries_are_rows_of_a_table(X):
    sequences = read_sequences(X, rows="consecutive")
    assert_array_equal(sequences.values, TABLE)
    assert_array_equal(sequences.lengths, [6])
    assert_array_equal(sequences.restore(sequences.values), TABLE)


def test_sequences_of_one_step_and_missing_rows_are_read():
    X = [np.full((1, 2), NAN), TABLE[:1], np.full((3, 2), NAN)]
    assert_array_equal(read_sequences(X).values, np.concatenate(X))
    assert_array_equal(read_sequences(X).lengths, [1, 1, 3])


def test_ids_of_different_types_are_different():
    assert_array_equal(read_sequences(TABLE, groups=[1, "1", 1, "1", 2, 2]).lengths, [2, 2, 2])


def test_sequences_come_in_the_order_of_their_first_rows():
    sequences = read_sequences(TABLE, groups=["b", "a", "a", "c", "b", "c"])
    assert_array_equal(sequences.values, TABLE[[0, 4, 1, 2, 3, 5]])
    assert_array_equal(sequences.starts, [0, 2, 4])


# ---- types, names and memory ----


@pytest.mark.parametrize(
    ("dtype", "read"),
    [("f4", "f4"), ("f8", "f8"), ("i8", "f8"), ("f2", "f8"), ("?", "f8"), ("O", "f8")],
)
@pytest.mark.parametrize(
    "form", [lambda X: X[None], lambda X: [X, X], frame], ids=["array", "list", "frame"]
)
def test_types_of_numbers(dtype, read, form):
    X = TABLE.astype(dtype)
    sequences = read_sequences(form(X, [1] * 6) if form is frame else form(X))
    assert sequences.values.dtype == read
    assert sequences.padded()[0].dtype == read


def test_mixed_types_become_the_wider():
    assert read_sequences([TABLE.astype("f4"), TABLE]).values.dtype == np.float64


def test_rows_in_their_order_are_not_copied():
    X = np.ascontiguousarray(ARRAY)
    assert np.shares_memory(read_sequences(X).values, X)
    assert np.shares_memory(read_sequences(STACKED, IDS).values, STACKED)
    assert np.shares_memory(read_sequences(STACKED, rows="consecutive").values, STACKED)


class Named(BaseEstimator):
    """Keeps names and number of features, as estimators do."""

    def check(self, table):
        return validate_data(self, table, reset=not hasattr(self, "n_features_in_"))


@pytest.mark.parametrize(
    "X",
    [
        frame(STACKED[TURNS], IDS[TURNS]),
        [frame(x, [1] * N_STEPS) for x in ARRAY],
        frame(STACKED, IDS).reset_index(drop=True),
    ],
    ids=["MultiIndex", "list", "table"],
)
def test_check_gets_the_names_of_features(X):
    estimator = Named()
    sequences = read_sequences(X, rows="consecutive", check=estimator.check)
    assert_array_equal(sequences.values, STACKED)
    assert_array_equal(estimator.feature_names_in_, ["speed", "angle"])
    with pytest.raises(ValueError, match="feature names should match"):
        read_sequences(frame(TABLE, [1] * 6)[["angle", "speed"]], check=estimator.check)


def test_all_forms_pass_one_check():
    estimator = Named()
    for form in FORMS.values():
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "X (has|does not have valid) feature names")
            assert_array_equal(read_sequences(**form, check=estimator.check).values, STACKED)
    with pytest.raises(ValueError, match="X has 1 features, but Named is expecting 2"):
        read_sequences([TABLE[:, :1]], check=estimator.check)


def test_check_decides_on_the_rows():
    with pytest.raises(ValueError, match="Input X contains NaN"):
        read_sequences([np.full((2, 2), NAN)], check=Named().check)
    doubled = read_sequences(STACKED[TURNS], IDS[TURNS], check=lambda table: 2 * table)
    assert_array_equal(doubled.values, 2 * STACKED)


# ---- rows of a table alone ----


def autoregression(n_rows, coefficient, seed=0):
    noise = np.random.default_rng(seed).normal(size=(n_rows, 2))
    for t in range(1, n_rows):
        noise[t] += coefficient * noise[t - 1]
    return noise


SERIES = autoregression(300, 0.8)


def test_a_series_is_one_sequence():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sequences = read_sequences(SERIES)
    assert sequences.rows == "consecutive"
    assert_array_equal(sequences.lengths, [300])


@pytest.mark.parametrize("seed", range(3))
def test_shuffled_rows_are_sequences_of_one_step_with_a_warning(seed):
    X = np.random.default_rng(seed).permutation(SERIES)
    says = r"rows='consecutive'.* groups, .*list .*3-D.*rows='independent'"
    with pytest.warns(SequenceWarning, match=says):
        sequences = read_sequences(X)
    assert sequences.rows == "independent"
    assert_array_equal(sequences.lengths, np.ones(300))
    assert_array_equal(sequences.values, X)


@pytest.mark.parametrize(
    ("rows", "lengths"), [("consecutive", [6]), ("independent", [1, 1, 1, 1, 1, 1])]
)
def test_what_rows_are_can_be_said(rows, lengths):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for X in (TABLE, pd.DataFrame(TABLE), TABLE.tolist()):
            sequences = read_sequences(X, rows=rows)
            assert_array_equal(sequences.lengths, lengths)
            assert_array_equal(sequences.restore(sequences.values), TABLE)
            assert sequences.rows == rows


def test_the_decision_is_kept_for_other_tables():
    with pytest.warns(SequenceWarning) as warned:
        rows = read_sequences(np.random.default_rng(0).normal(size=(50, 2))).rows
    assert warned[0].filename == __file__
    assert read_sequences(SERIES, rows=rows).n_sequences == 300
    # Fitted on a list, asked for a table: sequences are what rows make there.
    rows = read_sequences([SERIES]).rows
    assert read_sequences(TABLE, rows=rows).n_sequences == 1


def test_rows_do_not_matter_to_explicit_forms():
    for form in FORMS.values():
        sequences = read_sequences(**form, rows="independent")
        assert sequences.n_sequences == N_SEQUENCES
        assert sequences.rows == "independent"


# ---- what cannot be read ----

OBJECTS = np.array([["a", "b"], ["c", "d"]], dtype=object)
UNREADABLE = {
    "empty list": ([], "X is an empty list"),
    "empty tuple": ((), "X is an empty list"),
    "no rows": (np.empty((0, 2)), r"0 sample\(s\)"),
    "no sequences": (np.empty((0, 4, 2)), r"X has no sequences: its shape is \(0, 4, 2\)"),
    "no steps": (np.empty((3, 0, 2)), r"X has no steps: its shape is \(3, 0, 2\)"),
    "no features": (np.empty((3, 4, 0)), r"0 feature\(s\)"),
    "a sequence of no steps": ([TABLE, TABLE[:0]], r"X\[1\] is a sequence without steps"),
    "an empty entry": ([TABLE, []], r"X\[1\] is a sequence without steps"),
    "different features": ([TABLE, TABLE, TABLE[:, :1]], r"X\[0\] has 2 and X\[2\] has 1"),
    "different columns": (
        [pd.DataFrame({"a": [1], "b": [2]}), pd.DataFrame({"b": [2], "a": [1]})],
        r"X is a list of DataFrames .*X\[0\] has \['a', 'b'\] and X\[1\] has \['b', 'a'\]",
    ),
    "different dimensions": ([TABLE, TABLE[0]], r"X\[0\] has 2 and X\[1\] has 1"),
    "univariate series": ([TABLE[:4, 0], TABLE[:2, 0]], r"X .*shape \(n_timesteps, 1\)"),
    "ragged entry": ([[[1, 2], [3]], [[5, 6]]], r"X\[0\] is not a table"),
    "1-D": (TABLE[:, 0], "Expected 2D array, got 1D array"),
    "list of numbers": ([1.0, 2.0], "Expected 2D array, got 1D array"),
    "scalar": (3.0, "Expected 2D array, got scalar"),
    "None": (None, "Expected 2D array, got scalar"),
    "4-D": (ARRAY[None], "X must have 2 or 3 dimensions, got 4.*list of arrays"),
    "list of 3-D arrays": ([ARRAY], "X must have 2 or 3 dimensions, got 4"),
    "complex array": (ARRAY + 1j, "Complex data not supported"),
    "complex list": ([TABLE + 1j], "Complex data not supported"),
    "complex table": (TABLE + 1j, "Complex data not supported"),
    "text": (np.array([["a", "b"]]), "X must hold numbers, but .*'a'"),
    "objects": (OBJECTS[None], "X must hold numbers, but .*'a'"),
    "list of objects": ([OBJECTS], "X must hold numbers, but .*'a'"),
    "infinite array": (np.full((1, 2, 2), INF), "Input X contains infinity"),
    "infinite list": ([TABLE, -INF * TABLE], "Input X contains infinity"),
    "infinite table": (np.full((2, 2), INF), "Input X contains infinity"),
}


@pytest.mark.parametrize(("X", "message"), UNREADABLE.values(), ids=list(UNREADABLE))
def test_what_cannot_be_read(X, message):
    with pytest.raises(ValueError, match=message):
        read_sequences(X)


@pytest.mark.parametrize(
    "X",
    [sparse.csr_array(TABLE), sparse.coo_array(ARRAY), [sparse.csr_array(TABLE), TABLE]],
    ids=["table", "3-D", "list"],
)
def test_sparse_sequences_have_to_be_dense(X):
    with pytest.raises(TypeError, match=r"(?i)X.*toarray\(\)"):
        read_sequences(X)


def test_rows_must_be_a_choice():
    with pytest.raises(ValueError, match=r"rows must be 'auto'.* got 'ordered'"):
        read_sequences(TABLE, rows="ordered")


BAD_GROUPS = {
    "too few": ([1, 2], "groups must have one id per row of X, got 2 ids for 6 rows"),
    "too many": (np.ones(7), "groups must have one id per row of X, got 7 ids for 6 rows"),
    "2-D": (np.ones((6, 1)), "groups must have one dimension, .*, got 2. .* pass that column"),
    "a name": ("subject", "groups must have one dimension, .*, got 0. .* pass that column"),
    "NaN": (np.array([1, 1, NAN, 2, 2, NAN]), "groups has no id for 2 of 6 rows, .* row 2"),
    "None": (["a", None, "a", "b", "b", "b"], "groups has no id for 1 of 6 rows, .* row 1"),
    "NaN and text": (["a", "a", "b", "b", "b", NAN], "groups has no id for 1 of 6 .* row 5"),
    "NaT": (np.array(["NaT", *["2020"] * 5], "M8[D]"), "groups has no id for 1 of 6 .* row 0"),
    "NA": (pd.array([1, 1, 1, None, 1, 1], "Int64"), "groups has no id for 1 of 6 .* row 3"),
    "missing text": (pd.Series(["a", None] * 3), "groups has no id for 3 of 6 rows"),
    "missing category": (pd.Categorical(["a", None] * 3), "groups has no id for 3 of 6 rows"),
}


@pytest.mark.parametrize(("groups", "message"), BAD_GROUPS.values(), ids=list(BAD_GROUPS))
def test_groups_that_do_not_fit(groups, message):
    with pytest.raises(ValueError, match=message):
        read_sequences(TABLE, groups=groups)


def test_missing_ids_are_found_without_pandas(monkeypatch):
    monkeypatch.delitem(sys.modules, "pandas")
    with pytest.raises(ValueError, match=r"groups has no id for 2 of 6 rows, .* row 4"):
        read_sequences(TABLE, groups=["a", 1, "a", 1, None, NAN])
    assert read_sequences([TABLE], check=None).n_sequences == 1


def test_ids_have_to_be_hashable():
    with pytest.raises(TypeError, match="groups must hold ids such as numbers or text"):
        read_sequences(TABLE, groups=[[1], [2, 3], 1, 1, 1, 1])


def test_missing_ids_in_the_index():
    with pytest.raises(ValueError, match="level 0 of the index of X has no id for 1 of 6 rows"):
        read_sequences(frame(TABLE, [1, 1, NAN, 2, 2, 2]))


@pytest.mark.parametrize(
    ("X", "message"),
    [
        (ARRAY, "X is a 3-D array"),
        (ARRAY.tolist(), "X is a 3-D array"),
        (list(ARRAY), "X is a list"),
        (frame(STACKED, IDS), "X has a MultiIndex"),
    ],
    ids=["array", "nested lists", "list", "MultiIndex"],
)
def test_groups_are_for_tables_alone(X, message):
    with pytest.raises(ValueError, match=f"groups must be None here: {message}"):
        read_sequences(X, groups=IDS)


def test_a_column_of_dates_is_named_as_such():
    table = pd.DataFrame({"x": [1.0, 2.0], "day": pd.date_range("2020", periods=2)})
    with pytest.raises(ValueError, match=r"X must hold numbers, but .* such as dates .* Encode"):
        read_sequences(table)
