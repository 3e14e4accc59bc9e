"""From text to steps: nothing is lost, documents stay apart, and the seed decides the order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyqwen.errors import UsageError
from tinyqwen.train.data import Chunks, documents

TEXTS = st.lists(st.lists(st.integers(1, 9), max_size=12), min_size=1, max_size=9)


def chunks_of(texts, length, seed=0):
    try:
        return Chunks(texts, end=0, length=length, seed=seed)
    except UsageError:
        return None


@given(TEXTS, st.integers(1, 9))
def test_every_id_is_learnt_once_from_what_stands_before_it(texts, length):
    chunks = chunks_of(texts, length)
    if chunks is None:
        return
    stream = [number for ids in texts for number in (0, *ids)] + [0]
    sequences = [each for chunk in range(len(chunks)) for each in chunks.sequences(chunk)]
    assert [number for ids, _ in sequences for number in ids] == stream[: len(chunks) * length]
    assert [number for _, after in sequences for number in after] == stream[1 : len(chunks) * length + 1]
    assert len(stream) - 1 - len(chunks) * length < length, "less than a chunk is left over"
    for ids, after in sequences:
        assert 0 not in ids[1:], "a document begins a sequence of its own"
        assert ids[1:] == after[:-1]


@given(TEXTS, st.integers(1, 5), st.integers(1, 6), st.integers(0, 99))
def test_each_epoch_sees_every_chunk_once(texts, length, count, seed):
    chunks = chunks_of(texts, length, seed)
    if chunks is None:
        return
    seen = [chunk for step in range(3 * len(chunks)) for chunk in chunks.chosen(step, count)]
    for epoch in range(3):
        assert sorted(seen[epoch * len(chunks) : (epoch + 1) * len(chunks)]) == list(range(len(chunks)))
    assert chunks.chosen(2, count) == chunks.chosen(2, count)


def test_a_step_packs_sequences_that_begin_at_position_0():
    chunks = Chunks([[1, 2, 3], [4], [5, 6, 7, 8]], end=0, length=4, seed=0)
    step, token_N = chunks.step([0, 1])
    assert step.token_T.tolist() == [0, 1, 2, 3, 0, 4, 0, 5] and step.position_T.tolist() == [0, 1, 2, 3, 0, 1, 0, 1]
    assert token_N.tolist() == [1, 2, 3, 0, 4, 0, 5, 6] and len(step.spans) == 3
    assert step.row_N.tolist() == list(range(8)) and np.array_equal(step.token_T[1:4], token_N[:3])


def test_other_data_have_another_digest():
    first, second = (Chunks([[1, 2, last]], end=0, length=2, seed=0) for last in (3, 4))
    assert first.digest != second.digest and len(first.digest) == 16


def test_files(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\nstill one\n")
    (tmp_path / "b.jsonl").write_text('{"text": "first\\n"}\n\n{"text": "second", "more": 1}\n')
    assert list(documents(tmp_path / "a.txt")) == ["one\n\nstill one\n"]
    assert list(documents(tmp_path / "b.jsonl")) == ["first\n", "second"]


@pytest.mark.parametrize("line", ["{", '{"texts": "a"}', '["text"]', '{"text": 3}', "null"])
def test_bad_lines_are_named(tmp_path, line):
    path = tmp_path / "c.jsonl"
    path.write_text('{"text": "fine"}\n' + line)
    with pytest.raises(UsageError, match=r"c\.jsonl, line 2: must be JSON like"):
        list(documents(path))


def test_bad_files_are_named(tmp_path):
    (tmp_path / "d.txt").write_bytes(b"a\xff")
    with pytest.raises(UsageError, match=r"d\.txt: is not valid UTF-8 \(at byte 1\)"):
        list(documents(tmp_path / "d.txt"))
    with pytest.raises(UsageError, match=r"none\.txt: cannot be read \(No such file"):
        list(documents(tmp_path / "none.txt"))
    with pytest.raises(UsageError, match="the data are 4 tokens: too few for a sequence of 5"):
        Chunks([[1, 2]], end=0, length=5, seed=0)
