"""Views show the pixels that they are given."""

import io

import pytest
import torch
from PIL import Image

from vjepa_lab import data
from vjepa_lab.data.views import NIGHT, card, hidden, overlay, player, sheet


@pytest.fixture(scope="module")
def clips():
    source = data.open("synthetic", frames=6, size=32)
    return torch.stack([source[i].clip for i in range(3)])


def test_player_loops_all_frames_of_all_clips(clips):
    made = player(clips, fps=10)
    with Image.open(io.BytesIO(made.webp)) as picture:
        assert (picture.format, picture.n_frames, picture.size, picture.info["loop"]) == ("WEBP", 6, (96, 32), 0)
        picture.seek(3)
        shown = torch.frombuffer(bytearray(picture.convert("RGB").tobytes()), dtype=torch.uint8).view(32, 96, 3)
    assert (shown[:, :32].permute(2, 0, 1).float() - clips[0, :, 3].float()).abs().mean() < 8
    assert made._repr_html_().startswith('<img src="data:image/webp;base64,')


def test_sheet_lays_frames_out_in_rows(clips):
    picture = sheet(clips, columns=3, gap=2)
    assert picture.size == (3 * 32 + 2 * 2, 3 * 32 + 2 * 2)
    pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(100, 100, 3).permute(2, 0, 1)
    assert torch.equal(pixels[:, 34:66, 68:100], clips[1, :, 5])


def test_hidden_tokens_are_painted_and_no_others(clips):
    out = hidden(clips[0], torch.tensor([0, 3 * 16 - 1]), (3, 4, 4), strength=1.0)
    night = torch.tensor(NIGHT, dtype=torch.uint8).view(3, 1, 1, 1)
    assert (out[:, :2, :8, :8] == night).all() and (out[:, 4:, 24:, 24:] == night).all()
    left = torch.ones(6, 32, 32, dtype=torch.bool)
    left[:2, :8, :8] = left[4:, 24:, 24:] = False
    assert torch.equal(out[:, left], clips[0][:, left])
    assert torch.equal(overlay(clips[0], torch.zeros(3, 4, 4)), clips[0])


def test_card_counts(clips):
    source = data.open("synthetic", frames=4, size=16, n=50)
    text = card(source, examples=2)._repr_html_()
    assert text.count("<img") == 2 and "motion: 8 classes" in text and "class: 8" not in text and "50 clips" in text
    most = torch.bincount(source.labels["hue"]).max().item()
    assert f" {most}</td>" in text


def test_clear_error(clips):
    with pytest.raises(data.DataError, match="uint8 are expected"):
        player(clips.float())
