// SPDX-License-Identifier: MIT
// A snapshot's file as a row of pieces with a checksum each, on its way out and in. What a piece
// means is snapshot.cpp's business.
#pragma once

#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <system_error>
#include <vector>

#include "common/crc32c.h"

namespace fastdistill::replay {

// One checksummed piece of the file on its way out.
class Piece {
 public:
  template <class T>
  void put(const T& value) {
    put_bytes(&value, sizeof value);
  }
  void put_bytes(const void* data, std::size_t size) {
    const auto* bytes = static_cast<const std::byte*>(data);
    bytes_.insert(bytes_.end(), bytes, bytes + size);
  }
  std::byte* grow(std::size_t size) {
    bytes_.resize(bytes_.size() + size);
    return bytes_.data() + bytes_.size() - size;
  }
  void write_and_reset(int file) {
    put(crc32c(bytes_.data(), bytes_.size()));
    const std::byte* at = bytes_.data();
    for (std::size_t left = bytes_.size(); left > 0;) {
      const ssize_t written = ::write(file, at, left);
      if (written < 0 && errno == EINTR) continue;
      if (written < 0) throw std::system_error(errno, std::generic_category(), "save");
      at += written;
      left -= static_cast<std::size_t>(written);
    }
    bytes_.clear();
  }
  void reset() { bytes_.clear(); }

 private:
  std::vector<std::byte> bytes_;
};

[[noreturn]] inline void refuse(const std::string& why) {
  throw std::invalid_argument("load: file must be an intact snapshot, got " + why);
}

// The file on its way in: reads bytes, sums them up, compares at the end of a piece.
class PieceReader {
 public:
  explicit PieceReader(int file) : file_(file) {
    struct stat status;
    if (::fstat(file, &status) != 0)
      throw std::system_error(errno, std::generic_category(), "load");
    const off_t at = ::lseek(file, 0, SEEK_CUR);
    left_ = S_ISREG(status.st_mode) && at >= 0 ? status.st_size - at : 0;
  }

  // To be asked before memory is taken for what the file claims to hold.
  void require(std::size_t size) const {
    if (left_ < 0 || size > static_cast<std::size_t>(left_)) refuse(kTooShort);
  }

  void get_bytes(void* to, std::size_t size) {
    read_exactly(to, size);
    crc_ = crc32c(to, size, crc_);
  }
  template <class T>
  T get() {
    T value;
    get_bytes(&value, sizeof value);
    return value;
  }
  void finish(const char* piece) {
    std::uint32_t expected;
    read_exactly(&expected, sizeof expected);
    if (expected != crc_) refuse(std::string("a wrong checksum of the ") + piece);
    crc_ = 0;
  }
  void expect_end() {
    std::byte extra;
    if (read_some(&extra, 1) != 0) refuse("more bytes than it should have");
  }

 private:
  std::size_t read_some(void* to, std::size_t size) {
    while (true) {
      const ssize_t got = ::read(file_, to, size);
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) throw std::system_error(errno, std::generic_category(), "load");
      return static_cast<std::size_t>(got);
    }
  }
  void read_exactly(void* to, std::size_t size) {
    auto* at = static_cast<std::byte*>(to);
    while (size > 0) {
      const std::size_t got = read_some(at, size);
      if (got == 0) refuse(kTooShort);
      at += got;
      size -= got;
      left_ -= static_cast<off_t>(got);
    }
  }

  static constexpr const char* kTooShort = "fewer bytes than it should have";

  int file_;
  off_t left_ = 0;
  std::uint32_t crc_ = 0;
};

}  // namespace fastdistill::replay
