// SPDX-License-Identifier: MIT
#include "losses/cpu_dispatch.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "common/parallel.h"

namespace fastdistill {

// The sum of the losses of rows [begin, end).
template <class Args>
using Rows = double (*)(const Args&, std::int64_t begin, std::int64_t end, void* memory);

#define FASTDISTILL_DECLARE(isa)                                                              \
  namespace isa {                                                                             \
  double distill_rows(const DistillArgs& args, std::int64_t begin, std::int64_t end,          \
                      void* memory);                                                          \
  double topk_rows(const TopkArgs& args, std::int64_t begin, std::int64_t end, void* memory); \
  }
FASTDISTILL_DECLARE(isa_baseline)
#if defined(__x86_64__)
FASTDISTILL_DECLARE(isa_avx2)
FASTDISTILL_DECLARE(isa_avx512)
#endif

namespace {

struct Isa {
  const char* name;
  Rows<DistillArgs> distill_rows;
  Rows<TopkArgs> topk_rows;
  bool supported;
};

std::vector<Isa> all_isas() {
  std::vector<Isa> isas{{"baseline", isa_baseline::distill_rows, isa_baseline::topk_rows, true}};
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl");
  isas.push_back({"avx2", isa_avx2::distill_rows, isa_avx2::topk_rows, avx2});
  isas.push_back({"avx512", isa_avx512::distill_rows, isa_avx512::topk_rows, avx512});
#endif
  return isas;
}

Isa choose_isa() {
  const std::vector<Isa> isas = all_isas();
  const char* asked = std::getenv("FASTDISTILL_CPU");
  if (asked == nullptr || *asked == '\0') {
    return *std::find_if(isas.rbegin(), isas.rend(), [](const Isa& isa) { return isa.supported; });
  }
  for (const Isa& isa : isas) {
    if (std::strcmp(isa.name, asked) == 0 && isa.supported) return isa;
  }
  throw std::invalid_argument(std::string("fastdistill: FASTDISTILL_CPU must be baseline, avx2 or "
                                          "avx512 and run on this CPU, got ") +
                              asked);
}

const Isa& chosen_isa() {
  static const Isa isa = choose_isa();
  return isa;
}

// Long rows need scratch; each thread keeps its own, so that no call pays for fresh pages.
void* thread_scratch(std::size_t bytes) {
  struct Aligned {
    void operator()(void* p) const { ::operator delete(p, std::align_val_t{64}); }
  };
  thread_local std::unique_ptr<void, Aligned> memory;
  thread_local std::size_t capacity = 0;
  if (bytes > capacity) {
    memory.reset();
    capacity = 0;
    memory.reset(::operator new(bytes, std::align_val_t{64}));
    capacity = bytes;
  }
  return memory.get();
}

// Chunks are cut by the size of the problem alone; threads take whole chunks.
constexpr std::int64_t kChunkElements = 16384;
constexpr std::int64_t kRowsPerLaneStep = 16;
constexpr std::int64_t kInlineChunks = 64;

std::int64_t rows_per_chunk(std::int64_t actions) {
  const std::int64_t rows = kChunkElements / std::max<std::int64_t>(actions, 1);
  return std::max<std::int64_t>(rows / kRowsPerLaneStep * kRowsPerLaneStep,
                                actions <= 64 ? kRowsPerLaneStep : std::max<std::int64_t>(rows, 1));
}

template <class Real>
void write(void* out, double value) {
  *static_cast<Real*>(out) = static_cast<Real>(value);
}

// Writes the reduced loss; the rows write everything else.
template <class Args>
void sum_over_rows(const Args& call, const DistillArgs& args, Rows<Args> rows,
                   std::int64_t scratch_elements) {
  struct Work {
    const Args& call;
    Rows<Args> rows;
    std::int64_t batch;
    std::int64_t chunk_rows;
    std::size_t scratch_bytes;
    double* parts;
  };
  const std::int64_t chunk_rows = rows_per_chunk(args.actions);
  const std::int64_t chunks = (args.batch + chunk_rows - 1) / chunk_rows;
  double inline_parts[kInlineChunks] = {};
  std::vector<double> more_parts;
  if (chunks > kInlineChunks) more_parts.resize(static_cast<std::size_t>(chunks));
  Work work{call,
            rows,
            args.batch,
            chunk_rows,
            static_cast<std::size_t>(scratch_elements) * (uses_float64(args) ? 8 : 4),
            chunks > kInlineChunks ? more_parts.data() : inline_parts};
  if (args.actions > 0 && chunks > 0) {
    parallel_for(
        chunks,
        [](std::int64_t begin, std::int64_t end, void* context) {
          const Work& w = *static_cast<Work*>(context);
          void* memory = thread_scratch(w.scratch_bytes);
          for (std::int64_t chunk = begin; chunk < end; ++chunk) {
            const std::int64_t first = chunk * w.chunk_rows;
            w.parts[chunk] = w.rows(w.call, first, std::min(first + w.chunk_rows, w.batch), memory);
          }
        },
        &work);
  }
  if (args.row_loss != nullptr && args.actions == 0) {
    const std::size_t row_bytes = uses_float64(args) ? 8 : 4;
    std::memset(args.row_loss, 0, static_cast<std::size_t>(args.batch) * row_bytes);
  }
  if (args.loss == nullptr) return;
  double sum = 0.0;
  for (std::int64_t chunk = 0; chunk < chunks; ++chunk) sum += work.parts[chunk];
  uses_float64(args) ? write<double>(args.loss, sum * args.scale)
                     : write<float>(args.loss, sum * args.scale);
}

// The first row whose indices cannot be used, because no later code looks at them again.
TopkFinding check_indices(const TopkArgs& args) {
  std::vector<std::int64_t> last_row(static_cast<std::size_t>(args.base.actions), -1);
  for (std::int64_t row = 0; row < args.base.batch; ++row) {
    const std::int64_t* indices = args.indices + row * args.index_row_stride;
    for (std::int64_t i = 0; i < args.k; ++i) {
      const std::int64_t index = indices[i];
      if (index < 0 || index >= args.base.actions) return {TopkFault::kOutOfRange, row, index};
      std::int64_t& last = last_row[static_cast<std::size_t>(index)];
      if (last == row) return {TopkFault::kRepeated, row, index};
      last = row;
    }
  }
  return {};
}

}  // namespace

const char* cpu_isa() { return chosen_isa().name; }

void distill_cpu(const DistillArgs& args) {
  sum_over_rows(args, args, chosen_isa().distill_rows,
                wide_row_elements(args.actions) * kWideRowArrays);
}

TopkFinding topk_cpu(const TopkArgs& args) {
  const TopkFinding indices = check_indices(args);
  if (indices.fault != TopkFault::kNone) return indices;
  std::int64_t bad_mass_row = args.base.batch;
  TopkArgs call = args;
  call.bad_mass_row = &bad_mass_row;
  sum_over_rows(
      call, call.base, chosen_isa().topk_rows,
      wide_row_elements(args.base.actions) + wide_row_elements(args.k + 1) * kBucketArrays);
  if (bad_mass_row < args.base.batch) return {TopkFault::kMass, bad_mass_row, 0};
  return {};
}

namespace {

template <class Real>
std::int64_t td_rows(const TdArgs& args) {
  for (std::int64_t row = 0; row < args.batch; ++row) {
    if (args.action[row] < 0 || args.action[row] >= args.actions) return row;
  }
  Real* grad = static_cast<Real*>(args.grad);
  if (grad) std::fill_n(grad, args.batch * args.actions, Real(0));
  const Real* weights = static_cast<const Real*>(args.weight);
  double sum = 0.0;
  for (std::int64_t row = 0; row < args.batch; ++row) {
    const Real* q = static_cast<const Real*>(args.q.data) + row * args.q.row_stride;
    const Real td = q[args.action[row]] - static_cast<const Real*>(args.target)[row];
    const Real size = std::abs(td);
    const Real weight = weights ? weights[row] : Real(1);
    const bool square = args.kind == TdKind::kMse;
    const Real huber = size < Real(1) ? td * td / 2 : size - Real(1) / 2;
    const Real slope = size < Real(1) ? td : std::copysign(Real(1), td);
    const Real scaled = weight * static_cast<Real>(args.scale);
    // Weight 0 means the row is padding: whatever it holds, NaN too, counts for nothing.
    const Real loss = weight == Real(0) ? Real(0) : (square ? td * td : huber) * scaled;
    static_cast<Real*>(args.td_abs)[row] = size;
    if (args.row_loss) static_cast<Real*>(args.row_loss)[row] = loss;
    if (grad && weight != Real(0)) {
      const Real of_nan = td == td ? slope : td;
      grad[row * args.actions + args.action[row]] = (square ? 2 * td : of_nan) * scaled;
    }
    sum += static_cast<double>(loss);
  }
  if (args.loss) write<Real>(args.loss, sum);
  return -1;
}

}  // namespace

std::int64_t td_cpu(const TdArgs& args) {
  return args.q.dtype == DType::kFloat64 ? td_rows<double>(args) : td_rows<float>(args);
}

}  // namespace fastdistill
