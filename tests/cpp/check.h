// SPDX-License-Identifier: MIT
// The checks of the C++ tests: a failure prints where, what and both values, and the program ends
// with status 1. Small on purpose: a fresh machine has no test library for C++, and the tests must
// run there and under every sanitizer.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <sstream>
#include <string>

namespace fastdistill::testing {

[[noreturn]] inline void fail(const char* file, int line, const std::string& what) {
  std::cerr << file << ":" << line << ": " << what << std::endl;
  std::exit(1);
}

template <class A, class B>
void check_equal(const A& actual, const B& expected, const char* text, const char* file, int line) {
  if (actual == expected) return;
  std::ostringstream out;
  out << text << ": got " << actual << ", expected " << expected;
  fail(file, line, out.str());
}

}  // namespace fastdistill::testing

#define CHECK(condition) \
  ((condition) ? (void)0 : ::fastdistill::testing::fail(__FILE__, __LINE__, "failed: " #condition))
#define CHECK_EQ(actual, expected)                                                              \
  ::fastdistill::testing::check_equal((actual), (expected), #actual " == " #expected, __FILE__, \
                                      __LINE__)
#define CHECK_THROWS(expression, Exception)                                                \
  do {                                                                                     \
    bool thrown = false;                                                                   \
    try {                                                                                  \
      (void)(expression);                                                                  \
    } catch (const Exception&) {                                                           \
      thrown = true;                                                                       \
    }                                                                                      \
    if (!thrown)                                                                           \
      ::fastdistill::testing::fail(__FILE__, __LINE__, "no " #Exception ": " #expression); \
  } while (false)
