"""Changes of colour against their formulas in float64, and how often they happen."""

import colorsys
import pickle

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from siglip2_jax.data.colour import ColorJitter, GaussianBlur, Grayscale, Solarize, turn_hue

SURE = (
    ColorJitter(probability=1.0),
    Grayscale(1.0),
    GaussianBlur((1.0, 2.0), probability=1.0),
    Solarize(probability=1.0),
)


def noise(seed: int = 0, height: int = 24, width: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def changed(transform, pixels: np.ndarray, rng=None) -> np.ndarray:
    example = {"image": Image.fromarray(pixels), "text": "noise"}
    found = transform(example, rng or np.random.default_rng(0))
    assert found["image"].mode == "RGB" and found["text"] == "noise"
    return np.asarray(found["image"])


def luma(pixels: np.ndarray) -> np.ndarray:
    """Brightness as ITU-R 601-2 has it."""
    return np.float64(pixels) @ [0.299, 0.587, 0.114]


def only(**strength: float) -> ColorJitter:
    """A jitter of one kind."""
    off = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}
    return ColorJitter(**(off | strength), probability=1.0)


def factors(transform: ColorJitter, pixels: np.ndarray, origin: np.ndarray) -> np.ndarray:
    """By what the distances of all channels from `origin` were multiplied, in 500 draws."""
    rng, found = np.random.default_rng(0), []
    distance = pixels - origin
    for _ in range(500):
        moved = np.float64(changed(transform, pixels, rng))
        factor = ((moved - origin) * distance).sum() / (distance**2).sum()
        assert abs(moved - np.clip(origin + factor * distance, 0, 255)).max() < 1.6
        found.append(factor)
    return np.array(found)


# Nothing reaches 0 or 255 within the strengths below, so that least squares finds the factor.
MILD = np.uint8(100 + noise() % 50)
CASES = {
    "brightness": (0.4, np.zeros(3)),
    "contrast": (0.6, np.full(3, round(luma(MILD).mean()))),
    "saturation": (0.8, luma(MILD)[..., None]),
}


@pytest.mark.parametrize("kind", CASES)
def test_strengths_are_uniform(kind):
    strength, origin = CASES[kind]
    found = factors(only(**{kind: strength}), MILD, origin)
    assert found.min() > 1 - strength - 0.03 and found.max() < 1 + strength + 0.03
    assert found.min() < 1 - 0.95 * strength and found.max() > 1 + 0.95 * strength
    assert found.mean() == pytest.approx(1, abs=4 * strength / np.sqrt(3 * 500))
    assert found.std() == pytest.approx(strength / np.sqrt(3), rel=0.1)


def test_factors_are_never_negative():
    """A strength of 3 makes the image black at worst."""
    found = factors(only(brightness=3.0), np.full((2, 2, 3), 40, np.uint8), np.zeros(3))
    assert found.min() < 0.2 and found.max() > 3.8


@pytest.mark.parametrize("turn", [-0.5, -0.1, 0.03, 0.25, 0.5])
def test_turned_hue(turn):
    """The standard library turns it alike, within what 8 bits of hue and saturation can tell."""
    pixels = noise()
    found = np.asarray(turn_hue(Image.fromarray(pixels), turn)).reshape(-1, 3) / 255
    steps, errors = round(turn * 256) / 256, []
    for before, after in zip(pixels.reshape(-1, 3) / 255, found, strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*before)
        wanted = colorsys.hsv_to_rgb((hue + steps) % 1, saturation, value)
        errors.append(np.abs(after - wanted).max() * 255)
    assert np.mean(errors) < 4 and max(errors) < 6 * 255 / 256 * 2  # a level of hue is 6 of RGB


def test_hue_is_turned_both_ways_up_to_its_strength():
    red = np.full((1, 1, 3), (250, 10, 10), np.uint8)
    rng = np.random.default_rng(0)
    hues = [
        colorsys.rgb_to_hsv(*changed(only(hue=0.1), red, rng)[0, 0] / 255)[0] for _ in range(300)
    ]
    turns = (np.array(hues) + 0.5) % 1 - 0.5
    assert abs(turns).max() < 0.1 + 1 / 128 and turns.min() < -0.09 and turns.max() > 0.09
    assert abs(turns.mean()) < 4 * 0.1 / np.sqrt(3 * 300)


def test_without_strength_nothing_changes():
    pixels = noise()
    np.testing.assert_array_equal(changed(only(), pixels), pixels)


def test_the_order_varies():
    """Brightness before contrast and after it are different images."""
    transform = only(brightness=0.5, saturation=0.9, contrast=0.9, hue=0.1)

    class Fixed(np.random.Generator):
        """Its draws are fixed but for the order."""

        def __init__(self, order):
            super().__init__(np.random.PCG64(0))
            self.order = order

        def random(self):
            return 0.0

        def uniform(self, low, high):
            return 0.2 * low + 0.8 * high

        def permutation(self, n):
            return np.array(self.order)

    orders = [(0, 1, 2, 3), (1, 0, 2, 3), (3, 2, 1, 0), (2, 3, 0, 1)]
    found = {changed(transform, noise(), Fixed(order)).tobytes() for order in orders}
    assert len(found) == len(orders)


def test_grey():
    pixels = noise()
    found = changed(SURE[1], pixels)
    assert (found == found[..., :1]).all()
    assert abs(found[..., 0] - luma(pixels)).max() <= 1


@pytest.mark.parametrize("sigma", [1.5, 3.0])
def test_blur(sigma):
    """Pillow approximates the Gaussian by boxes; a smooth image comes out within three levels."""
    pixels = np.uint8(gaussian_filter(np.float64(noise(0, 64, 64)), (2, 2, 0)).clip(0, 255))
    found = np.float64(changed(GaussianBlur((sigma, sigma), 1.0), pixels))
    wanted = gaussian_filter(np.float64(pixels), (sigma, sigma, 0), mode="nearest")
    inner = (slice(8, -8),) * 2
    assert abs(found - wanted)[inner].max() < 3
    assert abs(found - wanted)[inner].mean() < abs(found - pixels)[inner].mean() / 2


def test_blur_draws_its_width():
    dot = np.zeros((41, 41, 3), np.uint8)
    dot[20, 20] = 255
    rng = np.random.default_rng(0)
    peaks = [changed(GaussianBlur((0.5, 2.0), 1.0), dot, rng).max() for _ in range(200)]
    # 1 / (2 pi sigma^2) of 255 where the Gaussian is wide against a pixel.
    assert min(peaks) <= 12 and max(peaks) > 100


@pytest.mark.parametrize("threshold", [0, 100, 128, 256])
def test_solarize(threshold):
    pixels = noise()
    wanted = np.where(pixels >= threshold, 255 - pixels, pixels)
    np.testing.assert_array_equal(changed(Solarize(threshold, 1.0), pixels), wanted)


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("kind", [ColorJitter, Grayscale, GaussianBlur, Solarize])
def test_how_often(kind, probability):
    transform, rng = kind(probability=probability), np.random.default_rng(0)
    source = {"image": Image.fromarray(noise())}
    hits = sum(transform(source, rng)["image"] is not source["image"] for _ in range(500))
    deviation = np.sqrt(500 * probability * (1 - probability))
    assert abs(hits - 500 * probability) <= 4 * deviation


@pytest.mark.parametrize("transform", SURE, ids=lambda x: type(x).__name__)
def test_the_generator_decides_and_examples_are_left_alone(transform):
    again = pickle.loads(pickle.dumps(transform))
    assert again == transform
    source = {"image": Image.fromarray(noise())}
    before = dict(source)
    images = [
        np.asarray(t(source, np.random.default_rng(seed))["image"])
        for t, seed in ((transform, 3), (again, 3))
    ]
    np.testing.assert_array_equal(*images)
    assert source == before and (np.asarray(source["image"]) == noise()).all()
    assert (images[0] != noise()).any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ColorJitter(-0.1), "ColorJitter's strengths must be at least 0"),
        (lambda: ColorJitter(hue=0.6), "hue at most 0.5, got .*0.6"),
        (lambda: ColorJitter(probability=2.0), "ColorJitter.probability must be from 0 to 1"),
        (lambda: Grayscale(-0.5), "Grayscale.probability must be from 0 to 1, got -0.5"),
        (lambda: GaussianBlur((2.0, 1.0)), "GaussianBlur.radius must be two numbers in ascending"),
        (lambda: GaussianBlur(probability=1.5), "GaussianBlur.probability must be"),
        (lambda: Solarize(300), "Solarize.threshold must be from 0 to 256, got 300"),
        (lambda: Solarize(probability=-1.0), "Solarize.probability must be"),
    ],
)
def test_options_are_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make()
