// SPDX-License-Identifier: MIT
// The CUDA loss kernels on the SIMT machine: every kind, dtype pair and kernel over the sizes where
// tiles, warps and blocks end, against the long double oracle.
#include "cuda_harness.h"

using namespace fastdistill;
using namespace fastdistill::testing;

namespace {

constexpr LossKind kKinds[] = {LossKind::kKl, LossKind::kReverseKl, LossKind::kJsd, LossKind::kNll,
                               LossKind::kMse};
constexpr DType kDtypes[] = {DType::kFloat32, DType::kBFloat16, DType::kFloat16, DType::kFloat64};
constexpr std::int64_t kSizes[] = {1,    2,    3,    4,    5,    6,    7,    8,    9,    10,
                                   11,   12,   13,   14,   15,   16,   17,   18,   19,   31,
                                   32,   33,   47,   63,   64,   65,   127,  128,  129,  1023,
                                   1024, 1025, 1500, 2047, 2048, 2049, 4096, 4100, 5000, 8200};

// More short rows than the machine has warps for, so that each gets a thread; fewer get a warp.
constexpr std::int64_t kManyRows = 100;

unsigned next_seed() {
  static unsigned seed = 0;
  return ++seed;
}

// A large row costs a thousand times a small one; every size still meets every kind.
void test_sizes() {
  for (LossKind kind : kKinds) {
    for (std::int64_t actions : kSizes) {
      Problem p;
      p.kind = kind;
      p.actions = actions;
      p.batch = actions <= 64 ? kManyRows : actions <= 2048 ? 5 : 2;
      check_problem(p, next_seed());
      if (actions <= 64) {
        p.batch = 33;
        check_problem(p, next_seed());
        p.batch = kManyRows;
      }
      p.per_row = true;
      p.weighted = true;
      p.mask = MaskMode::kPerRow;
      p.scale = 0.125;
      p.student_temperature = 2;
      check_problem(p, next_seed());
    }
  }
}

void test_dtypes() {
  for (LossKind kind : kKinds) {
    for (DType student : kDtypes) {
      for (DType teacher : kDtypes) {
        for (std::int64_t actions : {6, 18, 132, 201, 2052}) {
          Problem p;
          p.kind = kind;
          p.student_dtype = student;
          p.teacher_dtype = teacher;
          p.actions = actions;
          p.batch = actions <= 64 ? kManyRows : 2;
          p.temperature = 0.5;
          p.mask = actions % 4 == 2 ? MaskMode::kShared : MaskMode::kNone;
          check_problem(p, next_seed());
        }
      }
    }
  }
}

void test_layouts() {
  for (LossKind kind : kKinds) {
    for (std::int64_t actions : {3, 16, 18, 128, 2304}) {
      for (std::int64_t offset : {0, 1, 2}) {
        for (std::int64_t extra_stride : {0, 4, 5}) {
          for (bool expanded : {false, true}) {
            if (actions > 2048 && expanded && offset != 0) continue;  // slow, and nothing new
            Problem p;
            p.kind = kind;
            p.actions = actions;
            p.batch = actions <= 64 ? kManyRows : 2;
            p.student_dtype = offset == 2 ? DType::kBFloat16 : DType::kFloat32;
            p.offset = offset;
            p.extra_stride = extra_stride;
            p.expanded_teacher = expanded;
            p.weighted = true;
            p.mask = offset == 1 ? MaskMode::kPerRow : MaskMode::kNone;
            check_problem(p, next_seed());
          }
        }
      }
    }
  }
}

// Q-values of 1e4 at a temperature of 1e-6 make exponents of 1e10, which must stay finite.
void test_temperatures() {
  for (LossKind kind : kKinds) {
    for (double temperature : {1e-6, 1e-3, 0.01, 0.05, 1.0, 10.0}) {
      for (double spread : {1e-3, 1.0, 1e4}) {
        for (std::int64_t actions : {18, 100}) {
          for (DType dtype : {DType::kFloat32, DType::kFloat64}) {
            Problem p;
            p.kind = kind;
            p.actions = actions;
            p.batch = actions <= 64 ? kManyRows : 1;
            p.student_dtype = dtype;
            p.temperature = temperature;
            p.spread = spread;
            p.beta = 0.3;
            check_problem(p, next_seed());
            if (actions > 64) continue;
            p.batch = 33;
            check_problem(p, 1);
          }
        }
      }
    }
  }
}

void test_loss_only() {
  for (LossKind kind : kKinds) {
    for (std::int64_t actions : {18, 300, 2300}) {
      Problem p;
      p.kind = kind;
      p.actions = actions;
      p.with_grad = false;
      p.per_row = actions == 300;
      check_problem(p, next_seed());
    }
  }
}

}  // namespace

int main() {
  test_sizes();
  test_dtypes();
  test_layouts();
  test_temperatures();
  test_loss_only();
  std::printf("%" PRId64 " launches\n", simt::machine().launches);
}
