"""Properties of batches: how a global batch is cut, ordered, padded, resumed and read ahead."""

import time

import numpy as np
import pytest

from jaxllada.common import noise
from jaxllada.common.data.batches import (
    Batch,
    BatchSource,
    StreamSource,
    evaluation_batches,
    prefetch,
)
from jaxllada.common.data.rows import JoinedRows, JoinedText, PackedRows, RaggedRows, Row, as_rows
from jaxllada.common.errors import UserError

MASK, PAD, LENGTH = 999, 0, 16
PACKED = np.arange(1, 1 + 23 * LENGTH, dtype=np.int32).reshape(23, LENGTH)
FIXED = dict(seed=4, mask_id=MASK, pad_id=PAD, max_length=LENGTH)


def answers() -> RaggedRows:
    """Prompt/answer rows of 3 to 13 tokens; the prompt of row i has 1 + i % 3."""
    rows = []
    for i in range(11):
        tokens = np.arange(100 * (i + 1), 100 * (i + 1) + 3 + i, dtype=np.int32)
        rows.append(Row(tokens, np.arange(3 + i) >= 1 + i % 3))
    return RaggedRows(rows)


def flat(batch: Batch) -> list[np.ndarray]:
    """All rows of a batch in global order, one [rows, ...] array per field."""
    return [np.concatenate(list(x)) for x in batch if x is not None]


def joined(batches: list[Batch]) -> Batch:
    """Joins the shards of one step along B."""
    return Batch(
        *(
            None if xs[0] is None else np.concatenate(xs, axis=1)
            for xs in zip(*batches, strict=True)
        )
    )


@pytest.mark.parametrize("sampling", ["iid", "antithetic", "stratified"])
@pytest.mark.parametrize("rows", [PACKED, answers()], ids=["packed", "answers"])
@pytest.mark.parametrize(
    ("accumulation", "micro_batch", "shards"),
    [(4, 2, 1), (1, 8, 1), (2, 2, 2), (2, 1, 4), (1, 1, 8)],
)
def test_cutting_a_global_batch_changes_nothing(rows, sampling, accumulation, micro_batch, shards):
    ratio = 0.5 if rows is PACKED else 0.0
    settings = dict(time_sampling=sampling, random_length_ratio=ratio, **FIXED)
    whole = BatchSource(rows, micro_batch=8, **settings)
    parts = [
        BatchSource(
            rows,
            micro_batch=micro_batch,
            accumulation=accumulation,
            shard_index=s,
            shard_count=shards,
            **settings,
        )
        for s in range(shards)
    ]
    for step in (0, 1, 3):
        together = joined([part.batch(step) for part in parts])
        assert together.tokens.shape[:2] == (accumulation, micro_batch * shards)
        for a, b in zip(flat(whole.batch(step)), flat(together), strict=True):
            np.testing.assert_array_equal(a, b)


def test_each_epoch_visits_every_row_once_across_batch_borders():
    source = BatchSource(PACKED, micro_batch=3, accumulation=2, **FIXED)
    starts = [int(x[0]) for step in range(23) for x in flat(source.batch(step))[0]]
    epochs = [starts[23 * e : 23 * (e + 1)] for e in range(6)]
    for epoch in epochs:
        assert sorted(epoch) == PACKED[:, 0].tolist()
    assert len({tuple(epoch) for epoch in epochs}) == 6
    assert source.steps_per_epoch == pytest.approx(23 / 6)


def test_without_shuffling_rows_come_in_order():
    source = BatchSource(PACKED, micro_batch=4, shuffle=False, **FIXED)
    np.testing.assert_array_equal(source.batch(1).tokens[0], PACKED[4:8])
    np.testing.assert_array_equal(source.batch(5).tokens[0], PACKED[[20, 21, 22, 0]])


def test_a_batch_depends_on_seed_and_step_alone():
    settings = dict(micro_batch=4, **FIXED)
    first = BatchSource(PACKED, **settings)
    digests = [first.batch(step).digest() for step in range(8)]
    again = BatchSource(PACKED, **settings)
    assert [again.batch(step).digest() for step in reversed(range(8))] == digests[::-1]
    other = BatchSource(PACKED, **(settings | {"seed": 5}))
    assert other.batch(0).digest() != digests[0]
    assert len(set(digests)) == 8


def test_a_row_seen_again_is_masked_differently():
    source = BatchSource(PACKED[:1], micro_batch=1, **FIXED)
    batches = [source.batch(step) for step in range(6)]
    np.testing.assert_array_equal(batches[0].tokens, batches[1].tokens)
    assert len({b.is_masked.tobytes() for b in batches}) > 3


def test_fields_agree_with_the_noise_they_come_from():
    source = BatchSource(PACKED, micro_batch=4, accumulation=2, **FIXED)
    batch = source.batch(2)
    assert batch.visible is None
    assert [x.dtype for x in batch[:5]] == [np.int32, np.int32, bool, np.float32, bool]
    tokens, noisy, is_masked, rates, maskable = flat(batch)
    for r in range(8):
        k = 16 + r
        row = PACKED[source.row_number(k)]
        expected = noise.corrupt(row, row > 0, seed=4, index=k, mask_id=MASK)
        np.testing.assert_array_equal(tokens[r], row)
        np.testing.assert_array_equal(noisy[r], expected.noisy)
        np.testing.assert_array_equal(is_masked[r], expected.is_masked)
        assert rates[r] == expected.mask_rate
    assert maskable.all()


@pytest.mark.parametrize("mode", ["sequence", "batch"])
def test_random_length_hides_and_uncounts_the_rest_of_a_row(mode):
    settings = dict(random_length_ratio=0.5, random_length_mode=mode, **FIXED)
    source = BatchSource(PACKED, micro_batch=4, **settings)
    seen = set()
    for step in range(40):
        batch = source.batch(step)
        lengths = [
            noise.random_length(4, 4 * step + r, LENGTH, ratio=0.5, mode=mode, batch_size=4)
            for r in range(4)
        ]
        expected = np.arange(LENGTH) < np.array(lengths)[:, None]
        seen.add(batch.visible is None)
        assert (batch.visible is None) == bool(expected.all())
        np.testing.assert_array_equal(batch.maskable[0], expected)
        assert not (batch.is_masked[0] & ~expected).any()
        if batch.visible is not None:
            np.testing.assert_array_equal(batch.visible[0], expected)
    assert seen == {True, False}


def test_answers_are_padded_with_supervised_eos_to_the_longest_of_the_global_batch():
    rows = answers()
    source = BatchSource(rows, micro_batch=2, accumulation=2, pad_to_multiple=1, **FIXED)
    for step in range(5):
        numbers = [source.row_number(4 * step + r) for r in range(4)]
        batch = source.batch(step)
        assert batch.visible is None
        assert batch.tokens.shape[2] == max(rows.length(n) for n in numbers)
        for r, n in enumerate(numbers):
            tokens, maskable = batch.tokens[r // 2, r % 2], batch.maskable[r // 2, r % 2]
            used = rows.length(n)
            np.testing.assert_array_equal(tokens[:used], rows[n].tokens)
            assert (tokens[used:] == PAD).all()
            np.testing.assert_array_equal(maskable, np.arange(len(tokens)) >= 1 + n % 3)
            assert not batch.is_masked[r // 2, r % 2][: 1 + n % 3].any()


def test_rounding_the_width_up_leaves_the_loss_as_it_is():
    """Equation 5 of the paper pads to the longest row, wherever the arrays end."""
    exact = BatchSource(answers(), micro_batch=4, pad_to_multiple=1, **FIXED).batch(1)
    wide = BatchSource(answers(), micro_batch=4, pad_to_multiple=8, **FIXED).batch(1)
    length = exact.tokens.shape[2]
    assert length < wide.tokens.shape[2]
    assert exact.visible is None
    np.testing.assert_array_equal(wide.visible[0].sum(-1), [length] * 4)
    for a, b in zip(exact[:3], wide[:3], strict=True):
        np.testing.assert_array_equal(a, b[..., :length])
    np.testing.assert_array_equal(wide.maskable.sum(-1), exact.maskable.sum(-1))


@pytest.mark.parametrize("cap", [1, 3, 100])
def test_capped_padding_trains_on_so_many_eos_behind_each_answer(cap):
    rows, policy = answers(), f"eos_capped:{cap}"
    settings = dict(micro_batch=4, shuffle=False, pad_to_multiple=8, **FIXED)
    batch = BatchSource(rows, pad_policy=policy, **settings).batch(0)
    ends = np.minimum(np.array([3, 4, 5, 6]) + cap, 6)
    seen = np.arange(8) < ends[:, None]
    np.testing.assert_array_equal(batch.visible[0], seen)
    prompts = np.array([1, 2, 3, 1])
    np.testing.assert_array_equal(batch.maskable[0], seen & (np.arange(8) >= prompts[:, None]))
    assert not (batch.is_masked & ~batch.maskable).any()
    assert batch.classes is not None


def test_ignored_padding_is_neither_counted_nor_visible():
    rows = answers()
    settings = dict(micro_batch=4, pad_to_multiple=8, pad_policy="ignore", **FIXED)
    batch = BatchSource(rows, shuffle=False, **settings).batch(0)
    used = np.arange(8) < np.array([3, 4, 5, 6])[:, None]
    np.testing.assert_array_equal(batch.visible[0], used)
    assert not (batch.maskable[0] & ~used).any()
    assert (batch.tokens[0][~used] == PAD).all()


@pytest.mark.parametrize(("multiple", "width"), [(1, 13), (8, 16), (64, 16)])
def test_padding_is_rounded_up_but_not_past_max_length(multiple, width):
    source = BatchSource(answers(), micro_batch=11, pad_to_multiple=multiple, **FIXED)
    assert source.batch(0).tokens.shape == (1, 11, width)


def test_a_short_tail_of_packed_text_is_not_trained_on():
    rows = PackedRows(PACKED[:2], np.array([LENGTH, 5]))
    batch = BatchSource(rows, micro_batch=2, shuffle=False, **FIXED).batch(0)
    np.testing.assert_array_equal(batch.maskable.sum(-1), [[LENGTH, 5]])
    np.testing.assert_array_equal(batch.visible.sum(-1), [[LENGTH, 5]])
    assert (batch.tokens[0, 1, 5:] == PAD).all()


def test_each_visit_of_a_dialogue_trains_one_of_its_answers():
    tokens = np.arange(10, 22, dtype=np.int32)
    rows = RaggedRows([Row(tokens, tokens > 0, turns=((2, 5), (7, 12)))])
    source = BatchSource(rows, micro_batch=1, pad_to_multiple=1, **FIXED)
    seen = set()
    for step in range(20):
        batch = source.batch(step)
        start = int(np.argmax(batch.maskable[0, 0]))
        seen.add((start, batch.tokens.shape[2]))
        np.testing.assert_array_equal(batch.tokens[0, 0], tokens[: batch.tokens.shape[2]])
    assert seen == {(2, 5), (7, 12)}


def test_joined_rows_keep_order_and_lengths():
    rows = JoinedText([PackedRows(PACKED[:2]), PackedRows(PACKED[5:8], np.array([16, 16, 3]))])
    assert len(rows) == 5
    assert [rows.length(i) for i in range(5)] == [16, 16, 16, 16, 3]
    assert [int(rows[i].tokens[0]) for i in range(5)] == PACKED[[0, 1, 5, 6, 7], 0].tolist()
    used = np.concatenate([rows[i].tokens for i in range(5)])
    np.testing.assert_array_equal(rows.token_counts(500), np.bincount(used, minlength=500))


def test_joined_pairs_keep_their_rows_and_do_not_mix_with_text():
    rows = JoinedRows([answers(), answers()])
    assert len(rows) == 22
    assert not hasattr(rows, "token_counts")
    np.testing.assert_array_equal(rows[13].tokens, answers()[2].tokens)
    with pytest.raises(UserError, match="cannot be mixed"):
        JoinedRows([answers(), PackedRows(PACKED)])


def forever(start: int):
    while True:
        for i in range(start, len(PACKED)):
            yield as_rows(PACKED)[i]
        start = 0


@pytest.mark.parametrize("block", [1, 5])
def test_a_stream_equals_itself_after_a_restart_at_any_step(block):
    def source():
        settings = dict(shuffle_block=block, **FIXED)
        # Blocks wrap around the end of the source: 25 examples are one block more than 23 rows.
        return StreamSource(lambda n: forever(n % 23), micro_batch=2, accumulation=2, **settings)

    straight = source()
    digests = [straight.batch(step).digest() for step in range(9)]
    for start in (0, 3, 7):
        resumed = source()
        assert [resumed.batch(step).digest() for step in range(start, 9)] == digests[start:]


def test_a_stream_in_order_gives_the_batches_of_unshuffled_rows():
    stream = StreamSource(forever, micro_batch=3, shuffle_block=1, **FIXED)
    rows = BatchSource(PACKED, shuffle=False, micro_batch=3, **FIXED)
    for step in range(7):
        assert stream.batch(step).digest() == rows.batch(step).digest()


def test_a_stream_block_holds_the_same_rows_in_another_order():
    stream = StreamSource(forever, micro_batch=10, shuffle_block=10, **FIXED)
    starts = stream.batch(0).tokens[0, :, 0]
    assert sorted(starts) == PACKED[:10, 0].tolist()
    assert starts.tolist() != PACKED[:10, 0].tolist()


@pytest.mark.parametrize("rows", [PACKED, answers()], ids=["packed", "answers"])
@pytest.mark.parametrize(("batch_size", "shards"), [(4, 1), (2, 3), (50, 1)])
def test_evaluation_noise_does_not_depend_on_the_cut(rows, batch_size, shards):
    def scored(size, shard_count):
        """(first token, rate, masked positions, counted positions) of every real row, sorted."""
        found = []
        for s in range(shard_count):
            settings = dict(mc=2, shard_index=s, shard_count=shard_count, **FIXED)
            for batch in evaluation_batches(rows, batch_size=size, **settings):
                for tokens, _, masked, rate, counted, *_ in zip(*flat(batch), strict=False):
                    if counted.any():
                        places = (tuple(np.flatnonzero(x)) for x in (masked, counted))
                        found.append((int(tokens[0]), float(rate), *places))
        return sorted(found)

    assert scored(batch_size, shards) == scored(1, 1)
    assert len(scored(1, 1)) == 2 * len(as_rows(rows))


def test_evaluation_batches_have_one_shape_and_an_empty_end():
    batches = list(evaluation_batches(PACKED, batch_size=4, mc=1, **FIXED))
    assert {b.tokens.shape for b in batches} == {(1, 4, LENGTH)}
    assert [int(b.maskable.any(-1).sum()) for b in batches] == [4, 4, 4, 4, 4, 3]
    assert all(b.visible is None for b in batches)
    assert not batches[-1].is_masked[0, 3].any()
    few = list(evaluation_batches(PACKED, batch_size=5, max_rows=5, **FIXED))
    assert few[0].tokens[0, :, 0].tolist() == PACKED[[0, 4, 9, 13, 18], 0].tolist()


def test_evaluation_padding_is_left_out_by_default_and_counted_on_request():
    settings = dict(batch_size=11, pad_to_multiple=16, **FIXED)
    plain = next(evaluation_batches(answers(), **settings))
    np.testing.assert_array_equal(plain.visible[0].sum(-1), np.arange(3, 14))
    padded = next(evaluation_batches(answers(), pad_policy="eos_supervised", **settings))
    assert (padded.visible[0].sum(-1) == 13).all()  # the longest row of the batch
    assert padded.maskable[0, :, 12].all()
    capped = next(evaluation_batches(answers(), pad_policy="eos_capped:2", **settings))
    np.testing.assert_array_equal(capped.visible[0].sum(-1), np.minimum(np.arange(5, 16), 13))


class Slow:
    """A source that notes which batches were built and fails at step 5."""

    def __init__(self):
        self.built = []

    def batch(self, step):
        if step == 5:
            raise OSError("disk gone")
        self.built.append(step)
        return BatchSource(PACKED, micro_batch=2, **FIXED).batch(step)


def test_reading_ahead_gives_the_same_batches_and_passes_errors_on():
    source = Slow()
    with prefetch(source, 2, depth=2) as batches:
        for expected in (2, 3, 4):
            step, batch = next(batches)
            assert step == expected
            assert batch.digest() == Slow().batch(step).digest()
        with pytest.raises(OSError, match="disk gone"):
            next(batches)


def test_reading_ahead_stops_at_its_end_and_when_closed():
    assert [step for step, _ in prefetch(Slow(), 1, stop_step=4)] == [1, 2, 3]
    source = Slow()
    batches = prefetch(source, 0, depth=1)
    next(batches)
    time.sleep(0.3)
    batches.close()
    assert len(source.built) <= 3
    assert list(batches) == []


@pytest.mark.parametrize(
    ("rows", "change", "message"),
    [
        (PACKED, {"max_length": 8}, "max_length=8"),
        (answers(), {"max_length": 9}, "max_length=9"),
        (PACKED[:0], {}, "no rows"),
        (PACKED, {"micro_batch": 0}, "micro_batch=0"),
        (PACKED, {"shard_index": 2, "shard_count": 2}, "shard_index=2"),
        (PACKED, {"pad_id": MASK}, "pad_id=999"),
        (PACKED, {"mask_id": 5}, "mask id 5"),
        (PACKED, {"time_sampling": "sobol"}, "time_sampling=sobol"),
        (answers(), {"random_length_ratio": 0.01}, "random_length_ratio=0.01"),
        (answers(), {"pad_policy": "eos_capped:0"}, "pad_policy=eos_capped:0"),
        (answers(), {"pad_policy": "ingore"}, "did you mean 'ignore'"),
    ],
)
def test_bad_settings_are_named(rows, change, message):
    with pytest.raises(UserError, match=message):
        BatchSource(rows, **({"micro_batch": 23} | FIXED | change)).batch(0)


def test_a_global_batch_of_256_rows_of_4096_is_built_in_well_under_a_second():
    rows = np.ones((256, 4096), np.int32)
    settings = FIXED | {"max_length": 4096}
    source = BatchSource(rows, micro_batch=256, random_length_ratio=0.01, **settings)
    start = time.perf_counter()
    source.batch(0)
    assert time.perf_counter() - start < 1
