# SPDX-License-Identifier: MIT
"""Models that Stable-Baselines3 itself trained: loaded without it, equal to what it computes."""

from __future__ import annotations

import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import nn

import fastdistill as fd
from fastdistill.evaluation import evaluate
from fastdistill.teachers.sb3 import load_sb3

sb3 = pytest.importorskip("stable_baselines3", reason="needs stable-baselines3 to make models")
contrib = pytest.importorskip("sb3_contrib", reason="needs sb3-contrib to make models")
from stable_baselines3.common.callbacks import (  # noqa: E402
    EvalCallback,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.monitor import Monitor  # noqa: E402
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize  # noqa: E402

ALGORITHMS = {"PPO": sb3.PPO, "A2C": sb3.A2C, "DQN": sb3.DQN, "QR-DQN": contrib.QRDQN}
ON_POLICY = ("PPO", "A2C")


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Networks this small gain nothing from more, and lose much where cores are shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Pictures(gym.Env):
    """Random images with three actions."""

    def __init__(self, shape=(36, 40, 3), high=255, dtype=np.uint8):
        self.observation_space = gym.spaces.Box(0, high, shape, dtype)
        self.action_space = gym.spaces.Discrete(3)
        self._steps = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._steps = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        self._steps += 1
        return self.observation_space.sample(), float(action), self._steps >= 10, False, {}


class Floats(Pictures):
    def __init__(self):
        super().__init__((5,), 1.0, np.float32)


def make(algorithm, policy, env, steps=32, **policy_kwargs):
    """A model after a few updates: what `learn` leaves in a file is in this one too."""
    options = (
        {"n_steps": 16, "batch_size": 16} if algorithm == "PPO"
        else {"n_steps": 16} if algorithm == "A2C"
        else {"learning_starts": 8, "buffer_size": 100}
    )  # fmt: skip
    model = ALGORITHMS[algorithm](
        policy, env, policy_kwargs=policy_kwargs or None, seed=1, device="cpu", **options
    )
    return model.learn(steps)


@torch.no_grad()
def of_sb3(model, algorithm, obs):
    if algorithm in ON_POLICY:
        return model.policy.get_distribution(obs).distribution.logits  # log-probabilities
    if algorithm == "DQN":
        return model.q_net(obs)
    return model.quantile_net(obs).mean(dim=1)


def assert_agrees(model, algorithm, tmp_path, batch=64):
    model.save(tmp_path / "model.zip")
    module, card = load_sb3(tmp_path / "model.zip")
    space = model.observation_space
    obs = torch.as_tensor(np.stack([space.sample() for _ in range(batch)]))
    expected = of_sb3(model, algorithm, obs)
    if isinstance(space, gym.spaces.Discrete):
        obs = nn.functional.one_hot(obs, int(space.n))
    values = module(obs)
    assert values.dtype == torch.float32
    assert values.shape == (batch, model.action_space.n)
    if algorithm in ON_POLICY:
        values = values.log_softmax(dim=1)
    torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-5)
    assert expected.std() > 1e-4, "a network that answers one thing agrees with anything"
    assert card["kind"] == ("logits" if algorithm in ON_POLICY else "q_values")
    assert card["algorithm"] == algorithm
    assert card["sb3_version"] == sb3.__version__
    assert card["num_actions"] == model.action_space.n
    return module, card


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_vectors_agree(algorithm, tmp_path):
    _, card = assert_agrees(make(algorithm, "MlpPolicy", "CartPole-v1"), algorithm, tmp_path)
    assert card["obs_shape"] == [4]
    assert card["policy_class"] == "MlpPolicy"


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_images_agree(algorithm, tmp_path):
    _, card = assert_agrees(make(algorithm, "CnnPolicy", Pictures()), algorithm, tmp_path)
    assert card["obs_shape"] == [3, 36, 40]  # SB3 puts the planes first, and so do our lanes
    assert card["obs_dtype"] == "uint8"
    assert card["policy_class"] == "CnnPolicy"


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_custom_layers_and_activations_agree(algorithm, tmp_path):
    sizes = {"pi": [32, 16, 8], "vf": [4]} if algorithm in ON_POLICY else [32, 16, 8]
    model = make(algorithm, "MlpPolicy", Floats(), net_arch=sizes, activation_fn=nn.ELU)
    module, _ = assert_agrees(model, algorithm, tmp_path)
    assert sum(isinstance(layer, nn.ELU) for layer in module) == 3


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_linear_policies_agree(algorithm, tmp_path):
    assert_agrees(make(algorithm, "MlpPolicy", Floats(), net_arch=[]), algorithm, tmp_path)


@pytest.mark.parametrize("algorithm", ["PPO", "A2C"])
def test_separate_extractors_of_policy_and_value_agree(algorithm, tmp_path):
    model = make(
        algorithm, "CnnPolicy", Pictures(),
        share_features_extractor=False, net_arch={"pi": [20], "vf": [7]},
        features_extractor_kwargs={"features_dim": 64},
    )  # fmt: skip
    assert_agrees(model, algorithm, tmp_path)


@pytest.mark.parametrize(
    ("policy", "env", "options"),
    [
        ("CnnPolicy", Pictures(), {"normalize_images": False}),
        ("MlpPolicy", Pictures(), {}),  # flattened, and still scaled
        ("MlpPolicy", Pictures((4, 6, 7), 1), {}),  # uint8, but no image to SB3: not scaled
        ("MlpPolicy", Pictures((9,)), {}),  # the RAM of an Atari game, say
        ("CnnPolicy", Pictures((4, 84, 84)), {}),
    ],
    ids=["unscaled", "flattened", "small-range", "bytes", "planes-first"],
)
def test_uint8_is_scaled_as_sb3_does(policy, env, options, tmp_path):
    assert_agrees(make("DQN", policy, env, **options), "DQN", tmp_path)


def test_discrete_observations_are_one_hot_vectors(tmp_path):
    model = make("PPO", "MlpPolicy", gym.make("FrozenLake-v1"))
    _, card = assert_agrees(model, "PPO", tmp_path)
    assert card["obs_shape"] == [16]
    assert card["observations"] == "one-hot"


def test_statistics_of_vec_normalize_must_be_given(tmp_path):
    env = VecNormalize(DummyVecEnv([lambda: gym.make("CartPole-v1")]))
    model = make("PPO", "MlpPolicy", env)
    model.save(tmp_path / "model.zip")
    with pytest.raises(ValueError, match=r"was trained under VecNormalize.*pass vec_normalize="):
        load_sb3(tmp_path / "model.zip")
    rms = env.obs_rms
    module, _ = load_sb3(tmp_path / "model.zip", vec_normalize={"mean": rms.mean, "var": rms.var})
    obs = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    expected = of_sb3(model, "PPO", torch.as_tensor(env.normalize_obs(obs)))
    values = module(torch.as_tensor(obs)).log_softmax(dim=1)
    torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-5)
    rewards_alone, _ = load_sb3(tmp_path / "model.zip", vec_normalize={})
    assert not torch.allclose(rewards_alone(torch.as_tensor(obs)), module(torch.as_tensor(obs)))


@pytest.mark.parametrize(
    ("vec_normalize", "text"),
    [
        ({"mean": [0.0] * 4}, r"vec_normalize must have 'mean' and 'var', .* got \['mean'\]"),
        ({"mean": [0.0] * 4, "var": [1.0]},
         r"vec_normalize\['var'\] must be finite with shape \[4\], got shape \[1\]"),
    ],
)  # fmt: skip
def test_statistics_that_do_not_fit_are_refused(vec_normalize, text, tmp_path):
    make("PPO", "MlpPolicy", "CartPole-v1").save(tmp_path / "model.zip")
    with pytest.raises(ValueError, match=text):
        load_sb3(tmp_path / "model.zip", vec_normalize=vec_normalize)


class OwnExtractor(sb3.common.torch_layers.NatureCNN):
    pass


class OwnPolicy(sb3.common.policies.ActorCriticPolicy):
    pass


class Steeper(nn.Tanh):
    def forward(self, x):
        return super().forward(3 * x)


def dict_env():
    class Both(Pictures):
        def __init__(self):
            super().__init__()
            self.observation_space = gym.spaces.Dict({"a": gym.spaces.Box(0, 1, (3,))})

    return Both()


REFUSED = {
    "continuous": (lambda: sb3.PPO("MlpPolicy", "Pendulum-v1"),
                   "has Box actions; only Discrete ones can be distilled"),
    "sac": (lambda: sb3.SAC("MlpPolicy", "Pendulum-v1", buffer_size=10),
            r"has a policy of its own \(stable_baselines3.sac.policies"),
    "dict": (lambda: sb3.PPO("MultiInputPolicy", dict_env()),
             "has a MultiInputPolicy .* pass a module that maps observations to values"),
    "recurrent": (lambda: contrib.RecurrentPPO("MlpLstmPolicy", "CartPole-v1"),
                  "is recurrent: it needs more than one observation"),
    "maskable": (lambda: contrib.MaskablePPO("MlpPolicy", "CartPole-v1"),
                 "needs an action mask beside each observation"),
    "trpo": (lambda: contrib.TRPO("MlpPolicy", "CartPole-v1"), "is neither PPO nor A2C"),
    "own policy": (lambda: sb3.PPO(OwnPolicy, "CartPole-v1"), "has a policy of its own"),
    "own extractor": (lambda: sb3.DQN("CnnPolicy", Pictures(), buffer_size=10, policy_kwargs={
        "features_extractor_class": OwnExtractor}), "has a features extractor of its own"),
    "own activation": (lambda: sb3.DQN("MlpPolicy", "CartPole-v1", buffer_size=10, policy_kwargs={
        "activation_fn": Steeper}), "has an activation_fn of its own"),
    "floats": (lambda: sb3.PPO("CnnPolicy", Pictures((3, 36, 36), 1.0, np.float32),
                               policy_kwargs={"normalize_images": False,
                                              "features_extractor_kwargs": {
                                                  "normalized_image": True}}),
               "sees images of float32, and fastdistill's environments give uint8"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_file_cannot_tell_is_refused_in_words(case, tmp_path):
    build, text = REFUSED[case]
    build().save(tmp_path / "model.zip")
    with pytest.raises(ValueError, match=rf"^load_sb3: .*model\.zip {text}"):
        load_sb3(tmp_path / "model.zip")


def test_neither_library_is_imported_and_nothing_is_unpickled(tmp_path):
    make("PPO", "CnnPolicy", Pictures()).save(tmp_path / "model.zip")
    make("QR-DQN", "MlpPolicy", "CartPole-v1").save(tmp_path / "quantiles.zip")
    program = """
import pickle, sys
def forbidden(*_, **__): raise AssertionError("unpickled")
pickle.load = pickle.loads = pickle.Unpickler = forbidden
from fastdistill.teachers.sb3 import load_sb3
import torch
module, card = load_sb3(sys.argv[1] + "/model.zip")
print(list(module(torch.zeros(2, 3, 36, 40, dtype=torch.uint8)).shape))
load_sb3(sys.argv[1] + "/quantiles.zip")
for name in ("stable_baselines3", "sb3_contrib", "cloudpickle"):
    assert name not in sys.modules, name
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[2, 3]"


VALUES = {
    "learning_rate": 1e-3, "batch_size": 64, "learning_starts": 500, "train_freq": 4,
    "gradient_steps": 2, "target_update_interval": 200, "exploration_fraction": 0.05,
    "gamma": 0.98,
}  # fmt: skip
# Options with which each learns something of CartPole in seconds.
TRAINED = {
    "PPO": {"n_steps": 512},
    "A2C": {"n_steps": 16, "gae_lambda": 0.95},
    "DQN": {**VALUES, "policy_kwargs": {"net_arch": [64, 64]}},
    "QR-DQN": {**VALUES, "policy_kwargs": {"net_arch": [64, 64], "n_quantiles": 10}},
}


@pytest.fixture(scope="module", params=TRAINED)
def trained(request, tmp_path_factory):
    """A model trained until it scores 120, and its file."""
    algorithm, options = request.param, TRAINED[request.param]
    path = tmp_path_factory.mktemp("trained") / "model.zip"
    torch.manual_seed(3)
    kind = ALGORITHMS[algorithm]
    model = kind("MlpPolicy", "CartPole-v1", seed=3, device="cpu", **options)
    enough = EvalCallback(
        Monitor(gym.make("CartPole-v1")), eval_freq=1_000, n_eval_episodes=5, verbose=0,
        callback_on_new_best=StopTrainingOnRewardThreshold(reward_threshold=120),
    )  # fmt: skip
    model.learn(20_000, callback=enough).save(path)
    return algorithm, model, path


def test_a_trained_teacher_plays_the_same_games_as_there(trained):
    algorithm, model, path = trained
    there = evaluate(lambda obs: of_sb3(model, algorithm, obs), "CartPole-v1", episodes=10)
    here = evaluate(load_sb3(path)[0], "CartPole-v1", episodes=10)
    assert here.returns == there.returns
    assert here.mean > 60  # random play has 22


@pytest.mark.statistical
def test_a_student_of_it_plays_as_well(trained, tmp_path):
    """The 95% intervals of both means over 40 games overlap.

    Those of two players of one strength miss each other once in 200 times; the seeds are fixed.
    """
    result = fd.distill(
        f"sb3:{trained[2]}", "CartPole-v1", run_dir=tmp_path / "run", student="100%",
        num_lanes=4, total_updates=800, steps_per_update=4.0, learning_starts_steps=400,
        score_every_updates=400, score_episodes=10, checkpoint_every_updates=800,
        evaluation_episodes=40, temperature="auto", tensorboard=False, device="cpu",
    )  # fmt: skip
    teacher = result.evaluation["teacher"]["summary"]["mean"]
    student = result.evaluation["students"][0]["summary"]["mean"]
    assert student["high"] >= teacher["low"], (student, teacher)
