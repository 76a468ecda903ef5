// SPDX-License-Identifier: MIT
// Children of fork use the pool of gradients while other threads of the parent were in the middle
// of it: none waits for a lock that nobody in the child holds, and none hands out a block twice.
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <thread>
#include <vector>

#include "bindings/gradient_pool.h"
#include "check.h"

using namespace fastdistill;

namespace {

constexpr int kForks = 300;
#if defined(__SANITIZE_ADDRESS__)
constexpr int kStarts = 0;  // its own allocator is not ready for a fork, the system's is
#else
constexpr int kStarts = 200;
#endif
constexpr int kThreads = 3;

// Six blocks at once: some from the pool, some new, and some that the pool will not keep.
bool use_pool() {
  PoolBlock blocks[6];
  for (unsigned char i = 0; i < 6; ++i) {
    blocks[i] = take_from_pool(kMinPooledBytes);
    std::memset(blocks[i].data, i, 4096);
  }
  bool right = true;
  for (unsigned char i = 0; i < 6; ++i) {
    right = right && *static_cast<unsigned char*>(blocks[i].data) == i;
    give_to_pool(blocks[i]);
  }
  return right && pooled_bytes() > 0;
}

// A child waits for itself alone; one that waits longer waits for ever.
[[noreturn]] void be_the_child() {
  alarm(20);
  _exit(use_pool() ? 0 : 1);
}

// A fork while another thread uses the pool for the first time.
int fork_at_the_first_use() {
  std::atomic<bool> over{false};
  std::thread first([&over] {
    give_to_pool(take_from_pool(kMinPooledBytes));
    while (!over) std::this_thread::yield();  // ThreadSanitizer takes ended threads for leaks
  });
  const pid_t child = fork();
  if (child == 0) be_the_child();
  int status = 0;
  CHECK_EQ(waitpid(child, &status, 0), child);
  over = true;
  first.join();
  return status == 0 ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1) return fork_at_the_first_use();
  for (int i = 0; i < kStarts; ++i) {  // each in a process of its own, which has no pool yet
    const pid_t process = fork();
    if (process == 0) {
      execl(argv[0], argv[0], "first", nullptr);
      _exit(2);
    }
    int status = 0;
    CHECK_EQ(waitpid(process, &status, 0), process);
    CHECK_EQ(status, 0);
  }
  std::atomic<bool> over{false};
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&over] {
      while (!over.load(std::memory_order_relaxed)) {
        give_to_pool(take_from_pool(kMinPooledBytes));
      }
    });
  }
  int right = 0;
  for (int i = 0; i < kForks; ++i) {
    const pid_t child = fork();
    if (child == 0) be_the_child();
    CHECK(child > 0);
    int status = 0;
    CHECK_EQ(waitpid(child, &status, 0), child);
    if (WIFSIGNALED(status)) {
      over = true;
      for (std::thread& thread : threads) thread.join();
      testing::fail(__FILE__, __LINE__, "a child died of a signal: it waited for ever");
    }
    right += WEXITSTATUS(status) == 0;
  }
  over = true;
  for (std::thread& thread : threads) thread.join();
  CHECK_EQ(right, kForks);
  CHECK(use_pool());  // the parent's is its own
  return 0;
}
