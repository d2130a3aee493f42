"""Images among the clips of a batch: terms about change leave them out exactly, everything else trains on them."""

import numpy as np
import pytest
import torch
from laws import MODIFIED, SIZE, STATISTICS, TEMPORAL, Stub, ids, tokens

import vjepa_lab as vl
from vjepa_lab import masks, variants
from vjepa_lab.data.core import Batch
from vjepa_lab.model import VJEPA
from vjepa_lab.modifiers import Detached, Hard, Shuffled
from vjepa_lab.objective import Loss, Objective, Recipe, Term, diff
from vjepa_lab.terms import JEPA, Context, Delta, Kinematic, Orthogonal
from vjepa_lab.training.trainer import Trainer

STILL = torch.tensor([False, True, False, False, True])
ABOUT_CHANGE = [
    *TEMPORAL,
    *(t for t in MODIFIED if t.term in TEMPORAL),
    *(Hard(Delta(), scope=scope, standardise=True) for scope in ("clip", "mask", "batch", "global")),
]


def with_images(scale=1.0):
    """Clips and, where STILL says so, images that fill their frames; and the clips alone, the same leaf tensors."""
    torch.manual_seed(3)
    z, h = tokens(b=5, scale=scale), torch.randn(5, 4, 4, 4, 12)
    return z, h, Stub(z, h, still=STILL), Stub(z[~STILL], h[~STILL])


@pytest.mark.parametrize("term", ABOUT_CHANGE, ids=ids(ABOUT_CHANGE))
def test_a_term_about_change_is_what_it_is_on_the_clips_alone(term):
    z, _, together, alone = with_images()
    head = term.head(12)
    losses = [term.loss(lat, head) for lat in (together, alone)]
    torch.testing.assert_close(*losses)
    one, other = (torch.autograd.grad(loss, z)[0] for loss in losses)
    torch.testing.assert_close(one, other)
    assert not one[STILL].any() and one[~STILL].abs().sum() > 0


@pytest.mark.parametrize("term", ABOUT_CHANGE, ids=ids(ABOUT_CHANGE))
def test_a_batch_of_images_alone_gives_a_differentiable_zero(term):
    z = tokens(b=5)
    loss = term.loss(Stub(z, torch.randn_like(z), still=torch.ones(5, dtype=torch.bool)), term.head(12))
    loss.backward()
    assert loss == 0 and z.grad is not None and not z.grad.any()


@pytest.mark.parametrize("term", [t for t in STATISTICS if getattr(t, "projector", None) is None], ids=repr)
def test_statistics_count_images_as_clips(term):
    z, h, together, _ = with_images()
    torch.testing.assert_close(term.loss(together), term.loss(Stub(z, h)))


def drawn(batch, clip, net):
    return masks.MultiBlock((masks.Blocks(3, 0.3), masks.Blocks(2, 0.4)), truncate="padded").draw(
        batch, net.student.grid(clip), seed=0, step=0
    )


@pytest.fixture
def model():
    """A model whose student has moved away from its teacher, and a batch of three clips and two repeated images."""
    torch.manual_seed(0)
    net = VJEPA.build(SIZE)
    with torch.no_grad():
        for p in net.student.parameters():
            p.add_(0.02 * torch.randn_like(p))
    clip = torch.randn(5, 3, SIZE.frames, SIZE.size, SIZE.size)
    clip[STILL] = clip[STILL][:, :, :1]
    return net, clip


def rows(mask, keep):
    return masks.Mask(*(part if part is None else part[keep] for part in (mask.seen, mask.hidden, mask.seen_valid, mask.hidden_valid)))


@pytest.mark.parametrize("view", ["full", "visible", "causal"])
def test_weights_get_the_gradient_of_the_clips_alone(model, view):
    net, clip = model
    objective = Delta(view=view) + 0.5 * Hard(Kinematic(order=2, view=view))
    every = drawn(5, clip, net)
    gradients = []
    for lat in (
        net.latents(clip, every, still=STILL),
        net.latents(clip[~STILL], [rows(m, ~STILL) for m in every]),
    ):
        net.zero_grad()
        Loss(objective, net.width)(lat)[0].backward()
        gradients.append(torch.cat([p.grad.flatten() for p in net.student.parameters()]))
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-7)
    assert gradients[0].abs().sum() > 0


@pytest.mark.parametrize("term", [JEPA(), Context(), JEPA(distance="seen"), Hard(JEPA(), standardise=True)], ids=repr)
def test_the_predictor_learns_from_images_too(model, term):
    net, clip = model
    every = drawn(5, clip, net)
    torch.testing.assert_close(term.loss(net.latents(clip, every, still=STILL)), term.loss(net.latents(clip, every)))


def test_parts_of_a_batch_count_by_their_samples(model):
    """Videos of eight frames and images of one: the JEPA loss is the mean over samples, a term about change is the videos' alone."""
    net, clip = model
    videos, images = clip[~STILL], clip[STILL][:, :, :1]
    objective = JEPA() + Delta(view="visible") + Hard(Delta()) + Shuffled(Kinematic()) + Orthogonal()
    parts = [net.latents(x, drawn(len(x), x, net)) for x in (videos, images)]
    loss = Loss(objective, net.width)
    _, both = loss(*parts)
    (_, first), (_, second) = (loss(part) for part in parts)
    for name in both:
        expected = (3 * first[name] + 2 * second[name]) / 5 if name in ("JEPA", "Orthogonal") else first[name]
        torch.testing.assert_close(both[name], expected)
        assert both[name] > 0, name
    loss(*reversed(parts))[0].backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.student.parameters())


def test_an_idle_term_leaves_images_out_too():
    _, _, together, alone = with_images()
    torch.testing.assert_close(Detached(Delta()).loss(together), Delta().loss(alone).detach())


def trainer_of(objective, **options):
    net = VJEPA.build(SIZE)
    return Trainer(objective, net, Loss(objective.objective, net.width), SIZE, 0, torch.device("cpu"), **options)


@pytest.mark.parametrize("accumulate", [2, 4])
def test_micro_batches_count_by_the_clips_in_them(accumulate):
    """Two clips, one clip, none: a term about change is the mean over the clips of the whole batch, an image-only part adds nothing."""
    torch.manual_seed(5)
    still = torch.tensor([False, False, True, False, True, True, True, True])
    clip = torch.randint(0, 255, (8, 3, SIZE.frames, SIZE.size, SIZE.size), dtype=torch.uint8)
    batch = Batch(clip, {}, torch.arange(8), (), still)
    recipe = Recipe(JEPA() + Delta() + Hard(Kinematic(order=2)) + Detached(Hard(Delta(on="dyn"), scope="batch")))
    found = []
    for pieces in (1, accumulate):
        torch.manual_seed(6)
        trainer = trainer_of(recipe, accumulate=pieces)
        record = trainer.step(0, batch, log=True)
        found.append((record, torch.cat([p.grad.flatten() for p in trainer.parameters if p.grad is not None])))
    (whole, gradient), (parts, other) = found
    for name in ("JEPA", "Delta", "Hard(Accel)"):
        assert parts["parts"][name] == pytest.approx(whole["parts"][name], rel=1e-4), name
    torch.testing.assert_close(gradient, other, rtol=1e-3, atol=1e-6)


def test_a_recipe_may_count_images_as_clips():
    """The published code does not know which clips are repeated images: they are in every mean."""
    torch.manual_seed(7)
    clip = torch.randint(0, 255, (4, 3, SIZE.frames, SIZE.size, SIZE.size), dtype=torch.uint8)
    still = torch.tensor([False, True, True, False])
    clip[still] = clip[still][:, :, :1]
    parts = {}
    for images, mark in (("in", still), ("out", still), ("out", None)):
        torch.manual_seed(8)
        trainer = trainer_of(Recipe(JEPA() + Kinematic(), images=images))
        record = trainer.step(0, Batch(clip, {}, torch.arange(4), (), mark), log=True)
        parts[images, mark is None] = record["parts"]["Kinematic"]
    assert parts["in", False] == parts["out", True] < parts["out", False]
    assert all(row.images == "in" for row in variants.RELEASED.values()) and variants.recipe("fwm").images == "out"


class Bend(Term):
    """A user's term: that it is about change is read off its map."""

    def error(self, view, head):  # [b t-2 h w]
        v = diff(view.z)
        return (v[:, 1:] * v[:, :-1]).sum(-1).abs()


class Quiet(Term):
    def error(self, view, head):  # [b t h w]
        return view.z.abs().mean(-1)


class Pooled(Term):
    """About change by its own word, but its map has no axis of the batch."""

    temporal = True

    def error(self, view, head):
        return diff(view.z).abs().mean((0, -1))


def test_a_users_term_needs_no_word_about_images():
    z, h, together, alone = with_images()
    torch.testing.assert_close(Bend().loss(together), Bend().loss(alone))
    torch.testing.assert_close(Quiet().loss(together), Quiet().loss(Stub(z, h)))


def test_a_map_without_a_batch_axis_is_refused_by_name():
    _, _, together, alone = with_images()
    assert Loss(Pooled(), 12)(alone)[0] > 0
    with pytest.raises(ValueError, match=r"Pooled: images are among the clips.*axis must be the batch of 5"):
        Loss(Objective(((1.0, Pooled()),)), 12)(together)


def test_guided_masks_are_uniform_for_the_images_of_a_batch():
    """Sample by sample: where nothing moves every position is equally likely, and the clips beside it keep their own probabilities."""
    clip = torch.rand(5, 3, 8, 64, 64, generator=torch.Generator().manual_seed(0)) ** 3
    clip[:, :, :, :24] *= 0.1
    clip[STILL] = clip[STILL][:, :, :1].expand(-1, -1, 8, -1, -1)
    for where in (masks.MOTION_GUIDED.where, masks.AMG.where):
        size = masks.Size(4, 3, 4)
        p = where.probability(where.score(clip, (4, 8, 8)), size)
        torch.testing.assert_close(p[STILL], torch.full_like(p[STILL], 1 / p[0].numel()))
        torch.testing.assert_close(p[~STILL], where.probability(where.score(clip[~STILL], (4, 8, 8)), size))
        assert p[~STILL].flatten(1).std(1).min() > 1e-3


@pytest.mark.parametrize("images", ["repeat", "still"])
def test_a_mixture_of_videos_and_images_trains(tmp_path, images):
    """Through the loader: images that fill their frames, or parts of one frame; a batch may hold no clip at all."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for i in range(6):
        folder = tmp_path / "pictures" / f"class{i % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    shape = {"frames": SIZE.frames, "size": SIZE.size}
    videos, pictures = vl.data.open("synthetic", n=16, **shape), vl.data.open(tmp_path / "pictures", images=images, **shape)
    mixed = vl.data.Mixture([videos, pictures], [0.5, 0.5])
    recipe = Recipe(JEPA() + Delta() + Hard(Kinematic(view="visible")), masks.MOTION_GUIDED)
    run = vl.pretrain(recipe, mixed, "smoke", runs=tmp_path, steps=8, batch=2, progress=False, log_every=1)
    table = run.metrics()
    kinds = [
        b.still.tolist() if len(b.parts) == 1 else [s for p in b.parts for s in p.still.tolist()]
        for _, b in zip(range(8), vl.data.loader(mixed, 2, seed=0), strict=False)
    ]
    alone = [all(kind) for kind in kinds]
    assert any(alone) and not all(alone), "the draw has batches of images alone and others"
    assert (table["JEPA"] > 0).all() and table["loss"].notna().all()
    assert list(table["Delta"] == 0) == alone


def test_processes_and_micro_batches_weigh_images_as_one_batch_does(tmp_path):
    """1 x 8 clips, and 2 processes x 2 micro-batches x 2 clips, of which some hold images alone."""
    from PIL import Image

    for i in range(6):
        folder = tmp_path / "pictures" / f"class{i % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    shape = {"frames": SIZE.frames, "size": SIZE.size}
    videos, pictures = vl.data.open("synthetic", n=16, **shape), vl.data.open(tmp_path / "pictures", **shape)
    mixed = vl.data.Mixture([videos, pictures], [0.4, 0.6])
    how = {"preset": "smoke", "batch": 8, "steps": 3, "bf16": False, "progress": False, "log_every": 1, "lr": 1e-4}
    one, four = (
        vl.pretrain(JEPA() + Kinematic() + Delta(), mixed, out=tmp_path / name, **how, **more)
        for name, more in (("one", {}), ("four", {"devices": 2, "accumulate": 2}))
    )
    names = ["loss", "grad_norm", "JEPA", "Kinematic", "Delta"]
    torch.testing.assert_close(*(torch.tensor(run.metrics()[names].values) for run in (one, four)), rtol=1e-3, atol=1e-5)
    stills = [b.still.view(4, 2).all(1).any() for _, b in zip(range(3), vl.data.loader(mixed, 8, seed=0), strict=False)]
    assert any(stills), "the draw has a micro-batch of images alone"
