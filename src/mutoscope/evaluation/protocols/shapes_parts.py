"""Parts of the shapes protocols: what a source generates, predicts, completes or reconstructs, and its figures."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path

import torch
from einops import repeat
from jaxtyping import Bool, UInt8
from torch import Tensor

from mutoscope.data.fit import fit_frames
from mutoscope.data.sources.shapes.world import CLASS_NAMES, HELD_BACK_SEED, ShapesConfig
from mutoscope.errors import UserError
from mutoscope.evaluation.metrics.intervals import (
    Figures,
    codebook_figure,
    frechet_figure,
    histogram_figure,
    mean_figure,
    ratio_figure,
)
from mutoscope.evaluation.metrics.pixel import psnr_mean_of_frames, psnr_of_clip, psnr_of_region
from mutoscope.evaluation.metrics.temporal import flicker, motion
from mutoscope.evaluation.networks.shapes_classifier import Readings, ShapesClassifier
from mutoscope.evaluation.plan import Side
from mutoscope.evaluation.rows import CHUNK, Rows, chunk_ranges
from mutoscope.evaluation.sources.model_clips import (
    PREDICTION_TASKS,
    Clips,
    Conditions,
    ModelClips,
    pixel_conditions,
    prediction_task,
    reconstructed,
)
from mutoscope.evaluation.sources.shapes_clips import (
    RealClips,
    class_attributes,
    class_in_name,
    real_clips,
    shapes_class_names,
)
from mutoscope.evaluation.sources.windows import ClipListing, Window
from mutoscope.families.blending import blended_and_coded
from mutoscope.hub import ModelIndex
from mutoscope.sampling.tasks import pixel_mask
from mutoscope.tokenizers.base import VideoTokenizer

REAL, AGAIN = "real", "again"
ATTRIBUTE = "attribute "  # prefix of the rows that hold attributes of real clips


@dataclass(frozen=True)
class Reals:
    """The held-out clips of an evaluation, at the size of the source: `num_clips`, and as many further ones."""

    config: ShapesConfig
    num_clips: int
    seed: int = HELD_BACK_SEED

    def sides(self) -> tuple[Side, Side]:
        """The real side, and the other half of real against real."""
        chunks = chunk_ranges(self.num_clips, CHUNK)
        return Side(REAL, chunks, self._measure), Side(AGAIN, chunks, self._measure_further)

    def clips(self, numbers: range) -> RealClips:
        """Some clips of the real side."""
        return real_clips(self.config, numbers.start, len(numbers), self.seed)

    def _measure(self, numbers: range) -> Rows:
        clips = self.clips(numbers)
        return Rows({"video": clips.video, **{ATTRIBUTE + name: value for name, value in clips.attributes.items()}})

    def _measure_further(self, numbers: range) -> Rows:
        return Rows({"video": self.clips(range(numbers.start + self.num_clips, numbers.stop + self.num_clips)).video})


@dataclass
class Measured:
    """Rows of all sides by label, and what the classifier reads in their clips."""

    rows: Mapping[str, Rows]
    classifier: ShapesClassifier
    seed: int
    _readings: dict[str, Readings] = field(default_factory=dict)

    def video(self, label: str) -> UInt8[Tensor, "n t h w 3"]:
        """Clips of a side."""
        return self.rows[label]["video"]

    def read(self, label: str) -> Readings:
        """What the classifier reads in the clips of a side."""
        if label not in self._readings:
            self._readings[label] = self.classifier.read(self.video(label))
        return self._readings[label]

    @cached_property
    def truth(self) -> dict[str, Tensor]:
        """Attributes of the real clips."""
        tensors = self.rows[REAL].tensors
        return {name.removeprefix(ATTRIBUTE): v for name, v in tensors.items() if name.startswith(ATTRIBUTE)}

    def distances(self, prefix: str, generated: Readings, paired: bool = False) -> Figures:
        """Shapes-FVD of the source, and of as many further real clips, against the same real clips."""
        real, again = self.read(REAL).features, self.read(AGAIN).features
        return {
            f"{prefix}shapes_fvd": frechet_figure(generated.features, real, self.seed, paired),
            f"{prefix}shapes_fvd_real": frechet_figure(again, real, self.seed),
        }

    def accuracy(self, name: str, generated: Tensor, real: Tensor, paired: bool = False) -> Figures:
        """Share of correct clips (n,) bool, that of real clips, and their ratio."""
        return {
            name: mean_figure(generated, self.seed),
            f"{name}_real": mean_figure(real, self.seed),
            f"{name}_over_real": ratio_figure(generated, real, self.seed, paired),
        }

    def all_correct(self, readings: Readings, heads: tuple[str, ...]) -> Bool[Tensor, "n"]:
        """Clips in which all these heads name the attributes of the real clip of the same number."""
        return torch.stack([readings.correct(head, self.truth) for head in heads]).all(dim=0)


class Part(ABC):
    """One thing that a source is measured by."""

    @abstractmethod
    def sides(self) -> tuple[Side, ...]:
        """The sets of clips beside the real ones."""

    @abstractmethod
    def figures(self, measured: Measured) -> Figures:
        """Figures of this part."""


@dataclass(frozen=True)
class ModelPart(Part):
    """A part in which a model generates clips, at most `batch_size` per call."""

    reals: Reals
    batch_size: int
    model: ModelClips

    @property
    def index(self) -> ModelIndex:
        return self.model.pipeline.index

    @property
    def batches(self) -> tuple[range, ...]:
        return chunk_ranges(self.reals.num_clips, self.batch_size)

    def generate(self, number: int, conditions: Conditions) -> Clips:
        """Clips of one call. Raises UserError if their shape is not that of model_index.json."""
        config, clips = self.reals.config, self.model.generate(number, conditions)
        expected = (config.num_frames, config.height, config.width, 3)
        for clip in clips:
            if tuple(clip.shape) != expected:
                raise UserError(
                    f"The model generated a clip of shape {tuple(clip.shape)}, its model_index.json says {expected}."
                )
        return torch.stack(clips)

    def complete(self, task: str, numbers: range) -> tuple[Clips, RealClips]:
        """Clips that the model generates from what `task` shows of real clips, or from their class, and these."""
        real = self.reals.clips(numbers)
        conditions: Conditions = {"task": task, **pixel_conditions(task, real.video)}
        if task.startswith("class-conditional"):
            conditions["class_label"] = [CLASS_NAMES[int(label)] for label in real.attributes["class"]]
        return self.generate(numbers.start // self.batch_size, conditions), real


@dataclass(frozen=True)
class GenerationPart(ModelPart):
    """Class-conditional clips, classes in equal numbers, against held-out clips.

    An accuracy is the share of clips classified as the requested class, shape or motion. A model without classes is
    measured by shapes-FVD alone.
    """

    @cached_property
    def calls(self) -> dict[range, str | None]:
        """Clips of each call and their class; a class takes several calls if it has more clips than a batch."""
        names, calls, first = shapes_class_names(self.index) or (None,), {}, 0
        for i, name in enumerate(names):
            count = len(range(i, self.reals.num_clips, len(names)))
            for batch in chunk_ranges(count, self.batch_size):
                calls[range(first, first + len(batch))] = name
                first += len(batch)
        return calls

    def sides(self) -> tuple[Side, ...]:
        return (Side("generation", tuple(self.calls), self._measure),)

    def _measure(self, numbers: range) -> Rows:
        call = list(self.calls).index(numbers)
        return Rows({"video": self.generate(call, {"class_label": self.calls[numbers], "num_samples": len(numbers)})})

    def figures(self, measured: Measured) -> Figures:
        generated, real = measured.read("generation"), measured.read(REAL)
        metrics = measured.distances("", generated)
        labels = [CLASS_NAMES.index(name) for clips, name in self.calls.items() if name for _ in clips]
        if not labels:
            return metrics
        requested = class_attributes(torch.tensor(labels))
        for head in ("class", "shape", "motion"):
            right, right_in_real = generated.correct(head, requested), real.correct(head, measured.truth)
            metrics |= measured.accuracy(f"{head}_accuracy", right, right_in_real)
        return metrics


@dataclass(frozen=True)
class TextPart(ModelPart):
    """Clips from the captions of held-out clips, against those clips.

    A caption names colour, shape and motion of the main object and colour and shape of the others; an accuracy is the
    share of clips classified as the caption says.
    """

    def sides(self) -> tuple[Side, ...]:
        return (Side("text", self.batches, self._measure),)

    def _measure(self, numbers: range) -> Rows:
        captions = list(self.reals.clips(numbers).captions)
        return Rows({"video": self.generate(numbers.start // self.batch_size, {"prompt": captions})})

    def figures(self, measured: Measured) -> Figures:
        generated, real = measured.read("text"), measured.read(REAL)
        metrics = measured.distances("text_", generated)
        for heads in (("color",), ("shape",), ("motion",), ("color", "shape", "motion"), ("colors_present",)):
            right, right_in_real = measured.all_correct(generated, heads), measured.all_correct(real, heads)
            metrics |= measured.accuracy(f"text_{'_and_'.join(heads)}_accuracy", right, right_in_real, paired=True)
        return metrics


@dataclass(frozen=True)
class PredictionPart(ModelPart):
    """Frames predicted from the first frame of held-out clips; no PSNR includes the context frame.

    PSNR is that of a clip's mean squared error, averaged over clips; `..._frames_db` averages over frames instead.
    "Keeps": the predicted clip is classified as the real clip that its first frame is taken from. Shapes-FVD reads
    whole clips, with the context frame.
    """

    def sides(self) -> tuple[Side, ...]:
        return (Side("prediction", self.batches, self._measure),)

    def _measure(self, numbers: range) -> Rows:
        task = prediction_task(self.index.tasks)
        if task is None:
            raise UserError(
                f"This model predicts no frames: it was trained for neither of {', '.join(PREDICTION_TASKS)}."
            )
        return Rows({"video": self.complete(task, numbers)[0]})

    def figures(self, measured: Measured) -> Figures:
        seed, video, real = measured.seed, measured.video("prediction"), measured.video(REAL)
        future, predicted = real[:, 1:], video[:, 1:]
        copied = repeat(real[:, 0], "n h w c -> n t h w c", t=future.shape[1])
        predicted_psnr, copied_psnr = psnr_of_clip(future, predicted), psnr_of_clip(future, copied)
        metrics = {
            "prediction_psnr_db": mean_figure(predicted_psnr, seed),
            "prediction_psnr_frames_db": mean_figure(psnr_mean_of_frames(future, predicted), seed),
            "copy_first_frame_psnr_db": mean_figure(copied_psnr, seed),
            "prediction_over_copy_db": mean_figure(predicted_psnr - copied_psnr, seed),
        }
        generated = measured.read("prediction")
        for heads in (("color",), ("shape",), ("color", "shape"), ("colors_present",)):
            kept, kept_in_real = (
                measured.all_correct(generated, heads),
                measured.all_correct(measured.read(REAL), heads),
            )
            metrics |= measured.accuracy(f"prediction_keeps_{'_and_'.join(heads)}", kept, kept_in_real, paired=True)
        return metrics | measured.distances("prediction_", generated)


@dataclass(frozen=True)
class TasksPart(ModelPart):
    """Every task on the same held-out clips: shapes-FVD of the completed clips, and PSNR in the conditioning region.

    Clips are those of tokenizer and network without pasting, the paper's convention; figures named `blended` are of
    clips into which the conditioning region is blended (`blend_given`). `..._given_round_trip_db` is the PSNR of the
    real clip sent through the tokenizer, in the same region: the best that the model can reach. In names of figures,
    underscores replace the hyphens of task names.
    """

    @cached_property
    def unblended(self) -> "TasksPart":
        """The part with blending off, also for a model that blends by default."""
        options = {**self.model.options, **({"blend_given": False} if self.index.blend_given else {})}
        return replace(self, model=replace(self.model, options=options))

    def region(self, task: str) -> Bool[Tensor, "t h w"]:
        """The pixels that condition a task."""
        config = self.reals.config
        return pixel_mask(task, config.num_frames, config.height, config.width)

    def sides(self) -> tuple[Side, ...]:
        tokenizer = self.model.pipeline.tokenizer
        round_trip = Side("round-trip", self.batches, partial(reconstruct_chunk, tokenizer, self.reals))
        return (round_trip, *(Side(task, self.batches, partial(self._measure, task)) for task in self.index.tasks))

    def _measure(self, task: str, numbers: range) -> Rows:
        video, real = self.unblended.complete(task, numbers)
        region = self.region(task)
        if not region.any():
            return Rows({"video": video})
        blended = blended_and_coded(self.model.pipeline.tokenizer, video, real.video, region)
        return Rows({"video": video, "blended": blended})

    def figures(self, measured: Measured) -> Figures:
        metrics: Figures = {}
        for task in self.index.tasks:
            metrics |= measured.distances(f"{task.replace('-', '_')}_", measured.read(task))
            if "blended" in measured.rows[task].tensors:
                metrics |= self._region_figures(task, measured)
        return metrics

    def _region_figures(self, task: str, measured: Measured) -> Figures:
        name, region, seed = task.replace("-", "_"), self.region(task), measured.seed
        real, blended = measured.video(REAL), measured.rows[task]["blended"]
        given, best, blended_psnr = (
            psnr_of_region(real, video, region)
            for video in (measured.video(task), measured.video("round-trip"), blended)
        )
        features = measured.classifier.read(blended).features
        return {
            f"{name}_blended_shapes_fvd": frechet_figure(features, measured.read(REAL).features, seed),
            f"{name}_given_psnr_db": mean_figure(given, seed),
            f"{name}_given_round_trip_db": mean_figure(best, seed),
            f"{name}_given_over_round_trip_db": mean_figure(given - best, seed),
            f"{name}_given_blended_over_round_trip_db": mean_figure(blended_psnr - best, seed),
        }


def reconstruct_chunk(tokenizer: VideoTokenizer, reals: Reals, numbers: range) -> Rows:
    """Real clips encoded and decoded again, with their codes if the tokenizer is discrete."""
    video, tokens = reconstructed(tokenizer, reals.clips(numbers).video)
    return Rows({"video": video} if tokenizer.spec.vocab_size is None else {"video": video, "tokens": tokens})


@dataclass(frozen=True)
class ReconstructionPart(Part):
    """Held-out clips encoded and decoded by a tokenizer, against the originals."""

    reals: Reals
    batch_size: int
    tokenizer: VideoTokenizer

    def sides(self) -> tuple[Side, ...]:
        batches = chunk_ranges(self.reals.num_clips, self.batch_size)
        return (Side("reconstruction", batches, partial(reconstruct_chunk, self.tokenizer, self.reals)),)

    def figures(self, measured: Measured) -> Figures:
        seed, video, original = measured.seed, measured.video("reconstruction"), measured.video(REAL)
        generated, real = measured.read("reconstruction"), measured.read(REAL)
        metrics = {
            "reconstruction_psnr_db": mean_figure(psnr_of_clip(original, video), seed),
            "reconstruction_psnr_frames_db": mean_figure(psnr_mean_of_frames(original, video), seed),
        }
        for head in ("class", "color", "shape", "colors_present", "shapes_present"):
            right, right_in_real = generated.correct(head, measured.truth), real.correct(head, measured.truth)
            metrics |= measured.accuracy(f"reconstruction_{head}_accuracy", right, right_in_real, paired=True)
        if self.tokenizer.spec.vocab_size is not None:
            tokens = measured.rows["reconstruction"]["tokens"]
            metrics["codebook_use"] = codebook_figure(tokens, self.tokenizer.spec.vocab_size)
        return metrics | measured.distances("reconstruction_", generated, paired=True)


@dataclass(frozen=True)
class FilesPart(Part):
    """Videos of a folder against held-out clips: shapes-FVD, distances between histograms of predicted attributes, and
    motion and flicker.

    If every file, or its folder, is named after a class of the dataset, class accuracy is measured too.
    """

    label = "files"

    reals: Reals
    listing: ClipListing

    def sides(self) -> tuple[Side, ...]:
        return (Side(self.label, chunk_ranges(len(self.listing.files), CHUNK), self._measure),)

    def _measure(self, numbers: range) -> Rows:
        """Clips are cropped and resized at once, so that memory does not depend on the size of the files."""
        config = self.reals.config
        clips, kept, notes = [], [], []
        for number in numbers:
            file = self.listing.files[number]
            try:
                frames = self.listing.read(Window(file), config.num_frames, 1, None)
            except UserError as error:
                notes.append(f"{Path(file.name).name}: {error}")
                continue
            clips.append(torch.from_numpy(fit_frames(frames.numpy(), config.height, config.width)))
            kept.append(number)
        return Rows({"video": torch.stack(clips), "index": torch.tensor(kept)} if clips else {}, tuple(notes))

    def figures(self, measured: Measured) -> Figures:
        seed, generated = measured.seed, measured.read(self.label)
        real, again = measured.read(REAL), measured.read(AGAIN)
        metrics = measured.distances("", generated)
        for head in ("class", "shape", "color", "motion", "num_objects"):
            name, bins = f"{head}_histogram_distance", real.logits[head].shape[1]
            metrics[name] = histogram_figure(generated.choice(head), real.choice(head), bins, seed)
            metrics[f"{name}_real"] = histogram_figure(again.choice(head), real.choice(head), bins, seed)
        for name, measure in (("motion", motion), ("flicker", flicker)):
            for suffix, label in (("", self.label), ("_real", REAL)):
                values = [measure(clip) for clip in measured.video(label).split(1)]
                metrics[f"{name}{suffix}"] = mean_figure(torch.cat(values), seed)
        labels = [class_in_name(self.listing.files[i].path) for i in measured.rows[self.label]["index"].tolist()]
        if None not in labels:
            right = generated.correct("class", {"class": torch.tensor(labels)})
            metrics |= measured.accuracy("class_accuracy", right, real.correct("class", measured.truth))
        return metrics
