// SPDX-License-Identifier: MIT
// Proof that the SIMT machine sees missing synchronisation: every barrier and fence of the kernels
// is left out once, in a process of its own, and ThreadSanitizer must report a data race. Built
// with ThreadSanitizer only.
#include <sys/wait.h>
#include <unistd.h>

#include <string>
#include <vector>

#include "cuda_harness.h"

using namespace fastdistill;
using namespace fastdistill::testing;

namespace {

constexpr int kRaceExitCode = 66;  // ThreadSanitizer's own

// Several rows per block and several segments per row.
void run_topk() {
  simt::machine().shared_bytes_per_block = 8;
  Problem p;
  p.actions = 150;
  p.batch = 12;
  Inputs in = random_inputs(p, 1);
  Outputs out;
  out.grad.allocate(p.student_dtype, p.batch, p.actions, p.actions, 0);
  out.loss.allocate(p.student_dtype, 1, 1, 1, 0);
  const std::vector<std::int64_t> indices{149, 3, 70, 20, 100, 0, 64, 128};
  const std::vector<float> values(indices.size(), -3.0f);
  TopkArgs args;
  args.base = arguments_of(p, in, out);
  args.base.teacher = {values.data(), DType::kFloat32, 0};
  args.k = static_cast<std::int64_t>(indices.size());
  args.indices = indices.data();
  CudaLaunch launch;
  launch.workspace = workspace();
  topk_cuda(args, launch);
  simt::machine().shared_bytes_per_block = 227 * 1024;
}

// Each kernel with several pieces of work per block, so that every barrier has something to order.
void run_all_kernels() {
  simt::machine().multiprocessors = 1;
  for (std::int64_t actions : {5, 80, 2050}) {
    Problem p;
    p.actions = actions;
    p.batch = actions == 5 ? 1300 : actions == 80 ? 90 : 6;
    Inputs in = random_inputs(p, 1);
    run_kernels(p, in);
  }
  run_topk();
  const std::int64_t batch = 2500;
  std::vector<float> q(static_cast<std::size_t>(2 * batch)),
      out(static_cast<std::size_t>(2 * batch));
  std::vector<float> target(static_cast<std::size_t>(batch)),
      td_abs(static_cast<std::size_t>(batch));
  std::vector<std::int64_t> action(static_cast<std::size_t>(batch));
  float loss;
  TdArgs args;
  args.batch = batch;
  args.actions = 2;
  args.q = {q.data(), DType::kFloat32, 2};
  args.action = action.data();
  args.target = target.data();
  args.loss = &loss;
  args.td_abs = td_abs.data();
  args.grad = out.data();
  CudaLaunch launch;
  launch.workspace = workspace();
  td_cuda(args, launch);
}

// The exit code of this program with one site left out, its report discarded.
int exit_code_without(const char* program, const char* site) {
  const pid_t child = fork();
  if (child == 0) {
    if (std::freopen("/dev/null", "w", stderr) == nullptr) _exit(1);
    setenv("TSAN_OPTIONS", "halt_on_error=1 exitcode=66", 1);
    execl(program, program, site, static_cast<char*>(nullptr));
    _exit(1);
  }
  int status = 0;
  CHECK_EQ(waitpid(child, &status, 0), child);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1) {
    simt::machine().skip_site = argv[1];
    run_all_kernels();
    return 0;
  }
  run_all_kernels();
  int sites = 0;
  int missed = 0;
  for (const char* const* site = simt::executed_sites(); *site != nullptr; ++site) {
    const int code = exit_code_without("/proc/self/exe", *site);
    std::printf("%s left out: %s\n", *site, code == kRaceExitCode ? "race reported" : "MISSED");
    if (code != kRaceExitCode) std::printf("  exit code %d\n", code);
    missed += code != kRaceExitCode;
    ++sites;
  }
  CHECK(sites > 0);
  CHECK_EQ(missed, 0);
}
