// SPDX-License-Identifier: MIT
// The CUDA loss kernels where peers break: masked rows, infinities, NaN, ties, empty batches, more
// work than blocks, rows that do not fit in shared memory, and the same bits whatever the order of
// execution.
#include <sys/mman.h>

#include "cuda_harness.h"

using namespace fastdistill;
using namespace fastdistill::testing;

namespace {

constexpr LossKind kKinds[] = {LossKind::kKl, LossKind::kReverseKl, LossKind::kJsd, LossKind::kNll,
                               LossKind::kMse};
// One size per kernel: short rows get a thread each if they are many, a warp if they are few.
struct Size {
  std::int64_t actions;
  std::int64_t batch;
};
constexpr Size kSizes[] = {{18, 100}, {18, 5}, {150, 5}, {2060, 5}};

void set(Buffer& buffer, std::int64_t row, std::int64_t action, Exact value) {
  encode(value, buffer.at(row, action), buffer.dtype);
}

void fill(Buffer& buffer, std::int64_t row, std::int64_t actions, Exact value) {
  for (std::int64_t j = 0; j < actions; ++j) set(buffer, row, j, value);
}

template <class Body>
void for_each_kernel(Body body) {
  for (LossKind kind : kKinds) {
    for (const Size& size : kSizes) {
      Problem p;
      p.kind = kind;
      p.actions = size.actions;
      p.batch = size.batch;
      p.per_row = true;
      body(p);
    }
  }
}

void test_rows_without_actions() {
  for_each_kernel([](Problem p) {
    p.mask = MaskMode::kPerRow;
    Inputs in = random_inputs(p, 1);
    for (std::int64_t j = 0; j < p.actions; ++j) {
      in.mask.bytes[static_cast<std::size_t>(p.actions + j)] = 0;
    }
    set(in.student, 1, 0, kNan);  // masked, so it must not show
    fill(in.student, 2, p.actions, -kInfinity);
    fill(in.teacher, 3, p.actions, -kInfinity);
    Outputs out = run_kernels(p, in);
    check_outputs(p, in, out);
    for (std::int64_t row : {1, 2, 3}) {
      CHECK_EQ(decode(out.loss.at(row, 0), DType::kFloat32), Exact(0));
      for (std::int64_t j = 0; j < p.actions; ++j) {
        CHECK_EQ(decode(out.grad.at(row, j), DType::kFloat32), Exact(0));
      }
    }
  });
}

void test_infinities() {
  for_each_kernel([](Problem p) {
    Inputs in = random_inputs(p, 2);
    set(in.student, 0, 3, -kInfinity);  // the teacher may want this action
    set(in.teacher, 0, 3, 1);
    set(in.teacher, 1, 4, -kInfinity);  // the student may want this one
    set(in.student, 2, 5, -kInfinity);  // nobody wants this one
    set(in.teacher, 2, 5, -kInfinity);
    fill(in.teacher, 3, p.actions, -3);  // the target is an action that the student rules out
    set(in.teacher, 3, p.actions - 1, 3);
    set(in.student, 3, p.actions - 1, -kInfinity);
    Outputs out = run_kernels(p, in);
    check_outputs(p, in, out);
    const Exact loss = decode(out.loss.at(3, 0), DType::kFloat32);
    CHECK_EQ(std::isinf(loss), p.kind == LossKind::kKl || p.kind == LossKind::kNll);
  });
}

void test_nan_stays_in_its_row() {
  for_each_kernel([](Problem p) {
    p.weighted = true;
    Inputs in = random_inputs(p, 3);
    for (std::int64_t row = 0; row < p.batch; ++row) set(in.weight, row, 0, 1);
    set(in.student, 1, p.actions - 1, kNan);
    set(in.teacher, 2, p.actions / 2, kNan);
    set(in.student, 3, 0, kNan);  // silenced
    set(in.teacher, 3, 1, kNan);
    set(in.weight, 3, 0, 0);
    Outputs out = run_kernels(p, in);
    check_outputs(p, in, out);
    CHECK(std::isnan(decode(out.loss.at(1, 0), DType::kFloat32)));
    CHECK(std::isnan(decode(out.loss.at(2, 0), DType::kFloat32)));
    CHECK_EQ(decode(out.loss.at(3, 0), DType::kFloat32), Exact(0));
  });
}

void test_first_of_equal_targets() {
  for (const auto& [actions, batch] : kSizes) {
    Problem p;
    p.kind = LossKind::kNll;
    p.actions = actions;
    p.batch = batch;
    p.mask = MaskMode::kPerRow;
    Inputs in = random_inputs(p, 4);
    for (std::int64_t row = 0; row < p.batch; ++row) {
      for (std::int64_t action : {actions / 3, actions / 2, actions - 1}) {
        set(in.teacher, row, action, 100);
        in.mask.bytes[static_cast<std::size_t>(row * actions + action)] = 1;
      }
      // The first best action that is allowed.
      if (row % 2 == 1) in.mask.bytes[static_cast<std::size_t>(row * actions + actions / 3)] = 0;
    }
    Outputs out = run_kernels(p, in);
    check_outputs(p, in, out);
  }
}

void test_equal_rows_have_no_divergence() {
  for_each_kernel([](Problem p) {
    if (p.kind == LossKind::kNll) return;
    Inputs in = random_inputs(p, 5);
    in.teacher.bytes = in.student.bytes;
    Outputs out = run_kernels(p, in);
    for (std::int64_t row = 0; row < p.batch; ++row) {
      const Exact loss = decode(out.loss.at(row, 0), DType::kFloat32);
      CHECK(loss >= 0 && loss < 1e-6);
    }
  });
}

void test_empty() {
  for (std::int64_t batch : {0, 2}) {
    float loss = 7;
    float row_loss[2] = {7, 7};
    DistillArgs args;
    args.batch = batch;
    args.actions = batch == 0 ? 18 : 0;
    args.loss = &loss;
    args.row_loss = row_loss;
    const std::int64_t before = simt::machine().launches;
    distill_cuda(args, CudaLaunch{});
    CHECK_EQ(simt::machine().launches, before);
    CHECK_EQ(loss, 0.0f);
    CHECK_EQ(row_loss[0], batch == 0 ? 7.0f : 0.0f);
    CHECK_EQ(row_loss[1], batch == 0 ? 7.0f : 0.0f);
  }
}

// Several rows or tiles per block, and so shared memory used again; one launch in any case.
void test_more_work_than_blocks() {
  simt::machine().multiprocessors = 1;
  for (LossKind kind : kKinds) {
    for (std::int64_t actions : {3, 16, 70, 2050}) {
      Problem p;
      p.kind = kind;
      p.actions = actions;
      p.batch = actions == 3 ? 5000 : actions == 16 ? 2100 : actions == 70 ? 90 : 7;
      p.weighted = true;
      const std::int64_t before = simt::machine().launches;
      check_problem(p, 6);
      CHECK_EQ(simt::machine().launches, before + 1);
    }
  }
  simt::machine().multiprocessors = 3;
}

// Wide rows of which nothing, a part or all is kept in shared memory between the passes.
void test_little_shared_memory() {
  const std::int64_t usual = simt::machine().shared_bytes_per_block;
  for (std::int64_t kilobytes : {16, 21, 40}) {
    simt::machine().shared_bytes_per_block = kilobytes * 1024;
    for (LossKind kind : kKinds) {
      Problem p;
      p.kind = kind;
      p.actions = 6301;
      p.batch = 2;
      p.mask = MaskMode::kPerRow;
      p.student_dtype = DType::kBFloat16;
      check_problem(p, 7);
    }
  }
  simt::machine().shared_bytes_per_block = usual;
}

// The same bits in any order of execution, and for a row wherever it stands in the batch.
void test_determinism() {
  for_each_kernel([](Problem p) {
    p.batch = p.actions > 64 ? 7 : 3 * p.batch;
    p.per_row = false;
    Inputs in = random_inputs(p, 8);
    std::memcpy(in.student.at(p.batch - 1, 0), in.student.at(0, 0),
                4 * static_cast<std::size_t>(p.actions));
    std::memcpy(in.teacher.at(p.batch - 1, 0), in.teacher.at(0, 0),
                4 * static_cast<std::size_t>(p.actions));
    const Outputs first = run_kernels(p, in);
    simt::machine().seed += 1;
    Outputs second = run_kernels(p, in);
    CHECK(first.loss.bytes == second.loss.bytes);
    CHECK(first.grad.bytes == second.grad.bytes);
    CHECK(std::memcmp(second.grad.at(0, 0), second.grad.at(p.batch - 1, 0),
                      4 * static_cast<std::size_t>(p.actions)) == 0);
  });
}

// Address space of which only the touched pages take memory.
struct SparseRows {
  std::size_t bytes;
  unsigned char* data;

  explicit SparseRows(std::int64_t elements) : bytes(static_cast<std::size_t>(elements) * 2) {
    void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(memory != MAP_FAILED);
    data = static_cast<unsigned char*>(memory);
  }
  ~SparseRows() { munmap(data, bytes); }
  SparseRows(const SparseRows&) = delete;
  SparseRows& operator=(const SparseRows&) = delete;
};

// Rows more than 2^31 elements apart give the same bits as adjacent ones.
void test_rows_far_apart() {
  constexpr std::int64_t kStride = (std::int64_t{1} << 31) + 8;
  for (std::int64_t actions : {18, 150, 2060}) {
    Problem p;
    p.actions = actions;
    p.batch = 2;
    p.student_dtype = DType::kBFloat16;
    p.teacher_dtype = DType::kBFloat16;
    Inputs in = random_inputs(p, 9);
    Outputs near = run_kernels(p, in);
    Outputs far = near;
    DistillArgs args = arguments_of(p, in, far);
    const SparseRows student(kStride + actions), teacher(kStride + actions),
        grad(kStride + actions);
    const std::size_t row_bytes = static_cast<std::size_t>(actions) * 2;
    for (std::int64_t row = 0; row < 2; ++row) {
      std::memcpy(student.data + row * kStride * 2, in.student.at(row, 0), row_bytes);
      std::memcpy(teacher.data + row * kStride * 2, in.teacher.at(row, 0), row_bytes);
    }
    args.student = {student.data, DType::kBFloat16, kStride};
    args.teacher = {teacher.data, DType::kBFloat16, kStride};
    args.grad = grad.data;
    args.grad_row_stride = kStride;
    CudaLaunch launch;
    launch.workspace = workspace();
    distill_cuda(args, launch);
    CHECK(far.loss.bytes == near.loss.bytes);
    for (std::int64_t row = 0; row < 2; ++row) {
      CHECK(std::memcmp(grad.data + row * kStride * 2, near.grad.at(row, 0), row_bytes) == 0);
    }
  }
}

}  // namespace

int main() {
  test_rows_without_actions();
  test_infinities();
  test_nan_stays_in_its_row();
  test_first_of_equal_targets();
  test_equal_rows_have_no_divergence();
  test_empty();
  test_more_work_than_blocks();
  test_little_shared_memory();
  test_determinism();
  test_rows_far_apart();
}
