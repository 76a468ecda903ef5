# SPDX-License-Identifier: MIT
"""A distillation under way: the players, the memory and the students, one step after another.

``distill`` is the recipe around it: directories, environments, the end.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import closing
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastdistill.envs.lanes import LaneEnv
from fastdistill.evaluation.cost import describe_machine
from fastdistill.recipes.common import (
    LEARNING_STREAM,
    SCORING_SEED,
    TRAINING_STREAM,
    StopRequest,
    TrainingState,
    env_tensors,
    epsilon_greedy,
    linear,
    refuse_divergence,
    restore_env,
)
from fastdistill.recipes.distill_config import DistillConfig
from fastdistill.recipes.students import (
    Student,
    auto_temperature,
    judge,
    make_students,
    publish_student,
    save_student,
    score_student,
    state_weight,
)
from fastdistill.replay import PrioritizedReplay
from fastdistill.teachers import Teacher
from fastdistill.training.checkpoints import TrainingCheckpoints
from fastdistill.training.metrics import Progress, RunWriter

# Steps that a lane is driven by the same policy before the driver is drawn again.
_DRIVER_STEPS = 64

# Observations that the input's mean and deviation, and an automatic temperature, are taken from.
_STATISTICS_BATCHES, _STATISTICS_ROWS = 16, 256


class Distillation:
    """A distillation under way: the players, the memory, the students.

    Attributes:
        students: All that learn, side by side.
        at: How far it is.
        temperature: Of the sharpened teacher; 0 until an automatic one is fitted.
        drivers: ``[lanes]``, the student at the wheel of each lane; -1 is the teacher.
    """

    def __init__(
        self, config: DistillConfig, teacher: Teacher, env: LaneEnv, device: torch.device
    ) -> None:
        self.config = config
        self.teacher = teacher
        self.env = env
        self.device = device
        self.students = make_students(
            env,
            losses=config.losses,
            sizes=config.sizes,
            seeds=config.seeds,
            first_seed=config.seed,
            optimizer=config.optimizer,
            learning_rate=config.learning_rate,
            device=device,
        )
        self.replay = PrioritizedReplay(
            config.replay_capacity,
            config.num_lanes,
            frame_shape=env.frame_shape,
            frame_dtype=env.obs.dtype.name,
            stack=env.stack,
            priority_exponent=0,
            columns={"teacher_logits": ((env.num_actions,), "float32")},
            seed=int(np.random.SeedSequence((config.seed, LEARNING_STREAM)).generate_state(1)[0]),
        )
        self.at = TrainingState(config.seed)
        self.checkpoints = TrainingCheckpoints(config.run_dir / "checkpoints")
        self.temperature = 0.0 if config.temperature == "auto" else float(config.temperature)
        self.drivers = np.full(config.num_lanes, -1, np.int64)  # -1 is the teacher

    @property
    def training_seconds(self) -> float:
        """Seconds of play and learning so far; scoring apart."""
        return sum(s for part, s in self.at.total_seconds.items() if part != "score")

    @property
    def fraction(self) -> float:
        """How much of the training is over, by updates or by time; time alone never ends it."""
        fraction = self.at.updates / self.config.total_updates
        if self.config.max_seconds is not None and self.at.updates:
            fraction = max(fraction, self.training_seconds / self.config.max_seconds)
        return min(fraction, 1.0)

    def train(self, scoring_env: Callable[[], LaneEnv], stop: StopRequest) -> bool:
        """Play and learn to the end, or until told to stop; True at the end."""
        config, at = self.config, self.at
        with (
            # A run that begins again, for want of a checkpoint, drops its records of before.
            closing(
                RunWriter(config.run_dir, tensorboard=config.tensorboard, resume_step=at.step)
            ) as writer,
            closing(
                Progress(config.total_updates, start_step=at.updates, unit="updates")
            ) as progress,
        ):
            while self.fraction < 1.0 and not stop.requested:
                self.play()
                before = at.updates
                while at.updates + 1 <= self._updates_due() and self.fraction < 1.0:
                    losses = self.learn()
                    note = f"loss {losses[0]:.3f}" if len(losses) < 2 else ""
                    progress.update(at.updates, at.recent, note)
                if self.fraction < 1.0:
                    if at.updates // config.log_every_updates > before // config.log_every_updates:
                        writer.write(at.step, self.metrics())
                    every = config.score_every_updates
                    if at.updates // every > before // every:
                        writer.write(at.step, self.score(scoring_env))
                    every = config.checkpoint_every_updates
                    if at.updates // every > before // every:
                        self.checkpoint(done=False)
            done = self.fraction >= 1.0
            if done and self.students[0].loss_count:
                writer.write(at.step, self.metrics())
                writer.write(at.step, self.score(scoring_env))
            if not done:
                self.save_unscored()
            self.checkpoint(done=done)
        return done

    def _updates_due(self) -> float:
        config = self.config
        return (self.at.step - config.learning_starts_steps) / config.steps_per_update

    def play(self) -> None:
        """One step of every lane, by whoever drives it, into the replay with the teacher's view."""
        config, env, at = self.config, self.env, self.at
        if config.driver != "teacher" and at.step // config.num_lanes % _DRIVER_STEPS == 0:
            share = 1.0 if config.driver == "student" else self.fraction
            drawn = at.rng.integers(len(self.students), size=config.num_lanes)
            self.drivers = np.where(at.rng.random(config.num_lanes) < share, drawn, -1)
        obs = torch.from_numpy(env.obs).to(self.device)
        labels = self.teacher.q_values(obs)
        greedy = labels.argmax(dim=1).cpu().numpy()
        # Before its first update a student has no input statistics, and nothing to say.
        for index in np.unique(self.drivers[self.drivers >= 0]) if at.updates else ():
            lanes = np.flatnonzero(self.drivers == index)
            seen = obs if len(lanes) == len(obs) else obs[torch.from_numpy(lanes)]
            with (
                torch.inference_mode(),
                torch.autocast(self.device.type, torch.bfloat16, enabled=config.bfloat16),
            ):
                logits = self.students[index].network(seen)
            greedy[lanes] = logits.argmax(dim=1).cpu().numpy()
        action = epsilon_greedy(greedy, config.epsilon, env.num_actions, at.rng)
        at.lap("act")
        step = env.step(action)
        at.add_episodes(step.episodes)
        at.lap("env")
        self.replay.append(
            step.frame,
            step.action,
            step.reward,
            step.terminated,
            step.truncated,
            boundary=step.boundary,
            teacher_logits=labels.cpu().numpy(),
        )
        at.step += config.num_lanes
        at.lap("replay")

    def measure_inputs(self) -> None:
        """Take the students' input statistics, and an automatic temperature, from the replay."""
        # In sums of batches: all of it as float64 would be a gigabyte.
        labels: list[Tensor] = []
        total = squares = torch.zeros(())
        count = 0
        for _ in range(_STATISTICS_BATCHES):
            batch = self.replay.sample(_STATISTICS_ROWS)
            labels.append(batch.columns["teacher_logits"].clone())
            rows = batch.obs[:, -1] if self.env.stack > 1 else batch.obs
            rows = rows.flatten(0, -3) if len(self.env.obs_shape) == 3 else rows
            # In float32 the sum of 256 squared bytes is still exact, and twice as quick.
            rows = rows.float() if rows.dtype == torch.uint8 else rows.double()
            total, squares = total + rows.sum(0).double(), squares + (rows * rows).sum(0).double()
            count += len(rows)
        if self.temperature == 0.0:
            self.temperature = auto_temperature(torch.cat(labels))
        mean = total / count
        std = (squares / count - mean * mean).clamp_min(0).sqrt()
        for student in self.students:
            student.network.set_obs_statistics(mean.float(), std.float())

    def learn(self) -> list[float]:
        """One update of every student, all from the same batch; returns their losses."""
        config, at = self.config, self.at
        if at.updates == 0:
            self.measure_inputs()
        batch = self.replay.sample(config.batch_size)
        at.lap("replay")
        obs = batch.obs.to(self.device, non_blocking=True)
        labels = batch.columns["teacher_logits"].to(self.device, non_blocking=True)
        weight = state_weight(config.weighting, labels, self.temperature)
        learning_rate = linear(config.learning_rate, 0.0, self.fraction)
        losses = [
            student.update(
                obs,
                labels,
                weight,
                self.temperature,
                learning_rate,
                bfloat16=config.bfloat16,
            )
            for student in self.students
        ]
        at.updates += 1
        at.lap("learn")
        refuse_divergence(
            config.run_dir, at.step, sum(losses), {"obs": obs, "teacher_logits": labels}
        )
        return losses

    def metrics(self) -> dict[str, float]:
        """Of the play, and every student's mean loss, since the last record."""
        values = self.at.metrics()
        values["charts/learning_rate"] = linear(self.config.learning_rate, 0.0, self.fraction)
        values["time/training_seconds"] = self.training_seconds
        values["replay/size"] = len(self.replay)
        for student in self.students:
            values[f"students/{student.name}/loss"] = student.take_mean_loss()
        return values

    def score(self, scoring_env: Callable[[], LaneEnv]) -> dict[str, float]:
        """Play with every student, save those that are better than ever before."""
        values = {"time/training_seconds": self.training_seconds}
        for student in self.students:
            if self.config.score_episodes == 0:
                self._save(student)
                continue
            score = score_student(
                student.network,
                self.teacher,
                scoring_env(),
                episodes=self.config.score_episodes,
                seed=SCORING_SEED + self.config.seed,
                temperature=self.temperature,
            )
            values[f"students/{student.name}/score"] = score.mean
            values[f"students/{student.name}/agreement"] = score.agreement
            values[f"students/{student.name}/kl"] = score.kl
            if student.best_score is None or score.mean > student.best_score:
                student.best_score = score.mean
                self._save(student)
        self.at.lap("score")
        return values

    def save_unscored(self) -> None:
        """A student that was never scored is saved as it is: better than nothing."""
        for student in self.students:
            if student.best_score is None:
                self._save(student)

    def _save(self, student: Student) -> None:
        teacher = {key: self.teacher.card.get(key) for key in ("game", "parameters", "weights")}
        save_student(
            self.config.run_dir,
            student,
            self.env,
            {
                "teacher": {"source": self.config.teacher, **teacher},
                "temperature": self.temperature,
                "trained_updates": self.at.updates,
                "trained_steps": self.at.step,
                "scoring": {"mean": student.best_score, "episodes": self.config.score_episodes},
            },
        )

    def checkpoint(self, *, done: bool) -> None:
        """Write everything to continue from; a finished run needs no replay any more."""
        tensors = {**env_tensors(self.env.state()), "drivers": torch.from_numpy(self.drivers)}
        for student in self.students:
            tensors |= student.tensors()
        card = {
            **self.at.card(),
            "temperature": self.temperature,
            "best_scores": {student.name: student.best_score for student in self.students},
            "loss_sums": {
                student.name: [student.loss_sum, student.loss_count] for student in self.students
            },
        }
        self.checkpoints.write(self.at.step, tensors, card, None if done else self.replay.save)
        self.at.lap("checkpoint")

    def restore(self) -> None:
        """Continue from the newest checkpoint; a run that has none begins again."""
        loaded = self.checkpoints.latest(self.replay.load)
        if loaded is None:
            self.env.reset((self.config.seed, TRAINING_STREAM))
            return
        tensors, card = loaded
        restore_env(self.env, tensors)
        self.drivers = tensors["drivers"].numpy()
        for student in self.students:
            student.restore(tensors, card["best_scores"][student.name])
            student.loss_sum, student.loss_count = card["loss_sums"][student.name]
        self.temperature = card["temperature"]
        self.at.restore(card)

    def evaluate(self, scoring_env: Callable[[], LaneEnv]) -> dict[str, Any]:
        """Teacher and students over fresh episodes; writes and returns ``evaluation.json``."""
        config = self.config
        if config.evaluation_episodes == 0:
            return {}
        env = scoring_env()
        entries = []
        for name, entry in judge(
            config.run_dir,
            self.students,
            self.teacher,
            env,
            episodes=config.evaluation_episodes,
            seed=config.seed,
            device=self.device,
        ):
            mean = entry["summary"]["mean"]
            print(
                f"{name}: mean {mean['value']:.2f}, 95% [{mean['low']:.2f}, {mean['high']:.2f}]",
                file=sys.stderr,
            )
            entries.append(entry)
        teacher = entries[0]
        record = {
            "game": env.name,
            "preset": config.preset,
            "epsilon": teacher.pop("epsilon"),
            "seed": config.seed,
            "episodes": config.evaluation_episodes,
            "random_score": teacher.pop("random_score"),
            "training_seconds": self.training_seconds,
            "updates": self.at.updates,
            "machine": describe_machine(),
            "commands": [config.command()],
            "teacher": teacher,
            "students": entries[1:],
        }
        publish_student(config.run_dir, self.students[0])
        # Last and at once: this file says that the run is finished.
        path = config.run_dir / "evaluation.json"
        temporary = path.with_name(".evaluation.json.tmp")
        temporary.write_text(json.dumps(record, indent=2) + "\n")
        temporary.replace(path)
        return record
