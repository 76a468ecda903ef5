# SPDX-License-Identifier: MIT
"""Exported files: equal to the network, self-describing, opened without this package."""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from fastdistill.evaluation import evaluate
from fastdistill.export import ExportRecord, export
from fastdistill.networks import QNetwork, multitask_architecture, paper_architecture, save_network

DOCS = Path(__file__).parents[2] / "docs" / "export.md"
ONNX = all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))
needs_onnx = pytest.mark.skipif(not ONNX, reason="needs onnx, onnxscript and onnxruntime")
FORMATS = ["pt2", pytest.param("onnx", marks=needs_onnx)]


def network(size="7%", actions=6, seed=0, **options):
    """A network of that size, with statistics as a student has them."""
    torch.manual_seed(seed)
    net = QNetwork(paper_architecture(size, actions, **options), head_gain=1.0).eval()
    net.set_obs_statistics(torch.rand_like(net.obs_mean) * 80, torch.rand_like(net.obs_mean) * 40)
    return net


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    card = {
        "name": "kl_7", "kind": "logits", "game": "pong", "environment": {"preset": "machado"},
    }  # fmt: skip
    return save_network(tmp_path_factory.mktemp("run") / "student", network(), card)


@pytest.fixture(scope="module")
def exported(checkpoint, tmp_path_factory):
    """Format -> the record of an export; each is made once."""
    made: dict[str, ExportRecord] = {}
    folder = tmp_path_factory.mktemp("exported")

    def get(format):
        if format not in made:
            made[format] = export(checkpoint, folder / f"student.{format}", format, frames=150)
        return made[format]

    return get


@pytest.mark.parametrize("format", FORMATS)
def test_the_record_says_how_the_file_compares(format, exported):
    record = exported(format)
    assert record.frames == record.equal_actions == 150
    assert record.max_difference < 1e-4
    assert record.size_bytes == record.path.stat().st_size
    engine = {"onnx": "onnxruntime", "pt2": "pt2"}[format]
    assert set(record.latency_seconds) == {"torch", engine}
    assert min(record.latency_seconds.values()) > 0
    assert json.loads(json.dumps(record.to_json()))["path"] == str(record.path)
    assert [path.name for path in record.path.parent.iterdir() if path.suffix == ".tmp"] == []


OPEN = """
import json, sys
sys.modules["fastdistill"] = None  # an import of it fails
import torch
path, format = sys.argv[1:3]
obs = torch.load(sys.argv[3], weights_only=True)
if format == "onnx":
    import onnxruntime
    session = onnxruntime.InferenceSession(path)
    about = {k: v for k, v in session.get_modelmeta().custom_metadata_map.items()}
    run = lambda obs: torch.from_numpy(session.run(None, {"obs": obs.numpy()})[0])
    assert [i.name for i in session.get_inputs()] == ["obs"]
    assert session.get_inputs()[0].shape == ["batch", 4, 84, 84]
    assert session.get_inputs()[0].type == "tensor(uint8)"
    for key in ("action_meanings", "preprocessing", "obs_shape", "parameters"):
        about[key] = json.loads(about[key])
else:
    extra = {"metadata.json": ""}
    run = torch.export.load(path, extra_files=extra).module()
    about = json.loads(extra["metadata.json"])
torch.save([run(obs[:n]) for n in (1, 2, 7)], sys.argv[4])
print(json.dumps(about))
"""


@pytest.mark.parametrize("format", FORMATS)
def test_it_opens_without_this_package_and_says_what_it_is(format, exported, tmp_path):
    record = exported(format)
    obs = torch.randint(0, 256, (7, 4, 84, 84), dtype=torch.uint8)
    torch.save(obs, tmp_path / "obs.pt")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", OPEN, str(record.path), format,
         str(tmp_path / "obs.pt"), str(tmp_path / "values.pt")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        expected = network()(obs)
    for values in torch.load(tmp_path / "values.pt", weights_only=True):
        torch.testing.assert_close(values, expected[: len(values)], rtol=1e-4, atol=1e-4)
    about = json.loads(done.stdout)
    assert about == record.metadata
    assert (about["format"], about["game"]) == ("fastdistill-export-1", "pong")
    assert (about["kind"], about["name"]) == ("logits", "kl_7")
    assert about["action_meanings"][:2] == ["NOOP", "FIRE"]
    assert about["obs_shape"] == [4, 84, 84]
    assert about["obs_dtype"] == "uint8"
    assert about["planes"] == "oldest first"
    options = about["preprocessing"]["options"]
    assert options["repeat_action_probability"] == 0.25  # the checkpoint's preset
    assert {"frameskip", "img_height", "stack_num", "reward_clipping"} <= set(options)


@needs_onnx
def test_the_example_plays_a_game_with_onnxruntime_and_ale_py_alone(tmp_path):
    pytest.importorskip("ale_py")
    # One game of the shipped teacher, 20 points ahead at the end; random play is 20 behind.
    export("zoo:pong", tmp_path / "pong.onnx", frames=20)
    (example,) = re.findall(
        r"<!-- tested: .*?-->\n```python\n(.*?)```", DOCS.read_text(), re.DOTALL
    )
    assert len(example.strip().splitlines()) <= 21
    (tmp_path / "example.py").write_text(
        'import sys\nsys.modules["fastdistill"] = sys.modules["torch"] = None\n' + example
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(tmp_path / "example.py"), str(tmp_path / "pong.onnx")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    game, score = done.stdout.split()
    assert game == "pong"
    assert float(score) > 10


@pytest.mark.parametrize("format", FORMATS)
def test_vectors_heads_and_modules(format, tmp_path):
    module = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 2))
    module.train()
    record = export(
        module, tmp_path / "m", format, game="CartPole-v1", card={"kind": "logits"}, frames=50
    )
    assert record.metadata["obs_dtype"] == "float32"
    assert record.metadata["preprocessing"] == {}
    assert record.metadata["kind"] == "logits"
    assert module.training
    assert all(parameter.requires_grad for parameter in module.parameters())


def test_a_head_of_several_is_exported_alone(tmp_path):
    several = QNetwork(multitask_architecture([6, 3]), head_gain=1.0).eval()
    obs = torch.randint(0, 256, (40, 4, 84, 84), dtype=torch.uint8)
    record = export(several, tmp_path / "m.pt2", "pt2", head=1, observations=obs)
    with torch.no_grad():
        expected = several(obs, 1)
    values = torch.export.load(record.path).module()(obs)
    torch.testing.assert_close(values, expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=r"export: head must be in \[0, 2\), got 2"):
        export(several, tmp_path / "m.pt2", "pt2", head=2, observations=obs)


class Drifts(nn.Module):
    """Answers otherwise each time, as a file that is not the network's would."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, obs):
        if not torch.compiler.is_exporting():
            self.calls += 1
        return torch.stack([obs.sum(dim=1), obs.sum(dim=1) + self.calls], dim=1)


def test_a_file_that_differs_is_not_kept(tmp_path):
    path = tmp_path / "m.pt2"
    path.write_text("what was there")
    with pytest.raises(ValueError, match=r"export: the file must differ from the network by at mo"):
        export(Drifts(), path, "pt2", observations=torch.randn(30, 4))
    assert path.read_text() == "what was there"
    assert list(tmp_path.iterdir()) == [path]


def test_nan_is_not_equal_to_nan(tmp_path):
    class Nothing(nn.Module):
        def forward(self, obs):
            return obs * torch.nan

    with pytest.raises(ValueError, match="export: network must return finite values"):
        export(Nothing(), tmp_path / "m.pt2", "pt2", observations=torch.randn(30, 4))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"format": "tflite"}, r"format must be one of \['onnx', 'pt2'\], got 'tflite'"),
        ({"frames": 0}, "frames must be at least 1, got 0"),
        ({}, "game must be given where there is no checkpoint that names one"),
        ({"head": 1}, r"head must be 0 for a module, got 1"),
        (
            {"game": "Acrobot-v1"},
            r"network must see observations of Acrobot-v1, \[6\], got Runtime",
        ),
        ({"observations": torch.zeros(0, 4)}, r"observations must be uint8 .* \[0, 4\]"),
        ({"observations": torch.zeros(2, 4, dtype=torch.float64)}, "got torch.float64 "),
    ],
)
def test_arguments_that_do_not_fit(arguments, text, tmp_path):
    with pytest.raises(ValueError, match=f"^export: .*{text}"):
        export(nn.Linear(4, 2), tmp_path / "m", **{"format": "pt2", **arguments})
    assert list(tmp_path.iterdir()) == []


def test_outputs_must_be_the_games_actions(tmp_path):
    with pytest.raises(
        ValueError, match=r"export: network must return \[batch, 2\] values for CartPole-v1, got"
    ):
        export(nn.Linear(4, 3), tmp_path / "m", "pt2", game="CartPole-v1")


def test_missing_libraries_are_named_with_their_installation(tmp_path, monkeypatch):
    def import_module(name):
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", import_module)
    with pytest.raises(ImportError, match=r"fastdistill.export needs onnx: pip install 'onnx>="):
        export(nn.Linear(4, 2), tmp_path / "m.onnx", game="CartPole-v1")


def opened(path):
    """What runs an exported file."""
    if path.suffix == ".onnx":
        session = importlib.import_module("onnxruntime").InferenceSession(str(path))
        return lambda obs: torch.from_numpy(session.run(None, {"obs": obs.numpy()})[0])
    return torch.export.load(path).module()


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("size", ["100%", "7%", "multi"])
def test_a_file_plays_the_very_games_of_its_network(size, format, tmp_path):
    games = ("CartPole-v1", "Other-v0") if size == "multi" else ()
    torch.manual_seed(7)
    actions = [2] * max(1, len(games))
    whole = QNetwork(paper_architecture(size, actions, obs_shape=(4,)), head_gain=1.0).eval()
    whole.games = games
    record = export(whole, tmp_path / f"file.{format}", format, game="CartPole-v1", frames=1_000)
    assert (record.frames, record.equal_actions) == (1_000, 1_000)
    played = evaluate(whole, "CartPole-v1", episodes=20, epsilon=0.3)
    again = evaluate(opened(record.path), "CartPole-v1", episodes=20, epsilon=0.3)
    assert again.returns == played.returns
    assert len(set(played.returns)) > 5, "games that differ"
