"""Samples made of two: the laws of MixUp and CutMix, and the same ones however a batch is cut."""

from typing import Any

import numpy as np
import pytest
from scipy.stats import beta, kstest

from capstan_runtime.contract.losses import Regularization
from capstan_runtime.data.mixing import mix, mix_batch
from capstan_runtime.engine import Batch
from capstan_runtime.errors import ConfigError
from capstan_runtime.randomness import sample_keys

COUNT = 400
IMAGES = np.broadcast_to(np.arange(COUNT, dtype=np.float32)[:, None, None, None], (COUNT, 8, 6, 2)).copy()
TARGETS = np.arange(COUNT, dtype=np.int32)
KEYS = sample_keys(1, 0, np.arange(COUNT))


def config(document: dict[str, Any]) -> Regularization:
    return Regularization.parse(document)


def test_mixup_blends_a_sample_with_its_partner_by_shares_from_the_beta_distribution() -> None:
    inputs, partners, shares = mix(IMAGES, TARGETS, KEYS, config({"mixup": {"alpha": 0.4}}))
    expected = shares * TARGETS + (1 - shares) * partners
    np.testing.assert_allclose(inputs, np.broadcast_to(expected[:, None, None, None], inputs.shape), rtol=1e-5)
    assert kstest(shares, beta(0.4, 0.4).cdf).pvalue > 1e-3
    assert len(set(partners.tolist())) > COUNT / 2


def test_cutmix_takes_one_box_from_the_partner_and_its_area_of_the_target() -> None:
    inputs, partners, shares = mix(IMAGES, TARGETS, KEYS, config({"cutmix": {}}))
    for sample, partner, share, image in zip(TARGETS, partners, shares, inputs, strict=True):
        if sample == partner:
            continue
        is_own = image[..., 0] == sample
        assert (image[..., 0] == np.where(is_own, sample, partner)).all()
        assert (image[..., 0] == image[..., 1]).all()
        assert is_own.mean() == pytest.approx(share)
        rows, columns = np.nonzero(~is_own)
        if rows.size:
            assert rows.size == (np.ptp(rows) + 1) * (np.ptp(columns) + 1), "a box"
    assert 0.3 < shares.mean() < 0.8


def test_with_both_each_sample_gets_one_of_them() -> None:
    inputs, _, _ = mix(IMAGES, TARGETS, KEYS, config({"mixup": {}, "cutmix": {}}))
    is_flat = np.ptp(inputs, axis=(1, 2, 3)) == 0
    assert 0.4 < is_flat.mean() < 0.8, "half are blended; some boxes are empty, or all there is"


def test_a_batch_is_mixed_alike_however_it_is_cut() -> None:
    images, targets, keys = IMAGES[:24], TARGETS[:24], KEYS[:24]

    def mixed(first: int, last: int, micro_steps: int) -> Batch:
        shape = (micro_steps, (last - first) // micro_steps)
        batch = Batch(
            images[first:last].reshape(*shape, 8, 6, 2),
            targets[first:last].reshape(shape),
            keys=keys[first:last].reshape(shape),
        )
        return mix_batch(batch, 6, config({"mixup": {}, "cutmix": {}}))

    whole = mixed(0, 24, 4)
    for parts in ([mixed(0, 24, 8)], [mixed(0, 12, 2), mixed(12, 24, 4)], [mixed(i, i + 6, 1) for i in (0, 6, 12, 18)]):
        for name in ("inputs", "second_targets", "shares"):
            found = b"".join(getattr(part, name).tobytes() for part in parts)
            assert found == getattr(whole, name).tobytes()


def test_vectors_cannot_be_cut() -> None:
    batch = Batch(np.zeros((1, 2, 3), np.float32), np.zeros((1, 2), np.int32), keys=np.zeros((1, 2), np.uint32))
    with pytest.raises(ConfigError, match=r"^spec\.regularization: cutmix pastes boxes of images, .*; choose mixup$"):
        mix_batch(batch, 2, config({"cutmix": {}}))
