"""Fine-tuning: encoder and classifier trained end to end on labelled clips, then tested on several views of every video.

The recipe is the usual one of video transformers (BEiT, MAE, VideoMAE): AdamW whose learning rate falls from the head down to the first
block, warmup and cosine, and what keeps a large model from learning small data by heart (drop path, mixup, label smoothing), off by
default. Nothing is chosen on the test part: the weights after the last step are what is tested.
"""

import copy
import json
import math
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from timm.scheduler import CosineLRScheduler
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from tqdm.auto import tqdm

from vjepa_lab import data as video
from vjepa_lab.data.splits import SHAPE, apart, unaugmented
from vjepa_lab.evaluation.classifier import HEADS, Classifier, predictions
from vjepa_lab.evaluation.evaluate import Subject, given, said_of_pace, subject_of
from vjepa_lab.evaluation.features import clips_of, named, options_of
from vjepa_lab.evaluation.scoring import ProbeResult, scored
from vjepa_lab.evidence import results
from vjepa_lab.files import differing, write_json
from vjepa_lab.model import Encoder
from vjepa_lab.training import checkpoint, locks, provenance
from vjepa_lab.training.health import FiniteWatch, NotFinite, all_finite
from vjepa_lab.training.logbook import Log
from vjepa_lab.training.processes import Interrupted, Stop, device_of
from vjepa_lab.training.runs import load_run
from vjepa_lab.training.trainer import fast_bf16, own_randomness, seed_step, warmup_and_cosine


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How to fine-tune. Learning rates are AdamW's peak; `warmup` is a share of the steps; `mixup` is the Beta distribution's parameter."""

    head: str = "attentive"
    epochs: int = 20
    batch: int = 16
    lr: float = 5e-4
    layer_decay: float = 0.75
    weight_decay: float = 0.05
    warmup: float = 0.1
    drop_path: float = 0.0
    mixup: float = 0.0
    smoothing: float = 0.0

    def __post_init__(self):
        if self.head not in HEADS:
            raise ValueError(f"head={self.head!r}: expected one of {', '.join(HEADS)}")
        for name, low, high in (("layer_decay", 0, 1), ("warmup", 0, 1), ("drop_path", 0, 1), ("smoothing", 0, 1), ("mixup", 0, math.inf)):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name}={getattr(self, name)}: expected a value from {low} to {high}")
        for name in ("epochs", "batch", "lr"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}={getattr(self, name)}: expected more than 0")

    def steps(self, clips: int) -> int:
        return math.ceil(self.epochs * clips / self.batch)


@dataclass(frozen=True, repr=False)
class Finetuned:
    """A fine-tuned classifier on disk: config.json, metrics.jsonl, last.pt, rows.csv, predictions, tested.json, report.json."""

    path: Path

    @property
    def config(self) -> dict:
        return json.loads((self.path / "config.json").read_text())

    @property
    def plan(self) -> Plan:
        return Plan(**self.config["plan"])

    def metrics(self):
        """The logged steps, a pandas table: step, epoch, loss, top1 of the batch, lr, clips_per_s."""
        return results.metrics(self.path)

    def rows(self):
        """What was measured, a pandas table."""
        return results.read_run(self.path)

    def model(self) -> Classifier:
        """The trained classifier, in eval mode."""
        config, state = self.config, checkpoint.newest(self.path / "last.pt")
        if state is None:
            raise FileNotFoundError(f"{self.path / 'last.pt'}: no checkpoint; run finetune with the same arguments to train it")
        encoder = Encoder(**config["encoder_options"])
        model = Classifier(encoder, len(config["classes"]), self.plan.head, bf16=config["bf16"])
        model.load_state_dict(state[1]["model"])
        return model.eval()

    def test(
        self, data=None, *, split: str = "test", segments: int = 1, views: int = 1, workers: int = 0, device: str = "auto",
        save: bool = True, progress: bool = True,
    ) -> ProbeResult:  # fmt: skip
        """Score the classifier on `data` (by default its own), softmax averaged over segments x views clips of each video.

        Raises ValueError without data for a training on sources given by value, and where the classes differ from the training's.
        """
        config = self.config
        if data is None and config["spec"] is None:
            raise ValueError(f"{self.path} was trained on a source given by value; pass the test source as data=")
        source = _opened(data or config["spec"], split, config, augment=False)
        model = self.model().to(device_of(device))
        result = score(model, source, config, segments, views, workers, progress)
        if save:
            result.save(self.path)
            write_json(self.path / "tested.json", self.tested | {_named(config, segments, views): _clips(source)})
        return result

    @property
    def tested(self) -> dict[str, dict]:
        """On which clips each probe of the rows was tested last: the split, and a hash of its files and labels."""
        path = self.path / "tested.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def __repr__(self) -> str:
        done = "" if (self.path / "report.json").exists() else ", not finished"
        rows = self.rows().query("metric == 'top1' and source == 'run'")
        found = ", ".join(f"{row.probe} {row.value:.1f} % of {row.n:.0f}" for row in rows.itertuples())
        return f"Finetuned({self.path.name}{done}{': ' + found if found else ''})"


def finetune(
    model,
    data,
    label: str = "class",
    *,
    encoder: str | None = None,
    head: str = "attentive",
    frames: int | None = None,
    size: int | None = None,
    stride: int | None = None,
    fps: float | None = None,
    whole: bool = False,
    epochs: int = 20,
    batch: int = 16,
    lr: float = 5e-4,
    layer_decay: float = 0.75,
    weight_decay: float = 0.05,
    warmup: float = 0.1,
    drop_path: float = 0.0,
    mixup: float = 0.0,
    smoothing: float = 0.0,
    splits: tuple[str, str] = ("train", "test"),
    segments: int = 1,
    views: int = 1,
    seed: int = 0,
    runs: str | Path = "runs",
    out: str | Path | None = None,
    device: str = "auto",
    bf16: bool | None = None,
    workers: int = 0,
    log_every: int = 10,
    save_every: int = 200,
    progress: bool = True,
) -> Finetuned:
    """Train encoder and classifier end to end into a folder of their own, or go on where that stopped; then test it.

    model    a Run or its folder; or released weights ("vjepa2-vitl:vitl.pt"); or an Encoder, of which a copy is trained
    data     a name as `data.open` takes it, or a pair of Sources (train, test). Two splits that share files are refused. Clips of files
             are cropped and flipped at random in training, whatever its split is called; Sources as they were opened
    label    which label to learn
    encoder  "student" | "teacher" | "initial" (from scratch); by default the recipe's choice, of released weights the teacher
    head     "attentive" (cross-attention of a learned query) | "linear" (on the mean of the tokens)
    frames   frames per clip, `size` pixels a side, every `stride`-th frame; by default as pretrained (released weights: 16, theirs, 4)
    fps      in place of the stride: frames that lie 1/fps seconds apart, or with `whole` frames spread over the whole video, in training
             one at random of each equal part. The rows name either with the probe
    epochs   passes over the training clips, `batch` at a time
    lr       AdamW's peak, of the head; each layer below has `layer_decay` times that of the one above
    warmup   share of the steps in which the learning rate rises; then it falls as a cosine
    drop_path  share of the last block's residual branches that are left out in training, falling linearly to none at the first
    mixup    mix pairs of clips and labels with a share from Beta(mixup, mixup); 0: do not
    smoothing  share of the label that is spread over all classes
    segments clips in time and `views` across the picture of each test video, whose softmax is averaged
    seed     of the head, the order of clips, crops, drop path and mixup
    out      the folder; by default `runs`/finetune-<name>-<data>-s<seed>
    bf16     None: as the folder's training began; a new one where the device is fast at it

    A stopped or killed training goes on from its last checkpoint, on the CPU to the same bits; a finished one is tested again where the
    test clips are others than before. Raises ValueError for a folder that holds another training, of other weights too, and for labels that
    cannot be learnt; DataError, a ValueError, for splits that share files; NotFinite, a FloatingPointError, for a loss that is not finite.
    """
    plan = Plan(
        head=head, epochs=epochs, batch=batch, lr=lr, layer_decay=layer_decay, weight_decay=weight_decay, warmup=warmup,
        drop_path=drop_path, mixup=mixup, smoothing=smoothing,
    )  # fmt: skip
    where = device_of(device)
    given(data, fps=fps, whole=whole or None)
    subject = subject_of(model, encoder, out).shaped(frames, size, stride, fps=fps, whole=whole)
    if not isinstance(subject.encoder, Encoder):
        raise ValueError(f"fine-tuning needs an Encoder, whose layers are known; got {type(subject.encoder).__name__}")
    shape = {"frames": subject.frames, "size": subject.size, "stride": subject.stride}
    shape |= {name: value for name, value in {"fps": fps, "whole": whole}.items() if value}
    augment = {} if splits[0] == "train" else {"augment": True}  # what is called train is by itself
    pair = isinstance(data, tuple | list)
    train = _opened(data[0] if pair else data, splits[0], shape, seed=seed, **augment)
    counts = _counts(train, label)
    test = unaugmented(_opened(data[1] if pair else data, splits[1], shape, augment=False))
    apart(train, test)
    config = _about(model, subject) | shape | {
        "data": Path(train.name).name, "spec": None if pair else str(data), "label": label, "finetune_seed": seed, "plan": asdict(plan),
        "bf16": bf16, "classes": list(train.classes[label]), "clips": len(train),
        "encoder_options": options_of(subject.encoder), "train_counts": counts.tolist(),
        "weights": checkpoint.checksum(subject.encoder.state_dict())[:16],
    }  # fmt: skip
    if augment and train.augment:  # a folder that does not say so was trained without
        config["augment"] = True
    config["steps"] = min(config["steps"] or plan.steps(len(train)), plan.steps(len(train)))
    own = copy.deepcopy(subject.encoder) if subject.encoder is model else subject.encoder  # the caller's stays as it is
    folder = Path(out) if out else Path(runs) / f"finetune-{config['variant']}-{config['data'].replace(':', '_')}-s{seed}"
    done = Finetuned(folder)
    with locks.hold(folder):
        _open(folder, config, where)
        if not (folder / "report.json").exists():
            _train(done, own, train, where, workers, log_every, save_every, progress)
    if done.tested.get(_named(config, segments, views)) != _clips(test):
        done.test(test, segments=segments, views=views, workers=workers, device=device, progress=progress)
    return done


# ------------------------------------------------------------------------------------------------------------------------ the folder


def _opened(data, split: str, shape: dict, **options) -> video.Source:
    asked = {name: shape[name] for name in SHAPE if name in shape}
    return video.open(data, split, **asked, **({} if video.is_synthetic(data) else options))


def _counts(train: video.Source, label: str) -> Tensor:
    """Training clips of each class [k]; raises ValueError where they are not one known class per clip."""
    if label not in train.classes:
        raise ValueError(f"{train.name} has no label {label!r}; it has {', '.join(train.classes)}")
    labels = torch.as_tensor(train.labels[label])
    if labels.ndim != 1:
        raise ValueError(f"{label!r} of {train.name} is several classes at once; fine-tuning learns one class per clip")
    if (labels < 0).any():
        raise ValueError(f"{int((labels < 0).sum())} of {len(labels)} clips of {train.name} [{train.split}] have no {label!r}")
    return torch.bincount(labels, minlength=len(train.classes[label]))


def _about(model, subject: Subject) -> dict:
    """What the rows say of where the encoder comes from; `steps`: of its pretraining, where there was one of ours."""
    if subject.config is None and subject.folder is not None:
        known = load_run(model).config
        facts = {name: known.get(name) for name in ("variant", "edition", "seed")}
        where = {"regime": known.get("regime") or known["data"], "pretrain": known["data"], "from": subject.folder.name}
        return facts | where | {"encoder": subject.name, "steps": known["preset"]["steps"] if subject.name != "random-init" else None}
    known = {"variant": subject.name} | (subject.config or {})
    return known | {"encoder": subject.name, "steps": None}


def _named(config: dict, segments: int, views: int) -> str:
    """What the rows call the classifier's test."""
    return named("finetune", (segments, views)) + _read(config)


def _read(config: dict) -> str:
    """How the rows call clips whose frames are drawn by `fps` or `whole`."""
    return said_of_pace(config.get("fps"), config.get("whole", False))


def _clips(source: video.Source) -> dict:
    """What a test was made on."""
    return {"split": source.split, "clips": clips_of(source)}


def _open(folder: Path, config: dict, device: torch.device) -> None:
    """Write config.json, or check that it speaks of this very training; a precision of None is the folder's, or what suits the device."""
    path = folder / "config.json"
    if not path.exists():
        bf16 = fast_bf16(device) if config["bf16"] is None else config["bf16"]
        write_json(path, config | {"bf16": bf16, "session": provenance.session(device, 1)})
        return
    there = json.loads(path.read_text())
    config = {name: value for name, value in config.items() if not (name == "bf16" and value is None)}
    if "weights" not in there:  # which weights these were was not written down
        del config["weights"]
    if differ := differing(there, json.loads(json.dumps(config, default=str)), _short):
        raise ValueError(f"{folder} holds another training ({'; '.join(differ)}); choose another folder with out=, or remove it")


def _short(value) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


# -------------------------------------------------------------------------------------------------------------------------- training


def _train(
    run: Finetuned, encoder: Encoder, source: video.Source, device: torch.device, workers: int, log_every: int, save_every: int,
    progress: bool,
) -> None:  # fmt: skip
    """All steps from the last checkpoint on; then report.json."""
    config, plan = run.config, run.plan
    seed, label, steps = config["finetune_seed"], config["label"], plan.steps(len(source))
    classes = len(config["classes"])
    encoder = encoder.requires_grad_(True)
    model = Classifier(encoder, classes, plan.head, drop_path=plan.drop_path, seed=seed, bf16=config["bf16"]).to(device).train()
    optimizer = torch.optim.AdamW(model.groups(plan.layer_decay, plan.weight_decay), lr=plan.lr, fused=device.type in ("cpu", "cuda"))
    schedule = _schedule(optimizer, steps, plan)
    mix = v2.MixUp(alpha=plan.mixup, num_classes=classes) if plan.mixup else None
    step = 0
    if (state := checkpoint.newest(run.path / "last.pt")) is not None:
        step = state[1]["step"]
        model.load_state_dict(state[1]["model"])
        optimizer.load_state_dict(state[1]["optimizer"])
    start, began, log, watch, whole = step, time.perf_counter(), Log(run.path, step), FiniteWatch(device), True

    def save() -> None:
        state = {"step": step, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
        checkpoint.save(state, run.path / "last.pt", keep=2)

    bar = tqdm(total=steps, initial=step, desc=f"fine-tune {config['variant']}", unit="step", disable=not progress)
    batches = video.loader(source, plan.batch, seed=seed, start=step, workers=workers, pin=device.type == "cuda")
    with own_randomness(device), Stop() as stop, bar:
        try:
            while step < steps:
                batch = next(batches).to(device)
                seed_step(seed, step, 0)
                clip, y = video.normalize(batch.clip), batch.labels[label]
                target = y
                if mix is not None:
                    clip, target = mix(tv_tensors.Video(clip), y)
                    clip = clip.as_subclass(Tensor)
                logits = model(clip)
                loss = F.cross_entropy(logits, target, label_smoothing=plan.smoothing)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                schedule.step_update(step)
                watch.send(step, ("the loss",), loss.detach()[None], batch)
                whole = False
                optimizer.step()
                step, whole = step + 1, True
                bar.update()
                saving = step % save_every == 0 or step == steps
                if saving or (step - 1) % log_every == 0:
                    top1 = 100 * (logits.argmax(1) == y).float().mean().item()
                    record = {"step": step - 1, "epoch": round(step * plan.batch / len(source), 3), "loss": loss.item(), "top1": top1}
                    record |= {"lr": max(group["lr"] for group in optimizer.param_groups)}
                    log(record | {"clips_per_s": round((step - start) * plan.batch / (time.perf_counter() - began), 2)})
                    bar.set_postfix_str(f"loss {record['loss']:.3f}")
                if saving:
                    watch.receive(wait=True)
                    if not all_finite(list(model.parameters())):  # a loss that was finite may have a gradient that is not
                        raise NotFinite(f"the weights are no longer finite after step {step - 1}; try a smaller lr", step - 1, {}, batch)
                    save()
                if (number := stop.asked()) and step < steps:
                    raise Interrupted("", number)
        except NotFinite as error:
            raise NotFinite(f"{error}", error.step, error.terms, None) from None
        except KeyboardInterrupt as error:
            if whole and all_finite(list(model.parameters())):
                save()
            said = f"interrupted after step {step}; the same call goes on from the last checkpoint in {run.path}"
            raise Interrupted(said, getattr(error, "signal", 2)) from None
        finally:
            batches.close()
            log.close()
    write_json(
        run.path / "report.json",
        {"steps": steps, "resumed_at": start, "wall_s": round(time.perf_counter() - began, 1), "data": source.report()},
    )


def _schedule(optimizer: torch.optim.Optimizer, steps: int, plan: Plan) -> CosineLRScheduler:
    """Warmup from a hundredth of the peak, then a cosine to a thousandth of it."""
    warmup = min(round(plan.warmup * steps), max(steps - 1, 0))
    return warmup_and_cosine(optimizer, steps, warmup, first=1e-2 * plan.lr, last=1e-3 * plan.lr)


# ----------------------------------------------------------------------------------------------------------------------------- test


def score(model: Classifier, source: video.Source, config: dict, segments: int, views: int, workers: int, progress: bool) -> ProbeResult:
    """Rows, per-class table and predictions of a classifier on a test source; raises ValueError where the classes differ from training."""
    label = config["label"]
    if (there := list(source.classes.get(label, []))) != config["classes"]:
        raise ValueError(
            f"{source.name} [{source.split}] has {len(there)} classes of {label!r}, the classifier learnt {len(config['classes'])}"
            " (or in another order); open both parts from the same class list"
        )
    test = predictions(model, source, label, config["encoder"], segments=segments, views=views, workers=workers, progress=progress)
    test, counts = replace(test.labelled(label), read=_read(config)), torch.tensor(config["train_counts"])
    taught = torch.arange(len(counts)).repeat_interleave(counts)
    return scored(test.pooled, taught, test, label, "finetune", None, config["finetune_seed"], config["plan"])
