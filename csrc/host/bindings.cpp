// Host-side functions that are no tensor operations.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <stdexcept>
#include <string>

#include "cpu/level.h"
#include "host/group_sampler.h"

namespace py = pybind11;

PYBIND11_MODULE(_host, m) {
  m.doc() = "Build facts, CPU dispatch level, and the sampler of groups.";
  m.def("build_facts", [] {
    return std::map<std::string, std::string>{
        {"torch", PAMKD_BUILD_TORCH}, {"compiler", PAMKD_BUILD_COMPILER}, {"cuda", PAMKD_BUILD_CUDA}};
  });
  m.def("cpu_level", [] { return std::string(pamkd::level_name(pamkd::cpu_level())); });
  m.def(
      "sample_rows",
      [](int64_t batch, int64_t count, int64_t pairs, uint64_t seed) {
        if (count < 0 || pairs < 0 || count > batch) throw std::invalid_argument("sample_rows: needed is 0 <= count <= batch");
        py::array_t<int64_t> rows({pairs, count});
        pamkd::sample_rows(batch, count, pairs, seed, rows.mutable_data());
        return rows;
      },
      py::arg("batch"), py::arg("count"), py::arg("pairs"), py::arg("seed"),
      "int64 [pairs, count]: in each line `count` distinct rows of `batch`, a function of the seed alone.");
}
