// Hinges of group similarities: pointers only, compiled once per instruction set.
#pragma once

#include <cstdint>

#include "cpu/level.h"

PAMKD_DECLARE(
    // sum over p of max(0, eps - t_p s_p) where t_p != 0; t_p and s_p are differences of the similarities [pairs, 2].
    template <class T>
    double hinge(const T* teacher, const T* student, int64_t pairs, T eps);

    // Gradients of sum over k, j of grad[k, j] hinge[k, j] for pairs begin .. end. Similarities and their gradients: [K, pairs, 2].
    template <class T>
    void hinge_gradients(const T* teacher, const T* student, const T* grad, int64_t teachers, int64_t students, int64_t pairs,
                         int64_t begin, int64_t end, T eps, T* d_teacher, T* d_student);)
