"""Declarations of families: typed calls, capabilities, and a fifth family that touches only its own files."""

import dataclasses
import inspect
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mutoscope import families, hub
from mutoscope.errors import UserError
from mutoscope.families import FAMILIES, family_named, family_of
from mutoscope.families.base import Call, Capabilities, Family, Generator, PaperModel, Request, common_length
from mutoscope.families.magvit import MagvitCall
from mutoscope.families.nova import NOVACall
from mutoscope.json_config import documentation
from mutoscope.models.base import ModelConfig, VideoModel
from mutoscope.pipeline import VideoPipeline
from mutoscope.sampling.base import SampleEvent, ready
from mutoscope.sampling.masked import MaskedSamplerConfig
from tiny_models import tiny_index, tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def pipeline() -> VideoPipeline:
    return VideoPipeline(tiny_tokenizer(), tiny_model(), tiny_index())


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_every_option_of_a_family_is_documented_and_frozen(family: families.AnyFamily):
    for options in (family.call, family.sampler):
        assert dataclasses.is_dataclass(options) and isinstance(options, type)
        names = {f.name for f in dataclasses.fields(options)} - {"sampling"}
        assert names <= documentation(options).keys(), names - documentation(options).keys()
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(options(), names.pop(), 1)
    assert inspect.getdoc(family.call)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_options_of_call_and_sampler_never_share_a_name(family: families.AnyFamily):
    call = {f.name for f in dataclasses.fields(family.call)}
    assert dataclasses.is_dataclass(family.sampler)
    sampler = {f.name for f in dataclasses.fields(family.sampler)}
    shared = call & sampler
    assert not shared, shared


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_published_sizes_belong_to_their_family_and_have_positive_steps(family: families.AnyFamily):
    sizes = list(family.papers())
    assert sizes and all(family_of(size.config) is family and size.num_steps > 0 for size in sizes)


def test_a_typed_call_gives_what_its_keyword_options_give(pipeline: VideoPipeline):
    options = {"class_label": 1, "seed": 5, "num_decoding_steps": 2}
    call = pipeline.family.build_call(options)
    assert isinstance(call, MagvitCall) and call.sampling.num_decoding_steps == 2
    by_call, by_options = pipeline.generate(call), pipeline.generate(class_label=1, seed=5, num_decoding_steps=2)
    np.testing.assert_array_equal(by_call.clips[0].frames, by_options.clips[0].frames)


def test_the_call_of_another_family_is_refused(pipeline: VideoPipeline):
    with pytest.raises(UserError, match="model of MAGVIT: it takes a MagvitCall, found a NOVACall"):
        pipeline(NOVACall(prompt="a"))
    with pytest.raises(UserError, match="Give a call or options, not both; found seed"):
        pipeline(MagvitCall(), seed=1)


def test_the_nearest_option_is_suggested(pipeline: VideoPipeline):
    with pytest.raises(UserError, match="Models of MAGVIT take no guidance_scal: did you mean 'guidance_scale'"):
        pipeline(guidance_scal=2.0)


@pytest.mark.parametrize("name", [f.name for f in dataclasses.fields(MaskedSamplerConfig)])
def test_every_option_of_the_sampler_is_an_option_of_a_call(name: str, pipeline: VideoPipeline):
    default = getattr(MaskedSamplerConfig(), name)
    value = {"schedule": "uniform", "top_k": 3, "top_p": 0.5, "keep_given": True, "draw_class": True}.get(name, default)
    call = pipeline.family.build_call({name: value})
    assert isinstance(call, MagvitCall) and getattr(call.sampling, name) == value


def test_none_is_a_value_where_the_sampler_has_it_and_omitted_elsewhere():
    index = dataclasses.replace(tiny_index(), sampling={"top_k": 4, "temperature": 0.5})
    call = family_named("magvit").build_call(index, {"top_k": None, "temperature": None, "prompt": None})
    assert isinstance(call, MagvitCall)
    assert call.sampling.top_k is None and call.sampling.temperature == 0.5


def test_defaults_of_a_task_follow_from_what_a_call_implies():
    tasks = {"frame-prediction": {"temperature": 0.25}}
    index = dataclasses.replace(tiny_index(), sampling={"temperature": 0.5}, task_sampling=tasks)
    family, frames = family_named("magvit"), np.zeros((1, 8, 8, 3), np.uint8)
    temperatures = []
    for options in ({}, {"context": frames}, {"context": frames, "temperature": 0.75}):
        call = family.build_call(index, options)
        assert isinstance(call, MagvitCall)
        temperatures.append(call.sampling.temperature)
    assert temperatures == [0.5, 0.25, 0.75]


def test_lists_of_different_lengths_are_refused():
    assert common_length(None, prompt=["a", "b"], class_label=None) == 2
    with pytest.raises(UserError, match="one entry per sample: found 2 for prompt, num_samples 3"):
        common_length(3, prompt=["a", "b"])


# ------------------------------------------------------------------------------------------- a fifth family, as a toy


@dataclass(frozen=True)
class GreyConfig(ModelConfig):
    """Clips of one code."""

    latent_shape: tuple[int, int, int] = (4, 4, 4)
    codebook_size: int = 24


class Grey(VideoModel[GreyConfig, Mapping[str, object]]):
    """Learns nothing and generates one code everywhere."""

    def __init__(self, config: GreyConfig) -> None:
        super().__init__()
        self.config = config
        self.code = nn.Parameter(torch.zeros(()))

    def loss(self, batch: Mapping[str, object], generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        return self.code.square(), {}


@dataclass(frozen=True)
class GreySamplerConfig:
    """One option."""

    shade: int = 3
    """The code."""


@dataclass(frozen=True, kw_only=True)
class GreyCall(Call):
    """One call."""

    stripes: bool = False
    """Every second row is black."""
    sampling: GreySamplerConfig = field(default_factory=GreySamplerConfig)


@dataclass(frozen=True, kw_only=True)
class GreyRequest(Request):
    shape: tuple[int, int, int]
    shade: int

    def events(self) -> Iterator[Iterator[SampleEvent]]:
        for samples in self.batches():
            tokens = torch.full((samples.stop - samples.start, *self.shape), self.shade)
            decided = torch.ones_like(tokens, dtype=torch.bool)
            frames = slice(0, self.shape[0])
            yield iter(
                [SampleEvent(step=0, num_steps=1, decided=decided, frames=frames, seconds=0.0, draft=ready(tokens))]
            )


class GreyGenerator(Generator[GreyCall, Grey]):
    def prepare(self, call: GreyCall) -> GreyRequest:
        self.check_call(call)
        count = call.num_samples or 1
        return GreyRequest(
            task="grey", num_samples=count, seed=call.seed, num_steps=1, num_frames=self.index.num_frames,
            sampling=vars(call.sampling), shape=self.model.config.latent_shape, shade=call.sampling.shade,
        )  # fmt: skip


GREY = Family(
    name="grey",
    title="Grey",
    paper="0000.00000",
    config=GreyConfig,
    network=Grey,
    sampler=GreySamplerConfig,
    call=GreyCall,
    generator=GreyGenerator,
    capabilities=Capabilities(),
    planned_steps=lambda config, sampler: 1,
    papers=lambda: [PaperModel("grey", GreyConfig(), (8, 8, 8), 1, ("grey",))],
)


@pytest.fixture
def grey_folder(tmp_path, monkeypatch: pytest.MonkeyPatch):
    """A saved model of the toy family, which is one entry of `FAMILIES` and nothing else."""
    monkeypatch.setitem(FAMILIES, "grey", GREY)
    tokenizer = tiny_tokenizer()
    shape = tokenizer.spec.latent_shape(8, 8, 8)
    assert tokenizer.spec.vocab_size is not None
    index = dataclasses.replace(tiny_index(), family="grey", tasks=("grey",), class_names=None, sampling={"shade": 5})
    model = Grey(GreyConfig(shape, tokenizer.spec.vocab_size))
    return hub.save_pretrained(tmp_path / "grey", index, tokenizer, model)


def test_a_fifth_family_is_loaded_generated_with_and_streamed(grey_folder):
    pipeline = VideoPipeline.from_pretrained(grey_folder)
    clip = pipeline(seed=1)
    assert clip.frames.shape == (8, 8, 8, 3)
    np.testing.assert_array_equal(clip.frames, pipeline(shade=5).frames)
    assert not np.array_equal(clip.frames, pipeline(shade=7).frames)
    with pytest.raises(UserError, match="Models of Grey take no context"):
        pipeline(context=clip.frames)


def test_the_command_line_offers_the_options_of_a_fifth_family(grey_folder, tmp_path, capsys):
    from mutoscope.cli import main

    assert main(["generate", str(grey_folder), "--help"]) == 0
    text = capsys.readouterr().out
    assert "--shade INT" in text and "The code. [5]" in text and "--stripes" in text and "--guidance-scale" not in text
    out = tmp_path / "grey.gif"
    assert main(["generate", str(grey_folder), "--out", str(out), "--shade", "7", "--json"]) == 0
    assert out.is_file()


def test_a_fifth_family_is_listed_with_its_sizes(grey_folder, capsys):
    from mutoscope.cli import main

    assert main(["models"]) == 0
    assert "grey " in capsys.readouterr().out


def test_a_model_of_no_family_is_named():
    with pytest.raises(UserError, match="No family has models of GreyConfig"):
        family_of(GreyConfig())
    with pytest.raises(UserError, match="names the family 'nov': did you mean 'nova'"):
        family_named("nov")
    assert math.isfinite(len(FAMILIES))
