// SPDX-License-Identifier: MIT
// What k log-probabilities leave to 1, for CPU and CUDA alike. Summed in double with the rounding
// of the additions, whatever the values are: 1 - sum cancels where the k are nearly everything.
#pragma once

#include "common/host_device.h"
#include "losses/loss_args.h"

namespace fastdistill {
inline namespace FASTDISTILL_ISA {

struct TopkMass {
  static constexpr double kTolerance = 1e-3;  // softmaxes of long rows are less exact than a dtype

  double left = 1.0;
  double error = 0.0;     // of the subtractions so far
  double rounding = 0.0;  // what the sum may be off per relative error of the values

  FASTDISTILL_HD void take(double probability, double log_probability) {
    const double total = left - probability;
    const double taken = total - left;
    error += (left - (total - taken)) - (probability + taken);
    left = total;
    if (probability > 0.0) rounding -= probability * log_probability;
  }

  // Of the bucket; 0 where rounding brought the k above 1. NaN stays.
  FASTDISTILL_HD double rest() const {
    const double rest = remainder();
    return rest < 0.0 ? 0.0 : rest;
  }

  // The k sum to more than 1 by more than the rounding of their dtype: these are no
  // log-probabilities.
  FASTDISTILL_HD bool exceeds_one(DType dtype) const {
    const double epsilon = dtype == DType::kBFloat16  ? 0x1p-8
                           : dtype == DType::kFloat16 ? 0x1p-10
                                                      : 0x1p-23;
    const double slack = kTolerance + epsilon * rounding;
    return -remainder() > (slack < 1.0 ? slack : 1.0);
  }

 private:
  // inf - inf in the error must not hide an infinite sum.
  FASTDISTILL_HD double remainder() const { return error == error ? left + error : left; }
};

}  // namespace FASTDISTILL_ISA
}  // namespace fastdistill
