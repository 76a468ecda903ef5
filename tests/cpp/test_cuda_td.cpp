// SPDX-License-Identifier: MIT
// td_loss on the SIMT machine against torch's definitions of smooth_l1 (beta 1) and mse.
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "check.h"
#include "losses/cuda_launch.h"
#include "simt/simt.h"

using namespace fastdistill;

namespace {

void* workspace() {
  alignas(16) static unsigned char memory[kCudaWorkspaceBytes];
  return memory;
}

bool close(double got, double want, double tolerance) {
  return std::isnan(want) ? std::isnan(got) : std::fabs(got - want) <= tolerance;
}

template <class Real>
struct Td {
  TdKind kind;
  std::int64_t batch;
  std::int64_t actions;
  std::int64_t stride;
  bool weighted;
  bool per_row;
  bool with_grad;
  double scale;
  std::vector<Real> q, target, weight;
  std::vector<std::int64_t> action;

  Td(TdKind kind_in, std::int64_t batch_in, std::int64_t actions_in, int variant)
      : kind(kind_in),
        batch(batch_in),
        actions(actions_in),
        stride(actions_in + variant % 3),
        weighted(variant % 2 == 1),
        per_row(variant % 4 >= 2),
        with_grad(variant != 3),
        scale(1.0 / (1 + variant)) {
    std::mt19937 random(static_cast<unsigned>(batch * 31 + actions * 7 + variant));
    std::normal_distribution<double> normal(0.0, 1.5);
    for (std::int64_t i = 0; i < batch * stride; ++i)
      q.push_back(static_cast<Real>(normal(random)));
    for (std::int64_t i = 0; i < batch; ++i) {
      target.push_back(static_cast<Real>(normal(random)));
      weight.push_back(static_cast<Real>(random() % 4));
      const std::int64_t below = actions > 0 ? actions : 1;
      action.push_back(static_cast<std::int64_t>(random() % static_cast<unsigned>(below)));
    }
  }

  std::size_t at(std::int64_t row, std::int64_t column) const {
    return static_cast<std::size_t>(row * stride + column);
  }

  void check() {
    const std::size_t rows = static_cast<std::size_t>(batch);
    std::vector<Real> loss(per_row ? rows : 1, Real(-7));
    std::vector<Real> td_abs(rows, Real(-7));
    std::vector<Real> grad(static_cast<std::size_t>(batch * actions), Real(-7));
    TdArgs args;
    args.kind = kind;
    args.batch = batch;
    args.actions = actions;
    args.q = {q.data(), sizeof(Real) == 8 ? DType::kFloat64 : DType::kFloat32, stride};
    args.action = action.data();
    args.target = target.data();
    args.weight = weighted ? weight.data() : nullptr;
    args.scale = scale;
    (per_row ? args.row_loss : args.loss) = loss.data();
    args.td_abs = td_abs.data();
    args.grad = with_grad ? grad.data() : nullptr;
    CudaLaunch launch;
    launch.workspace = workspace();
    td_cuda(args, launch);

    const double unit = 8 * std::numeric_limits<Real>::epsilon();
    double total = 0;
    double magnitude = 0;
    for (std::size_t i = 0; i < rows; ++i) {
      const bool known = action[i] >= 0 && action[i] < actions;
      const double nan = std::numeric_limits<double>::quiet_NaN();
      const double td =
          known ? double(q[at(static_cast<std::int64_t>(i), action[i])]) - target[i] : nan;
      const double factor = (weighted ? double(weight[i]) : 1.0) * scale;
      const bool is_linear = kind == TdKind::kHuber && std::fabs(td) >= 1;
      double value = kind == TdKind::kMse ? td * td
                     : is_linear          ? std::fabs(td) - 0.5
                                          : 0.5 * td * td;
      double slope = kind == TdKind::kMse ? 2 * td : is_linear ? std::copysign(1.0, td) : td;
      value = factor == 0 ? 0 : factor * value;
      slope = factor == 0 || !known ? 0 : factor * slope;
      total += value;
      magnitude += std::fabs(value);
      CHECK(close(td_abs[i], std::fabs(td), unit * (1 + std::fabs(td))));
      if (per_row) CHECK(close(loss[i], value, unit * (1 + std::fabs(value) * 4)));
      for (std::int64_t j = 0; j < actions && with_grad; ++j) {
        const double want = j == action[i] ? slope : 0.0;
        const double got =
            grad[i * static_cast<std::size_t>(actions) + static_cast<std::size_t>(j)];
        CHECK(close(got, want, j == action[i] ? unit * (1 + std::fabs(want) * 4) : 0.0));
      }
    }
    if (!per_row) CHECK(close(loss[0], total, unit * (1 + 4 * magnitude)));
    if (!with_grad) {
      for (Real value : grad) CHECK_EQ(value, Real(-7));
    }
  }
};

template <class Real>
void test_all() {
  for (TdKind kind : {TdKind::kHuber, TdKind::kMse}) {
    for (int variant = 0; variant < 6; ++variant) {
      for (std::int64_t actions : {1, 2, 3, 4, 6, 18, 127, 128, 129, 400}) {
        for (std::int64_t batch : {1, 32, 127, 128, 129, 700}) {
          Td<Real>(kind, batch, actions, variant).check();
        }
      }
    }
  }
}

template <class Real>
void test_bad_values() {
  for (TdKind kind : {TdKind::kHuber, TdKind::kMse}) {
    for (int variant : {1, 2}) {
      Td<Real> td(kind, 140, 5, variant);
      td.action[3] = -1;
      td.action[4] = 5;
      td.action[130] = INT64_MIN;
      td.action[131] = INT64_MAX;
      td.target[7] = std::numeric_limits<Real>::quiet_NaN();
      td.weight[3] = 1;
      td.weight[4] = 0;
      td.check();
    }
  }
  Td<Real> no_actions(TdKind::kHuber, 3, 0, 2);
  no_actions.check();
}

void test_empty() {
  float loss = 7;
  TdArgs args;
  args.actions = 4;
  args.loss = &loss;
  const std::int64_t before = simt::machine().launches;
  td_cuda(args, CudaLaunch{});
  CHECK_EQ(simt::machine().launches, before);
  CHECK_EQ(loss, 0.0f);
}

}  // namespace

int main() {
  test_all<float>();
  test_all<double>();
  test_bad_values<float>();
  test_bad_values<double>();
  test_empty();
}
