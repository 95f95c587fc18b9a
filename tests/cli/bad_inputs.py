"""Bad inputs over all verbs: command lines that must be refused with one sentence, and the files that they name.

`PYTHONPATH=tests python tests/cli/bad_inputs.py` prints the answers to all of them; `test_bad_inputs.py` checks them.
"""

import json
import shlex
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from mutoscope import hub
from mutoscope.data.video.read import write_video
from tiny_magi import save_tiny_magi
from tiny_models import save_tiny_model, save_tiny_par, save_tiny_tokenizer
from tiny_nova import save_tiny_nova
from worlds.toy import register


@dataclass(frozen=True)
class BadInput:
    """A command line, and a word of the answer that names what is wrong, or several such words with | between them.

    reports: what was found out is printed all the same, before the refusal.
    """

    line: str
    culprit: str
    reports: bool = False

    @property
    def arguments(self) -> list[str]:
        """Without the name of the command."""
        return shlex.split(self.line)


# ------------------------------------------------------------------------------------------------------------- numbers

TOKENIZER_NUMBERS = {
    "--loop.num-steps": ("0", "-5", "1.5", "many", "nan", ""),
    "--loop.batch-size": ("0", "-1", "1e3"),
    "--loop.accumulation": ("0", "3"),
    "--loop.seed": ("-1", "99999999999999999999999"),
    "--loop.log-every": ("0", "-3"),
    "--loop.sample-every": ("0",),
    "--loop.checkpoint-every": ("0",),
    "--loop.checkpoint-minutes": ("-1", "nan"),
    "--loop.checkpoints-total-limit": ("0", "1.5"),
    "--loop.sheet-share": ("-0.1", "1.5", "nan"),
    "--loop.ema-decay": ("1", "2", "-0.1", "nan"),
    "--loop.ema-every": ("0",),
    "--loop.clip-norm": ("0", "-1", "inf"),
    "--loop.num-workers": ("-1", "1000000"),
    "--loop.threads": ("0", "-2", "1000000"),
    "--loop.autocast": ("fp8",),
    "--loop.report-to": ("paper",),
    "--optim.peak-learning-rate": ("nan", "inf", "-1", "fast"),
    "--optim.muon-learning-rate": ("nan", "-1"),
    "--optim.beta1": ("1", "-0.5", "nan"),
    "--optim.beta2": ("1.5",),
    "--optim.eps": ("-1", "nan"),
    "--optim.weight-decay": ("-1", "inf"),
    "--optim.warmup-steps": ("-1", "100000000"),
    "--optim.schedule": ("linear",),
    "--data.num-frames": ("0", "-16", "15", "1000000000"),
    "--data.height": ("0", "33", "10000000"),
    "--data.width": ("-32", "30"),
    "--data.fps": ("0", "-8", "1000000"),
    "--data.seed": ("-1",),
    "--data.max-objects": ("0", "99"),
    "--data.max-interval": ("0", "26"),
    "--data.max-jump": ("-1",),
    "--tokenizer.filters": ("0", "1000000000"),
    "--tokenizer.num-res-blocks": ("0", "1000000000"),
    "--tokenizer.codebook-size": ("0", "-1"),
    "--tokenizer.embedding-dim": ("0",),
    "--tokenizer.num-groups": ("0", "7"),
    "--tokenizer.entropy-cost": ("nan", "-1"),
    "--tokenizer.entropy-temperature": ("0",),
    "--tokenizer.padding": ("mirror",),
    "--tokenizer.temporal-downsample": ("True", "True False True False"),
}
MODEL_NUMBERS = {
    "--cache-clips": ("0", "-1", "1.5"),
    "--model.num-layers": ("0", "-1", "1000000000"),
    "--model.hidden-size": ("0", "191", "1000000000000"),
    "--model.num-heads": ("0", "5"),
    "--model.mlp-size": ("0",),
    "--model.codebook-size": ("0", "511"),
    "--model.num-classes": ("-1",),
    "--model.num-special-tokens": ("0", "1"),
    "--model.latent-shape": ("0 8 8", "4 8 8", "8 8"),
    "--model.dropout": ("nan", "-1", "2"),
    "--model.label-dropout": ("1",),
    "--model.class-loss": ("-1", "inf"),
    "--model.context-frames": ("0",),
    "--task-weights.class-conditional": ("nan", "-1", "inf"),
    "--tokenizer": ("nowhere", "broken/text-index", "clips"),
    "--start-from": ("nowhere", "model"),
}
OTHER_RECIPES = (
    ("nova-shapes", "--model.text-length 0", "text-length"),
    ("nova-shapes", "--model.patch-size 0", "patch-size"),
    ("nova-shapes", "--model.temporal-heads 3", "heads"),
    ("nova-shapes", "--model.spatial-layers 1000000000", "spatial-layers"),
    ("nova-shapes", "--model.loss-repeat 0", "loss-repeat"),
    ("nova-shapes", "--model.diffusion.shift 0", "shift"),
    ("nova-shapes", "--text-encoder nowhere", "nowhere"),
    ("magi-shapes", "--model.window 0", "window"),
    ("magi-shapes", "--model.noise-step nan", "noise-step"),
    ("magi-shapes", "--model.noise-levels 1000000000", "noise-levels"),
    ("magi-shapes", "--model.token-mask-ratio 1.5", "token-mask-ratio"),
    ("magi-shapes", "--model.num-given 16", "num-given"),
    ("magi-shapes", "--model.action-size 0", "action-size"),
    ("magi-shapes", "--model.diffusion.num-train-steps 1", "num-train-steps"),
    ("magi-shapes", "--rollouts.share 1.5", "share"),
    ("magi-shapes", "--rollouts.context-frames 0", "context-frames"),
    ("magi-shapes", "--rollouts.share 0.5 --rollouts.context-frames 16", "context-frames"),
    ("magvit-shapes", "--rollouts.share 0.5", "rollouts.share"),
    ("magi-doom", "", "mutoscope record doom"),
    ("vae-doom", "", "mutoscope record doom"),
    ("magi-doom", "--data nowhere", "nowhere"),
    ("par-shapes-4x", "--model.num-parallel 3", "3"),
    ("par-shapes-4x", "--model.rope-base 0", "rope-base"),
    ("par-shapes-4x", "--model.num-kv-heads 3", "num_kv_heads"),
    ("vae-shapes", "--tokenizer.kl-cost nan", "kl-cost"),
    ("vae-shapes", "--tokenizer.latent-channels 0", "latent-channels"),
    ("vae-shapes", "--tokenizer.patch-size 0", "patch-size"),
    ("vae-shapes", "--tokenizer.patch-size 3", "multiples of"),
    ("shapes-features", "--loop.batch-size 0", "batch-size"),
    ("magvit-vq-b-ucf101", "--data.path clips --adversarial.r1-weight -1", "r1-weight"),
    ("magvit-vq-b-ucf101", "--data.path clips --adversarial.start-step -1", "start-step"),
    ("magvit-vq-b-ucf101", "--data.path clips --adversarial.lecam-decay 1", "lecam-decay"),
    ("magvit-vq-b-ucf101", "--data.path clips --adversarial.perceptual-weights no.pth", "no.pth"),
    ("magvit-vq-b-ucf101", "--data.path clips --data.fold 4", "fold"),
    ("magvit-vq-b-ucf101", "--data.path clips --data.windows 0", "windows"),
    ("magvit-vq-b-ucf101", "", "--data.path"),
    ("magvit-vq-b-ucf101", "--data.path nowhere", "nowhere"),
    ("vq-shapes", "--data nowhere", "nowhere"),
    ("vq-shapes", "--data", "--data"),
    ("vq-shapes", "--data empty-folder", "empty-folder"),
    ("vq-shapes", "--data.kind cinema", "cinema"),
    ("vq-shapes", "--data.kind folder --data.path clips --data.frame-stride 0", "frame-stride"),
    ("vq-shapes", "--device abacus", "abacus"),
    ("vq-shapes", "--out text.txt", "text.txt"),
    ("vq-shapes", "--loop.nm-steps 3", "nm-steps"),
    ("vq-shapes", "--loop.num-steps", "num-steps"),
    ("vq-shapes", "--start-from nowhere", "nowhere"),
)
SAMPLER_NUMBERS = {
    "model": {
        "--num-samples": ("0", "-1", "1000000000", "two"),
        "--num-frames": ("0", "-8", "1000000000"),
        "--seed": ("-1", "99999999999999999999999"),
        "--batch-size": ("0",),
        "--num-decoding-steps": ("0", "-1", "65", "x"),
        "--temperature": ("-1", "nan", "inf"),
        "--choice-temperature": ("-1", "nan"),
        "--guidance-scale": ("nan", "-1", "inf"),
        "--top-k": ("0",),
        "--top-p": ("0", "1.5", "nan"),
        "--schedule": ("spiral", "pow", "poly:x"),
        "--fps": ("0", "-1", "nan", "1e9"),
        "--upscale": ("0", "1000"),
        "--class-label": ("9", "-1", "hexagon", "''"),
        "--context-frames": ("0",),
        "--task": ("dance", "inpaint-central"),
        "--device": ("abacus", "cuda:99", "meta", "''"),
        "--dtype": ("float8", "float16"),
        "--panorama": ("-1", "1.5"),
        "--keep-given": ("perhaps",),
    },
    "magi": {
        "--num-diffusion-steps": ("0", "5000"),
        "--num-decoding-steps": ("7",),
        "--eta": ("-1", "nan"),
        "--window": ("0",),
        "--context-noise-level": ("99", "-1"),
        "--interval": ("0", "26"),
        "--sample-range": ("0",),
        "--guidance-by": ("magic",),
        "--actions": ("nowhere.csv", "text.txt", "clips", "empty.csv", "ragged.csv", "nan.csv", "wide.csv"),
        "--context picture.png --actions": ("names.json",),
    },
    "nova": {
        "--prompt 'a square' --motion": ("-1", "nan"),
        "--prompt 'a square' --guidance-renorm": ("0", "2"),
        "--prompt 'a square' --flow-shift": ("0",),
        "--prompt 'a square' --num-diffusion-steps": ("0", "1001"),
        "--prompt 'a square' --context-refresh": ("0",),
    },
    "par": {
        "--num-decoding-steps": ("3",),
        "--guidance-interval": ("-1",),
        "--top-k": ("-5",),
    },
}

# ------------------------------------------------------------------------------------------------------ everything else

GENERATE = (
    ("generate model", "--out"),
    ("generate", "MODEL"),
    ("generate model --out", "--out"),
    ("generate model --out {out}/x", "no suffix"),
    ("generate model --out {out}/x.docx", ".docx"),
    ("generate model --out clips", "clips"),
    ("generate model --out text.txt/x.mp4", "text.txt"),
    ("generate model --out {out}/x.gif --out", "--out"),
    ("generate model --out {out}/x.gif --prompt 'a square'", "--prompt"),
    ("generate model --out {out}/x.gif --num-decodings 3", "--num-decodings"),
    ("generate model --out {out}/x.gif extra", "extra"),
    ("generate model --out {out}/x.gif --context nowhere.png", "nowhere.png"),
    ("generate model --out {out}/x.gif --context empty.mp4", "empty.mp4"),
    ("generate model --out {out}/x.gif --context text.mp4", "text.mp4"),
    ("generate model --out {out}/x.gif --context cut.png", "cut.png"),
    ("generate model --out {out}/x.gif --context clips", "clips"),
    ("generate model --out {out}/x.gif --context picture.png --context-frames 8", "between 1 and 7"),
    ("generate model --out {out}/x.gif --video video.webm", "needs a task"),
    ("generate model --out {out}/x.gif --class-label 1 --task frame-prediction", "frame-prediction"),
    ("generate model --out {out}/x.gif --class-label 1 --region 0 0 1 1", "whole frames"),
    ("generate model --out {out}/x.gif --region 0 0 1", "region"),
    ("generate model --out {out}/x.gif --region 0 a 1 1", "region"),
    ("generate model --out {out}/x.gif --tokenizer-window 64", "--tokenizer-window"),
    ("generate model --out {out}/x.gif --weights int8", "8-bit"),
    ("generate model --out {out}/x.gif --text-encoder-offload", "text encoder"),
    ("generate model --out {out}/x.gif --capture", "CUDA"),
    ("generate model --out {out}/x.gif --compile --capture", "CUDA"),
    ("evaluate clips --compile", "--compile"),
    ("generate nova --out {out}/x.gif", "prompt"),
    ("generate tokenizer --out {out}/x.gif", "tokenizer only"),
    ("generate vq-shapes --out {out}/x.gif", "tokenizer only"),
    ("generate nowhere --out {out}/x.gif", "nowhere"),
    ("generate ./nowhere --out {out}/x.gif", "nowhere"),
    ("generate clips --out {out}/x.gif", "clips"),
    ("generate text.txt --out {out}/x.gif", "text.txt"),
    ("generate 'клип 🎞' --out {out}/x.gif", "клип"),
    ("generate '' --out {out}/x.gif", "''"),
    ("generate " + "x" * 300 + " --out {out}/x.gif", "xxx"),
    ("generate model --out {out}/" + "x" * 300 + ".gif", "xxx"),
)
BROKEN_MODELS = (
    ("empty-index", "model_index.json"),
    ("text-index", "JSON"),
    ("list-index", "JSON object"),
    ("deep-index", "JSON"),
    ("huge-number", "JSON"),
    ("unknown-key", "colour"),
    ("missing-key", "num_frames"),
    ("other-format", "mutoscope-9"),
    ("no-frames", "num_frames"),
    ("nan-fps", "fps"),
    ("unknown-family", "gan"),
    ("unknown-class", "GAN"),
    ("no-tokenizer", "config.json"),
    ("other-tokenizer", "fit"),
    ("circle", "circle"),
    ("no-weights", "model.safetensors"),
    ("empty-weights", "model.safetensors"),
    ("text-weights", "model.safetensors"),
    ("cut-weights", "model.safetensors"),
    ("nan-weights", "NaN"),
    ("deep-network", "num_layers"),
    ("wide-network", "hidden_size"),
    ("no-heads", "num_heads"),
    ("bad-sampling", "num_decoding_steps"),
    ("unknown-sampling", "speed"),
    ("latin-1-index", "model_index.json"),
)
BROKEN_RECIPES = (
    ("empty.json", "JSON"),
    ("list.json", "JSON object"),
    ("deep.json", "JSON"),
    ("no-class.json", '"recipe"'),
    ("other-class.json", "TokenizerRecipe"),
    ("unknown-key.json", "'speed'"),
    ("missing-key.json", "'loop'"),
    ("wrong-type.json", "loop.num_steps"),
    ("no-steps.json", "loop.num_steps"),
    ("nan.json", "optim.peak_learning_rate"),
    ("many-steps.json", "sampling"),
    ("task-steps.json", "task_sampling.frame-prediction"),
    ("unknown-option.json", "speed"),
    ("cold.json", "temperature"),
    ("foreign-data.json", "data.path"),
)
OTHER_VERBS = (
    ("", "usage"),
    ("dance", "dance"),
    ("genrate model", "generate"),
    ("--jsn", "--jsn"),
    ("models nowhere", "nowhere"),
    ("models text.txt", "text.txt"),
    ("models broken/text-index", "JSON"),
    ("models model extra", "extra"),
    ("models --colour", "--colour"),
    ("recipes nowhere", "nowhere"),
    ("recipes vq-shape", "vq-shapes"),
    ("recipes vq-shapes magi-shapes", "magi-shapes"),
    ("reconstruct tokenizer", "INPUT"),
    ("reconstruct tokenizer nowhere.mp4 {out}/x.mp4", "nowhere.mp4"),
    ("reconstruct tokenizer empty.mp4 {out}/x.mp4", "empty.mp4"),
    ("reconstruct tokenizer text.mp4 {out}/x.mp4", "text.mp4"),
    ("reconstruct tokenizer head.mp4 {out}/x.mp4", "head.mp4"),
    ("reconstruct tokenizer clips {out}/x.mp4", "clips"),
    ("reconstruct tokenizer folder.mp4 {out}/x.mp4", "folder.mp4"),
    ("reconstruct tokenizer video.webm {out}/x.txt", ".txt"),
    ("reconstruct tokenizer video.webm {out}/x.png", ".png"),
    ("reconstruct tokenizer video.webm video.webm", "same file"),
    ("reconstruct tokenizer video.webm folder.mp4", "folder.mp4"),
    ("reconstruct nowhere video.webm {out}/x.mp4", "nowhere"),
    ("reconstruct broken/no-weights video.webm {out}/x.mp4", "model.safetensors"),
    ("reconstruct tokenizer video.webm {out}/x.mp4 --tile 31", "--tile"),
    ("reconstruct tokenizer video.webm {out}/x.mp4 --chunk 0", "--chunk"),
    ("reconstruct tokenizer video.webm {out}/x.mp4 --max-frames 0", "--max-frames"),
    ("reconstruct tokenizer video.webm {out}/x.mp4 --device abacus", "abacus"),
    ("reconstruct tokenizer 'нет видео.mp4' {out}/x.mp4", "нет видео.mp4"),
    ("tokenize tokenizer nowhere {out}/tokens", "nowhere"),
    ("tokenize tokenizer empty-folder {out}/tokens", "empty-folder"),
    ("tokenize tokenizer text.mp4 {out}/tokens", "text.mp4"),
    ("tokenize nowhere clips {out}/tokens", "nowhere"),
    ("tokenize tokenizer clips text.txt", "text.txt"),
    ("tokenize tokenizer clips clips", "clips"),
    ("tokenize tokenizer clips {out}/tokens --num-clips 0", "--num-clips"),
    ("tokenize tokenizer clips {out}/tokens --num-frames -1", "--num-frames"),
    ("tokenize tokenizer clips {out}/tokens --num-frames 7", "multiples of 2"),
    ("tokenize tokenizer clips {out}/tokens --height 9", "multiples of 2"),
    ("tokenize tokenizer clips {out}/tokens --height 1000000000", "height"),
    ("tokenize tokenizer clips {out}/tokens --frame-stride 0", "--frame-stride"),
    ("tokenize tokenizer clips {out}/tokens --frame-stride 1000000000", "7000000001 frames"),
    ("tokenize tokenizer clips {out}/tokens --batch-size 0", "--batch-size"),
    ("tokenize tokenizer clips {out}/tokens --num-workers -1", "--num-workers"),
    ("tokenize tokenizer clips {out}/tokens --windows 0", "--windows"),
    ("tokenize tokenizer clips {out}/tokens --tasks dance", "dance"),
    ("tokenize tokenizer clips {out}/tokens --dataset mnist", "mnist"),
    ("tokenize tokenizer clips {out}/tokens --dataset ucf101", "lists of its splits"),
    ("tokenize tokenizer shapes {out}/tokens --num-clips 1000000000000000", "disk"),
    ("evaluate nowhere", "nowhere"),
    ("evaluate empty-folder", "empty-folder"),
    ("evaluate text-folder", "text-folder"),
    ("evaluate model --protocol moon", "moon"),
    ("evaluate model --num-clips 1", "--num-clips"),
    ("evaluate model --batch-size 0", "--batch-size"),
    ("evaluate model --seed -1", "--seed"),
    ("evaluate model --device abacus", "abacus"),
    ("evaluate model --out {out}/report.txt", ".txt"),
    ("evaluate model --protocol ucf101-magvit", "reference"),
    ("evaluate model --protocol ucf101-magvit --reference nowhere", "nowhere|I3D"),
    ("evaluate model --reference clips", "--reference"),
    ("evaluate model --protocol shapes-text", "shapes-text"),
    ("evaluate magi-shapes --protocol world", "--reference"),
    ("evaluate magi-shapes --protocol world --reference nowhere", "nowhere"),
    ("evaluate magi-shapes --protocol world --reference clips", "clips"),
    ("evaluate model --protocol world --reference clips", "actions"),
    ("evaluate magi-shapes --protocol world --reference clips --streams 1", "--streams"),
    ("evaluate magi-shapes --protocol world --reference clips --minutes -1", "--minutes"),
    ("evaluate magi-shapes --protocol world --reference clips --network-steps 0", "--network-steps"),
    ("evaluate model --guidance-scale nan", "guidance_scale"),
    ("evaluate clips --guidance-scale 2", "--guidance-scale"),
    ("evaluate model --state text.txt", "text.txt"),
    ("bench", "KIND"),
    ("bench sprint model", "sprint"),
    ("bench speed nowhere", "nowhere"),
    ("bench speed tokenizer", "tokenizer only"),
    ("bench speed model --batch 0", "--batch"),
    ("bench speed model --batch 1000000000", "--batch"),
    ("bench speed model --repeats 0", "--repeats"),
    ("bench speed model --threads 0", "--threads"),
    ("bench speed model --threads -1", "--threads"),
    ("bench speed model --seed -1", "--seed"),
    ("bench speed model --num-decoding-steps 0", "--num-decoding-steps"),
    ("bench speed model --num-decoding-steps 65", "num_decoding_steps"),
    ("bench speed model --dtype float16", "float16"),
    ("bench speed model --device abacus", "abacus"),
    ("bench speed model --against official", "--against"),
    ("bench speed model --against plain --dtype bfloat16", "--dtype"),
    ("bench speed model --against plain --num-decoding-steps 2", "omit"),
    ("bench speed nowhere --against plain", "nowhere"),
    ("bench speed vae-doom --against plain", "no video model"),
    ("bench speed par-3B-4x-imagenet --against plain --repeats 1000 --batch 100", "minutes"),
    ("bench claims phenaki", "phenaki"),
    ("bench claims magvit --num-steps 0 --out {out}/run", "--num-steps"),
    ("bench claims magvit --num-clips 1 --out {out}/run", "--num-clips"),
    ("bench claims magvit --seeds -1 --out {out}/run", "--seeds"),
    ("bench claims magvit --out text.txt/run", "text.txt"),
    ("bench entropy model --num-clips 1", "--num-clips"),
    ("bench entropy model --num-clips 2", "too few"),
    ("bench entropy model --frame -1", "--frame"),
    ("bench entropy model --num-parallel 0", "--num-parallel"),
    ("bench entropy model --out {out}/x.pdf", ".pdf"),
    ("bench entropy model --data nowhere", "nowhere"),
    ("bench entropy nova", "discrete"),
    ("convert magvit weights.npz {out}/model", "magvit"),
    ("convert llamagen nowhere.pt {out}/model --tokenizer tokenizer", "nowhere.pt"),
    ("convert llamagen clips {out}/model --tokenizer tokenizer", "clips"),
    ("convert llamagen empty.pt {out}/model --tokenizer tokenizer", "empty.pt"),
    ("convert llamagen text.pt {out}/model --tokenizer tokenizer", "text.pt"),
    ("convert llamagen cut.pt {out}/model --tokenizer tokenizer", "cut.pt"),
    ("convert llamagen code.pt {out}/model --tokenizer tokenizer", "code.pt"),
    ("convert llamagen other.pt {out}/model --tokenizer tokenizer", "other.pt"),
    ("convert llamagen other.pt {out}/model", "--tokenizer"),
    ("convert vq16 other.pt {out}/model", "other.pt"),
    ("convert magvit-flax text.npz {out}/model", "text.npz"),
    ("convert magvit-flax empty.npz {out}/model", "empty.npz"),
    ("convert magvit-flax other.npz {out}/model --tokenizer tokenizer", "no parameter"),
    ("convert magvit-flax text.safetensors {out}/model", "text.safetensors"),
    ("convert magvit-flax other.npz {out}/model --num-frames 0", "--num-frames"),
    ("convert magvit-flax other.npz {out}/model --fps nan", "--fps"),
    ("convert magvit-flax other.npz {out}/model --num-classes -1", "--num-classes"),
    ("convert llamagen other.pt {out}/model --grid 0 4", "--grid"),
    ("convert llamagen other.pt {out}/model --num-heads 0", "--num-heads"),
    ("convert llamagen other.pt {out}/model --rope-base 0", "--rope-base"),
    ("convert llamagen other.pt {out}/model --norm-eps nan", "--norm-eps"),
    ("convert nova clips {out}/model", "clips"),
    ("convert far other.pt {out}/model", "--tokenizer"),
    ("convert far other.pt {out}/model --tokenizer tokenizer", "tokenizer"),
    ("convert far other.pt {out}/model --window 0", "--window"),
    ("convert far code.pt {out}/model --tokenizer tokenizer", "code.pt"),
    ("convert dc-ae other.pt {out}/model", "other.pt"),
    ("convert dc-ae text.pt {out}/model", "text.pt"),
    ("convert dc-ae nowhere.pth {out}/model", "nowhere.pth"),
    ("convert nova model {out}/model", "magvit"),
    ("convert vq16 other.pt clips", "clips"),
    ("convert vq16 other.pt {out}/model --text-encoder clips", "--text-encoder"),
    ("inspect nowhere", "nowhere"),
    ("inspect empty-folder", "empty-folder"),
    ("inspect empty.mp4", "empty.mp4"),
    ("inspect text.mp4", "text.mp4"),
    ("inspect folder.mp4", "folder.mp4"),
    ("inspect clips --num-frames 0", "--num-frames"),
    ("inspect clips --frame-stride -1", "--frame-stride"),
    ("inspect clips --sheet {out}/x.mp4", ".png"),
    ("inspect 'ビデオ.mp4'", "ビデオ.mp4"),
    ("finetune nowhere clips {out}/tuned", "nowhere"),
    ("finetune model nowhere {out}/tuned", "nowhere"),
    ("finetune model text.mp4 {out}/tuned", "text.mp4"),
    ("finetune tokenizer clips {out}/tuned", "tokenizer"),
    ("finetune model clips {out}/tuned --lora.r 0", "lora"),
    ("finetune model clips {out}/tuned --freeze nothing", "nothing"),
    ("finetune model clips {out}/tuned --loop.num-steps 0", "num-steps"),
    ("export nova vbench nowhere.txt {out}/samples", "nowhere.txt"),
    ("export nova vbench empty.csv {out}/samples", "empty.csv"),
    ("export nova vbench clips {out}/samples", "clips"),
    ("export nova geneval text.txt {out}/samples", "text.txt"),
    ("export nova dpg-bench text.txt {out}/samples", "text.txt"),
    ("export nova fid text.txt {out}/samples", "fid"),
    ("export model vbench text.txt {out}/samples", "prompt"),
    ("export nowhere vbench text.txt {out}/samples", "nowhere"),
    ("export nova vbench text.txt {out}/samples --num-prompts 0", "--num-prompts"),
    ("export nova vbench text.txt {out}/samples --num-samples 0", "--num-samples"),
    ("export nova vbench text.txt {out}/samples --seed -1", "--seed"),
    ("export nova vbench text.txt {out}/samples --num-decoding-steps 99", "num_decoding_steps"),
    ("export nova vbench text.txt clips", "clips"),
)
PLAY = (
    ("play nowhere", "nowhere"),
    ("play tokenizer", "tokenizer"),
    ("play clips", "clips"),
    ("play model --host 999.1.1.1", "999.1.1.1"),
    ("play model --host ''", "--host"),
    ("play model --device cudaa", "cudaa"),
    ("export model {out}/page --web", "browsers"),
    ("export nowhere {out}/page --web", "nowhere"),
    ("export model vbench text.txt {out}/page --web", "omit the rest"),
    ("export model vbench", "BENCHMARK PROMPTS OUT"),
)
PLAY_NUMBERS = {
    "--port": ("-1", "70000", "eighty"),
    "--threads": ("0", "-2"),
    "--active-sessions": ("0", "100000"),
    "--loaded-models": ("0",),
}
RECORD_NUMBERS = {
    "--episodes": ("0", "-1", "many"),
    "--max-frames": ("1", "-5"),
    "--height": ("8", "1000000"),
    "--width": ("0",),
    "--frame-skip": ("0",),
    "--num-workers": ("0", "1000"),
    "--seed": ("-1", "99999999999999999999999"),
}
RECORD = (
    ("record", "ENV"),
    ("record doom-basic", "OUT"),
    ("record doom-basc {out}/x", "doom-basic"),
    ("record basic {out}/x", "doom-basic"),
    ("record ' , ' {out}/x", "environment"),
    ("record CartPol-v1 {out}/x", "CartPole-v1"),
    ("record nowhere:Thing-v0 {out}/x", "nowhere"),
    ("record mutoscope-test/Blind-v0 {out}/x", "rgb_array"),
    ("record doom-basic,CartPole-v1 {out}/x", "two datasets"),
    ("record doom-basic {out}/x --policy dance", "dance"),
    ("record doom-basic {out}/x --policy scripte", "scripted"),
    ("record doom-basic {out}/x --policy nowhere.py:play", "nowhere.py"),
    ("record doom-basic {out}/x --policy text.txt:play", "text.txt"),
    ("record doom-basic {out}/x --policy ''", "policy"),
    ("record CartPole-v1 {out}/x --policy scripted", "scripted"),
    ("record CartPole-v1 {out}/x --policy mixed", "scripted"),
    ("record CartPole-v1 {out}/x --options '{'", "--options"),
    ("record CartPole-v1 {out}/x --options '[1]'", "JSON object"),
    ("record CartPole-v1 {out}/x --options '{\"speed\": 3}'", "speed"),
    ("record doom-basic {out}/x --options '{\"speed\": 3}'", "doom-basic takes none"),
    ("record doom-basic {out}/x --keys up down", "--keys"),
    ("record CartPole-v1 {out}/x --keys push", "--keys"),
    ("record CartPole-v1 {out}/x --keys push push", "--keys"),
    ("record doom-basic {out}/x --policy random --actions left", "--actions"),
    ("record doom-basic {out}/x --actions lefd", "did you mean"),
    ("record doom-basic {out}/x --actions ''", "actions"),
    ("record doom-basic {out}/x --actions 'left*3 ?'", "'?'"),
    ("record doom-basic {out}/x --actions nowhere.csv", "nowhere.csv"),
    ("record doom-basic {out}/x --actions wide.csv", "3"),
    ("record doom-basic clips", "clips"),
    ("record doom-basic text.txt", "text.txt"),
    ("record doom-basic text.txt/x", "text.txt"),
)
PRINTED_FIRST = (
    ("inspect text-folder", "text.mp4"),
    ("train magvit-shapes --tokenizer nowhere --dry-run", "nowhere"),
    ("train magvit-vq-b-ucf101 --dry-run --json", "--data.path"),
    ("train magvit-vq-b-ucf101 --data.path nowhere --dry-run", "nowhere"),
)


def flag_lines(start: str, numbers: dict[str, tuple[str, ...]], end: str) -> Iterator[BadInput]:
    """One command line for every value; the flag's own name is the culprit, as a flag or as a field."""
    for flag, values in numbers.items():
        name = flag.split()[-1]
        for value in values:
            culprit = f"{name}|{value}" if value and value[0].isalpha() else name
            yield BadInput(f"{start} {flag} {value or repr('')} {end}".strip(), culprit)


def bad_inputs() -> list[BadInput]:
    """Every entry of the tables above, with the folder of outputs filled in."""
    found = list(flag_lines("train vq-shapes", TOKENIZER_NUMBERS, "--device cpu --out {out}/run"))
    found += flag_lines("train magvit-shapes", MODEL_NUMBERS, "--device cpu --out {out}/run")
    for name, flags, culprit in OTHER_RECIPES:
        out = "" if "--out" in flags else "--out {out}/run"
        found.append(BadInput(f"train {name} {out} {flags}", culprit))
    for model, numbers in SAMPLER_NUMBERS.items():
        found += flag_lines(f"generate {model} --out {{out}}/x.gif", numbers, "")
    found += flag_lines("record doom-basic {out}/x", RECORD_NUMBERS, "")
    found += flag_lines("play model", PLAY_NUMBERS, "")
    found += (BadInput(line, culprit) for line, culprit in (*GENERATE, *RECORD, *PLAY, *OTHER_VERBS))
    found += (BadInput(f"generate broken/{name} --out {{out}}/x.gif", culprit) for name, culprit in BROKEN_MODELS)
    found += (BadInput(f"train recipes/{name} --out {{out}}/run", culprit) for name, culprit in BROKEN_RECIPES)
    found += (BadInput(line, culprit, reports=True) for line, culprit in PRINTED_FIRST)
    return [replace(entry, line=entry.line.replace("{out}", "out")) for entry in found]


def names_culprit(answer: str, culprit: str) -> bool:
    """Whether a message has the word, as it is or spelled as a field, whatever the case."""
    plain = answer.lower().replace("_", "-").replace(" ", "-")
    words = [form for word in culprit.split("|") for form in (word, word.removeprefix("--").rpartition(".")[2])]
    return any(word.lower().replace("_", "-").replace(" ", "-") in plain for word in words)


# --------------------------------------------------------------------------------------------------------------- files


def write_files(folder: Path) -> None:
    """Everything that the command lines name, below one folder; few kilobytes each."""
    for name in ("out", "clips", "empty-folder", "folder.mp4", "text-folder", "recipes"):
        (folder / name).mkdir()
    frames = np.random.default_rng(0).integers(0, 256, (9, 16, 16, 3), dtype=np.uint8)
    write_video(folder / "video.webm", frames, 8)
    for number in range(2):
        write_video(folder / "clips" / f"{number}.mp4", frames, 8)
    content = (folder / "clips" / "0.mp4").read_bytes()
    (folder / "head.mp4").write_bytes(content[:40])
    Image.fromarray(frames[0]).save(folder / "picture.png")
    (folder / "cut.png").write_bytes((folder / "picture.png").read_bytes()[:60])
    for name in ("empty.mp4", "empty.csv", "empty.pt", "empty.npz"):
        (folder / name).touch()
    for name in ("text.txt", "text.mp4", "text.pt", "text.npz", "text.safetensors", "text-folder/text.mp4"):
        (folder / name).write_text("a red circle\n")
    write_actions(folder)
    write_checkpoints(folder)
    write_models(folder)
    write_recipes(folder / "recipes")
    register()


def write_actions(folder: Path) -> None:
    """Files of actions that hold none, or rows of another length."""
    (folder / "ragged.csv").write_text("1,2\n3\n")
    (folder / "nan.csv").write_text("nan,1\n" * 5)
    (folder / "wide.csv").write_text("1,2,3\n" * 9)
    (folder / "names.json").write_text('{"left": 1}')


class Code:
    """An object that a pickle would call; reading must not run it."""

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        return print, ("never",)


def write_checkpoints(folder: Path) -> None:
    """Checkpoints that are cut off, hold code, or belong to another network."""
    torch.save({"model": {"weight": torch.zeros(3)}}, folder / "other.pt")
    (folder / "cut.pt").write_bytes((folder / "other.pt").read_bytes()[:200])
    torch.save({"model": Code()}, folder / "code.pt")
    np.savez(folder / "other.npz", weight=np.zeros(3))


def write_models(folder: Path) -> None:
    """Good tiny models of every family, and copies with one fault each."""
    save_tiny_model(folder / "model")
    save_tiny_tokenizer(folder / "tokenizer")
    save_tiny_par(folder / "par")
    save_tiny_nova(folder / "nova")
    save_tiny_magi(folder / "magi")
    for name, _ in BROKEN_MODELS:
        target = save_tiny_model(folder / "broken" / name)
        break_model(name, target)


def break_model(name: str, folder: Path) -> None:
    """Give a model folder the fault of that name."""
    index, network, weights = folder / hub.INDEX, folder / "model" / hub.CONFIG, folder / "model" / hub.WEIGHTS
    match name:
        case "empty-index":
            index.write_text("")
        case "text-index":
            index.write_text("a red circle")
        case "list-index":
            index.write_text("[1, 2]")
        case "deep-index":
            index.write_text("[" * 100_000)
        case "huge-number":
            index.write_text('{"fps": ' + "9" * 10_000 + "}")
        case "latin-1-index":
            index.write_bytes('{"family": "Größe"}'.encode("latin-1"))
        case "unknown-key":
            change(index, colour="red")
        case "missing-key":
            change(index, num_frames=None)
        case "other-format":
            change(index, format="mutoscope-9")
        case "no-frames":
            change(index, num_frames=0)
        case "nan-fps":
            change(index, fps=float("nan"))
        case "unknown-family":
            change(index, family="gan")
        case "unknown-class":
            change(network, **{"class": "GAN"})
        case "no-tokenizer":
            (folder / "tokenizer" / hub.CONFIG).unlink()
        case "other-tokenizer":
            change(index, tokenizer="vae-shapes")
        case "circle":
            change(index, tokenizer="../circle")
        case "no-weights":
            weights.unlink()
            (folder / "tokenizer" / hub.WEIGHTS).unlink()
        case "empty-weights":
            weights.write_bytes(b"")
        case "text-weights":
            weights.write_text("a red circle")
        case "cut-weights":
            weights.write_bytes(weights.read_bytes()[:-100])
        case "nan-weights":
            content = weights.read_bytes()
            (header,) = struct.unpack("<Q", content[:8])
            weights.write_bytes(content[: 8 + header] + b"\xff" * (len(content) - 8 - header))
        case "deep-network":
            change(network, num_layers=10**9)
        case "wide-network":
            change(network, hidden_size=10**15)
        case "no-heads":
            change(network, num_heads=0)
        case "bad-sampling":
            change(index, sampling={"num_decoding_steps": 0})
        case "unknown-sampling":
            change(index, sampling={"speed": 3})


def change(path: Path, **values: object) -> None:
    """Replace keys of a JSON file; None removes one."""
    found = json.loads(path.read_text()) | values
    path.write_text(json.dumps({name: value for name, value in found.items() if value is not None}))


def write_recipes(folder: Path) -> None:
    """Recipes in JSON with one fault each."""
    from mutoscope.recipes.catalog import RECIPES
    from mutoscope.training.config import to_json

    tokenizer, model = (to_json(RECIPES[name]()) for name in ("vq-shapes", "magvit-shapes"))
    loop, optim = (json.loads(json.dumps(tokenizer[name])) for name in ("loop", "optim"))
    changed: dict[str, dict[str, object]] = {
        "no-class.json": {name: value for name, value in tokenizer.items() if name != "recipe"},
        "other-class.json": tokenizer | {"recipe": "Cake"},
        "unknown-key.json": tokenizer | {"speed": 3},
        "missing-key.json": {name: value for name, value in tokenizer.items() if name != "loop"},
        "wrong-type.json": tokenizer | {"loop": loop | {"num_steps": "many"}},
        "no-steps.json": tokenizer | {"loop": loop | {"num_steps": 0}},
        "nan.json": tokenizer | {"optim": optim | {"peak_learning_rate": float("nan")}},
        "many-steps.json": model | {"sampling": {"num_decoding_steps": 513}},
        "task-steps.json": model | {"task_sampling": {"frame-prediction": {"num_decoding_steps": 513}}},
        "unknown-option.json": model | {"sampling": {"speed": 3}},
        "cold.json": model | {"sampling": {"temperature": -1.0}},
        "foreign-data.json": tokenizer | {"data": {"kind": "shapes", "path": "clips"}},
    }
    for name, values in changed.items():
        (folder / name).write_text(json.dumps(values))
    (folder / "empty.json").write_text("")
    (folder / "list.json").write_text("[]")
    (folder / "deep.json").write_text('{"a":' * 100_000)


# ---------------------------------------------------------------------------------------------------------------- main


def snapshot(folder: Path) -> dict[str, int]:
    """Every file and folder below, with its size."""
    return {str(path): path.stat().st_size if path.is_file() else -1 for path in sorted(folder.rglob("*"))}


def accepted(*arguments: object, **options: object) -> None:
    """In place of torch's loader: no entry gets as far as reading clips for training."""
    raise RuntimeError("the input was accepted")


def main() -> None:
    """Run every entry in a folder of its own, and print what is answered and how long it took."""
    import os
    import tempfile
    import time

    from mutoscope.cli import main as command
    from mutoscope.data import loader

    loader.DataLoader = accepted  # type: ignore[assignment]
    with tempfile.TemporaryDirectory() as folder:
        write_files(Path(folder))
        os.chdir(folder)
        statuses: list[int] = []
        for entry in bad_inputs():
            start = time.perf_counter()
            print(f"$ mutoscope {entry.line[:150]}", flush=True)
            statuses.append(command(entry.arguments))
            print(f"  status {statuses[-1]}, {time.perf_counter() - start:.2f} s", flush=True)
        print(f"{len(statuses)} bad inputs: {statuses.count(2)} with status 2, {statuses.count(1)} with status 1")


if __name__ == "__main__":
    main()
