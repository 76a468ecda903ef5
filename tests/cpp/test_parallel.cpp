// SPDX-License-Identifier: MIT
// parallel_for: an exception on a worker reaches the caller, whatever the pool makes of it.
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <new>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "common/parallel.h"

namespace {

using fastdistill::parallel_for;
using fastdistill::ParallelBody;
using fastdistill::set_parallel_for;

int failures = 0;

void check(bool holds, const char* what) {
  if (holds) return;
  std::printf("FAILED: %s\n", what);
  ++failures;
}

// One thread per index. As torch's pool does, it hides exceptions from its caller.
int pool(std::int64_t begin, std::int64_t end, std::int64_t, ParallelBody body, void* context) {
  std::vector<std::thread> threads;
  for (std::int64_t i = begin; i < end; ++i) {
    threads.emplace_back([=] {
      try {
        body(i, i + 1, context);
      } catch (...) {  // the pool's own
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  return 0;
}

int refusing_pool(std::int64_t, std::int64_t, std::int64_t, ParallelBody, void*) { return 7; }

void test_every_index_is_visited_once() {
  std::atomic<int> visits[16] = {};
  parallel_for(
      16,
      [](std::int64_t begin, std::int64_t end, void* context) {
        for (std::int64_t i = begin; i < end; ++i) ++static_cast<std::atomic<int>*>(context)[i];
      },
      visits);
  for (const auto& count : visits) check(count == 1, "an index was not visited once");
}

void test_an_exception_reaches_the_caller() {
  bool caught = false;
  try {
    parallel_for(
        16,
        [](std::int64_t begin, std::int64_t, void*) {
          if (begin == 5) throw std::bad_alloc();
        },
        nullptr);
  } catch (const std::bad_alloc&) {
    caught = true;
  }
  check(caught, "a worker's bad_alloc did not reach the caller");
}

void test_several_exceptions_are_one() {
  int caught = 0;
  try {
    parallel_for(
        16,
        [](std::int64_t begin, std::int64_t, void*) {
          throw std::out_of_range(std::to_string(begin));
        },
        nullptr);
  } catch (const std::out_of_range&) {
    ++caught;
  }
  check(caught == 1, "sixteen exceptions were not one");
}

void test_a_status_is_an_error() {
  std::string text;
  try {
    parallel_for(16, [](std::int64_t, std::int64_t, void*) {}, nullptr);
  } catch (const std::runtime_error& error) {
    text = error.what();
  }
  check(
      text == "fastdistill: torch_parallel_for must return 0, got 7; part of the work was not done",
      "the pool's status was ignored");
}

}  // namespace

int main() {
  test_every_index_is_visited_once();  // on this thread
  set_parallel_for(&pool);
  test_every_index_is_visited_once();
  test_an_exception_reaches_the_caller();
  test_several_exceptions_are_one();
  set_parallel_for(&refusing_pool);
  test_a_status_is_an_error();
  return failures == 0 ? 0 : 1;
}
