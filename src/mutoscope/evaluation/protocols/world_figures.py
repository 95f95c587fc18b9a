"""Figures of the protocol "world" from the rows of its sides, all named after the dataset."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mutoscope.actions import ActionSpec
from mutoscope.evaluation.metrics.alive import ACCEPTED, NAME, WINDOW, AliveRule, Windows
from mutoscope.evaluation.metrics.control import Recognised
from mutoscope.evaluation.metrics.intervals import Figure, Figures, frechet_figure, mean_figure, psnr_figure
from mutoscope.evaluation.networks.clip_features import evenly
from mutoscope.evaluation.protocols.world_measures import WINDOW_STARTS, Layout, windows_of
from mutoscope.evaluation.rows import Rows

FRECHET = "frechet_inverse_dynamics"
DISTANCE = "distance_inverse_dynamics"
BESIDE = ("other_actions", "first_frame", "last_frame", "context_again", "ceiling")  # figures beside those of the model
CONTROLS = ("reconstructed", "frozen", "noise")
# Balanced accuracy of chance is 0.5, R² of the mean action 0.
LEAST_ACCURACY, LEAST_R2 = 0.6, 0.1
FEW_WINDOWS = 100  # held-back windows, below which a quantile of 99 % is the largest of them


@dataclass(frozen=True)
class WorldFigures:
    """rows: by side. dataset: prefix of all names."""

    dataset: str
    layout: Layout
    spec: ActionSpec
    rows: Mapping[str, Rows]
    seed: int

    def figures(self) -> Figures:
        """Control first, then prediction, then streams."""
        found = {
            **self.recognised.figures(),
            **self.next_frame_figures(),
            **self.horizon_figures(),
            **self.frechet_figures(),
            **self.alive_figures(),
            **self.return_figures(),
        }
        return {f"{self.dataset}-{name}": value for name, value in found.items()}

    # ------------------------------------------------------------------------------------------- control, prediction

    @property
    def recognised(self) -> Recognised:
        clips = self.rows["clips"]
        return Recognised(clips["sums"], clips["sums_real"], self.spec.names, self.spec.is_button, self.seed)

    def next_frame_figures(self) -> Figures:
        """Prediction from real history: PSNR in both conventions, and the distance of the feature maps."""
        rows, found = self.rows["next-frames"], Figures()
        for which in ("model", "last_frame", "ceiling"):
            suffix = "" if which == "model" else f"_{which}"
            found[f"next_frame_psnr_db{suffix}"] = psnr_figure(rows[f"error_{which}"], self.seed)
            found[f"next_frame_psnr_frames_db{suffix}"] = mean_figure(rows[f"psnr_{which}"], self.seed)
            found[f"next_frame_{DISTANCE}{suffix}"] = mean_figure(rows[f"distance_{which}"], self.seed)
        return found

    def horizon_figures(self) -> Figures:
        """PSNR against the recording some frames after the context, beside that of simple guesses."""
        clips, found = self.rows["clips"], Figures()
        for i, horizon in enumerate(self.layout.horizons):
            for which in ("model", *BESIDE):
                suffix = "" if which == "model" else f"_{which}"
                found[f"psnr_db_frame_{horizon}{suffix}"] = psnr_figure(clips[f"error_{which}"][:, i], self.seed)
        return found

    # ------------------------------------------------------------------------------------------------------- streams

    @cached_property
    def held_back(self) -> tuple[Bool[Tensor, " n"], Bool[Tensor, " n"]]:
        """Windows of the evaluated episodes that set thresholds, and those that test them: of other episodes, or of the
        second part of a single one."""
        episodes = self.rows["real-windows"]["episode"]
        first = torch.isin(episodes, episodes.unique()[::2])
        if first.all():
            first = torch.arange(len(episodes)) < len(episodes) / 2
        return first, ~first

    @cached_property
    def real(self) -> Windows:
        return windows_of(self.rows["real-windows"])

    @cached_property
    def rule(self) -> AliveRule:
        return AliveRule.fit(windows_of(self.rows["training-windows"]), self.real[self.held_back[0]])

    def frechet_figures(self) -> Figures:
        """Distance of windows of the streams to real ones, beside as many other real ones to the same."""
        first, second = (self.rule.projection(self.real[part].features) for part in self.held_back)
        count = min(len(first), len(second), len(self.rows["streams"]))
        if count < 2:
            return {}
        first, second = first[evenly(len(first), count)], second[evenly(len(second), count)]
        found: Figures = {}
        for start in self.layout.windows:
            streams = self.rule.projection(self.rows["streams"][f"features_{start}"])
            mine = streams[evenly(len(streams), count)]
            found[f"{FRECHET}_frame_{start}"] = frechet_figure(mine, second, self.seed)
            found[f"{FRECHET}_frame_{start}_real"] = frechet_figure(first, second, self.seed)
        return found

    def alive_figures(self) -> Figures:
        """Share of the streams that the rule accepts, and of real, reconstructed, frozen and noise windows."""
        found = {
            f"alive_{name}": self.accepted(windows_of(self.rows["streams"], f"_{frames - WINDOW}"))
            for name, frames in self.layout.lifetimes
        }
        found["alive_rule_real"] = self.accepted(self.real[self.held_back[1]])
        for control in CONTROLS:
            windows = windows_of(self.rows["real-windows"], f"_{control}")
            found[f"alive_rule_{control}"] = self.accepted(windows[self.held_back[1]])
        return found

    def accepted(self, windows: Windows) -> Figure:
        """Share of windows that count as alive."""
        return mean_figure(self.rule.alive(windows).double(), self.seed)

    def return_figures(self) -> Figures:
        """PSNR of the frames before and after turning there and back."""
        rows = self.rows.get("returns")
        if rows is None:
            return {}
        return {
            f"return_psnr_db{name}": psnr_figure(rows[f"error{name}"], self.seed) for name in ("", "_away", "_random")
        }

    # --------------------------------------------------------------------------------------------------------- texts

    def turn(self) -> dict[str, Float[np.ndarray, "n a"] | None]:
        """The actions that lead there and back."""
        return {"there": self.layout.there, "back": self.layout.back}

    def notes(self) -> list[str]:
        """Figures that are missing, and what the others rest on."""
        first, second = (int(part.sum()) for part in self.held_back)
        found = [
            f"{NAME}: limits accept {ACCEPTED:.0%} of {first} real windows by distance; alive_rule_real is of {second} "
            "others"
        ]
        if unmeasured := self.recognised.unmeasured:
            found.append(f"no accuracy of {', '.join(unmeasured)}: the real clips hold one value of it only")
        if missing := [start for start in WINDOW_STARTS if start not in self.layout.windows]:
            found.append(f"no {FRECHET} at frame {', '.join(map(str, missing))}: streams end at {self.layout.total}")
        return found

    def caveats(self) -> list[str]:
        """Sentences without which a figure would mislead."""
        found = self.recognised.figures()
        accuracy, explained = (found.get(f"{kind}_real") for kind in ("action_accuracy", "action_r2"))
        sentences = []
        if accuracy is not None and (accuracy["value"] or 0) < LEAST_ACCURACY:
            sentences.append(self._weak("buttons", f"a balanced accuracy of {accuracy['value']:.2f}", "0.5"))
        if explained is not None and (explained["value"] or 0) < LEAST_R2:
            sentences.append(self._weak("axes", f"an R² of {explained['value']:.2f}", "0"))
        if (first := int(self.held_back[0].sum())) < FEW_WINDOWS:
            sentences.append(
                f"{first} real windows are few for the limits of {NAME}: read alive figures beside alive_rule_real."
            )
        return sentences

    def _weak(self, what: str, score: str, chance: str) -> str:
        return (
            f"The inverse-dynamics network reads {what} of real clips with {score}, near chance ({chance}): its "
            "figures say little; add recordings, or raise --network-steps."
        )
