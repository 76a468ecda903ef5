// SPDX-License-Identifier: MIT
// What the sources ask of a compiler beyond the usual, in a page that compiles in a moment: CMake
// and `make setup` try it first, so that an old compiler is named in one line and not by the
// hundreds of errors that would follow.
#include <atomic>
#include <bit>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>

namespace {

using Vector [[gnu::vector_size(32)]] = float;

template <size_t... lane>
Vector reversed(Vector v, std::index_sequence<lane...>) {
  return __builtin_shufflevector(v, v, (7 - static_cast<int>(lane))...);
}

template <std::unsigned_integral T>
T incremented(std::span<T> values) {
  return std::atomic_ref<T>(values[0]).fetch_add(1, std::memory_order_relaxed) + 1;
}

}  // namespace

int main() {
  uint32_t values[1] = {std::bit_cast<uint32_t>(0.0F)};
  const Vector v = reversed(Vector{1.0F}, std::make_index_sequence<8>());
  return v[7] == 1.0F && incremented(std::span<uint32_t>(values)) == 1 ? 0 : 1;
}
