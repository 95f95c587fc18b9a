"""The inverse-dynamics network: which action leads from one frame to the next, read from four frames.

Trained here in minutes on real recordings, so that control can be measured without a download: a model follows its
actions if the network recognises them in generated clips as well as in real ones. Its feature maps also give a distance
between frames and features of windows, which are named after it and compare with no LPIPS and no FVD.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int, UInt8
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn
from tqdm import tqdm

from mutoscope.declared import check_safetensors
from mutoscope.errors import UserError, reason
from mutoscope.writing import write_whole

BEFORE, AFTER = 1, 2  # frames read before frame t and after it: an effect may take more than one frame to show
SPAN = BEFORE + 1 + AFTER
GROUPS = 8  # of the group norms
SHIFT = 3  # pixels: random shifts of training frames, for few recordings
NOISE = 6.0  # grey levels: largest noise added to training frames, so that traces of a codec do not count
DROPOUT = 0.1
SMALLEST = 1e-6  # scale of an axis that never changes, and length of a feature vector
Clips = UInt8[Tensor, "n t h w 3"]


@dataclass(frozen=True)
class DynamicsConfig:
    """Sizes and training of the network. side: pixels of the longer side of the frames it reads."""

    side: int = 48
    channels: tuple[int, int] = (16, 32)
    hidden_size: int = 64
    num_steps: int = 1200
    batch_size: int = 32
    learning_rate: float = 2e-3
    weight_decay: float = 0.01


class DynamicsNetwork(nn.Module):
    """A trunk over single frames, whose maps of four frames are joined; one output per number of an action."""

    def __init__(self, config: DynamicsConfig, num_actions: int) -> None:
        super().__init__()
        first, second = config.channels
        self.first = _block(3, first, stride=2)
        self.second = _block(first, second, stride=2)
        self.join_first = nn.Conv2d(SPAN * first, config.hidden_size, 3, stride=2, padding=1)
        self.join_second = nn.Conv2d(SPAN * second, config.hidden_size, 1)
        self.joined = nn.Sequential(nn.GroupNorm(GROUPS, config.hidden_size), nn.SiLU())
        self.deeper = nn.Sequential(
            _block(config.hidden_size, config.hidden_size, stride=2),
            _block(config.hidden_size, config.hidden_size, stride=1),
        )
        self.output = nn.Sequential(
            nn.Linear(2 * config.hidden_size, config.hidden_size),
            nn.SiLU(),
            nn.Dropout(DROPOUT),
            nn.Linear(config.hidden_size, num_actions),
        )

    def maps(self, frames: Float[Tensor, "n 3 h w"]) -> tuple[Tensor, Tensor]:
        """Feature maps of single frames at half and at a quarter of their size."""
        first = self.first(frames)
        return first, self.second(first)

    def forward(self, frames: Float[Tensor, "n span 3 h w"]) -> Float[Tensor, "n a"]:
        """Logits of buttons and standardised axes of the action done in the second of four frames."""
        first, second = self.maps(rearrange(frames, "n s c h w -> (n s) c h w"))
        first, second = (rearrange(m, "(n s) c h w -> n (s c) h w", s=SPAN) for m in (first, second))
        x = self.deeper(self.joined(self.join_first(first) + self.join_second(second)))  # (n, hidden, h / 8, w / 8)
        return self.output(torch.cat([x.mean(dim=(2, 3)), x.amax(dim=(2, 3))], dim=1))


def _block(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1), nn.GroupNorm(GROUPS, outputs), nn.SiLU()
    )


@dataclass(frozen=True)
class InverseDynamics:
    """A trained network. is_button, offset, scale: of each number of an action, measured on the training rows."""

    network: DynamicsNetwork
    config: DynamicsConfig
    is_button: tuple[bool, ...]
    offset: Float[Tensor, " a"]
    scale: Float[Tensor, " a"]

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    @torch.inference_mode()
    def actions(self, clips: Clips) -> Float[Tensor, "n t2 a"]:
        """Actions of frames 1 ... t - 3: 0 or 1 for buttons, axes in the units of the recording."""
        windows = torch.stack([window for clip in clips for window in _windows(self.reduced(clip))])
        outputs = torch.cat([self.network(_scaled(part).to(self.device)).cpu() for part in windows.split(64)])
        found = torch.where(torch.tensor(self.is_button), (outputs > 0).float(), outputs * self.scale + self.offset)
        return found.reshape(len(clips), -1, len(self.is_button))

    @torch.inference_mode()
    def distance(self, real: UInt8[Tensor, "n h w 3"], fake: UInt8[Tensor, "n h w 3"]) -> Float[Tensor, "n"]:
        """Squared distance of the feature vectors of two frames, each of length 1, averaged over positions.

        Summed over both sizes of maps. It resembles LPIPS in its form only.
        """
        sides = [self.network.maps(_scaled(self.reduced(side)).to(self.device)) for side in (real, fake)]
        apart = [F.normalize(x, eps=SMALLEST) - F.normalize(y, eps=SMALLEST) for x, y in zip(*sides, strict=True)]
        return sum((d.square().sum(dim=1).mean(dim=(1, 2)) for d in apart), torch.zeros(())).double().cpu()

    @torch.inference_mode()
    def features(self, clips: Clips) -> Float[Tensor, "n d"]:
        """One row per clip: of every channel of the maps the mean and the standard deviation over all positions, and
        the mean absolute difference of consecutive frames."""
        return torch.cat([self._features_of(clip) for clip in clips]).double()

    def _features_of(self, clip: UInt8[Tensor, "t h w 3"]) -> Float[Tensor, "1 d"]:
        rows: list[Tensor] = []
        for x in self.network.maps(_scaled(self.reduced(clip)).to(self.device)):
            rows += [x.mean(dim=(0, 2, 3)), x.std(dim=(0, 2, 3)), x.diff(dim=0).abs().mean(dim=(0, 2, 3))]
        return torch.cat(rows)[None].cpu()

    def reduced(self, frames: UInt8[Tensor, "t h w 3"]) -> UInt8[Tensor, "t 3 h2 w2"]:
        """Frames at the size that the network reads."""
        return reduced_frames(frames, self.config.side)


def reduced_frames(frames: UInt8[Tensor, "t h w 3"], side: int) -> UInt8[Tensor, "t 3 h2 w2"]:
    """Frames whose longer side is at most `side` pixels, averaged over areas."""
    height, width = frames.shape[1:3]
    scale = min(1.0, side / max(height, width))
    planes = rearrange(frames, "t h w c -> t c h w").float()
    size = (max(8, round(height * scale)), max(8, round(width * scale)))  # 8: what three halvings leave a cell of
    return F.interpolate(planes, size=size, mode="area").round().to(torch.uint8)


def _scaled(frames: UInt8[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    return frames.float() / 127.5 - 1


def _windows(frames: UInt8[Tensor, "t 3 h w"]) -> UInt8[Tensor, "n span 3 h w"]:
    """All runs of four frames. Raises UserError for fewer."""
    if len(frames) < SPAN:
        raise UserError(f"The inverse-dynamics network reads {SPAN} frames, found {len(frames)}.")
    return torch.stack([frames[i : i + SPAN] for i in range(len(frames) - SPAN + 1)])


# ------------------------------------------------------------------------------------------------------------ training


@dataclass(frozen=True)
class DynamicsData:
    """Reduced frames of episodes one after the other, and their actions. centres: frames t whose four are of one
    episode and whose action is known."""

    frames: UInt8[Tensor, "t 3 h w"]
    actions: Float[Tensor, "t a"]
    centres: Int[Tensor, " n"]

    @classmethod
    def of(cls, episodes: Sequence[tuple[UInt8[Tensor, "_t 3 h w"], Float[np.ndarray, "_t a"]]]) -> "DynamicsData":
        """Raises UserError if no action is known."""
        frames = torch.cat([frames for frames, _ in episodes])
        actions = torch.from_numpy(np.concatenate([rows for _, rows in episodes]))
        inside: list[Bool[Tensor, " t"]] = []
        for clip, _ in episodes:
            inside.append(torch.arange(len(clip)).ge(BEFORE) & torch.arange(len(clip)).lt(len(clip) - AFTER))
        centres = (torch.cat(inside) & ~actions.isnan().any(dim=1)).nonzero().flatten()
        if not len(centres):
            raise UserError(f"No action of the recordings is known between {SPAN} frames: record longer episodes.")
        return cls(frames, actions, centres)

    def batch(
        self, count: int, generator: torch.Generator
    ) -> tuple[Float[Tensor, "n span 3 h w"], Float[Tensor, "n a"]]:
        """Random transitions, shifted by a few pixels alike, with noise of a random strength."""
        chosen = self.centres[torch.randint(len(self.centres), (count,), generator=generator)]
        frames = _scaled(self.frames[chosen[:, None] + torch.arange(-BEFORE, AFTER + 1)])  # (n, span, 3, h, w)
        height, width = frames.shape[-2:]
        padded = F.pad(frames.flatten(1, 2), (SHIFT,) * 4, mode="replicate")
        top, left = torch.randint(2 * SHIFT + 1, (2,), generator=generator).tolist()
        shifted = padded[..., top : top + height, left : left + width]
        strength = torch.rand((count, 1, 1, 1), generator=generator) * NOISE / 127.5
        noisy = shifted + torch.randn(shifted.shape, generator=generator) * strength
        return noisy.unflatten(1, (SPAN, 3)), self.actions[chosen]


def train_dynamics(
    data: DynamicsData,
    is_button: tuple[bool, ...],
    config: DynamicsConfig,
    seed: int,
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> InverseDynamics:
    """A network trained on real transitions; the same seed and device give the same network.

    Buttons by cross entropy in which pressed and released rows weigh the same, axes by the squared error of
    standardised numbers.
    """
    known = data.actions[data.centres].double()
    offset, scale = known.mean(dim=0).float(), known.std(dim=0, correction=0).clamp(min=SMALLEST).float()
    network = initialized(config, len(is_button), seed).to(device).train()
    loss_of, generator = balanced_loss(known.float(), is_button, offset, scale), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(network.parameters(), config.learning_rate, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.learning_rate, total_steps=config.num_steps)
    with torch.random.fork_rng(devices=[]):  # of dropout, whose draws take no generator
        torch.manual_seed(seed)
        for _ in tqdm(range(config.num_steps), "inverse dynamics", disable=not progress, leave=False, unit="step"):
            frames, actions = data.batch(config.batch_size, generator)
            loss = loss_of(network(frames.to(device)).cpu(), actions)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return InverseDynamics(network.eval(), config, is_button, offset, scale)


def initialized(config: DynamicsConfig, num_actions: int, seed: int) -> DynamicsNetwork:
    """A network with random weights that follow from the seed; the global generator stays as it is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return DynamicsNetwork(config, num_actions)


def balanced_loss(
    known: Float[Tensor, "n a"], is_button: tuple[bool, ...], offset: Tensor, scale: Tensor
) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss of outputs (n, a) against actions (n, a)."""
    buttons = torch.tensor(is_button)
    share = known.mean(dim=0).clamp(1e-3, 1 - 1e-3)  # of the rows in which a button is pressed

    def loss(outputs: Float[Tensor, "n a"], actions: Float[Tensor, "n a"]) -> Tensor:
        weight = torch.where(actions > 0.5, 0.5 / share, 0.5 / (1 - share))
        pressed = F.binary_cross_entropy_with_logits(outputs, (actions > 0.5).float(), reduction="none") * weight
        axes = (outputs - (actions - offset) / scale).square()
        return torch.where(buttons, pressed, axes).mean()

    return loss


# ------------------------------------------------------------------------------------------------------------- storing


def save_dynamics(path: Path, found: InverseDynamics) -> None:
    """Write the weights, under a temporary name first."""
    weights = {name: value.detach().cpu().contiguous() for name, value in found.network.state_dict().items()}
    write_whole(path, save(weights | {"offset": found.offset, "scale": found.scale}))


def load_dynamics(path: Path, config: DynamicsConfig, is_button: tuple[bool, ...], device: object) -> InverseDynamics:
    """The network of `save_dynamics`. Raises UserError for a damaged file."""
    try:
        check_safetensors(path)
        with safe_open(path, framework="pt") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        offset, scale = weights.pop("offset"), weights.pop("scale")
        network = initialized(config, len(is_button), 0)
        network.load_state_dict(weights)
    except Exception as error:
        raise UserError(f"{path} is damaged: {reason(error)}. Delete it, and the network is trained again.") from None
    return InverseDynamics(network.to(torch.device(str(device))).eval(), config, is_button, offset, scale)


def described(config: DynamicsConfig) -> dict[str, object]:
    """The configuration as JSON."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(config).items()}
