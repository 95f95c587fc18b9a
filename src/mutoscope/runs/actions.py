"""The actions of a training run: what their numbers mean, and their scaling where batches enter the network."""

from collections.abc import Mapping
from typing import cast

from torch import Tensor

from mutoscope.actions import ActionSpec
from mutoscope.data.base import DataConfig, described_actions
from mutoscope.data.sources.registry import from_description
from mutoscope.errors import UserError
from mutoscope.families.actions import scaled_tensor
from mutoscope.families.base import Batch, PrepareBatch
from mutoscope.models.base import ModelConfig

ACTIONS = "actions"  # key of a description of clips, and of a batch


def actions_of(described: Mapping[str, object], data: DataConfig, config: ModelConfig) -> ActionSpec | None:
    """What the actions of the described clips mean; None for a model without actions, and for clips of unknown ones.

    described: the entry about the clips in a token cache's metadata; those of earlier versions say nothing about
    actions, so clips that are computed (not read from files) describe themselves again.
    Raises UserError for a specification that is broken, or of another number of actions than the model reads.
    """
    if config.action_size is None:
        return None
    spec = described_actions(described)
    if spec is None and not (origin := from_description(data, described)).needs_files:
        spec = described_actions(origin.describe())
    if spec is None:
        return None
    if spec.size != config.action_size:
        raise UserError(
            f"The clips have {spec.size} numbers of action ({', '.join(spec.names)}), the model reads "
            f"{config.action_size}: set model.action_size to {spec.size}."
        )
    return spec


def with_scaled_actions(prepare: PrepareBatch, spec: ActionSpec | None) -> PrepareBatch:
    """The same step after bringing the actions of a batch from the recording's units to the network's."""
    if spec is None:
        return prepare

    def scaled(batch: Batch, step: int) -> Batch:
        if ACTIONS not in batch:
            return prepare(batch, step)
        return prepare({**batch, ACTIONS: scaled_tensor(cast(Tensor, batch[ACTIONS]), spec)}, step)

    return scaled
