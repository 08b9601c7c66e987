/* CRC-32 as zlib's: by carry-less multiplication where the processor has it, else by tables.

   The tables are 8 KB, which a record would fetch from memory again in every step. */

#include "native.h"
#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define MULTIPLIES 1
#endif

#define POLYNOMIAL 0xEDB88320u

static uint32_t table[8][256];
static int multiplies;

void prepare_crc(int may_multiply)
{
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t value = byte;
        for (int bit = 0; bit < 8; bit++)
            value = value & 1 ? value >> 1 ^ POLYNOMIAL : value >> 1;
        table[0][byte] = value;
    }
    for (uint32_t byte = 0; byte < 256; byte++)
        for (int at = 1; at < 8; at++)
            table[at][byte] = table[at - 1][byte] >> 8 ^ table[0][table[at - 1][byte] & 0xFF];
#ifdef MULTIPLIES
    multiplies = may_multiply && __builtin_cpu_supports("pclmul");
#else
    multiplies = 0 && may_multiply;
#endif
}

/* Eight bytes a turn. */
static uint32_t by_tables(const unsigned char *bytes, size_t size)
{
    uint32_t crc = 0xFFFFFFFFu;
    for (; size >= 8; size -= 8, bytes += 8) {
        uint32_t low, high;
        memcpy(&low, bytes, 4);
        memcpy(&high, bytes + 4, 4);
        low ^= crc;
        crc = table[7][low & 0xFF] ^ table[6][low >> 8 & 0xFF] ^ table[5][low >> 16 & 0xFF] ^ table[4][low >> 24] ^
              table[3][high & 0xFF] ^ table[2][high >> 8 & 0xFF] ^ table[1][high >> 16 & 0xFF] ^ table[0][high >> 24];
    }
    while (size--)
        crc = crc >> 8 ^ table[0][(crc ^ *bytes++) & 0xFF];
    return ~crc;
}

#ifdef MULTIPLIES
/* Powers of x modulo the polynomial, bits reversed: x^(128+32) and x^(128-32) move a block past the next one,
   x^64 folds the last; then Barrett's quotient and the polynomial itself. */
__attribute__((target("pclmul"))) static uint32_t by_multiplication(const unsigned char *bytes, size_t size)
{
    const __m128i past = _mm_set_epi64x(0x0CCAA009E, 0x1751997D0), last = _mm_set_epi64x(0, 0x163CD6124);
    const __m128i barrett = _mm_set_epi64x(0x1F7011641, 0x1DB710641), low = _mm_set_epi32(0, -1, 0, -1);
    /* Zeros before a message whose first four bytes are inverted leave its remainder as it is: blocks end with it. */
    size_t first = (size - 1) % 16 + 1;
    unsigned char head[16] = {0};
    memcpy(head + 16 - first, bytes, first);
    for (int at = 0; at < 4; at++)
        head[16 - first + (size_t)at] ^= 0xFF;
    __m128i sum = _mm_loadu_si128((const __m128i *)head);
    for (const unsigned char *at = bytes + first; at < bytes + size; at += 16)
        sum = _mm_xor_si128(_mm_xor_si128(_mm_clmulepi64_si128(sum, past, 0x00), _mm_clmulepi64_si128(sum, past, 0x11)),
                            _mm_loadu_si128((const __m128i *)at));
    sum = _mm_xor_si128(_mm_clmulepi64_si128(sum, past, 0x10), _mm_srli_si128(sum, 8));
    sum = _mm_xor_si128(_mm_clmulepi64_si128(_mm_and_si128(sum, low), last, 0x00), _mm_srli_si128(sum, 4));
    __m128i quotient = _mm_and_si128(_mm_clmulepi64_si128(_mm_and_si128(sum, low), barrett, 0x10), low);
    sum = _mm_xor_si128(sum, _mm_clmulepi64_si128(quotient, barrett, 0x00));
    return ~(uint32_t)_mm_cvtsi128_si32(_mm_srli_si128(sum, 4));
}
#endif

uint32_t crc32_of(const unsigned char *bytes, size_t size)
{
#ifdef MULTIPLIES
    /* Of what is shorter than its first block's four inverted bytes there is nothing to win. */
    if (multiplies && size >= 20 && (size - 1) % 16 + 1 >= 4)
        return by_multiplication(bytes, size);
#endif
    return by_tables(bytes, size);
}
