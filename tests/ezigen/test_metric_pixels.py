import numpy as np
import pytest
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from ezigen.metrics import psnr, ssim

OPTIONS = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255, "channel_axis": 2}


def pictures(size=(48, 37), noise=20.0):
    rng = np.random.default_rng(0)
    one = np.asarray(Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize(size))
    other = np.clip(one + rng.normal(0, noise, one.shape), 0, 255).astype(np.uint8)
    return Image.fromarray(one), Image.fromarray(other)


@pytest.mark.parametrize("noise", [1.0, 20.0, 120.0])
def test_they_equal_scikit_image(noise):
    one, other = pictures(noise=noise)
    arrays = np.asarray(one), np.asarray(other)
    assert psnr(one, other) == pytest.approx(peak_signal_noise_ratio(*arrays), abs=1e-9)
    assert ssim(one, other) == pytest.approx(structural_similarity(*arrays, **OPTIONS), abs=1e-9)


def test_within_a_mask_they_are_means_of_those_pixels():
    one, other = pictures()
    arrays = np.asarray(one), np.asarray(other)
    where = np.zeros(arrays[0].shape[:2], dtype=bool)
    where[5:20, 8:30] = True
    full = structural_similarity(*arrays, full=True, **OPTIONS)[1].mean(-1)
    assert ssim(one, other, where) == pytest.approx(full[where].mean(), abs=1e-9)
    assert psnr(one, other, where) == pytest.approx(
        peak_signal_noise_ratio(arrays[0][where], arrays[1][where], data_range=255), abs=1e-9
    )


def test_what_changes_outside_of_the_mask_does_not_count():
    one, _ = pictures()
    changed = np.array(one)
    changed[:10] = 0
    where = np.zeros(changed.shape[:2], dtype=bool)
    where[20:] = True
    assert psnr(Image.fromarray(changed), one, where) == 100
    assert ssim(Image.fromarray(changed), one, where) == pytest.approx(1)
    assert psnr(Image.fromarray(changed), one) < 20


def test_equal_pictures_have_a_finite_score():
    one, _ = pictures()
    assert psnr(one, one) == 100
    assert ssim(one, one) == pytest.approx(1)


@pytest.mark.parametrize("measure", [psnr, ssim])
def test_what_cannot_be_compared_is_refused(measure):
    one, other = pictures()
    with pytest.raises(ValueError, match="48 x 37 and 37 x 48"):
        measure(one, other.transpose(Image.Transpose.ROTATE_90))
    with pytest.raises(ValueError, match="no pixel"):
        measure(one, other, np.zeros((37, 48), dtype=bool))
    with pytest.raises(ValueError, match="shape"):
        measure(one, other, np.ones((48, 37), dtype=bool))


def test_windows_larger_than_the_picture_are_refused():
    with pytest.raises(ValueError, match="11 px"):
        ssim(*pictures(size=(40, 10)))
