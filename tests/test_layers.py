"""Several blocks of an encoder read together."""

import pytest
import torch
from torch import nn

import vjepa_lab as vl
from vjepa_lab import data
from vjepa_lab.evaluation import features, layers
from vjepa_lab.evidence import results
from vjepa_lab.model import Encoder

CLIP = torch.randn(2, 3, 4, 32, 32, generator=torch.Generator().manual_seed(0))


def encoder(levels=1, depth=4):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        made = Encoder(24, depth, 2, 8, levels=levels, mlp_ratio=2)
        for norm in made.norms.values():
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)
    return made.eval()


def test_blocks_stand_behind_each_other_each_through_its_own_norm():
    whole = encoder(levels=4)
    read = layers.Layers(whole, (1, 3))
    with torch.no_grad():
        levels = whole.encode(whole.patchify(CLIP), whole.grid(CLIP), levels=True).chunk(4, dim=-1)
        assert torch.equal(read(CLIP), torch.cat([levels[1], levels[3]], dim=1))
    assert read.grid(CLIP) == (4, 4, 4) and whole.grid(CLIP) == (2, 4, 4)


def test_or_through_the_last_norm_where_there_is_no_other():
    whole, half = encoder(), encoder(depth=2)
    half.load_state_dict(
        {name: value for name, value in whole.state_dict().items() if not name.startswith(("blocks.2", "blocks.3", "norms"))}
        | {f"norms.1.{part}": value for part, value in whole.norms["3"].state_dict().items()}
    )
    with torch.no_grad():
        assert torch.equal(layers.Layers(whole, (1, 3))(CLIP), torch.cat([half(CLIP), whole(CLIP)], dim=1))


def test_features_of_other_blocks_are_not_taken_from_the_cache(tmp_path):
    source, whole = data.open("synthetic", "test", frames=4, size=32, n=4), encoder()
    quick = {"cache": tmp_path, "progress": False, "device": "cpu", "tokens": True}
    one, other, plain = (features.extract(each, source, **quick) for each in (*(layers.Layers(whole, b) for b in ((0, 3), (1, 3))), whole))
    assert one.tokens.shape == (4, 64, 24) and one.grid == (4, 4, 4) and plain.grid == (2, 4, 4)
    assert not torch.equal(one.tokens[:, :32], other.tokens[:, :32]) and torch.equal(one.tokens[:, 32:], other.tokens[:, 32:])
    assert torch.equal(one.tokens[:, 32:], plain.tokens)


def test_a_probe_that_reads_several_blocks_says_so_in_its_rows(tmp_path):
    run = vl.pretrain("baseline", "synthetic", runs=tmp_path, preset="smoke", progress=False)
    how = {"labels": "motion", "probe": "attentive", "limit": 60, "epochs": 1, "device": "auto", "progress": False}
    (deep,) = vl.probe(run, layers=(0, 1), **how)
    (plain,) = vl.probe(run, **how)
    assert {row["probe"] for row in deep.rows} == {"attentive, blocks 0 1"} and {row["probe"] for row in plain.rows} == {"attentive"}
    assert {row["encoder"] for row in deep.rows} == {row["encoder"] for row in plain.rows}
    assert len(list((run.path / "predictions").glob("*attentive*.parquet"))) == 2
    (other,) = vl.probe(run, frames=4, size=24, **how)
    assert {row["probe"] for row in other.rows} == {"attentive, 4 frames, 24 pixels"}
    rows = results.read_run(run.path).query("metric == 'rankme'")
    assert rows["probe"].tolist() == ["none, blocks 0 1", "none", "none, 4 frames, 24 pixels"] and rows["value"].is_unique


@pytest.mark.parametrize("blocks", [(), (3, 1), (1, 1), (0, 4), (-1, 3)])
def test_blocks_that_are_not_there(blocks):
    with pytest.raises(ValueError, match="expected rising numbers of blocks, 0 to 3"):
        layers.Layers(encoder(), blocks)


def test_an_encoder_of_another_make():
    with pytest.raises(ValueError, match="blocks of a Linear are not known"):
        layers.Layers(nn.Linear(2, 2), (0,))
