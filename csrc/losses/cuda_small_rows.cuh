// SPDX-License-Identifier: MIT
// Rows of up to 64 actions, the main case: a block brings a tile of rows into shared memory with
// wide accesses, whatever the number of actions, and then each thread owns one row of it.
#pragma once

#include "losses/cuda_row_loss.cuh"

namespace fastdistill::cuda {

inline constexpr std::int64_t kMaxSmallActions = 64;
inline constexpr int kSmallThreads = 128;

// Elements between rows of a tile: odd, so that 32 threads walking down 32 rows use 32 banks.
inline std::int64_t tile_stride(std::int64_t actions) { return actions | 1; }

// A tile is numbered as if its rows were adjacent; the row of element e is (e * magic) >> 20.
inline constexpr int kTileShift = 20;
static_assert(kSmallThreads * kMaxSmallActions * kMaxSmallActions < (1 << kTileShift));
inline unsigned tile_magic(std::int64_t actions) {
  return static_cast<unsigned>(((1 << kTileShift) + actions - 1) / actions);
}

struct TileShape {
  int actions;
  int stride;
  unsigned magic;
  bool adjacent;  // rows of all matrices are adjacent and aligned
};

// Where the elements of one tile are in global and in shared memory.
struct Tile {
  TileShape shape;
  std::int64_t first_row;
  int elements;

  // This thread's quads.
  FASTDISTILL_DEVICE Positions positions(int quad) const {
    return positions_of(quad, static_cast<int>(threadIdx.x), static_cast<int>(blockDim.x), elements,
                        shape.adjacent);
  }
  FASTDISTILL_DEVICE int row_of(std::int64_t e) const {
    return static_cast<int>((static_cast<unsigned>(e) * shape.magic) >> kTileShift);
  }
  FASTDISTILL_DEVICE int shared_offset(std::int64_t e) const {
    return static_cast<int>(e) + row_of(e) * (shape.stride - shape.actions);
  }
  FASTDISTILL_DEVICE std::int64_t row_start(std::int64_t e, std::int64_t row_stride) const {
    return (first_row + row_of(e)) * row_stride - row_of(e) * shape.actions;
  }
  // Offset from the matrix's start of element e.
  FASTDISTILL_DEVICE std::int64_t global_offset(std::int64_t e, std::int64_t row_stride) const {
    return row_start(e, row_stride) + e;
  }
};

// A run-time index into registers, by selection.
template <class Real>
FASTDISTILL_DEVICE Real pick(const Quad<Real>& quad, int index) {
  const Real low = (index & 1) != 0 ? quad.v[1] : quad.v[0];
  const Real high = (index & 1) != 0 ? quad.v[3] : quad.v[2];
  return (index & 2) != 0 ? high : low;
}

// Threads of a warp hold adjacent quads: starting each eight of them at another element spreads
// what is written together over all banks.
FASTDISTILL_DEVICE int first_element() { return (static_cast<int>(threadIdx.x) % kWarp) / 8; }

template <class Real>
FASTDISTILL_DEVICE void put_quad(const Quad<Real>& quad, const Tile& tile,
                                 const Positions& positions, Real* shared) {
  for (int i = 0; i < kQuad; ++i) {
    const int j = (i + first_element()) % kQuad;
    const std::int64_t e = positions.at(j);
    if (e < positions.end) shared[tile.shared_offset(e)] = pick(quad, j);
  }
}

template <class Real>
FASTDISTILL_DEVICE Quad<Real> get_quad(const Tile& tile, const Positions& positions,
                                       const Real* shared) {
  Quad<Real> rotated = {};
  for (int i = 0; i < kQuad; ++i) {
    const std::int64_t e = positions.at((i + first_element()) % kQuad);
    if (e < positions.end) rotated.v[i] = shared[tile.shared_offset(e)];
  }
  Quad<Real> quad;
  for (int j = 0; j < kQuad; ++j) quad.v[j] = pick(rotated, (j - first_element()) & (kQuad - 1));
  return quad;
}

template <class Real>
FASTDISTILL_DEVICE void mask_quads(const DistillArgs& args, const Tile& tile,
                                   const Positions& positions, Quad<Real>& student,
                                   Quad<Real>& teacher) {
  if (args.action_mask == nullptr) return;
  for (int j = 0; j < kQuad; ++j) {
    const std::int64_t e = positions.at(j);
    if (e >= positions.end || args.action_mask[tile.global_offset(e, args.mask_row_stride)] != 0) {
      continue;
    }
    student.v[j] = -DeviceMath<Real>::infinity();
    teacher.v[j] = -DeviceMath<Real>::infinity();
  }
}

template <class Real>
FASTDISTILL_DEVICE void load_tile(const DistillArgs& args, const Tile& tile, Real* shared_student,
                                  Real* shared_teacher) {
  const int threads = static_cast<int>(blockDim.x);
  const int quads = (tile.elements + threads * kQuad - 1) / (threads * kQuad);
  const auto load = [&](const Matrix& matrix, const Positions& positions) {
    return load_raw<Real>(matrix.data, matrix.dtype, positions, [&](std::int64_t e) {
      return tile.global_offset(e, matrix.row_stride);
    });
  };
  for (int quad = 0; quad < quads; quad += kLoadsInFlight) {
    RawQuad<Real> students[kLoadsInFlight];
    RawQuad<Real> teachers[kLoadsInFlight];
#pragma unroll
    for (int i = 0; i < kLoadsInFlight; ++i) {
      students[i] = load(args.student, tile.positions(quad + i));
      teachers[i] = load(args.teacher, tile.positions(quad + i));
    }
#pragma unroll
    for (int i = 0; i < kLoadsInFlight; ++i) {
      const Positions positions = tile.positions(quad + i);
      auto student = widen(students[i], args.student.dtype, positions, Real(0));
      auto teacher = widen(teachers[i], args.teacher.dtype, positions, Real(0));
      mask_quads(args, tile, positions, student, teacher);
      put_quad(student, tile, positions, shared_student);
      put_quad(teacher, tile, positions, shared_teacher);
    }
  }
}

template <class Real>
FASTDISTILL_DEVICE void store_tile(const DistillArgs& args, const Tile& tile, const Real* shared) {
  const int threads = static_cast<int>(blockDim.x);
  for (int quad = 0; quad * threads * kQuad < tile.elements; ++quad) {
    const Positions positions = tile.positions(quad);
    store_quad(get_quad(tile, positions, shared), args.grad, args.student.dtype, positions,
               [&](std::int64_t e) { return tile.global_offset(e, args.grad_row_stride); });
  }
}

// One thread's row of a tile; the gradient replaces the student's logits.
template <class Real>
struct TileCells {
  Real* student;
  Real* teacher;
  int actions;
  bool wants_grad;

  template <class F>
  FASTDISTILL_DEVICE void scan(F f) {
    for (int j = 0; j < actions; ++j) f(j, Pair<Real>{student[j], teacher[j]});
  }
  template <class Restore, class F>
  FASTDISTILL_DEVICE void update(Restore, F f) {
    for (int j = 0; j < actions; ++j) {
      const Pair<Real> pair = f(j, Pair<Real>{student[j], teacher[j]});
      student[j] = pair.student;
      teacher[j] = pair.teacher;
    }
  }
  template <class Restore, class F>
  FASTDISTILL_DEVICE void finish(Restore, F f) {
    if (!wants_grad) return;
    for (int j = 0; j < actions; ++j) student[j] = f(j, Pair<Real>{student[j], teacher[j]});
  }
};

template <LossKind kind, class Real>
__global__ void __launch_bounds__(kSmallThreads)
    small_rows(DistillArgs args, Settings<Real> settings, Workspace workspace, TileShape shape) {
  FASTDISTILL_DYNAMIC_SHARED(memory);
  const std::int64_t rows_per_tile = blockDim.x;
  Real* student = reinterpret_cast<Real*>(memory);
  Real* teacher = student + rows_per_tile * shape.stride;
  const std::int64_t grid_step = rows_per_tile * gridDim.x;
  double lost = 0;
  for (std::int64_t first = rows_per_tile * blockIdx.x; first < args.batch; first += grid_step) {
    const std::int64_t left = args.batch - first;
    const int rows = static_cast<int>(left < rows_per_tile ? left : rows_per_tile);
    const Tile tile{shape, first, rows * shape.actions};
    load_tile(args, tile, student, teacher);
    __syncthreads();
    const int mine = static_cast<int>(threadIdx.x);
    if (mine < rows) {
      ThreadTeam team;
      TileCells<Real> cells{student + mine * shape.stride, teacher + mine * shape.stride,
                            shape.actions, args.grad != nullptr};
      const Real weight = weight_of<Real>(args, first + mine);
      RowLoss<kind, Real, ThreadTeam, TileCells<Real>> row(settings, team, cells, weight);
      const Real weighted = row.run();
      store_row_loss(args, first + mine, weighted, settings.loss_scale);
      lost += static_cast<double>(weighted);
    }
    if (args.grad != nullptr) {
      __syncthreads();
      store_tile(args, tile, student);
    }
    __syncthreads();
  }
  if (args.loss != nullptr) {
    reduce_loss(lost, workspace, args.scale, args.loss, sizeof(Real) == 8);
  }
}

}  // namespace fastdistill::cuda
