"""The model of a Video JEPA: encoder, predictor, teacher, and what the three of them see of a clip.

Axes, everywhere in the package: b batch, c colour, f y x frames, rows and columns of pixels, t h w token grid, n tokens, d channels,
k seen tokens, m hidden tokens. A token's id is t*(h*w) + row*w + column. Module names follow facebookresearch/vjepa2, so that its
checkpoints map one to one.
"""

import copy
import math
import warnings
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from functools import cached_property

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vjepa_lab.blocks import Block, How, initialise, run_blocks, why_not_compiled
from vjepa_lab.masks import Mask
from vjepa_lab.presets import Preset
from vjepa_lab.rope import STYLES, brought, positions, rotary

Grid = tuple[int, int, int]
TEACHERS = ("ema", "online", "frozen")
POSITIONS = ("rope", "sincos")


def gather(tokens: Tensor, index: Tensor) -> Tensor:
    """Tokens [b n d] at index [b k] -> [b k d]."""
    return tokens.gather(1, index.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def placed(x: Tensor, grid: Grid, index: Tensor | None = None, base: Grid | None = None) -> Tensor:
    """Tokens [b k d] at places `index` [b k] of a grid (None: all of them), with V-JEPA 1's fixed table added."""
    table = brought(x.device, x.dtype, positions, grid, x.shape[-1], base)
    return x + (table if index is None else table[index])


def together(index: Sequence[Tensor], valid: Sequence[Tensor | None]) -> tuple[Tensor, Tensor | None, list[int]]:
    """Several sets of token ids [b k] end to end, which of them count (None: all), and how long each set is."""
    if all(v is None for v in valid):
        return torch.cat(list(index), dim=1), None, [i.shape[1] for i in index]
    full = [torch.ones_like(i, dtype=torch.bool) if v is None else v for i, v in zip(index, valid, strict=True)]
    return torch.cat(list(index), dim=1), torch.cat(full, dim=1), [i.shape[1] for i in index]


class Encoder(nn.Module):
    """Video vision transformer over tubelets: clip [b c f y x] -> tokens [b n d].

    position    "rope": rotary queries and keys, `rope` their style; "sincos": V-JEPA 1's fixed table added to the embedded patches,
                stretched from `sincos_grid` where that is given.
    levels      1, or 4: also normalise the outputs after 1/4, 2/4 and 3/4 of the depth (V-JEPA 2.1's multi-level targets), or after the
                blocks numbered in `after`, the last one among them.
    image_path  a still image gets a patch embedding of its own with tubelet 1, and both modalities a learned mark (V-JEPA 2.1);
                without it a single frame is repeated to fill one tubelet.
    """

    def __init__(
        self,
        dim: int = 768,
        depth: int = 12,
        heads: int = 12,
        patch: int = 16,
        tubelet: int = 2,
        *,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        rope: str = "interleaved",
        rope_base_grid: int | None = None,
        position: str = "rope",
        sincos_grid: Grid | None = None,
        levels: int = 1,
        after: Sequence[int] | None = None,
        image_path: bool = False,
    ):
        super().__init__()
        if position not in POSITIONS:
            raise ValueError(f"position {position!r}: expected one of {', '.join(POSITIONS)}")
        if rope not in STYLES:
            raise ValueError(f"rope style {rope!r}: expected one of {', '.join(STYLES)}")
        if levels not in (1, 4):
            raise ValueError(f"levels={levels}: expected 1 (last block) or 4 (every quarter of the depth, V-JEPA 2.1)")
        if depth < levels:
            raise ValueError(f"{levels} levels need as many blocks; the encoder has {depth}")
        self.dim, self.depth, self.heads, self.patch, self.tubelet, self.levels = dim, depth, heads, patch, tubelet, levels
        self.rope, self.rope_base_grid, self.how = rope, rope_base_grid, How()
        self.position, self.sincos_grid = position, sincos_grid and tuple(sincos_grid)
        self.patch_embed = nn.Linear(3 * tubelet * patch**2, dim)
        self.patch_embed_img = nn.Linear(3 * patch**2, dim) if image_path else None
        if image_path:
            self.img_mod_embed, self.video_mod_embed = (nn.Parameter(torch.randn(1, 1, dim) * 1e-6) for _ in range(2))
        self.blocks = nn.ModuleList(Block(dim, heads, mlp_ratio, drop_path * i / max(depth - 1, 1)) for i in range(depth))
        after = [(i + 1) * depth // levels - 1 for i in range(levels)] if after is None else list(after)
        if len(after) != levels or after[-1] != depth - 1:
            raise ValueError(f"after={after}: expected {levels} blocks, the last of them {depth - 1}")
        self.norms = nn.ModuleDict({str(i): nn.LayerNorm(dim, eps=1e-6) for i in after})
        initialise(self, self.blocks)

    def grid(self, clip: Tensor) -> Grid:
        """Token grid (t, h, w) of clip [b c f y x]; raises ValueError where frames or pixels do not divide."""
        f, y, x = clip.shape[-3:]
        if (f > 1 and f % self.tubelet) or y % self.patch or x % self.patch:
            raise ValueError(f"clip of {f} frames, {y} x {x}: frames must divide by {self.tubelet} (or be 1), sides by {self.patch}")
        return max(f // self.tubelet, 1), y // self.patch, x // self.patch

    def patchify(self, clip: Tensor) -> Tensor:
        """Clip [b c f y x] -> flat pixels of each token [b n c*p*patch*patch], p the tubelet (1 for an image on its own path)."""
        if clip.shape[2] == 1 and self.patch_embed_img is None:
            clip = clip.expand(-1, -1, self.tubelet, -1, -1)
        tubelet = min(self.tubelet, clip.shape[2])
        return rearrange(clip, "b c (t p) (h q) (w r) -> b (t h w) (c p q r)", p=tubelet, q=self.patch, r=self.patch)

    def embed(self, patches: Tensor) -> Tensor:
        """Flat pixels [b k p] -> tokens [b k d]."""
        if self.patch_embed_img is None:
            return self.patch_embed(patches)
        still = patches.shape[-1] == self.patch_embed_img.in_features
        return self.patch_embed_img(patches) + self.img_mod_embed if still else self.patch_embed(patches) + self.video_mod_embed

    def encode(
        self,
        patches: Tensor,
        grid: Grid,
        keep: Tensor | None = None,
        valid: Tensor | None = None,
        levels: bool = False,
        lengths: Sequence[int] | None = None,
    ) -> Tensor:
        """Patches [b n p] of a `grid`, only those in `keep` [b k] if given -> tokens [b k d], or [b k levels*d] with `levels`.

        lengths  `keep` names several sets of tokens end to end, of these sizes: each is encoded by itself (`together`).
        """
        after = [int(i) for i in self.norms] if levels else [self.depth - 1]
        outputs = self.outputs(patches, grid, keep, valid, after=after, lengths=lengths)
        return torch.cat([self.norms[str(i)](x) for i, x in zip(after, outputs, strict=True)], dim=-1)

    def outputs(
        self,
        patches: Tensor,
        grid: Grid,
        keep: Tensor | None = None,
        valid: Tensor | None = None,
        *,
        after: Iterable[int],
        lengths: Sequence[int] | None = None,
    ) -> list[Tensor]:
        """What the blocks numbered in `after` make of patches [b n p], before any norm: [b k d] each."""
        x = self.embed(patches if keep is None else gather(patches, keep))
        rope = None
        if self.position == "sincos":
            x = placed(x, grid, keep, self.sincos_grid)
        else:
            rope = brought(x.device, x.dtype, rotary, grid, self.dim // self.heads, self.rope, self.rope_base_grid).at(keep)
        return run_blocks(self.blocks, x, rope, valid, lengths, after=after, how=self.how)

    def forward(self, clip: Tensor, keep: Tensor | None = None) -> Tensor:
        """Clip [b c f y x], normalised floats -> last-level tokens [b n d], or only those in `keep` [b k]."""
        return self.encode(self.patchify(clip), self.grid(clip), keep)


class Predictor(nn.Module):
    """Narrow transformer that guesses the teacher's tokens at hidden places from the student's tokens at seen ones.

    kinds    mask tokens, one per mask kind, zero at the start (V-JEPA 1; V-JEPA 2 in effect shares the first among kinds). `VJEPA.build`
             always makes 2, as there are official mask kinds: of more kinds the third shares the first's, the fourth the second's.
    out      channels predicted; by default `levels` times `width`, the student's own (V-JEPA 2.1's distilled models guess a wider teacher).
    context  a projection of its own for the seen places; by default where there are several levels.
    Positions as in the encoder.
    """

    def __init__(
        self,
        width: int,
        dim: int = 256,
        depth: int = 8,
        heads: int = 8,
        *,
        levels: int = 1,
        kinds: int = 2,
        rope: str = "interleaved",
        rope_base_grid: int | None = None,
        position: str = "rope",
        sincos_grid: Grid | None = None,
        out: int | None = None,
        context: bool | None = None,
    ):
        super().__init__()
        self.dim, self.heads, self.rope, self.rope_base_grid, self.how = dim, heads, rope, rope_base_grid, How()
        self.position, self.sincos_grid = position, sincos_grid and tuple(sincos_grid)
        out = out or levels * width
        single = nn.Linear(width, dim)
        self.embed = single if levels == 1 else nn.Sequential(nn.Linear(levels * width, width), nn.GELU(), single)
        self.mask_tokens = nn.Parameter(torch.zeros(kinds, 1, 1, dim))
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.proj = nn.Linear(dim, out)
        self.proj_context = nn.Linear(dim, out) if (levels > 1 if context is None else context) else None
        initialise(self, self.blocks)

    def forward(self, tokens: Tensor, mask: Mask, grid: Grid, kind: int = 0) -> tuple[Tensor, Tensor]:
        """Student tokens [b k d] at mask.seen -> (prediction [b m d] at mask.hidden, own state [b k p] at mask.seen)."""
        return self.predict([tokens], [mask], grid, [kind])[0]

    def predict(self, tokens: Sequence[Tensor], masks: Sequence[Mask], grid: Grid, kinds: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        """`forward` for several masks in one pass, each by itself."""
        known = self.embed(torch.cat(list(tokens), dim=1)).split([m.seen.shape[1] for m in masks], dim=1)
        blank = (self.mask_tokens[kind % len(self.mask_tokens)].to(known[0].dtype) for kind in kinds)
        hidden = [token.expand(*m.hidden.shape, -1) for token, m in zip(blank, masks, strict=True)]
        x = torch.cat([part for pair in zip(known, hidden, strict=True) for part in pair], dim=1)
        # The tables carry the places, so tokens need no sorting by place as upstream does.
        sides = [side for m in masks for side in ((m.seen, m.seen_valid), (m.hidden, m.hidden_valid))]
        (places, valid, lengths), rope = together(*zip(*sides, strict=True)), None
        if self.position == "sincos":
            x = placed(x, grid, places, self.sincos_grid)
        else:
            rope = brought(x.device, x.dtype, rotary, grid, self.dim // self.heads, self.rope, self.rope_base_grid).at(places)
        (x,) = run_blocks(self.blocks, x, rope, valid, [a + b for a, b in zip(lengths[::2], lengths[1::2], strict=True)], how=self.how)
        parts = self.norm(x).split(lengths, dim=1)
        guesses = self.proj(torch.cat(parts[1::2], dim=1)).split(lengths[1::2], dim=1)
        return list(zip(guesses, parts[::2], strict=True))

    def context(self, state: Tensor) -> Tensor:
        """Prediction [b k d] at the seen places from the predictor's own state there (V-JEPA 2.1's context loss)."""
        return (self.proj if self.proj_context is None else self.proj_context)(state)


class VJEPA(nn.Module):
    """Student encoder, predictor and teacher encoder.

    teacher    "ema": a slow copy of the student, moved by `update_teacher`; "online": the student itself, behind a stop-gradient;
               "frozen": the copy never moves.
    stop_grad  False lets gradients flow into an online teacher's targets (what the paper's released code does without EMA).
    bf16       run the passes under bf16 autocast; latents come out in fp32 either way.
    """

    def __init__(self, student: Encoder, predictor: Predictor, *, teacher: str = "ema", stop_grad: bool = True, bf16: bool = False):
        super().__init__()
        if teacher not in TEACHERS:
            raise ValueError(f"teacher {teacher!r}: expected one of {', '.join(TEACHERS)}")
        self.student, self.predictor, self.teacher_mode, self.stop_grad, self.bf16 = student, predictor, teacher, stop_grad, bf16
        self.teacher = None if teacher == "online" else copy.deepcopy(student).requires_grad_(False)

    @classmethod
    def build(cls, p: Preset, *, teacher: str = "ema", stop_grad: bool = True, levels: int = 1, bf16: bool = False, **encoder) -> "VJEPA":
        """The model of a preset's size; further keywords go to the Encoder."""
        student = Encoder(p.dim, p.depth, p.heads, p.patch, p.tubelet, levels=levels, **encoder)
        same = {name: getattr(student, name) for name in ("rope", "rope_base_grid", "position", "sincos_grid")}
        predictor = Predictor(p.dim, p.pred_dim, p.pred_depth, p.pred_heads, levels=levels, **same)
        return cls(student, predictor, teacher=teacher, stop_grad=stop_grad, bf16=bf16)

    def run_as(self, *, compile: bool = False, checkpoint: bool = False) -> "VJEPA":
        """The same model, its blocks compiled (dynamic in the number of tokens) or recomputed in the backward pass from now on.

        Warns and stays eager where this device has no working compiler. Call it once the model is where it will run.
        """
        device = next(self.parameters()).device.type
        if compile and (reason := why_not_compiled(device)):
            warnings.warn(f"compile=True is left out: torch.compile does not work here on {device} ({reason})", stacklevel=2)
            compile = False
        for part in (self.student, self.predictor, self.teacher):
            if part is not None:
                part.how = How(compile, checkpoint)
        return self

    @property
    def width(self) -> int:
        """Channels d of the latents: the student's width times its levels."""
        return self.student.dim * self.student.levels

    def latents(self, clip: Tensor, masks: list[Mask], **context) -> "Latents":
        """What student, teacher and predictor make of clip [b c f y x] under `masks`; nothing is computed before it is asked for."""
        return Latents(self, clip, masks, **context)

    @torch.no_grad()
    def update_teacher(self, momentum: float) -> None:
        """teacher <- momentum * teacher + (1 - momentum) * student, all parameters in one call."""
        if self.teacher_mode == "ema":
            torch._foreach_lerp_(list(self.teacher.parameters()), list(self.student.parameters()), 1 - momentum)

    def trainable(self) -> list[tuple[str, nn.Parameter]]:
        return [(n, p) for n, p in self.named_parameters() if p.requires_grad]


class Latents:
    """A clip as student, teacher and predictor see it: every view is computed when first asked for, once, and comes out in fp32.

    A list holds one tensor per mask kind. An objective pays for what it touches: the baseline never asks for `z`.
    step, progress  training step and share of the training done (0 to 1), for terms that depend on them.
    full            say that `z` will be asked for: an online teacher then shares that pass instead of running its own.
    still           boolean [b]: samples that are images repeated to fill the frames, which terms about change leave out; None: none is
    share           weight of a micro-batch in terms about change: its number of clips that are no images, over the mean of that number over
                    the step's micro-batches; 1 where the batch is not cut
    """

    def __init__(
        self,
        model: VJEPA,
        clip: Tensor,
        masks: list[Mask],
        *,
        step: int = 0,
        progress: float = 0.0,
        full: bool = False,
        still: Tensor | None = None,
        share: float | Tensor = 1.0,
    ):
        self.model, self.clip, self.masks, self.step, self.progress, self.full = model, clip, masks, step, progress, full
        self.still, self.share = still, share
        self.grid = model.student.grid(clip)

    def autocast(self):
        return torch.autocast(self.clip.device.type, torch.bfloat16) if self.model.bf16 else nullcontext()

    @cached_property
    def patches(self) -> Tensor:
        """Flat pixels of all tokens [b n p], in the precision of the passes."""
        return self.model.student.patchify(self.clip.bfloat16() if self.model.bf16 else self.clip)

    def _encode(
        self, encoder: Encoder, keep: Tensor | None = None, valid: Tensor | None = None, lengths: Sequence[int] | None = None
    ) -> Tensor:
        with self.autocast():
            return encoder.encode(self.patches, self.grid, keep, valid, levels=True, lengths=lengths).float()

    def on_grid(self, tokens: Tensor) -> Tensor:
        """[b n d] -> [b t h w d]."""
        return tokens.unflatten(1, self.grid)

    def normalise(self, tokens: Tensor) -> Tensor:
        """LayerNorm without affine over the channels of each level (V-JEPA's targets)."""
        dim = self.model.student.dim
        return F.layer_norm(tokens.unflatten(-1, (-1, dim)), (dim,)).flatten(-2)

    @cached_property
    def seen(self) -> list[Tensor]:
        """Student's tokens of the seen places: [b k d]. One pass for all mask kinds, which do not see each other."""
        keep, valid, lengths = together([m.seen for m in self.masks], [m.seen_valid for m in self.masks])
        return list(self._encode(self.model.student, keep, valid, lengths).split(lengths, dim=1))

    @cached_property
    def z(self) -> Tensor:
        """Student's view of the full clip, with gradient: [b t h w d]. Costs a second student pass."""
        return self.on_grid(self._encode(self.model.student))

    @cached_property
    def causal(self) -> Tensor:
        """Student's view of the full clip in which a token sees its own time and the past only: [b t h w d]. Costs a second pass."""
        time = torch.arange(math.prod(self.grid), device=self.clip.device) // math.prod(self.grid[1:])
        return self.on_grid(self._encode(self.model.student, valid=(time[:, None] >= time)[None]))

    @cached_property
    def h(self) -> Tensor:
        """Teacher's view of the full clip, normalised: [b t h w d]; without gradient, unless `stop_grad` is off."""
        if self.model.teacher is not None:
            with torch.no_grad():
                return self.on_grid(self.normalise(self._encode(self.model.teacher)))
        if not self.model.stop_grad:
            return self.normalise(self.z)
        if self.full:
            return self.normalise(self.z.detach())
        with torch.no_grad():
            return self.on_grid(self.normalise(self._encode(self.model.student)))

    @cached_property
    def target(self) -> list[Tensor]:
        """Teacher's tokens at the hidden places: [b m d]."""
        return [gather(self.h.flatten(1, 3), m.hidden) for m in self.masks]

    @cached_property
    def _predicted(self) -> list[tuple[Tensor, Tensor]]:
        with self.autocast():
            return self.model.predictor.predict(self.seen, self.masks, self.grid, range(len(self.masks)))

    @cached_property
    def pred(self) -> list[Tensor]:
        """Predictor's guess at the hidden places: [b m d]."""
        return [guess.float() for guess, _ in self._predicted]

    @cached_property
    def context(self) -> list[Tensor]:
        """Predictor's guess at the seen places: [b k d] (V-JEPA 2.1)."""
        with self.autocast():
            return [self.model.predictor.context(state).float() for _, state in self._predicted]

    def scatter(self, tokens: Tensor, index: Tensor, valid: Tensor | None = None) -> Tensor:
        """Tokens [b k d] at places [b k] -> the full grid [b t h w d], zero elsewhere; those not `valid` are dropped."""
        n = math.prod(self.grid)
        index = index if valid is None else index.masked_fill(~valid, n)  # place n is thrown away
        full = tokens.new_zeros(len(tokens), n + 1, tokens.shape[-1])
        return self.on_grid(full.scatter(1, index.unsqueeze(-1).expand_as(tokens), tokens)[:, :n])

    def places(self, index: Tensor, valid: Tensor | None = None) -> Tensor:
        """Boolean grid [b t h w]: True at the places in index [b k] (those that are `valid`)."""
        return self.scatter(torch.ones_like(index, dtype=torch.bool).unsqueeze(-1), index, valid).squeeze(-1)


def count(module: nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in module.parameters())
