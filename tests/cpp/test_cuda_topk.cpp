// SPDX-License-Identifier: MIT
// distill_kl_topk on the SIMT machine: against the oracle of kl on the buckets in long double, and
// against the CPU kernels, faults included.
#include <algorithm>
#include <iterator>

#include "cuda_harness.h"
#include "losses/cpu_dispatch.h"

using namespace fastdistill;
using namespace fastdistill::testing;

namespace {

struct Case {
  Problem p;  // its teacher is not used
  std::int64_t k;
  bool tail;
  Inputs in;
  Buffer values;
  std::vector<std::int64_t> indices;

  Case(const Problem& problem, std::int64_t k_in, bool tail_in, unsigned seed)
      : p(problem), k(k_in), tail(tail_in), in(random_inputs(problem, seed)) {
    std::mt19937 random(seed);
    std::normal_distribution<double> normal(0.0, p.spread);
    values.allocate(p.teacher_dtype, p.batch, k, k + p.extra_stride, 0);
    std::vector<std::int64_t> actions(static_cast<std::size_t>(p.actions));
    for (std::int64_t i = 0; i < p.batch; ++i) {
      for (std::int64_t j = 0; j < p.actions; ++j) actions[static_cast<std::size_t>(j)] = j;
      std::shuffle(actions.begin(), actions.end(), random);
      indices.insert(indices.end(), actions.begin(), actions.begin() + k);
      std::vector<double> logits;
      double sum = tail ? std::exp(normal(random)) : 0.0;
      for (std::int64_t j = 0; j < k; ++j) {
        logits.push_back(normal(random));
        sum += std::exp(logits.back());
      }
      for (std::int64_t j = 0; j < k; ++j) {
        const double value = logits[static_cast<std::size_t>(j)] - (tail ? std::log(sum) : 0.0);
        encode(value, values.at(i, j), p.teacher_dtype);
      }
    }
  }

  std::int64_t* index(std::int64_t row, std::int64_t i) {
    return &indices[static_cast<std::size_t>(row * k + i)];
  }

  TopkArgs arguments(Outputs& out) {
    TopkArgs args;
    args.base = arguments_of(p, in, out);
    args.base.teacher = values.matrix();
    args.k = k;
    args.indices = indices.data();
    args.index_row_stride = k;
    args.tail = tail;
    return args;
  }
  Outputs outputs() {
    Outputs out;
    out.grad.allocate(p.student_dtype, p.batch, p.actions, p.actions + p.extra_stride, p.offset);
    out.loss.allocate(arithmetic(p), p.per_row ? p.batch : 1, 1, 1, 0);
    return out;
  }
  Outputs run_cuda() {
    Outputs out = outputs();
    CudaLaunch launch;
    launch.workspace = workspace();
    topk_cuda(arguments(out), launch);
    return out;
  }
  bool is_allowed(std::int64_t row, std::int64_t action) const {
    const std::int64_t mask_row = p.mask == MaskMode::kPerRow ? row : 0;
    return p.mask == MaskMode::kNone ||
           in.mask.bytes[static_cast<std::size_t>(mask_row * p.actions + action)] != 0;
  }
};

// kl of the buckets, its gradient spread over the actions.
Row truth(Case& c, std::int64_t row) {
  std::vector<Exact> student, buckets, teacher;
  std::vector<bool> is_known(static_cast<std::size_t>(c.p.actions), false);
  for (std::int64_t j = 0; j < c.p.actions; ++j) {
    const Exact logit = decode(c.in.student.at(row, j), c.p.student_dtype);
    student.push_back(c.is_allowed(row, j) ? logit : -kInfinity);
  }
  Exact rest = 1;
  for (std::int64_t i = 0; i < c.k; ++i) {
    const std::int64_t action = *c.index(row, i);
    const Exact value = decode(c.values.at(row, i), c.p.teacher_dtype);
    is_known[static_cast<std::size_t>(action)] = true;
    rest -= std::exp(value);
    buckets.push_back(student[static_cast<std::size_t>(action)]);
    teacher.push_back(c.is_allowed(row, action) ? value : -kInfinity);
  }
  const Exact temperature = c.p.student_temperature;
  Exact top = -kInfinity, sum = 0;
  bool open = false;
  for (std::int64_t j = 0; j < c.p.actions; ++j) {
    if (is_known[static_cast<std::size_t>(j)]) continue;
    top = std::fmax(top, student[static_cast<std::size_t>(j)]);
    open = open || c.is_allowed(row, j);
  }
  if (top == -kInfinity) top = 0;
  std::vector<Exact> share(student.size(), 0);
  for (std::size_t j = 0; j < student.size(); ++j) {
    if (!is_known[j]) sum += share[j] = std::exp((student[j] - top) / temperature);
  }
  if (c.tail) {
    buckets.push_back(top + temperature * std::log(sum));
    teacher.push_back(open && rest > 0 ? std::log(rest) : -kInfinity);
  }
  const Row coarse = oracle_row(c.p, buckets, teacher);
  Row fine = zero_row(student.size());
  fine.loss = coarse.loss;
  fine.loss_error = coarse.loss_error;
  for (std::size_t j = 0; j < student.size() && c.tail && sum > 0; ++j) {
    const std::size_t last = static_cast<std::size_t>(c.k);
    fine.grad[j] = coarse.grad[last] * share[j] / sum;
    const Exact exponent = share[j] > 0 ? std::log(share[j]) : 0;
    fine.grad_error[j] =
        (coarse.grad_error[last] + std::fabs(coarse.grad[last]) * exp_error(exponent)) * share[j] /
        sum;
  }
  for (std::int64_t i = 0; i < c.k; ++i) {
    const std::size_t action = static_cast<std::size_t>(*c.index(row, i));
    fine.grad[action] = coarse.grad[static_cast<std::size_t>(i)];
    fine.grad_error[action] = coarse.grad_error[static_cast<std::size_t>(i)];
  }
  return fine;
}

// The harness's comparison, for rows whose oracle is given.
void check(Case& c) {
  const Problem& p = c.p;
  Outputs out = c.run_cuda();
  const Exact unit = rounding(arithmetic(p)) * 2;
  const Exact storage = rounding(p.student_dtype) * 2;
  const Exact floor = p.student_dtype == DType::kFloat16 ? 0x1p-24L : 0x1p-125L;
  const Exact length = 1 + std::log2(static_cast<Exact>(p.actions)) / 2;
  Exact total = 0;
  Exact total_error = 0;
  for (std::int64_t i = 0; i < p.batch; ++i) {
    const Exact weight = p.weighted ? decode(c.in.weight.at(i, 0), arithmetic(p)) : 1;
    const Row row = weight == 0 ? zero_row(static_cast<std::size_t>(p.actions)) : truth(c, i);
    const Exact factor = std::fabs(weight) * p.scale;
    const Exact loss = weight * p.scale * row.loss;
    const Exact error =
        kRoundings * length * unit * factor * (row.loss_error + row.loss + 1) + floor;
    total += loss;
    total_error += error;
    if (p.per_row)
      check_close(decode(out.loss.at(i, 0), arithmetic(p)), loss, error, "loss", p, i, -1);
    for (std::int64_t j = 0; j < p.actions && p.with_grad; ++j) {
      const std::size_t at = static_cast<std::size_t>(j);
      const Exact want = weight * p.scale * row.grad[at];
      const Exact tolerance = kRoundings * length * unit * factor * row.grad_error[at] +
                              storage * std::fabs(want) + floor;
      check_close(decode(out.grad.at(i, j), p.student_dtype), want, tolerance, "grad", p, i, j);
    }
  }
  if (!p.per_row) {
    total_error += kRoundings * unit * std::fabs(total);
    check_close(decode(out.loss.at(0, 0), arithmetic(p)), total, total_error, "loss", p, -1, -1);
  }
}

void test_against_the_oracle() {
  constexpr DType kPairs[][2] = {{DType::kFloat32, DType::kFloat32},
                                 {DType::kFloat64, DType::kFloat64},
                                 {DType::kBFloat16, DType::kFloat32},
                                 {DType::kFloat16, DType::kFloat16},
                                 {DType::kFloat32, DType::kFloat64}};
  unsigned seed = 0;
  for (std::int64_t actions : {1, 2, 7, 33, 300, 2100}) {
    for (std::int64_t k : {1, 3, 40, 300}) {
      if (k > actions) continue;
      for (bool tail : {true, false}) {
        for (int draw = 0; draw < 2; ++draw) {
          const auto& pair = kPairs[seed % std::size(kPairs)];
          Problem p;
          p.actions = actions;
          p.batch = actions > 1000 ? 4 : 7;
          p.student_dtype = pair[0];
          p.teacher_dtype = pair[1];
          p.student_temperature = seed % 3 == 0 ? 0.5 : 1.0;
          p.temperature = tail ? 1.0 : 0.3;
          p.mask = static_cast<MaskMode>(seed % 3);
          p.weighted = seed % 2 == 0;
          p.per_row = seed % 4 < 2;
          p.with_grad = seed % 7 != 0;
          p.extra_stride = seed % 2;
          p.scale = p.per_row ? 1.0 : 1.0 / static_cast<double>(p.batch);
          Case c(p, k, tail, ++seed);
          check(c);
        }
      }
    }
  }
}

// A bit of shared memory for 64 actions only: rows are taken in segments.
void test_segments() {
  const std::int64_t room = simt::machine().shared_bytes_per_block;
  simt::machine().shared_bytes_per_block = 8;
  for (std::int64_t actions : {64, 65, 130, 1000}) {
    Problem p;
    p.actions = actions;
    p.batch = 5;
    p.per_row = true;
    Case c(p, 30, true, static_cast<unsigned>(actions));
    check(c);
    *c.index(3, 29) = *c.index(3, 0);
    Outputs out = c.run_cuda();
    for (std::int64_t i = 0; i < p.batch; ++i) {
      CHECK_EQ(std::isnan(decode(out.loss.at(i, 0), p.student_dtype)), i == 3);
    }
  }
  simt::machine().shared_bytes_per_block = room;
}

void test_faults() {
  Problem p;
  p.actions = 50;
  p.batch = 6;
  p.per_row = true;
  p.weighted = true;
  Case good(p, 5, true, 1);
  for (std::int64_t i = 0; i < p.batch; ++i)
    encode(static_cast<Exact>(1 + i), good.in.weight.at(i, 0), p.student_dtype);
  Outputs expected = good.run_cuda();
  const auto check_fault = [&](Case bad, TopkFault fault, std::int64_t bad_row) {
    Outputs out = bad.run_cuda();
    for (std::int64_t i = 0; i < p.batch; ++i) {
      const Exact loss = decode(out.loss.at(i, 0), p.student_dtype);
      if (i != bad_row) CHECK_EQ(loss, decode(expected.loss.at(i, 0), p.student_dtype));
      if (i == bad_row) CHECK(std::isnan(loss));
      for (std::int64_t j = 0; j < p.actions; ++j) {
        const Exact grad = decode(out.grad.at(i, j), p.student_dtype);
        CHECK_EQ(grad, i == bad_row ? 0 : decode(expected.grad.at(i, j), p.student_dtype));
      }
    }
    Outputs unused = bad.outputs();
    const TopkFinding found = topk_cpu(bad.arguments(unused));
    CHECK_EQ(static_cast<int>(found.fault), static_cast<int>(fault));
    CHECK_EQ(found.row, bad_row);
  };
  for (std::int64_t index : {std::int64_t{-1}, std::int64_t{50}, INT64_MIN, INT64_MAX}) {
    Case bad = good;
    *bad.index(2, 4) = index;
    check_fault(bad, TopkFault::kOutOfRange, 2);
  }
  Case repeated = good;
  *repeated.index(5, 1) = *repeated.index(5, 3);
  check_fault(repeated, TopkFault::kRepeated, 5);
  for (double value : {0.01, 3.0, 1000.0}) {
    Case heavy = good;
    encode(value, heavy.values.at(1, 0), p.teacher_dtype);
    check_fault(heavy, TopkFault::kMass, 1);
  }
  // Whatever a row holds that weighs nothing.
  Case silent = good;
  encode(3.0, silent.values.at(0, 0), p.teacher_dtype);
  encode(kNan, silent.in.student.at(0, 7), p.student_dtype);
  encode(0.0, silent.in.weight.at(0, 0), p.student_dtype);
  Outputs out = silent.run_cuda();
  CHECK_EQ(decode(out.loss.at(0, 0), p.student_dtype), 0);
  for (std::int64_t j = 0; j < p.actions; ++j)
    CHECK_EQ(decode(out.grad.at(0, j), p.student_dtype), 0);
  Outputs unused = silent.outputs();
  CHECK_EQ(static_cast<int>(topk_cpu(silent.arguments(unused)).fault), 0);
}

// Special values on both sides: CUDA and CPU agree on which rows are NaN and on the rest.
void test_matches_cpu() {
  unsigned seed = 0;
  for (std::int64_t actions : {3, 18, 200}) {
    for (bool tail : {true, false}) {
      for (bool masked : {true, false}) {
        Problem p;
        p.actions = actions;
        p.batch = 40;
        p.per_row = true;
        p.mask = masked ? MaskMode::kPerRow : MaskMode::kNone;
        Case c(p, 3, tail, ++seed);
        std::mt19937 random(seed);
        for (std::int64_t i = 0; i < p.batch; ++i) {
          for (std::int64_t j = 0; j < actions && i % 3 > 0; ++j) {
            if (random() % (i % 3 == 1 ? static_cast<unsigned>(actions) : 2) != 0) continue;
            encode(random() % 8 == 0 ? kNan : -kInfinity, c.in.student.at(i, j), p.student_dtype);
          }
          if (i % 4 == 3) encode(-kInfinity, c.values.at(i, 1), p.teacher_dtype);
          if (i % 20 == 7) encode(kNan, c.values.at(i, 2), p.teacher_dtype);
        }
        Outputs cuda = c.run_cuda();
        Outputs cpu = c.outputs();
        CHECK_EQ(static_cast<int>(topk_cpu(c.arguments(cpu)).fault), 0);
        for (std::int64_t i = 0; i < p.batch; ++i) {
          const Exact loss = decode(cpu.loss.at(i, 0), p.student_dtype);
          check_close(decode(cuda.loss.at(i, 0), p.student_dtype), loss,
                      1e-5L * (1 + std::fabs(loss)), "loss", p, i, -1);
          for (std::int64_t j = 0; j < actions && !std::isnan(loss); ++j) {
            check_close(decode(cuda.grad.at(i, j), p.student_dtype),
                        decode(cpu.grad.at(i, j), p.student_dtype), 1e-6L, "grad", p, i, j);
          }
        }
      }
    }
  }
}

void test_empty() {
  float loss = 7;
  TopkArgs args;
  args.base.actions = 4;
  args.k = 2;
  args.base.loss = &loss;
  const std::int64_t before = simt::machine().launches;
  topk_cuda(args, CudaLaunch{});
  CHECK_EQ(simt::machine().launches, before);
  CHECK_EQ(loss, 0.0f);
}

}  // namespace

int main() {
  test_against_the_oracle();
  test_segments();
  test_faults();
  test_matches_cpu();
  test_empty();
}
