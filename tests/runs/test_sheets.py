from mutoscope.model_index import ModelIndex
from mutoscope.runs.sheets import MOST_STEPS, with_few_steps


def test_sheets_take_few_steps_for_every_task_and_never_more_than_the_model():
    index = ModelIndex(
        family="magvit",
        num_frames=8,
        height=8,
        width=8,
        sampling={"num_decoding_steps": 64, "num_diffusion_steps": 2, "guidance_scale": 2.0},
        task_sampling={"frame-prediction": {"num_decoding_steps": 12}, "class-conditional": {"guidance_scale": 1.0}},
    )
    few = with_few_steps(index)
    assert few.sampling == {
        "num_decoding_steps": MOST_STEPS["num_decoding_steps"],
        "num_diffusion_steps": 2,
        "guidance_scale": 2.0,
    }
    assert few.task_sampling["frame-prediction"] == {"num_decoding_steps": MOST_STEPS["num_decoding_steps"]}
    assert few.task_sampling["class-conditional"] == {"guidance_scale": 1.0}


def test_samplers_without_steps_keep_their_settings():
    index = ModelIndex(family="par", num_frames=8, height=8, width=8, sampling={"temperature": 0.9})
    assert with_few_steps(index) == index
