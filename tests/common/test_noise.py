"""Properties of the counter-based training noise. Bounds are derived and seeds are fixed."""

import time as clock

import numpy as np
import pytest

from jaxllada.common import noise
from jaxllada.common.errors import UserError

SAMPLINGS = ["iid", "antithetic", "stratified"]


def ks_distance(samples: np.ndarray) -> float:
    """Largest gap between the empirical distribution and U[0, 1)."""
    x, n = np.sort(samples), len(samples)
    return float(max(np.max(np.arange(1, n + 1) / n - x), np.max(x - np.arange(n) / n)))


def ks_bound(n: int, risk: float = 1e-6) -> float:
    """Dvoretzky-Kiefer-Wolfowitz with Massart's constant: P(distance > bound) <= risk."""
    return float(np.sqrt(np.log(2 / risk) / (2 * n)))


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("slot", [0, 5])
def test_time_of_every_slot_is_uniform(sampling, slot):
    """One slot over many batches: those draws are independent, so the bound holds exactly."""
    t = np.array(
        [noise.time(3, 8 * group + slot, sampling=sampling, batch_size=8) for group in range(4000)]
    )
    assert t.min() >= 0
    assert t.max() < 1
    assert ks_distance(t) < ks_bound(len(t))


@pytest.mark.parametrize("sampling", ["antithetic", "stratified"])
@pytest.mark.parametrize("batch_size", [1, 2, 7, 16])
def test_each_stratum_of_a_batch_is_hit_once(sampling, batch_size):
    for group in range(20):
        t = [
            noise.time(1, group * batch_size + i, sampling=sampling, batch_size=batch_size)
            for i in range(batch_size)
        ]
        assert sorted(int(x * batch_size) for x in t) == list(range(batch_size))


def test_iid_times_do_miss_strata():
    t = [noise.time(1, i, sampling="iid", batch_size=64) for i in range(64)]
    assert len({int(x * 64) for x in t}) < 64


def test_rates_lie_between_eps_and_one():
    rates = [noise.mask_rate(0, i, eps=0.25) for i in range(500)]
    assert min(rates) >= 0.25
    assert max(rates) <= 1
    assert rates[0].dtype == np.float32
    assert noise.rate_of_time(0.0) == np.float32(1e-3)
    assert noise.rate_of_time(0.5, eps=0.5) == np.float32(0.75)


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_weighted_mask_count_has_mean_length(sampling):
    """E[sum(masked / p)] = L. Given p the variance is L (1 - p) / p, whose mean over t at
    eps = 0.05 is below L ln(1 / eps) / (1 - eps); five standard errors are allowed."""
    length, rows, eps = 64, 2000, 0.05
    tokens, maskable = np.zeros(length, np.int32), np.ones(length, bool)
    sums = []
    for i in range(rows):
        c = noise.corrupt(
            tokens, maskable, seed=7, index=i, mask_id=1, sampling=sampling, batch_size=8, eps=eps
        )
        sums.append(c.is_masked.sum() / c.mask_rate)
    deviation = np.sqrt(length * np.log(1 / eps) / (1 - eps) / rows)
    assert abs(np.mean(sums) - length) < 5 * deviation


def test_masked_share_follows_the_rate():
    tokens, maskable = np.zeros(20_000, np.int32), np.ones(20_000, bool)
    for i in range(10):
        c = noise.corrupt(tokens, maskable, seed=2, index=i, mask_id=1)
        error = 5 * np.sqrt(c.mask_rate * (1 - c.mask_rate) / len(tokens)) + 1e-4
        assert abs(c.is_masked.mean() - c.mask_rate) < error


def test_positions_are_hidden_independently():
    """Neighbours share a rate and nothing else: the covariance at fixed rate is zero."""
    maskable = np.ones(2, bool)
    pairs = np.array(
        [
            noise.hide(
                np.zeros(2, np.int32), maskable, np.float32(0.5), seed=4, index=i, mask_id=1
            )[1]
            for i in range(4000)
        ]
    )
    both = (pairs[:, 0] & pairs[:, 1]).mean()
    assert abs(both - 0.25) < 5 * np.sqrt(0.25 * 0.75 / 4000)


def test_prompt_is_never_masked_and_noisy_differs_only_where_masked():
    tokens = np.arange(50, dtype=np.int32)
    maskable = tokens >= 20
    for i in range(200):
        c = noise.corrupt(tokens, maskable, seed=0, index=i, mask_id=99)
        assert not c.is_masked[:20].any()
        np.testing.assert_array_equal(c.noisy == 99, c.is_masked)
        np.testing.assert_array_equal(c.noisy[~c.is_masked], tokens[~c.is_masked])


def test_same_example_same_mask_and_another_visit_another_mask():
    tokens, maskable = np.arange(64, dtype=np.int32), np.ones(64, bool)

    def masked(**change):
        arguments = {"seed": 5, "index": 10, "phase": noise.TRAIN} | change
        rate = np.float32(0.5)
        return noise.hide(tokens, maskable, rate, mask_id=99, **arguments)[1]

    np.testing.assert_array_equal(masked(), masked())
    for change in ({"index": 11}, {"seed": 6}, {"phase": noise.EVAL}):
        assert (masked() != masked(**change)).any()


def test_masks_do_not_depend_on_padding_or_tokens():
    def masked(tokens):
        ones = np.ones(len(tokens), bool)
        return noise.corrupt(tokens, ones, seed=1, index=3, mask_id=99).is_masked

    short, long = np.zeros(17, np.int32), np.arange(90, dtype=np.int32)
    np.testing.assert_array_equal(masked(short), masked(long)[:17])


def test_positions_past_the_random_length_are_left_alone():
    tokens, maskable = np.zeros(30, np.int32), np.ones(30, bool)
    c = noise.corrupt(tokens, maskable, seed=1, index=3, mask_id=9, length=12, eps=0.9)
    assert c.length == 12
    assert c.is_masked[:12].any()
    assert not c.is_masked[12:].any()


@pytest.mark.parametrize("mode", ["sequence", "batch"])
def test_random_length_hits_its_ratio_and_is_uniform(mode):
    draws = np.array(
        [
            noise.random_length(0, 4 * i, 1000, ratio=0.25, mode=mode, batch_size=4)
            for i in range(8000)
        ]
    )
    short = draws[draws < 1000]
    assert abs(len(short) / 8000 - 0.25) < 5 * np.sqrt(0.25 * 0.75 / 8000)
    assert short.min() >= 1
    # The grid of whole numbers may add up to 1/1000 to the distance.
    assert ks_distance((short - 0.5) / 1000) < ks_bound(len(short)) + 1e-3


def test_random_length_is_shared_by_a_batch_only_in_batch_mode():
    def batches(mode):
        lengths = [
            noise.random_length(0, i, 500, ratio=1.0, mode=mode, batch_size=8) for i in range(80)
        ]
        return [len(set(lengths[8 * g : 8 * g + 8])) for g in range(10)]

    assert batches("batch") == [1] * 10
    assert min(batches("sequence")) > 1


def test_a_ratio_of_zero_never_truncates_and_one_position_is_possible():
    assert {noise.random_length(0, i, 64, ratio=0.0) for i in range(200)} == {64}
    assert {noise.random_length(0, i, 1, ratio=1.0) for i in range(20)} == {1}
    assert {noise.random_length(0, i, 3, ratio=1.0) for i in range(60)} == {1, 2, 3}


def test_evaluation_times_are_stratified_over_the_set_and_within_each_row():
    rows, draws = 12, 4
    t = np.array(
        [
            [
                noise.evaluation_mask_rate(0, r, d, rows=rows, draws=draws, eps=1e-6)
                for d in range(draws)
            ]
            for r in range(rows)
        ]
    )
    # float32 and eps move a time by about 1e-6; strata are 1/48 wide.
    gaps = np.diff(np.sort(t.ravel()))
    np.testing.assert_allclose(gaps, 1 / 48, atol=1e-5)
    for row in t:
        np.testing.assert_allclose(np.diff(np.sort(row)), 1 / 4, atol=1e-5)
    assert (np.argsort(t[:, 0]) != np.arange(rows)).any()


def test_permutations_are_complete_and_differ_by_epoch_and_seed():
    first = noise.permutation(0, 0, 100)
    np.testing.assert_array_equal(np.sort(first), np.arange(100))
    np.testing.assert_array_equal(first, noise.permutation(0, 0, 100))
    assert (first != noise.permutation(0, 1, 100)).any()
    assert (first != noise.permutation(1, 0, 100)).any()


def test_choice_covers_its_options_evenly():
    picks = np.array([noise.choose(0, i, 3) for i in range(3000)])
    counts = np.bincount(picks, minlength=3)
    assert len(counts) == 3
    assert np.abs(counts - 1000).max() < 5 * np.sqrt(3000 * 2 / 9)


def philox_word(key: tuple[int, int], index: int, word: int) -> int:
    """Philox 4x64-10 in plain integers (Salmon et al., SC 2011, section 3.3)."""
    full = 2**64 - 1
    x = [word // 4 + 1, 0, 0, index]  # NumPy counts up before it draws
    k0, k1 = key
    for _ in range(10):
        p0, p1 = x[0] * 0xD2E7470EE14C6C93, x[2] * 0xCA5A826395121157
        x = [(p1 >> 64) ^ x[1] ^ k0, p1 & full, (p0 >> 64) ^ x[3] ^ k1, p0 & full]
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & full, (k1 + 0xBB67AE8584CAA73B) & full
    return x[word % 4]


@pytest.mark.parametrize(("seed", "stream", "index"), [(0, 0, 0), (42, 1, 7), (2**64 - 1, 257, 9)])
def test_draws_are_philox_of_seed_stream_and_index(seed, stream, index):
    words = [philox_word((seed, stream), index, i) for i in range(9)]
    assert noise.raw_draws(seed, stream, index, 9).tolist() == words
    assert noise.uniforms(seed, stream, index, 9).tolist() == [(w >> 11) / 2**53 for w in words]


def test_values_of_released_noise_never_change():
    """Literals: a run started with one version continues with the next."""

    def rates(sampling):
        return [noise.mask_rate(42, i, sampling=sampling, batch_size=4) for i in range(4)]

    expected = {
        "iid": [0.8203779458999634, 0.13321714103221893, 0.03585851565003395, 0.48626819252967834],
        "antithetic": [
            0.7975140810012817,
            0.21769829094409943,
            0.3492967188358307,
            0.5924400687217712,
        ],
        "stratified": [
            0.8203779458999634,
            0.07112795114517212,
            0.32087793946266174,
            0.5706279277801514,
        ],
    }
    for sampling, values in expected.items():
        np.testing.assert_array_equal(rates(sampling), np.array(values, np.float32))
    row = np.arange(10, 22, dtype=np.int32)
    c = noise.corrupt(row, np.ones(12, bool), seed=42, index=7, mask_id=99)
    assert c.noisy.tolist() == [10, 11, 99, 99, 14, 99, 99, 17, 18, 99, 20, 99]
    assert noise.permutation(42, 0, 8).tolist() == [1, 6, 3, 4, 5, 2, 0, 7]
    lengths = [noise.random_length(42, i, 100, ratio=0.5) for i in range(6)]
    assert lengths == [85, 100, 91, 1, 100, 100]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: noise.mask_rate(-1, 0), "seed=-1"),
        (lambda: noise.mask_rate(0, 0, eps=0.0), "eps=0.0"),
        (lambda: noise.mask_rate(0, 0, sampling="stratifed"), "did you mean 'stratified'"),
        (lambda: noise.random_length(0, 0, 4, ratio=1.5), "random_length_ratio=1.5"),
        (lambda: noise.random_length(0, 0, 4, mode="row"), "random_length_mode=row"),
    ],
)
def test_bad_settings_are_named(call, message):
    with pytest.raises(UserError, match=message):
        call()


def test_256_rows_of_4096_take_well_under_a_tenth_of_a_second():
    tokens, maskable = np.zeros(4096, np.int32), np.ones(4096, bool)

    def once():
        start = clock.perf_counter()
        for i in range(256):
            noise.corrupt(
                tokens, maskable, seed=0, index=i, mask_id=1, sampling="antithetic", batch_size=256
            )
        return clock.perf_counter() - start

    assert min(once() for _ in range(5)) < 0.1
