// SPDX-License-Identifier: MIT
// Rows of up to 64 actions, the main case: a block brings a tile of rows into shared memory with
// wide accesses, whatever the number of actions, and then each thread owns one row of it.
#pragma once

#include "losses/cuda_row_loss.cuh"

namespace fastdistill::cuda {

inline constexpr std::int64_t kMaxSmallActions = 64;
inline constexpr int kSmallThreads = 128;

// Elements between rows of a tile. Threads walk down their rows by one element if it is odd and by
// two if it is even: with a stride of 1 or 2 modulo 4, a warp then touches every bank equally
// often.
inline std::int64_t tile_stride(std::int64_t actions) {
  return actions % kQuad == 0 ? actions + 2 : actions;
}

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
  // Offset of element e from the start of a matrix.
  FASTDISTILL_DEVICE std::int64_t global_offset(std::int64_t e, std::int64_t row_stride) const {
    const int row = row_of(e);
    return (first_row + row) * row_stride + (e - row * shape.actions);
  }
};

template <class Real, int kWidth>
struct alignas(kWidth * sizeof(Real)) Group {
  Real v[kWidth];
};

// Rows are padded only where a quad never spans two of them, so a whole quad is adjacent here too.
template <class Real>
FASTDISTILL_DEVICE void put_quad(const Quad<Real>& quad, const Tile& tile,
                                 const Positions& positions, Real* shared) {
  if (!positions.is_wide()) {
    for (int j = 0; j < kQuad; ++j) {
      const std::int64_t e = positions.at(j);
      if (e < positions.end) shared[tile.shared_offset(e)] = quad.v[j];
    }
  } else if (tile.shape.stride == tile.shape.actions) {
    *reinterpret_cast<Quad<Real>*>(shared + positions.first) = quad;
  } else {
    auto* pairs = reinterpret_cast<Group<Real, 2>*>(shared + tile.shared_offset(positions.first));
    pairs[0] = {{quad.v[0], quad.v[1]}};
    pairs[1] = {{quad.v[2], quad.v[3]}};
  }
}

template <class Real>
FASTDISTILL_DEVICE Quad<Real> get_quad(const Tile& tile, const Positions& positions,
                                       const Real* shared) {
  Quad<Real> quad = {};
  if (!positions.is_wide()) {
    for (int j = 0; j < kQuad; ++j) {
      const std::int64_t e = positions.at(j);
      if (e < positions.end) quad.v[j] = shared[tile.shared_offset(e)];
    }
  } else if (tile.shape.stride == tile.shape.actions) {
    quad = *reinterpret_cast<const Quad<Real>*>(shared + positions.first);
  } else {
    const auto* pairs =
        reinterpret_cast<const Group<Real, 2>*>(shared + tile.shared_offset(positions.first));
    quad = {{pairs[0].v[0], pairs[0].v[1], pairs[1].v[0], pairs[1].v[1]}};
  }
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
    return load_raw<Real>(matrix.data, matrix.dtype, positions,
                          [&](std::int64_t e) { return tile.global_offset(e, matrix.row_stride); });
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
class TileCells {
 public:
  FASTDISTILL_DEVICE TileCells(Real* student, Real* teacher, int actions, bool wants_grad)
      : student_(student), teacher_(teacher), actions_(actions), wants_grad_(wants_grad) {}

  template <class F>
  FASTDISTILL_DEVICE void scan(F f) {
    walk<Keep::kNothing>([&](int action, Pair<Real> pair) {
      f(action, pair);
      return pair;
    });
  }
  template <class Restore, class F>
  FASTDISTILL_DEVICE void update(Restore, F f) {
    walk<Keep::kBoth>(f);
  }
  template <class Restore, class F>
  FASTDISTILL_DEVICE void finish(Restore, F f) {
    if (!wants_grad_) return;
    walk<Keep::kStudent>(
        [&](int action, Pair<Real> pair) { return Pair<Real>{f(action, pair), Real(0)}; });
  }

 private:
  enum class Keep { kNothing, kStudent, kBoth };

  template <Keep keep, class F>
  FASTDISTILL_DEVICE void walk(F f) {
    if (actions_ % 2 == 0) {
      walk_by<2, keep>(f);
    } else {
      walk_by<1, keep>(f);
    }
  }

  template <int kWidth, Keep keep, class F>
  FASTDISTILL_DEVICE void walk_by(F f) {
    auto* students = reinterpret_cast<Group<Real, kWidth>*>(student_);
    auto* teachers = reinterpret_cast<Group<Real, kWidth>*>(teacher_);
    for (int group = 0; group < actions_ / kWidth; ++group) {
      Group<Real, kWidth> student = students[group];
      Group<Real, kWidth> teacher = teachers[group];
      for (int i = 0; i < kWidth; ++i) {
        const Pair<Real> result = f(group * kWidth + i, Pair<Real>{student.v[i], teacher.v[i]});
        student.v[i] = result.student;
        teacher.v[i] = result.teacher;
      }
      if constexpr (keep != Keep::kNothing) students[group] = student;
      if constexpr (keep == Keep::kBoth) teachers[group] = teacher;
    }
  }

  Real* student_;
  Real* teacher_;
  int actions_;
  bool wants_grad_;
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
      TileCells<Real> cells(student + mine * shape.stride, teacher + mine * shape.stride,
                            shape.actions, args.grad != nullptr);
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
