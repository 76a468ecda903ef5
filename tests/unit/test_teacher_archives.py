# SPDX-License-Identifier: MIT
"""Hostile and damaged model files: refused in words, nothing executed, nothing large allocated."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile

import pytest
import torch

from fastdistill.teachers import archives
from fastdistill.teachers.cleanrl import load_cleanrl
from fastdistill.teachers.sb3 import load_sb3


class Trap:
    """Makes a directory where it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


class Large:
    """Ten gigabytes where torch's own restricted loader would build it."""

    def __reduce__(self):
        return bytearray, (10_000_000_000,)


def described(kind, **attributes):
    return {":type:": f"<class 'gymnasium.spaces.{kind}'>", ":serialized:": "gA==", **attributes}


def description(**changes):
    """What Stable-Baselines3 writes of a DQN on CartPole, as far as it is read."""
    return {
        "policy_class": {
            ":type:": "<class 'abc.ABCMeta'>",
            "__module__": "stable_baselines3.dqn.policies",
            "__init__": "<function DQNPolicy.__init__ at 0x7f0000000000>",
        },
        "policy_kwargs": {},
        "observation_space": described("box.Box", dtype="float32", _shape=[4]),
        "action_space": described("discrete.Discrete", n="2", start="0", _shape=[]),
        **changes,
    }


def weights(**changes):
    tensors = {
        "q_net.q_net.0.weight": torch.randn(64, 4),
        "q_net.q_net.0.bias": torch.randn(64),
        "q_net.q_net.2.weight": torch.randn(64, 64),
        "q_net.q_net.2.bias": torch.randn(64),
        "q_net.q_net.4.weight": torch.randn(2, 64),
        "q_net.q_net.4.bias": torch.randn(2),
        **{f"q_net.q_net.{name.replace('_', '.')}": value for name, value in changes.items()},
    }
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


def saved(thing) -> bytes:
    file = io.BytesIO()
    torch.save(thing, file)
    return file.getvalue()


def members(**changes):
    return {
        "data": json.dumps(description()).encode(),
        "policy.pth": saved(weights()),
        "_stable_baselines3_version": b"2.9.2",
        **changes,
    }


def write(path, contents, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, payload in contents.items():
            archive.writestr(name, payload)
    return path


def repacked(payload: bytes, change, compression=zipfile.ZIP_STORED) -> bytes:
    """A torch file whose records went through ``change(name, bytes)``."""
    file = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(payload)) as old,
        zipfile.ZipFile(file, "w", compression) as new,
    ):
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return file.getvalue()


def with_pickle(thing) -> bytes:
    """A torch file whose data.pkl is that thing's."""
    program = pickle.dumps(thing, protocol=2)
    return repacked(
        saved(weights()), lambda name, old: program if name.endswith("data.pkl") else old
    )


def test_the_untouched_archive_loads(tmp_path):
    module, card = load_sb3(write(tmp_path / "m.zip", members()))
    assert module(torch.zeros(3, 4)).shape == (3, 2)
    assert card == {
        "kind": "q_values", "obs_shape": [4], "obs_dtype": "float32", "observations": "as they are",
        "num_actions": 2, "algorithm": "DQN", "policy_class": "MlpPolicy", "sb3_version": "2.9.2",
        "source": f"sb3:{tmp_path / 'm.zip'}",
    }  # fmt: skip
    load_sb3(write(tmp_path / "packed.zip", members(), zipfile.ZIP_DEFLATED))


def test_pickles_in_every_member_do_not_run(tmp_path):
    trap = tmp_path / "sprung"
    program = pickle.dumps(Trap(trap))
    everywhere = dict.fromkeys(members(), program) | {
        "pytorch_variables.pth": with_pickle(Trap(trap)),
        "policy.optimizer.pth": with_pickle(Trap(trap)),
        "system_info.txt": program,
    }
    for kept in ({}, {"data": members()["data"]}):
        with pytest.raises(ValueError, match=r"^load_sb3: .*m\.zip must"):
            load_sb3(write(tmp_path / "m.zip", everywhere | kept))
    # Of a sound model, what is pickled beside the plain part is not touched.
    pickled = {":type:": "<class 'dict'>", ":serialized:": program.hex()}
    data = json.dumps(description(policy_kwargs=pickled, lr_schedule=pickled)).encode()
    load_sb3(write(tmp_path / "m.zip", everywhere | {"data": data, "policy.pth": saved(weights())}))
    with pytest.raises(ValueError, match=r"must hold nothing but tensors .* got '\w+ mkdir'"):
        load_sb3(write(tmp_path / "m.zip", members(**{"policy.pth": with_pickle(Trap(trap))})))
    assert not trap.exists()


def damaged(path, change):
    payload = path.read_bytes()
    path.write_bytes(change(payload))
    return path


DIRECTORY_ENTRY = b"PK\x01\x02"


def patched_entry(payload: bytes, name: bytes, offset: int, value: bytes) -> bytes:
    """The archive with bytes of a member's directory entry replaced."""
    end = payload.rfind(name, payload.index(DIRECTORY_ENTRY))
    entry = payload.rfind(DIRECTORY_ENTRY, 0, end)
    return payload[: entry + offset] + value + payload[entry + offset + len(value) :]


ARCHIVES = {
    "a text": (lambda p: damaged(write(p, members()), lambda _: b"a text"),
               "must be a complete zip archive, got no end of a zip directory; truncated"),
    "empty": (lambda p: damaged(write(p, members()), lambda _: b""), "must be a complete zip"),
    "truncated": (lambda p: damaged(write(p, members()), lambda old: old[: len(old) // 2]),
                  "must be a complete zip archive"),
    "a directory moved": (lambda p: damaged(write(p, members()), lambda old: old[100:]),
                          "must be a sound zip archive"),
    "a flipped byte": (
        lambda p: damaged(write(p, members()), lambda old: old.replace(b"Box", b"Bax", 1)),
        "must be a sound zip archive, got Bad CRC-32 for file 'data'"),
    "a broken stream": (
        lambda p: damaged(write(p, members(data=b"{}" * 500), zipfile.ZIP_DEFLATED),
                          lambda old: old.replace(old[34:44], b"\xff" * 10, 1)),
        "must be a sound zip archive, got Error -3 while decompressing"),
    "no data": (lambda p: write(p, {"policy.pth": b""}), "got no member 'data'"),
    "no weights": (lambda p: write(p, {"data": b"{}"}), "got no member 'policy.pth'"),
    "an upward path": (lambda p: write(p, members(**{"../../etc/x": b""})),
                       r"must name members inside zip archive, got '\.\./\.\./etc/x'"),
    "an absolute path": (lambda p: write(p, members(**{"/etc/x": b""})), "got '/etc/x'"),
    "a windows path": (lambda p: write(p, members(**{"..\\x": b""})), "must name members inside"),
    "encrypted": (lambda p: damaged(write(p, members()),
                                    lambda old: patched_entry(old, b"data", 8, b"\x01\x00")),
                  "must be unencrypted in zip archive, got 'data' encrypted"),
    "another method": (lambda p: write(p, members(), zipfile.ZIP_LZMA),
                       "must be stored or deflated in zip archive, got 'data' with method 14"),
    "a bomb": (lambda p: write(p, members(data=bytes(archives.MAX_ARCHIVE_BYTES // 4)),
                               zipfile.ZIP_DEFLATED),
               "must have at most 16,777,216 bytes in 'data' of zip archive, got 134,217,728"),
    "a bomb that lies": (
        lambda p: damaged(write(p, members(data=bytes(50 << 20)), zipfile.ZIP_DEFLATED),
                          lambda old: patched_entry(old, b"data", 24, struct.pack("<L", 100))),
        "must be a sound zip archive, got"),
    "many members": (lambda p: write(p, {f"{i}": b"" for i in range(2000)}),
                     "must list at most 1,024 members in 262,144 bytes of zip archive, got 2,000"),
    "a large directory": (
        lambda p: damaged(write(p, members()),
                          lambda old: old[:-10] + struct.pack("<L", 1 << 30) + old[-6:]),
        "must list at most 1,024 members in 262,144 bytes"),
}  # fmt: skip


@pytest.mark.parametrize("case", ARCHIVES)
def test_archives_are_refused_in_words(case, tmp_path):
    build, text = ARCHIVES[case]
    with pytest.raises(ValueError, match=rf"^load_sb3: .*m\.zip .*{text}"):
        load_sb3(build(tmp_path / "m.zip"))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_may_not_be_there_twice(tmp_path):
    with zipfile.ZipFile(tmp_path / "m.zip", "w") as archive:
        for name, payload in (*members().items(), *members().items()):
            archive.writestr(name, payload)
    with pytest.raises(ValueError, match=r"must name each member of zip archive once, got 'data'"):
        load_sb3(tmp_path / "m.zip")


@pytest.mark.parametrize("load", [load_sb3, load_cleanrl])
def test_files_that_are_none(load, tmp_path):
    for path, found in ((tmp_path / "none.zip", "none"), (tmp_path, "a directory")):
        with pytest.raises(ValueError, match=rf"^{load.__name__}: .* must be a file, got {found}"):
            load(path)


def test_a_file_too_large_is_not_read(tmp_path):
    with (tmp_path / "m.zip").open("wb") as file:
        file.truncate(archives.MAX_ARCHIVE_BYTES + 1)  # sparse
    with pytest.raises(ValueError, match=r"must have at most 536,870,912 bytes, got 536,870,913"):
        load_sb3(tmp_path / "m.zip")


TENSORS = {
    "a list": (saved([1, 2]), "must hold named tensors in policy.pth, got list"),
    "numbers": (saved(weights() | {"q_net.q_net.0.bias": 3}),
                "must hold a tensor 'net.0.bias', got int"),
    "integers": (saved(weights(**{"0_bias": torch.zeros(64, dtype=torch.int64)})),
                 "must hold dense floats in 'net.0.bias'"),
    "sparse": (saved(weights(**{"0_weight": torch.eye(64, 4).to_sparse()})),
               "must hold nothing but tensors"),
    "NaN": (saved(weights(**{"2_bias": torch.full((64,), torch.nan)})),
            "must hold finite weights in 'net.2.bias', got NaN or infinity"),
    "one number unfolded": (saved(weights(**{"0_weight": torch.zeros(()).expand(1 << 40, 4),
                                             "0_bias": torch.zeros(()).expand(1 << 40)})),
                            "must hold a contiguous 'net.0.weight', got strides"),
    "missing": (saved(weights(**{"2_bias": None})), "must hold the tensor net.2.bias, got none"),
    "no weights": (saved({}), "must have outputs for its 2 actions, got 0"),
    "inputs": (saved(weights(**{"0_weight": torch.zeros(64, 5)})),
               r"must hold net.0.weight of shape \[units, 4\], got \[64, 5\]"),
    "between": (saved(weights(**{"2_weight": torch.zeros(64, 63)})),
                r"must hold net.2.weight of shape \[units, 64\], got \[64, 63\]"),
    "biases": (saved(weights(**{"2_bias": torch.zeros(63)})),
               r"must hold net.2.bias of shape \[64\], got \[63\]"),
    "dimensions": (saved(weights(**{"0_weight": torch.zeros(64, 4, 1)})),
                   r"of shape \[units, 4\], got \[64, 4, 1\]"),
    "outputs": (saved(weights(**{"4_weight": torch.zeros(3, 64), "4_bias": torch.zeros(3)})),
                "must have outputs for its 2 actions, got 3"),
    "odd layers": (saved(weights(**{"3_weight": torch.zeros(64, 64)})),
                   r"must number the layers of 'net' 0, 2, ... .* got \[0, 2, 3, 4\]"),
    "garbage": (b"PK garbage", "must be a complete policy.pth"),
    "torch before 1.6": (pickle.dumps(0x1950A86A20F9469CFC6C), "must be a complete policy.pth"),
    "truncated": (saved(weights())[:-200], "policy.pth"),
    "large without data": (with_pickle(Large()),
                           r"must hold nothing but tensors .* got '\w+ bytearray'"),
    "bad pickle": (repacked(saved(weights()), lambda n, old: b"\x80\x02X" if "pkl" in n else old),
                   "must hold a readable data.pkl in policy.pth"),
    "short records": (repacked(saved(weights()), lambda n, old: old[:8] if "/data/" in n else old),
                      "must hold tensors in policy.pth, got RuntimeError"),
    "packed records": (repacked(saved(weights()), lambda _, old: old, zipfile.ZIP_DEFLATED),
                       "must hold uncompressed records in policy.pth"),
}  # fmt: skip


@pytest.mark.parametrize("case", TENSORS)
def test_weights_are_refused_in_words(case, tmp_path):
    payload, text = TENSORS[case]
    with pytest.raises(ValueError, match=rf"^load_sb3: .*m\.zip .*{text}"):
        load_sb3(write(tmp_path / "m.zip", members(**{"policy.pth": payload})))


DESCRIPTIONS = {
    "no json": (b"{", "must hold readable JSON in 'data'"),
    "deep": (b"[" * 200_000, "must hold readable JSON in 'data'"),
    "a list": (b"[]", "must hold a JSON object in 'data', got list"),
    "nothing said": (b"{}", "must describe its policy_class in 'data', got NoneType"),
    "start": (description(action_space=described("discrete.Discrete", n="2", start="1")),
              "must count its actions from 0, got 1"),
    "no n": (description(action_space=described("discrete.Discrete")),
             "must say action_space.n as an integer, got None"),
    "large n": (description(action_space=described("discrete.Discrete", n="900000000")),
                "must have 1 to 10,000 actions, got 900000000"),
    "large shape": (description(observation_space=described("box.Box", _shape=[1 << 40])),
                    r"has observations of shape \[1099511627776\]"),
    "scalars": (description(observation_space=described("box.Box", _shape=[])),
                r"has observations of shape \[\]"),
    "sizes": (description(policy_kwargs={"net_arch": [64, 32]}),
              r"must have the hidden layers of its net_arch \[64, 32\], got \[64, 64\]"),
    "unknown": (description(policy_kwargs={"dropout": 0.5}),
                r"has policy_kwargs that are not known: \['dropout'\]"),
    "images": (description(policy_class={
        "__module__": "stable_baselines3.dqn.policies",
        "__init__": "<function CnnPolicy.__init__ at 0x7f>"}),
        r"must see images, as its NatureCNN needs, got shape \[4\]"),
    "multi": (description(action_space=described("multi_discrete.MultiDiscrete", nvec="[2 2]")),
              "has MultiDiscrete actions"),
}  # fmt: skip


@pytest.mark.parametrize("case", DESCRIPTIONS)
def test_descriptions_are_refused_in_words(case, tmp_path):
    data, text = DESCRIPTIONS[case]
    payload = data if isinstance(data, bytes) else json.dumps(data).encode()
    with pytest.raises(ValueError, match=rf"^load_sb3: .*m\.zip .*{text}"):
        load_sb3(write(tmp_path / "m.zip", members(data=payload)))


HOSTILE = {
    "m.zip": ARCHIVES["a bomb"][0],
    "lies.zip": ARCHIVES["a bomb that lies"][0],
    "unfolded.zip": lambda p: write(
        p, members(**{"policy.pth": TENSORS["one number unfolded"][0]})
    ),
    "bytes.zip": lambda p: write(p, members(**{"policy.pth": TENSORS["large without data"][0]})),
}


def test_hostile_archives_allocate_nothing_large(tmp_path):
    for name, build in HOSTILE.items():
        build(tmp_path / name)
    program = """
import resource, sys
from fastdistill.teachers.sb3 import load_sb3
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sys.argv[1:]:
    try:
        load_sb3(path)
        print("loaded", path)
    except ValueError:
        pass
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10)
"""
    paths = [str(tmp_path / name) for name in HOSTILE]
    done = subprocess.run(
        [sys.executable, "-c", program, *paths], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 48 << 20
