// Host-side functions that are no tensor operations.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <string>

#include "cpu/level.h"

namespace py = pybind11;

PYBIND11_MODULE(_host, m) {
  m.doc() = "Build facts and CPU dispatch level.";
  m.def("build_facts", [] {
    return std::map<std::string, std::string>{
        {"torch", PAMKD_BUILD_TORCH}, {"compiler", PAMKD_BUILD_COMPILER}, {"cuda", "not built"}};
  });
  m.def("cpu_level", [] { return std::string(pamkd::level_name(pamkd::cpu_level())); });
}
