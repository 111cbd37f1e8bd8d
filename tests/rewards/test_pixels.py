"""Tensor preprocessing against transformers' own image processor, and crops at known places."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from transformers import CLIPImageProcessor, ViTImageProcessor

from burnish.models.pixels import Pixels, in_chunks, random_crops, read_pixels, to_bytes

SIZES = [(40, 48), (64, 64), (17, 90), (200, 131)]


def smooth(b, height, width):
    """Pictures like photographs: noise on an 8-bit grid, but of low frequency, with some hard edges."""
    coarse = torch.rand(b, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    images = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)
    images[..., : height // 3, : width // 2] = 1.0
    return (images * 255).round() / 255


def compare(processor, folder, images):
    """Largest difference between theirs and ours, in 8-bit levels before normalisation."""
    (folder / "preprocessor_config.json").write_text(json.dumps(processor.to_dict()))
    theirs = processor(images=list(to_bytes(images)), return_tensors="pt")["pixel_values"]
    ours = read_pixels(str(folder), "reward.x.weights")(images)
    assert ours.shape == theirs.shape
    std = torch.tensor(processor.image_std)[:, None, None]
    return ((ours - theirs) * std * 255).abs().max().item()


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("noise", [False, True])
def test_clip_preprocessing_equals_transformers_up_to_rounding(tmp_path, pictures, height, width, noise):
    images = pictures(2, height, width) if noise else smooth(2, height, width)
    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    # PIL filters rows and columns one after the other and rounds to 8 bits after each
    assert compare(processor, tmp_path, images) < 1.5


def test_square_bilinear_preprocessing_equals_transformers_up_to_rounding(tmp_path, pictures):
    assert compare(ViTImageProcessor(size={"height": 24, "width": 24}), tmp_path, pictures(2, 50, 40)) < 1.5


def test_without_resizing_nothing_is_rounded(tmp_path, pictures):
    for crop in (30, 45, 61):  # smaller than the picture, between its sides, and larger than both
        processor = CLIPImageProcessor(do_resize=False, crop_size={"height": crop, "width": crop})
        assert compare(processor, tmp_path, pictures(2, 40, 51)) < 1e-3


def test_processor_json_of_newer_releases_is_read(tmp_path):
    settings = {"image_processor": {"size": 20, "crop_size": 18, "do_center_crop": True, "resample": 3}}
    settings["image_processor"] |= {"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "image_processor_type": "CLIPX"}
    (tmp_path / "processor_config.json").write_text(json.dumps(settings))
    read = read_pixels(str(tmp_path), "x")
    assert read == Pixels(20, (18, 18), "cover", "bicubic", 1.0, (0.5,) * 3, (0.25,) * 3)


def test_padding_keeps_the_whole_picture_on_black():
    images = torch.ones(1, 3, 10, 20)
    out = Pixels(40, fit="pad", mean=(0.0,) * 3, std=(1.0,) * 3)(images)
    assert out.shape == (1, 3, 40, 40)
    torch.testing.assert_close(out[0, 0, :, 7], torch.cat([torch.zeros(10), torch.ones(20), torch.zeros(10)]))


def test_preprocessing_passes_a_gradient(pictures):
    images = pictures(1).requires_grad_()
    Pixels(16, (16, 16))(images).sum().backward()
    assert images.grad is not None and images.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (None, "does not say how pictures are prepared"),
        ({"size": {"longest_edge": 3}}, "picture size"),
        ({"size": 8, "resample": 5}, "resample 5"),
        ({"size": 8, "image_mean": [0.5]}, "image_mean"),
    ],
)
def test_settings_it_cannot_follow_are_a_sentence(tmp_path, settings, said):
    if settings is not None:
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=said):
        read_pixels(str(tmp_path), "reward.x.weights")


def test_crops_depend_on_the_seed_and_not_on_the_batch(pictures):
    images = pictures(3, 30, 25)
    crops = random_crops(images, number=6, side=8, seed=4)
    assert crops.shape == (3, 6, 3, 8, 8)
    torch.manual_seed(99)
    torch.testing.assert_close(random_crops(images[[2, 0]], 6, 8, 4), crops[[2, 0]])
    assert not torch.equal(random_crops(images, 6, 8, 5), crops)


def test_crops_are_pieces_of_the_picture_and_differ():
    rows, columns = torch.meshgrid(torch.arange(20.0), torch.arange(30.0), indexing="ij")
    images = torch.stack([rows, columns, rows * 30 + columns])[None]
    crops = random_crops(images, number=40, side=5, seed=0)[0]
    corners = crops[:, :2, 0, 0]
    torch.testing.assert_close(crops[:, 0], corners[:, 0, None, None] + torch.arange(5.0)[:, None].expand(5, 5))
    torch.testing.assert_close(crops[:, 2], crops[:, 0] * 30 + crops[:, 1])
    assert corners[:, 0].min() < 4 and corners[:, 0].max() > 11 and corners[:, 0].max() <= 15
    assert corners[:, 1].max() <= 25 and len(corners.unique(dim=0)) > 30


def test_small_pictures_are_enlarged_to_a_crop(pictures):
    assert random_crops(pictures(2, 5, 9), number=2, side=12, seed=0).shape == (2, 2, 3, 12, 12)


def test_chunks_join_to_the_whole(pictures):
    images, sizes = pictures(7), []
    out = in_chunks(lambda part: (sizes.append(len(part)), part.mean((1, 2, 3)))[1], images, 3)
    assert sizes == [3, 3, 1]
    torch.testing.assert_close(out, images.mean((1, 2, 3)))


def test_bytes_are_rounded_not_cut():
    image = torch.tensor([0.0, 0.4 / 255, 0.6 / 255, 254.6 / 255, 1.2])
    assert to_bytes(image.expand(1, 3, 1, 5))[0, 0, :, 0].tolist() == [0, 0, 1, 255, 255]
    assert to_bytes(torch.zeros(0, 3, 2, 2)).dtype == np.uint8


def test_a_gradient_is_recorded_only_where_it_is_asked_for(pictures):
    images, weight = pictures(2), torch.ones((), requires_grad=True)

    def measure(part):
        return (part * weight).sum((1, 2, 3))

    assert not in_chunks(measure, images, 1).requires_grad
    images.requires_grad_()
    assert in_chunks(measure, images, 1).requires_grad
    with torch.no_grad():
        assert not in_chunks(measure, images, 1).requires_grad
