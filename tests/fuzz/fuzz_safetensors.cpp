// Any bytes as a safetensors file: they are refused with a file_error, or every array can be read.
#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>

#include "moeskip/formats/safetensors.hpp"

namespace ms = moeskip;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const int file = ::memfd_create("fuzz", 0);  // a file without a disk
  if (::ftruncate(file, 0) || (size && ::pwrite(file, data, size, 0) != ::ssize_t(size))) std::abort();
  try {
    const ms::safetensors_file read(ms::text("/proc/self/fd/", file));
    for (const ms::array_info& a : read.arrays()) {
      if (a.bytes > size) std::abort();
      std::vector<float> values(a.bytes * 8 / std::size_t(ms::find_dtype(a.dtype)->bits));
      if (!ms::convert_array(std::span<float>(values), a.dtype, read.bytes(a))) continue;
    }
  } catch (const ms::file_error&) {}
  return 0;
}
