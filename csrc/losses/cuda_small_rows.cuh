// SPDX-License-Identifier: MIT
// Rows of up to 64 actions, the main case: a block brings a tile of rows into shared memory with
// wide accesses, whatever the number of actions, and then each thread owns one row of it.
#pragma once

#include "losses/cuda_row_loss.cuh"

namespace fastdistill::cuda {

inline constexpr std::int64_t kMaxSmallActions = 64;
inline constexpr int kSmallThreads = 256;

// Elements between rows of a tile. Threads walk down their rows by four elements, by two or by one,
// whichever divides the actions; where the stride holds an odd number of these, a warp touches
// every bank equally often.
inline std::int64_t tile_stride(std::int64_t actions) {
  return actions % 8 == 0 ? actions + 4 : actions;
}

// A tile is numbered as if its rows were adjacent; the row of element e is (e * magic) >> 21.
inline constexpr int kTileShift = 21;
static_assert(kSmallThreads * kMaxSmallActions * kMaxSmallActions < (1 << kTileShift));
inline unsigned tile_magic(std::int64_t actions) {
  return static_cast<unsigned>(((1 << kTileShift) + actions - 1) / actions);
}

struct TileShape {
  int actions;
  int stride;
  unsigned magic;
};

template <int width>
struct Width {
  static constexpr int value = width;
};

// Where the elements of one tile are in global and in shared memory.
struct Tile {
  TileShape shape;
  std::int64_t first_row;
  int elements;

  FASTDISTILL_DEVICE int row_of(int e) const {
    return static_cast<int>((static_cast<unsigned>(e) * shape.magic) >> kTileShift);
  }
  FASTDISTILL_DEVICE int shared_offset(int e) const {
    return e + row_of(e) * (shape.stride - shape.actions);
  }
  // Offset of element e from the start of a matrix.
  FASTDISTILL_DEVICE std::int64_t global_offset(int e, std::int64_t row_stride) const {
    const int row = row_of(e);
    return (first_row + row) * row_stride + (e - row * shape.actions);
  }
};

// f(width, e, place) for this thread, over a tile in pieces that are adjacent in both memories, the
// first elements of which are e, at `place` in shared memory: quads if the rows are padded (their
// length is a multiple of 8), else whole accesses and single elements at the end.
template <class Stored, class F>
FASTDISTILL_DEVICE void for_pieces(const Tile& tile, F f) {
  constexpr int kVector = kAccessBytes / static_cast<int>(sizeof(Stored));
  const int rank = static_cast<int>(threadIdx.x);
  const int threads = static_cast<int>(blockDim.x);
  if (tile.shape.stride != tile.shape.actions) {
    for (int e = rank * 4; e < tile.elements; e += threads * 4)
      f(Width<4>{}, e, tile.shared_offset(e));
    return;
  }
  const int whole = tile.elements / kVector * kVector;
  for (int e = rank * kVector; e < whole; e += threads * kVector) f(Width<kVector>{}, e, e);
  for (int e = whole + rank; e < tile.elements; e += threads) f(Width<1>{}, e, e);
}

// All of a thread's copies are on their way before the first is waited for.
template <class Stored>
FASTDISTILL_DEVICE void fetch_tile(const Matrix& matrix, const Tile& tile, Stored* shared) {
  const Stored* from =
      static_cast<const Stored*>(matrix.data) + tile.global_offset(0, tile.shape.actions);
  for_pieces<Stored>(tile, [&](auto width, int e, int place) {
    constexpr int kBytes = width.value * static_cast<int>(sizeof(Stored));
    Stored* to = shared + place;
    if constexpr (kBytes >= 4) {
      platform::copy_async<kBytes>(to, from + e);
    } else {
      *to = from[e];
    }
  });
}

// The same threads bring the same elements in all three, so they need not wait for each other.
template <class Real>
FASTDISTILL_DEVICE void load_elements(const DistillArgs& args, const Tile& tile, Real* student,
                                      Real* teacher) {
  const auto for_elements = [&](std::int64_t row_stride, auto f) {
    const int threads = static_cast<int>(blockDim.x);
    for (int e = static_cast<int>(threadIdx.x); e < tile.elements; e += threads) {
      f(tile.shared_offset(e), tile.global_offset(e, row_stride));
    }
  };
  const auto load = [&](const Matrix& matrix, Real* shared) {
    with_storage<Real>(matrix.dtype, [&](auto storage) {
      using S = decltype(storage);
      for_elements(matrix.row_stride, [&](int to, std::int64_t from) {
        shared[to] =
            static_cast<Real>(S::widen(static_cast<const typename S::Bits*>(matrix.data)[from]));
      });
    });
  };
  load(args.student, student);
  load(args.teacher, teacher);
  if (args.action_mask == nullptr) return;
  for_elements(args.mask_row_stride, [&](int to, std::int64_t from) {
    if (args.action_mask[from] != 0) return;
    student[to] = teacher[to] = -DeviceMath<Real>::infinity();
  });
}

template <class Access, class Stored = typename Access::Stored>
FASTDISTILL_DEVICE void load_tile(const DistillArgs& args, const Tile& tile, Stored* student,
                                  Stored* teacher) {
  if constexpr (Access::kIsDense) {
    fetch_tile(args.student, tile, student);
    fetch_tile(args.teacher, tile, teacher);
    platform::wait_copies();
  } else {
    load_elements(args, tile, student, teacher);
  }
}

template <class Access, class Stored = typename Access::Stored>
FASTDISTILL_DEVICE void store_tile(const DistillArgs& args, const Tile& tile,
                                   const Stored* shared) {
  if constexpr (Access::kIsDense) {
    Stored* to = static_cast<Stored*>(args.grad) + tile.global_offset(0, tile.shape.actions);
    for_pieces<Stored>(tile, [&](auto width, int e, int place) {
      using Piece = Group<Stored, width.value>;
      *reinterpret_cast<Piece*>(to + e) = *reinterpret_cast<const Piece*>(shared + place);
    });
  } else {
    const int threads = static_cast<int>(blockDim.x);
    for (int e = static_cast<int>(threadIdx.x); e < tile.elements; e += threads) {
      store_one(args.grad, args.student.dtype, tile.global_offset(e, args.grad_row_stride),
                shared[tile.shared_offset(e)]);
    }
  }
}

// One thread's row of a tile; the gradient replaces the student's logits.
template <class Access>
class TileCells {
  using Real = typename Access::Real;
  using Stored = typename Access::Stored;

 public:
  FASTDISTILL_DEVICE TileCells(Stored* student, const Stored* teacher, int actions, bool wants_grad)
      : student_(student), teacher_(teacher), actions_(actions), wants_grad_(wants_grad) {}

  template <class F>
  FASTDISTILL_DEVICE void scan(F f) {
    walk<false>(f);
  }
  template <class F>
  FASTDISTILL_DEVICE void finish(F f) {
    if (wants_grad_) walk<true>(f);
  }

 private:
  template <bool is_last, class F>
  FASTDISTILL_DEVICE void walk(F f) {
    if (actions_ % 4 == 0) {
      walk_by<4, is_last>(f);
    } else if (actions_ % 2 == 0) {
      walk_by<2, is_last>(f);
    } else {
      walk_by<1, is_last>(f);
    }
  }

  template <int kWidth, bool is_last, class F>
  FASTDISTILL_DEVICE void walk_by(F f) {
    auto* students = reinterpret_cast<Group<Stored, kWidth>*>(student_);
    const auto* teachers = reinterpret_cast<const Group<Stored, kWidth>*>(teacher_);
    const int groups = actions_ / kWidth;
#pragma unroll 3
    for (int group = 0; group < groups; ++group) {
      Real student[kWidth];
      Real teacher[kWidth];
      // Whole copies, for whole accesses.
      const Group<Stored, kWidth> stored_student = students[group];
      const Group<Stored, kWidth> stored_teacher = teachers[group];
      widen_group<typename Access::InShared>(stored_student, student);
      widen_group<typename Access::InShared>(stored_teacher, teacher);
#pragma unroll
      for (int j = 0; j < kWidth; ++j) {
        const Pair<Real> logits{student[j], teacher[j]};
        if constexpr (is_last) {
          student[j] = f(group * kWidth + j, logits);
        } else {
          f(group * kWidth + j, logits);
        }
      }
      if constexpr (is_last) students[group] = narrow_group<typename Access::InShared>(student);
    }
  }

  Stored* student_;
  const Stored* teacher_;
  int actions_;
  bool wants_grad_;
};

template <LossKind kind, class Access>
__global__ void __launch_bounds__(kSmallThreads)
    small_rows(DistillArgs args, Settings<typename Access::Real> settings, Workspace workspace,
               TileShape shape) {
  using Real = typename Access::Real;
  using Stored = typename Access::Stored;
  FASTDISTILL_DYNAMIC_SHARED(memory);
  FASTDISTILL_SHARED(Exchange, exchange);
  BlockTeam block(exchange);
  const std::int64_t rows_per_tile = blockDim.x;
  Stored* student = reinterpret_cast<Stored*>(memory);
  Stored* teacher = student + rows_per_tile * shape.stride;
  const std::int64_t grid_step = rows_per_tile * gridDim.x;
  double lost = 0;
  for (std::int64_t first = rows_per_tile * blockIdx.x; first < args.batch; first += grid_step) {
    const std::int64_t left = args.batch - first;
    const int rows = static_cast<int>(left < rows_per_tile ? left : rows_per_tile);
    const Tile tile{shape, first, rows * shape.actions};
    load_tile<Access>(args, tile, student, teacher);
    __syncthreads();
    const int mine = static_cast<int>(threadIdx.x);
    if (mine < rows) {
      ThreadTeam team;
      TileCells<Access> cells(student + mine * shape.stride, teacher + mine * shape.stride,
                              shape.actions, args.grad != nullptr);
      const Real weight = weight_of<Real>(args, first + mine);
      RowLoss<kind, Real, ThreadTeam, TileCells<Access>> row(settings, team, cells, weight, true);
      const Real weighted = row.run();
      store_row_loss(args, first + mine, weighted, settings.loss_scale);
      lost += static_cast<double>(weighted);
    }
    if (args.grad != nullptr) {
      __syncthreads();
      store_tile<Access>(args, tile, student);
    }
    __syncthreads();
  }
  if (args.loss != nullptr) {
    reduce_loss(block, lost, workspace, args.scale, args.loss, sizeof(Real) == 8);
  }
}

}  // namespace fastdistill::cuda
