// SPDX-License-Identifier: MIT
// The CUDA kernels and the CPU kernels are one definition: on rows sprinkled with NaN, infinities,
// masked actions and weights of 0 they must agree in every value of every row that is not NaN, and
// in which rows are.
#include "cuda_harness.h"
#include "losses/cpu_dispatch.h"

using namespace fastdistill;
using namespace fastdistill::testing;

namespace {

constexpr LossKind kKinds[] = {LossKind::kKl, LossKind::kReverseKl, LossKind::kJsd, LossKind::kNll,
                               LossKind::kMse};

void sprinkle(Buffer& buffer, std::int64_t rows, std::int64_t actions, std::mt19937& random) {
  for (std::int64_t i = 0; i < rows; ++i) {
    // A third of the rows stays clean, a third has a few special logits, a third has many.
    const unsigned one_in = i % 3 == 0 ? 0 : i % 3 == 1 ? static_cast<unsigned>(actions) : 2;
    for (std::int64_t j = 0; j < actions && one_in > 0; ++j) {
      if (random() % one_in != 0) continue;
      encode(random() % 8 == 0 ? kNan : -kInfinity, buffer.at(i, j), buffer.dtype);
    }
  }
}

void check_same(Exact cuda, Exact cpu, Exact size, const char* what, const Problem& p,
                std::int64_t row, std::int64_t action) {
  check_close(cuda, cpu, cpu == 0 && cuda == 0 ? 0 : size * 1e-5L, what, p, row, action);
}

void compare(const Problem& p, unsigned seed) {
  Inputs in = random_inputs(p, seed);
  std::mt19937 random(seed);
  sprinkle(in.student, p.batch, p.actions, random);
  sprinkle(in.teacher, p.batch, p.actions, random);
  Outputs cuda = run_kernels(p, in);
  Outputs cpu = cuda;
  DistillArgs args = arguments_of(p, in, cpu);
  distill_cpu(args);
  for (std::int64_t i = 0; i < p.batch; ++i) {
    const Exact loss = decode(cpu.loss.at(i, 0), arithmetic(p));
    check_same(decode(cuda.loss.at(i, 0), arithmetic(p)), loss, 1 + std::fabs(loss), "loss", p, i,
               -1);
    if (std::isnan(loss)) continue;  // which of the row's gradients are NaN is left open
    Exact size = 0.1;                // probabilities cancel in a gradient
    for (std::int64_t j = 0; j < p.actions; ++j) {
      const Exact grad = decode(cpu.grad.at(i, j), p.student_dtype);
      if (std::isfinite(grad)) size = std::fmax(size, std::fabs(grad));
    }
    for (std::int64_t j = 0; j < p.actions; ++j) {
      check_same(decode(cuda.grad.at(i, j), p.student_dtype),
                 decode(cpu.grad.at(i, j), p.student_dtype), size, "grad", p, i, j);
    }
  }
}

void compare_all(std::initializer_list<std::int64_t> sizes,
                 std::initializer_list<double> temperatures) {
  unsigned seed = 0;
  for (LossKind kind : kKinds) {
    for (std::int64_t actions : sizes) {
      for (bool masked : {false, true}) {
        for (double temperature : temperatures) {
          Problem p;
          p.kind = kind;
          p.actions = actions;
          p.batch = actions <= 64 ? 60 : 6;
          p.temperature = temperature;
          p.mask = masked ? MaskMode::kPerRow : MaskMode::kNone;
          p.weighted = masked;
          p.per_row = true;
          p.beta = 0.3;
          compare(p, ++seed);
        }
      }
    }
  }
}

}  // namespace

int main() {
  // Fewer warps than short rows, so that each row has a thread.
  simt::machine().multiprocessors = 1;
  compare_all({1, 2, 7, 18, 64, 65, 300, 2100}, {1.0, 0.01});
  // A warp for each. At 0.01 a gradient of reverse KL may be a small difference of numbers in the
  // thousands, on which two correct kernels do not agree to 1e-5: test_cuda_kernels has the oracle.
  simt::machine().multiprocessors = 3;
  compare_all({1, 2, 7, 18, 64}, {1.0});
}
