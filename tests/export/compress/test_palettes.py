"""Tables of few values: as good as the best there are, and the same every time."""

from __future__ import annotations

import numpy as np
import pytest

from mobilec.export.compress.palettes import GROUP, k_means, nearest, palettise


def squared(values, table):
    return float(((table[nearest(values, table)] - values) ** 2).sum())


@pytest.mark.parametrize("draw", ["normal", "uniform", "laplace"])
@pytest.mark.parametrize("count", [16, 64])
def test_nearly_the_best_table(draw, count):
    """The best one is coremltools' exact one-dimensional clustering, which is slow."""
    from coremltools._deps import kmeans1d

    values = getattr(np.random.default_rng(5), draw)(size=6000)
    clusters, centres = kmeans1d.cluster(values.tolist(), count)
    best = float(((np.array(centres)[clusters] - values) ** 2).sum())
    assert best <= squared(values, k_means(values, count)) * (1 + 1e-9) <= 1.3 * best


def test_far_better_than_equal_steps_where_values_crowd():
    values = np.random.default_rng(5).laplace(size=6000)
    steps = np.linspace(values.min(), values.max(), 16)
    assert squared(values, k_means(values, 16)) < 0.3 * squared(values, steps)


def test_few_values_are_kept_exactly():
    values = np.array([0.1, -3.0, 0.1, 7.5])
    table = k_means(values, 16)
    assert len(table) == 16
    assert set(table) == {0.1, -3.0, 7.5}
    assert squared(values, table) == 0


def test_values_one_by_hand():
    palette = palettise(
        np.repeat(np.array([0.0, 1.0, 10.0, 11.0], np.float32), 64).reshape(4, 64), 1, dtype=np.float16, grouped=False
    )
    assert palette.tables.tolist() == [[0.5, 10.5]]
    assert palette.indices[:, 0].tolist() == [0, 0, 1, 1]
    assert palette.values()[:, 0].tolist() == [0.5, 0.5, 10.5, 10.5]
    assert palette.size_bytes(1) == 256 // 8 + 2 * 2


def test_tables_of_groups_fit_their_own_channels():
    weight = np.random.default_rng(1).normal(size=(2 * GROUP, 512)).astype(np.float32)
    weight[GROUP:] *= 50
    one, two = (palettise(weight, 4, dtype=np.float32, grouped=grouped) for grouped in (False, True))
    assert (len(one.tables), len(two.tables)) == (1, 2)
    quiet = slice(0, GROUP)
    assert ((two.values() - weight)[quiet] ** 2).sum() < 0.05 * ((one.values() - weight)[quiet] ** 2).sum()


def test_tables_stay_one_where_channels_do_not_divide_or_tables_cost_too_much():
    for shape in ((GROUP + 1, 512), (2 * GROUP, 9)):
        weight = np.random.default_rng(1).normal(size=shape).astype(np.float32)
        assert len(palettise(weight, 4, dtype=np.float16, grouped=True).tables) == 1


def test_a_weight_smaller_than_its_table_is_refused():
    assert palettise(np.ones((16, 9), np.float32), 8, dtype=np.float16, grouped=False) is None


def test_the_same_weights_give_the_same_table():
    values = np.random.default_rng(2).normal(size=5000)
    np.testing.assert_array_equal(k_means(values, 64), k_means(values.copy(), 64))
    assert (np.diff(k_means(values, 64)) > 0).all()
