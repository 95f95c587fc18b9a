"""Weights of a trained model for a model of the same family with other classes, words, actions or frame sizes.

Each family declares which of its tensors depend on the data (`Family.transfer`), and how each follows: rows of classes
and columns of words and actions by name, tables of positions by interpolation. Every other tensor has to have the same
shape in both models. What is new starts so that the new model computes what the old one did, wherever that is possible.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import prod

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mutoscope.actions import ActionSpec
from mutoscope.errors import UserError
from mutoscope.models.base import ModelConfig

MAX_NAMED = 8  # classes, words or tensors that a line of the report lists


@dataclass(frozen=True)
class Described:
    """A model's configuration with the names of its classes, words and actions, without which only numbers match."""

    config: ModelConfig
    classes: tuple[str, ...] = ()
    words: tuple[str, ...] | None = None
    """Vocabulary of a text encoder of whole words; None for a published encoder or a model without text."""
    actions: ActionSpec | None = None
    """Names and scaling of the numbers of an action; None where they are unknown, or the model reads none."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """One name per class; classes without names are numbered, and match those of a model with as many."""
        return self.classes or numbered(self.config.num_classes)

    @property
    def action_names(self) -> tuple[str, ...]:
        """One name per number of an action, numbered without names."""
        return numbered(self.config.action_size) if self.actions is None else self.actions.names

    def action_scaling(self, name: str) -> tuple[float, float]:
        """Offset and scale of a number of an action: the network reads (number - offset) / scale."""
        if self.actions is None:
            return 0.0, 1.0
        i = self.actions.names.index(name)
        return self.actions.offset[i], self.actions.scale[i]


def numbered(count: int | None) -> tuple[str, ...]:
    """Names of things without names, such as "#1 of 3"."""
    return tuple(f"#{i + 1} of {count}" for i in range(count or 0))


@dataclass(frozen=True)
class Change:
    """One tensor on its way from an old model to a new one."""

    old: Tensor
    fresh: Tensor
    """Freshly drawn values, of the new model's shape."""
    before: Described
    after: Described
    weights: Mapping[str, Tensor]
    """All tensors of the old model."""


Adapt = Callable[[Change], Tensor]
"""The new model's tensor."""


@dataclass(frozen=True)
class TransferRule:
    """What happens to the tensors that a pattern names."""

    names: str
    """Pattern of names in the state dict; * stands for any text."""
    adapt: Adapt | None = None
    """How the tensor follows the data; None: it has one shape, whatever the data."""
    optional: bool = False
    """One of the two models may lack the tensor, since it belongs to a condition that a model may or may not read."""
    start: Callable[[Tensor], Tensor] = torch.clone
    """The values with which a tensor that the old model lacks begins, from freshly drawn ones."""
    absorbs: str | None = None
    """A vector of the old model that is added to every row if the new one lacks it, so that its effect stays."""


@dataclass(frozen=True)
class TransferReport:
    """What became of every tensor of the old and the new model, by name."""

    kept: tuple[str, ...]
    adapted: tuple[str, ...]
    """Tensors with other values or another shape than in the old model."""
    new: tuple[str, ...]
    dropped: tuple[str, ...]

    @property
    def changed(self) -> tuple[str, ...]:
        """Tensors that hold values nobody has trained yet."""
        return (*self.adapted, *self.new)

    def lines(self) -> list[str]:
        """The report as sentences for the user."""
        parts = {"adapted": self.adapted, "new": self.new, "dropped": self.dropped}
        named = [f"{kind}: {listed(names)}" for kind, names in parts.items() if names]
        return [f"{len(self.kept)} tensors as they are" + "".join(f"; {part}" for part in named)]


# ---------------------------------------------------------------------------------------------------------- transfer


def transferred(
    old: Mapping[str, Tensor], model: nn.Module, rules: Sequence[TransferRule], before: Described, after: Described
) -> TransferReport:
    """Copies the weights of an old model into `model`, in place, under a family's rules; returns what became of each.

    old: the state dict of the old model, which `before` describes; `after` describes `model`.
    Raises UserError for a tensor whose shape or absence no rule allows.
    """
    transfer = _Transfer(old, model.state_dict(), rules, before, after)
    weights = transfer.weights()
    model.load_state_dict(weights)
    kept = {name for name in weights if name in old and _equal(weights[name], old[name])}
    return TransferReport(
        kept=tuple(name for name in weights if name in kept),
        adapted=tuple(name for name in weights if name in old and name not in kept),
        new=tuple(name for name in weights if name not in old),
        dropped=tuple(name for name in old if name not in weights),
    )


def _equal(first: Tensor, second: Tensor) -> bool:
    return first.shape == second.shape and torch.equal(first, second)


@dataclass(frozen=True)
class _Transfer:
    """The weights of two models, and the rules between them."""

    old: Mapping[str, Tensor]
    fresh: Mapping[str, Tensor]
    rules: Sequence[TransferRule]
    before: Described
    after: Described

    def weights(self) -> dict[str, Tensor]:
        """The new model's weights. Raises UserError for a tensor that may not be dropped either."""
        for name in self.old:
            if name not in self.fresh and not self.rule(name).optional:
                raise self.refusal(name, self.old[name], None)
        return {name: self.absorbed(name, self.weights_of(name)) for name in self.fresh}

    def rule(self, name: str) -> TransferRule:
        """The first rule for a tensor; for most tensors the one that allows no change."""
        return next((rule for rule in self.rules if fnmatchcase(name, rule.names)), TransferRule(name))

    def weights_of(self, name: str) -> Tensor:
        """One tensor of the new model."""
        rule, fresh = self.rule(name), self.fresh[name]
        if name not in self.old:
            if not rule.optional:
                raise self.refusal(name, None, fresh)
            return rule.start(fresh)
        old = self.old[name]
        change = Change(old, fresh, self.before, self.after, self.old)
        try:
            values = old if rule.adapt is None else rule.adapt(change)
        except (RuntimeError, IndexError):  # widths that no rule joins: rows of 16 numbers and rows of 192
            raise self.refusal(name, old, fresh) from None
        if values.shape != fresh.shape:
            raise self.refusal(name, old, fresh)
        return values

    def absorbed(self, name: str, values: Tensor) -> Tensor:
        """The tensor with the vector that it takes over from a part that the new model lacks."""
        vector = self.rule(name).absorbs
        return values if vector is None or vector not in self.old or vector in self.fresh else values + self.old[vector]

    def refusal(self, name: str, old: Tensor | None, new: Tensor | None) -> UserError:
        """The message about a tensor that differs, with the settings that do."""
        shapes = ["missing" if tensor is None else str(tuple(tensor.shape)) for tensor in (old, new)]
        values = vars(self.after.config).items()
        fields = sorted(field for field, value in values if getattr(self.before.config, field, None) != value)
        because = f" The configurations differ in {', '.join(fields)}." if fields else ""
        return UserError(
            f"{name} is {shapes[0]} there, {shapes[1]} here.{because} Fine-tuning cannot change that: give the "
            "recipe's model the old sizes, or start from random weights."
        )


# ------------------------------------------------------------------------------------------------------------- rules


def class_rows(first: Callable[[ModelConfig], int] = lambda config: 0) -> Adapt:
    """A table with one row per class: rows of classes of the same name are kept, and so are all other rows.

    first: number of the rows before those of the classes. A new class starts as the mean of the old classes (without
    old classes, as the row "no class" after them) plus the small values that were drawn for it.
    """

    def adapt(change: Change) -> Tensor:
        old, fresh = change.old, change.fresh
        names, wanted = change.before.class_names, change.after.class_names
        start, new_start = first(change.before.config), first(change.after.config)
        heads, rows, tails = old[:start], old[start : start + len(names)], old[start + len(names) :]
        typical = rows.mean(0) if len(rows) else tails[0] if len(tails) else torch.zeros_like(fresh[0])
        numbers = {name: i for i, name in enumerate(names)}
        chosen = [
            rows[numbers[name]] if name in numbers else typical + fresh[new_start + i] for i, name in enumerate(wanted)
        ]
        return torch.cat([heads, torch.stack(chosen), tails] if chosen else [heads, tails])

    return adapt


def position_table(dim: int, across_frames: bool = False) -> Adapt:
    """A learned table of positions along `dim`, interpolated to another grid: bicubic in a frame, linear in time.

    across_frames: the table counts the positions of a whole clip; otherwise those of one frame. Entries before the
    positions (a prefix) are kept.
    """

    def grid(config: ModelConfig) -> tuple[int, int, int]:
        rows, columns = config.token_grid
        return (config.latent_shape[0] if across_frames else 1), rows, columns

    def adapt(change: Change) -> Tensor:
        sizes, wanted = grid(change.before.config), grid(change.after.config)
        if sizes == wanted:
            return change.old
        table = change.old.movedim(dim, 0)  # (prefix + n, ...)
        length = len(table) - prod(sizes)
        prefix, positions = table[:length], table[length:]
        resized = interpolated(positions.flatten(1), sizes, wanted).reshape(-1, *positions.shape[1:])
        return torch.cat([prefix, resized]).movedim(0, dim)

    return adapt


def distance_rows(reach: Callable[[ModelConfig], int]) -> Adapt:
    """A table with one vector per head and distance in time, the last of them perhaps that of a first frame kept aside.

    reach: number of distances within the window. New distances begin as the longest one of the old window.
    """

    def adapt(change: Change) -> Tensor:
        count, wanted = reach(change.before.config), reach(change.after.config)
        rows = torch.arange(wanted).clamp(max=count - 1)
        kept = change.old[:, rows]  # (heads, wanted, size)
        has_first = change.fresh.shape[1] > wanted
        return torch.cat([kept, change.old[:, -1:]], dim=1) if has_first else kept

    return adapt


def fresh_if_resized(change: Change) -> Tensor:
    """The old tensor where it has the new one's shape, otherwise freshly drawn values."""
    return change.old if change.old.shape == change.fresh.shape else change.fresh


def interpolated(
    table: Float[Tensor, "n d"], sizes: tuple[int, int, int], wanted: tuple[int, int, int]
) -> Float[Tensor, "m d"]:
    """Values at the cell centres of another grid over the same clip: bicubic in space, linear in time."""
    frames, height, width = sizes
    maps = table.float().view(frames, height, width, -1).permute(0, 3, 1, 2)  # (t, d, h, w)
    if (height, width) != wanted[1:]:
        maps = F.interpolate(maps, wanted[1:], mode="bicubic", align_corners=False)
    if frames != wanted[0]:
        over_time = maps.flatten(1).T[None]  # (1, d*h*w, t)
        over_time = F.interpolate(over_time, wanted[0], mode="linear", align_corners=False)
        maps = over_time[0].T.reshape(-1, *maps.shape[1:])
    return maps.permute(0, 2, 3, 1).flatten(0, 2).to(table.dtype)


def word_columns(change: Change) -> Tensor:
    """Columns of the features of a word encoder, several groups with one column per word, by word.

    Columns of new words are zero, as if the word were still unknown. Features of other encoders have no names.
    """
    before, after = change.before.words, change.after.words
    return change.old if before is None or after is None else columns_by_name(change.old, before, after)


def action_columns(change: Change) -> Tensor:
    """Columns of the numbers of an action by name; those of new numbers are zero, so that they have no effect yet.

    Numbers that the clips of the new model scale otherwise have the effect that they had.
    """
    names, wanted = change.before.action_names, change.after.action_names
    columns = columns_by_name(change.old, names, wanted)
    ratios = [1.0 if name not in names else _scales(change, name)[1] / _scales(change, name)[0] for name in wanted]
    return columns if set(ratios) == {1.0} else columns * columns.new_tensor(ratios)


def action_bias(weight: str) -> Adapt:
    """The bias of the layer with the matrix `weight`, whose columns are those of `action_columns`."""

    def adapt(change: Change) -> Tensor:
        names, bias = change.before.action_names, change.old
        for name in set(names) & set(change.after.action_names):
            shift = change.after.action_scaling(name)[0] - change.before.action_scaling(name)[0]
            if shift:
                bias = bias + change.weights[weight][:, names.index(name)] * (shift / _scales(change, name)[0])
        return bias

    return adapt


def _scales(change: Change, name: str) -> tuple[float, float]:
    """Scale of a number of an action in the old and in the new model."""
    return change.before.action_scaling(name)[1], change.after.action_scaling(name)[1]


def columns_by_name(old: Float[Tensor, "o c"], names: Sequence[str], wanted: Sequence[str]) -> Float[Tensor, "o c2"]:
    """Groups of one column per name, rearranged to other names; columns of names that are new are zero."""
    if tuple(names) == tuple(wanted):
        return old
    groups = old.reshape(len(old), -1, len(names))  # (o, groups, names)
    changed = old.new_zeros(*groups.shape[:2], len(wanted))
    numbers = {name: i for i, name in enumerate(names)}
    shared = [(i, numbers[name]) for i, name in enumerate(wanted) if name in numbers]
    if shared:
        targets, sources = (list(part) for part in zip(*shared, strict=True))
        changed[:, :, targets] = groups[:, :, sources]
    return changed.flatten(1)


# --------------------------------------------------------------------------------------------------------- in words


def change_lines(before: Described, after: Described) -> list[str]:
    """What changes between two models, in sentences: classes, words, actions and sizes."""
    lines = [
        _names_line("classes", before.class_names, after.class_names),
        _names_line("words", before.words or (), after.words or ()),
        _names_line("actions", before.action_names, after.action_names),
    ]
    old, new = before.config.latent_shape, after.config.latent_shape
    if old != new:
        lines.append(f"latent frames, rows and columns: {'×'.join(map(str, old))} become {'×'.join(map(str, new))}")
    return [line for line in lines if line]


def _names_line(what: str, before: Sequence[str], after: Sequence[str]) -> str:
    if tuple(before) == tuple(after):
        return ""
    if not after:
        return f"{what}: {len(before)} removed, since the clips have none"
    if not before:
        return f"{what}: {len(after)} new: {listed(after)}"
    kept = [name for name in after if name in set(before)]
    new = [name for name in after if name not in set(before)]
    parts = [f"{len(before)} become {len(after)}", f"{len(kept)} kept by name"]
    parts += [f"new: {listed(new)}"] if new else []
    return f"{what}: {', '.join(parts)}"


def listed(names: Sequence[str]) -> str:
    """Some names, and how many more there are."""
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(names[:MAX_NAMED]) + more
