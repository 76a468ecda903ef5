/* SPDX-License-Identifier: MIT
 * The floor under sampling: a plain loop that copies the same bytes from the same random frames of
 * the same memory into the same place, with the frames' addresses known. Compiled by the benchmark.
 */
#include <stddef.h>
#include <string.h>

void gather_floor(const char* const* frames, size_t num_frames, size_t frame_bytes, char* out) {
  for (size_t i = 0; i < num_frames; ++i) memcpy(out + i * frame_bytes, frames[i], frame_bytes);
}
