// y = W x from a bitmask and bfloat16 non-zeros, row by row: what XLA has no instruction for.
// first: the first non-zero of each row. columns: a multiple of 32. Needs AVX-512 with VBMI2.
#include <immintrin.h>
#include <stdint.h>

static __m512 widened(__m256i half) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

void matvec(const uint32_t *mask, const uint16_t *nonzeros, const int32_t *first, const float *x,
            float *y, int rows, int columns) {
    for (int r = 0; r < rows; r++) {
        const uint32_t *bits = mask + (long)r * (columns / 32);
        const uint16_t *next = nonzeros + first[r];
        __m512 low = _mm512_setzero_ps(), high = low;
        for (int c = 0; c < columns / 32; c++) {
            __m512i w = _mm512_maskz_expandloadu_epi16(bits[c], next);
            next += __builtin_popcount(bits[c]);
            low = _mm512_fmadd_ps(widened(_mm512_castsi512_si256(w)),
                                  _mm512_loadu_ps(x + 32 * c), low);
            high = _mm512_fmadd_ps(widened(_mm512_extracti64x4_epi64(w, 1)),
                                   _mm512_loadu_ps(x + 32 * c + 16), high);
        }
        y[r] = _mm512_reduce_add_ps(_mm512_add_ps(low, high));
    }
}
