"""What users read of other libraries' exceptions: one sentence, without escapes, line breaks or advice."""

import json
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from mutoscope.errors import MAX_REASON, reason


def raised(function, *arguments, **options) -> Exception:
    with pytest.raises(Exception) as caught:
        function(*arguments, **options)
    return caught.value


def test_a_refused_class_is_named(tmp_path: Path):
    torch.save({"best": np.float64(1.0)}, tmp_path / "a.pt")
    error = raised(torch.load, tmp_path / "a.pt", weights_only=True)
    assert "\x1b" in str(error)  # torch prints in bold
    assert reason(error) == "it holds numpy._core.multiarray.scalar, which is neither a tensor nor a plain container"


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_reasons_of_libraries_are_one_printable_sentence(tmp_path: Path):
    file = tmp_path / "file"
    file.write_bytes(b"hello world, this is text")
    wrong = {"weight": torch.zeros(2, 2)}
    with file.open("rb") as stream:
        errors = {
            "header too large": raised(load_file, file),
            "cannot identify image file": raised(Image.open, stream),
            "Invalid data found when processing input": raised(av.open, str(file)),
            'Missing key(s) in state_dict: "bias"': raised(torch.nn.Linear(2, 3).load_state_dict, wrong),
            "Expecting value: line 1 column 1 (char 0)": raised(json.loads, "x"),
            "No such file or directory": raised((tmp_path / "none").open),
            "KeyError 101": raised(torch.load, file, weights_only=True),
        }
    for words, error in errors.items():
        found = reason(error)
        assert words in found and found.isprintable() and "_io." not in found, found
        assert not found.endswith(".") and str(tmp_path) not in found.replace(str(file), "")


def test_an_exception_without_words_is_named_by_its_class():
    assert reason(EOFError()) == "EOFError"
    assert reason(ValueError("\x1b[31m\n \x1b[0m")) == "ValueError"


def test_only_the_first_sentence_is_kept_and_it_has_a_limit():
    assert reason(RuntimeError("It broke at 0.5 of a.b. Please file an issue.")) == "It broke at 0.5 of a.b"
    assert reason(RuntimeError("x" * 1000)) == "x" * MAX_REASON + "…"
