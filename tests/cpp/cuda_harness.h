// SPDX-License-Identifier: MIT
// Runs one problem through the CUDA kernels on the SIMT machine and compares every output with the
// oracle, every byte that is no output with what it was before.
#pragma once

#include <cinttypes>
#include <cstdio>

#include "check.h"
#include "cuda_oracle.h"
#include "losses/cuda_launch.h"
#include "simt/simt.h"

namespace fastdistill::testing {

// Roundings of the arithmetic type, in units of the oracle's error model, that a result may be off.
inline constexpr Exact kRoundings = 4;

inline void* workspace() {
  alignas(16) static unsigned char memory[kCudaWorkspaceBytes];
  return memory;
}

struct Inputs {
  Buffer student;
  Buffer teacher;
  Buffer weight;
  Buffer mask;  // bytes[row * actions + action]
};

inline std::string describe(const Problem& p) {
  char text[256];
  std::snprintf(text, sizeof(text),
                "kind %d batch %" PRId64 " actions %" PRId64
                " dtypes %d %d temperature %g student %g beta %g mask %d weighted %d per_row %d "
                "offset %" PRId64 " stride +%" PRId64 " expanded %d",
                static_cast<int>(p.kind), p.batch, p.actions, static_cast<int>(p.student_dtype),
                static_cast<int>(p.teacher_dtype), p.temperature, p.student_temperature, p.beta,
                static_cast<int>(p.mask), p.weighted, p.per_row, p.offset, p.extra_stride,
                p.expanded_teacher);
  return text;
}

inline DType arithmetic(const Problem& p) {
  const bool wide = p.student_dtype == DType::kFloat64 || p.teacher_dtype == DType::kFloat64;
  return wide ? DType::kFloat64 : DType::kFloat32;
}

inline Inputs random_inputs(const Problem& p, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<double> normal(0.0, p.spread);
  const std::int64_t stride = p.actions + p.extra_stride;
  const std::int64_t teacher_rows = p.expanded_teacher ? 1 : p.batch;
  Inputs in;
  in.student.allocate(p.student_dtype, p.batch, p.actions, stride, p.offset);
  in.teacher.allocate(p.teacher_dtype, teacher_rows, p.actions,
                      p.expanded_teacher ? 0 : p.actions + 2 * p.extra_stride, 0);
  in.weight.allocate(arithmetic(p), p.batch, 1, 1, 0);
  in.mask.bytes.assign(static_cast<std::size_t>(p.batch * p.actions), 1);
  for (std::int64_t i = 0; i < p.batch; ++i) {
    for (std::int64_t j = 0; j < p.actions; ++j) {
      encode(normal(random), in.student.at(i, j), p.student_dtype);
      if (i < teacher_rows) encode(normal(random), in.teacher.at(i, j), p.teacher_dtype);
      const bool masked = random() % 3 == 0;
      if (p.mask != MaskMode::kNone && masked) {
        in.mask.bytes[static_cast<std::size_t>(i * p.actions + j)] = 0;
      }
    }
    encode(0.25 * static_cast<double>(random() % 8), in.weight.at(i, 0), arithmetic(p));
  }
  return in;
}

struct Outputs {
  Buffer grad;
  Buffer loss;
};

inline DistillArgs arguments_of(const Problem& p, Inputs& in, Outputs& out) {
  DistillArgs args;
  args.kind = p.kind;
  args.batch = p.batch;
  args.actions = p.actions;
  args.student = in.student.matrix();
  args.teacher = in.teacher.matrix();
  args.temperature = p.temperature;
  args.student_temperature = p.student_temperature;
  args.beta = p.beta;
  args.scale = p.scale;
  if (p.mask != MaskMode::kNone) args.action_mask = in.mask.bytes.data();
  if (p.mask == MaskMode::kPerRow) args.mask_row_stride = p.actions;
  if (p.weighted) args.weight = in.weight.at(0, 0);
  (p.per_row ? args.row_loss : args.loss) = out.loss.at(0, 0);
  if (p.with_grad) {
    args.grad = out.grad.at(0, 0);
    args.grad_row_stride = out.grad.row_stride;
  }
  return args;
}

inline Outputs run_kernels(const Problem& p, Inputs& in) {
  Outputs out;
  out.grad.allocate(p.student_dtype, p.batch, p.actions, p.actions + p.extra_stride, p.offset);
  out.loss.allocate(arithmetic(p), p.per_row ? p.batch : 1, 1, 1, 0);
  CudaLaunch launch;
  launch.workspace = workspace();
  distill_cuda(arguments_of(p, in, out), launch);
  unsigned ticket;
  std::memcpy(&ticket, workspace(), sizeof(ticket));
  CHECK_EQ(ticket, 0u);
  return out;
}

inline void check_close(Exact got, Exact want, Exact tolerance, const char* what, const Problem& p,
                        std::int64_t row, std::int64_t action) {
  const bool same = std::isnan(want)   ? std::isnan(got)
                    : std::isinf(want) ? got == want
                                       : std::fabs(got - want) <= tolerance;
  if (same) return;
  std::ostringstream text;
  text.precision(12);
  text << what << " at row " << row << " action " << action << ": got " << got << ", expected "
       << want << " within " << tolerance << "; " << describe(p);
  fail(__FILE__, __LINE__, text.str());
}

// Compares loss and gradient with the oracle; the inputs are what `in` holds, edits included.
inline void check_outputs(const Problem& p, Inputs& in, Outputs& out) {
  const Exact unit = rounding(arithmetic(p)) * 2;
  const Exact storage = rounding(p.student_dtype) * 2;
  // Below the smallest normal number of the gradient's dtype steps no longer shrink.
  const Exact floor = p.student_dtype == DType::kFloat16 ? 0x1p-24L : 0x1p-125L;
  std::vector<bool> written(out.grad.bytes.size(), false);
  Exact total = 0;
  Exact total_error = 0;
  for (std::int64_t i = 0; i < p.batch; ++i) {
    std::vector<Exact> s, t;
    for (std::int64_t j = 0; j < p.actions; ++j) {
      const std::int64_t mask_row = p.mask == MaskMode::kPerRow ? i : 0;
      const bool allowed = p.mask == MaskMode::kNone ||
                           in.mask.bytes[static_cast<std::size_t>(mask_row * p.actions + j)] != 0;
      s.push_back(allowed ? decode(in.student.at(i, j), p.student_dtype) : -kInfinity);
      t.push_back(allowed ? decode(in.teacher.at(i, j), p.teacher_dtype) : -kInfinity);
    }
    const Exact weight = p.weighted ? decode(in.weight.at(i, 0), arithmetic(p)) : 1;
    Row row = weight == 0 ? zero_row(s.size()) : oracle_row(p, s, t);
    const Exact factor = std::fabs(weight) * p.scale;
    const Exact loss = weight * p.scale * row.loss;
    // Sums over the actions: their error grows slowly with the length.
    const Exact length = 1 + std::log2(static_cast<Exact>(p.actions)) / 2;
    const Exact error = kRoundings * length * unit * factor * (row.loss_error + row.loss) + floor;
    total += loss;
    total_error += error;
    if (p.per_row)
      check_close(decode(out.loss.at(i, 0), arithmetic(p)), loss, error, "loss", p, i, -1);
    for (std::int64_t j = 0; j < p.actions && p.with_grad; ++j) {
      const std::size_t k = static_cast<std::size_t>(j);
      const Exact want = weight * p.scale * row.grad[k];
      const Exact tolerance = kRoundings * length * unit * factor * row.grad_error[k] +
                              storage * std::fabs(want) + floor;
      check_close(decode(out.grad.at(i, j), p.student_dtype), want, tolerance, "grad", p, i, j);
      const std::size_t at = static_cast<std::size_t>(out.grad.at(i, j) - out.grad.bytes.data());
      for (int b = 0; b < element_bytes(p.student_dtype); ++b)
        written[at + static_cast<std::size_t>(b)] = true;
    }
  }
  if (!p.per_row) {
    total_error += kRoundings * unit * std::fabs(total);
    check_close(decode(out.loss.at(0, 0), arithmetic(p)), total, total_error, "loss", p, -1, -1);
  }
  for (std::size_t b = 0; b < written.size(); ++b) {
    if (!written[b]) CHECK_EQ(static_cast<int>(out.grad.bytes[b]), 0xFF);
  }
}

inline void check_problem(const Problem& p, unsigned seed) {
  Inputs in = random_inputs(p, seed);
  Outputs out = run_kernels(p, in);
  check_outputs(p, in, out);
}

}  // namespace fastdistill::testing
