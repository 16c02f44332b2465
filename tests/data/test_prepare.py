"""The arrays of one example and of a batch, against the parts they are made of."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
from data.samples import Stamp, example, picture, preparation

from siglip2_jax.data.collate import collate
from siglip2_jax.data.example import ExampleError
from siglip2_jax.preprocess.decode import ImageError, decode


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize("image_size", [None, 20])
def test_an_example_alone(image_size):
    prepare = preparation(image_size=image_size)
    found = prepare(example(0), rng(), 30)
    pixels, grid = prepare.preprocess.to_patches(prepare.preprocess.open(example(0)["image"]), 30)
    np.testing.assert_array_equal(found["image"][0], pixels)
    assert found["image"][1] == grid and prepare.num_tokens(30) == (
        30 if image_size is None else 25
    )
    ids = prepare.tokenizer(["picture 0 said in way 0"]).ids[0]
    np.testing.assert_array_equal(found["text"], ids)
    assert found.keys() == {"image", "text"}


def test_an_image_is_decoded_once(monkeypatch):
    """And a transform that breaks its promise is refused in a sentence."""
    decoded = []

    def spy(source, **options):
        decoded.append(source)
        return decode(source, **options)

    monkeypatch.setattr("siglip2_jax.preprocess.image.decode", spy)
    preparation(Stamp(crops=False))(example(0), rng(), 30)
    assert decoded == [example(0)["image"]]
    grey = lambda example, rng: {**example, "image": example["image"].convert("L")}  # noqa: E731
    with pytest.raises(ValueError, match="pixels of mode L, expected RGB"):
        preparation(grey)(example(0), rng(), 30)


def test_all_captions_come_up_evenly():
    prepare, item = preparation(image_size=4), {**example(0), "captions": tuple("abcd")}
    generator = rng()
    wanted = {tuple(prepare.tokenizer([text]).ids[0]): text for text in "abcd"}
    drawn = [wanted[tuple(prepare(item, generator, 1)["text"])] for _ in range(400)]
    counts = np.array([drawn.count(text) for text in "abcd"])
    assert counts.sum() == 400 and (abs(counts - 100) < 5 * np.sqrt(400 * 0.25 * 0.75)).all()


def test_square_aspect():
    prepare = preparation(aspect="square")
    wide, square = picture(0, 60, 20, "PNG"), picture(0, 32, 32, "PNG")
    pixels, grid = prepare({**example(0), "image": wide}, rng(), 30)["image"]
    assert grid == (5, 5) and pixels.shape == (25, 48) and abs(pixels).max() <= 1
    # On a picture that is square, keeping the aspect ratio squashes nothing either.
    pixels, grid = prepare({**example(0), "image": square}, rng(), 30)["image"]
    kept, kept_grid = prepare.preprocess.to_patches(prepare.preprocess.open(square), 30)
    assert grid == kept_grid
    np.testing.assert_allclose(pixels, kept, rtol=0, atol=2e-7)
    fixed = preparation(image_size=12, aspect="square")
    np.testing.assert_array_equal(
        fixed({**example(0), "image": wide}, rng(), 30)["image"][0],
        fixed.preprocess.to_patches(fixed.preprocess.open(wide))[0],
    )


def test_transforms_add_fields():
    prepare = pickle.loads(pickle.dumps(preparation(Stamp(crops=True))))
    original = example(4)
    items = [prepare(original, rng(1), 30), prepare(example(5), rng(2), 30)]
    assert original == example(4)
    batch = collate(items, 30)
    assert batch.fields.keys() == {"id", "draw", "local"}
    np.testing.assert_array_equal(batch.fields["id"], [4, 5])
    local = batch.fields["local"]
    assert local.pixels.shape == (2, 2, 9, 48) and local.yx.shape == (2, 2, 9, 2)
    for row, item in enumerate(items):
        for view, (pixels, (rows, cols)) in enumerate(item["local"].images):
            np.testing.assert_array_equal(local.pixels[row, view, : rows * cols], pixels)
            assert local.valid[row, view].sum() == rows * cols == len(pixels)
    image = batch.image
    assert image.pixels.shape == (2, 30, 48) and batch.text.shape == (2, 12)
    for row, item in enumerate(items):
        np.testing.assert_array_equal(image.pixels[row][image.valid[row]], item["image"][0])


def test_fields_must_be_the_same_in_all():
    plain, stamped = preparation(), preparation(Stamp())
    items = [plain(example(0), rng(), 30), stamped(example(1), rng(), 30)]
    with pytest.raises(ValueError, match=r"only some examples of a batch have the field \w+"):
        collate(items, 30)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"captions": ()}, ExampleError, "no 0: it has no caption"),
        ({"image": b"GIF89a"}, ImageError, "no 0: the GIF data is damaged"),
        ({"image": picture(0)[:300]}, ImageError, "no 0: the JPEG data is damaged"),
        ({"captions": ("\ud800",)}, ExampleError, "no 0: the text .* lone surrogate"),
    ],
)
def test_unusable_examples(change, error, message):
    with pytest.raises(error, match=message):
        preparation()({**example(0), **change}, rng(), 30)


def test_pictures_are_turned_upright_once():
    image = decode(picture(0))
    exif = image.getexif()
    exif[0x0112] = 6
    image.info["exif"] = exif.tobytes()
    prepare = preparation()
    found, grid = prepare({**example(0), "image": image}, rng(), 30)["image"]
    pixels, upright_grid = prepare.preprocess.to_patches(prepare.preprocess.open(image), 30)
    assert grid == upright_grid and grid[0] > grid[1]
    np.testing.assert_array_equal(found, pixels)


def test_options_are_checked():
    with pytest.raises(ValueError, match='aspect "square" is only there in preprocessing mode'):
        prepare = preparation(aspect="square")
        replace(prepare, preprocess=replace(prepare.preprocess, mode="hf"))
