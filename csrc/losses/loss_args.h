// SPDX-License-Identifier: MIT
// What a distillation loss is asked to do, in plain C++: the same structs drive the CPU kernels,
// the CUDA kernels and the C++ tests. No Python and no torch header may enter csrc/losses.
#pragma once

#include <cstdint>

namespace fastdistill {

enum class DType : int { kFloat64, kFloat32, kBFloat16, kFloat16 };

enum class LossKind : int { kKl, kReverseKl, kJsd, kNll, kMse };

enum class TdKind : int { kHuber, kMse };

// Rows of logits whose columns are adjacent; a row stride of 0 repeats one row.
struct Matrix {
  const void* data = nullptr;
  DType dtype = DType::kFloat32;
  std::int64_t row_stride = 0;  // elements
};

// Arithmetic is float64 when either side is float64 and float32 otherwise, so losses and weights
// are stored in that type, whatever the logits are.
struct DistillArgs {
  LossKind kind = LossKind::kKl;
  std::int64_t batch = 0;
  std::int64_t actions = 0;
  Matrix student;                             // [batch, actions]
  Matrix teacher;                             // [batch, actions]
  const std::uint8_t* action_mask = nullptr;  // [batch or 1, actions], 0 = masked; null = none
  std::int64_t mask_row_stride = 0;           // elements; 0 = one mask for all rows
  const void* weight = nullptr;               // [batch] in the arithmetic type; null = ones
  double temperature = 0.01;
  double student_temperature = 1.0;
  double beta = 0.5;         // weight of the teacher in the mixture, jsd only
  double scale = 1.0;        // 1 / divisor of the reduction, on loss and gradient; 1 with row_loss
  void* row_loss = nullptr;  // [batch] in the arithmetic type; null = reduce
  void* loss = nullptr;      // [] in the arithmetic type; null = per row
  void* grad = nullptr;      // [batch, actions] in the student's dtype; null = loss only
  std::int64_t grad_row_stride = 0;  // elements
};

// KL from a teacher of which only the k largest values are known. The rest of the actions is one
// bucket, on both sides, whose mass is what the teacher's log-probabilities leave to 1; without the
// tail both sides are conditioned on the k.
struct TopkArgs {
  DistillArgs base;                       // kl; its teacher is [batch, k]
  std::int64_t k = 0;                     // at most the actions
  const std::int64_t* indices = nullptr;  // [batch, k], the actions that the values belong to
  std::int64_t index_row_stride = 0;      // elements
  bool tail = true;
  // CPU only: becomes the first row whose log-probabilities sum to more than 1, if that is before.
  std::int64_t* bad_mass_row = nullptr;
};

// DQN's loss on the taken actions, its gradient and its new priorities.
struct TdArgs {
  TdKind kind = TdKind::kHuber;
  std::int64_t batch = 0;
  std::int64_t actions = 0;
  Matrix q;                              // [batch, actions], float32 or float64
  const std::int64_t* action = nullptr;  // [batch]
  const void* target = nullptr;          // [batch] in q's dtype
  const void* weight = nullptr;          // [batch] in q's dtype; null = ones
  double scale = 1.0;
  void* row_loss = nullptr;  // [batch]; null = reduce
  void* loss = nullptr;      // []; null = per row
  void* td_abs = nullptr;    // [batch]
  void* grad = nullptr;      // [batch, actions], dense; null = loss only
};

inline bool uses_float64(const DistillArgs& args) {
  return args.student.dtype == DType::kFloat64 || args.teacher.dtype == DType::kFloat64;
}

inline int element_bytes(DType dtype) {
  return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2;
}

}  // namespace fastdistill
