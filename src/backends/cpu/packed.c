// SPDX-License-Identifier: Apache-2.0
#include "backends/cpu/packed.h"

#include <string.h>

#include "backends/cpu/cpu.h"
#include "quant/elements.h"

#define ALIGN        64 // of an expert: a line
#define RECORD_BYTES 64 // of one output, at most

bool moei_cpu_packed_takes(const moei_format_info *format, int64_t block_k)
{
    if (block_k != 0 && block_k != MOEI_CPU_RECORD / 2 && block_k % MOEI_CPU_RECORD != 0) {
        return false;
    }
    switch (format->elem) {
    case MOE_BF16:
    case MOE_F16:
    case MOE_E4M3FN:
    case MOE_E5M2:
    case MOE_I8:
    case MOE_U8:
    case MOE_E2M1:
    case MOE_UINT4:
        return true;
    default:
        return false;
    }
}

static bool has_four_bits(const moei_matrices *m)
{
    return moe_dtype_bits(m->format->elem) == 4;
}

moei_cpu_packed moei_cpu_packed_of(const moei_matrices *m)
{
    const moe_dtype elem = m->format->elem;
    const bool scaled = m->scale_e_stride > 0;
    const bool along_k = scaled && m->block_k > 0;
    const bool pairs_of_bytes = elem == MOE_F16 || elem == MOE_E4M3FN || elem == MOE_E5M2;
    moei_cpu_packed p = {0};
    p.outputs = moei_i64_round_up(m->n, MOEI_CPU_STRIP);
    p.records = moei_i64_ceil_div(m->k, MOEI_CPU_RECORD);
    p.group_records = along_k ? moei_i64_ceil_div(m->block_k, MOEI_CPU_RECORD) : p.records;
    p.groups = moei_i64_ceil_div(p.records, p.group_records);
    p.unit = pairs_of_bytes ? 2 : 4;
    p.unit_k = 8 * p.unit / moe_dtype_bits(elem);
    p.record = MOEI_CPU_RECORD * moe_dtype_bits(elem) / 8;
    p.sets = !along_k ? 0 : m->block_k < MOEI_CPU_RECORD ? 2 : 1;
    p.scale = along_k ? moe_dtype_bits(m->scale_dtype) / 8 : 0;
    p.head = p.sets * (p.scale + (m->zero_e_stride > 0 ? 1 : 0));
    p.output = p.groups * p.head + p.records * p.record;
    p.scales_at = p.outputs * p.output;
    p.bytes = p.scales_at + (scaled && !along_k ? p.outputs * (int64_t)sizeof(float) : 0);
    return p;
}

size_t moei_cpu_packed_bytes(const moei_kernel *kernel, const moei_matrices *m)
{
    const moei_cpu_packed p = moei_cpu_packed_of(m);
    (void)kernel;
    return (size_t)moei_i64_round_up(p.bytes, ALIGN);
}

// ---- codes -------------------------------------------------------------------------------------

// k + 2 j to nibble j, k + 2 j + 1 to nibble j + 4, in both halves.
static uint64_t part_nibbles(uint64_t codes)
{
    uint64_t even = codes & 0x0F0F0F0F0F0F0F0Fu;
    uint64_t odd = codes >> 4 & 0x0F0F0F0F0F0F0F0Fu;
    even = (even | even >> 4) & 0x00FF00FF00FF00FFu;
    odd = (odd | odd >> 4) & 0x00FF00FF00FF00FFu;
    even = (even | even >> 8) & 0x0000FFFF0000FFFFu;
    odd = (odd | odd >> 8) & 0x0000FFFF0000FFFFu;
    return even | odd << 16;
}

static uint32_t join_nibbles(uint32_t parted)
{
    uint32_t even = parted & 0xFFFFu;
    uint32_t odd = parted >> 16;
    even = (even | even << 8) & 0x00FF00FFu;
    odd = (odd | odd << 8) & 0x00FF00FFu;
    even = (even | even << 4) & 0x0F0F0F0Fu;
    odd = (odd | odd << 4) & 0x0F0F0F0Fu;
    return even | odd << 4;
}

/// One output's codes of a record in canonical memory: `count` elements of `bytes`, `stride` apart;
/// where they lie side by side, one of all bytes.
typedef struct piece {
    uint8_t *at;
    int64_t stride;
    int64_t count, bytes;
} piece;

static piece piece_of(const moei_matrices *m, int64_t n, int64_t k0)
{
    const moe_dtype elem = m->format->elem;
    uint8_t *base = (uint8_t *)(uintptr_t)m->values + n * m->value_n_stride;
    const int64_t k1 = moei_i64_min(k0 + MOEI_CPU_RECORD, m->k);
    if (m->value_k_stride == 0) {
        const int64_t at = moei_elem_bytes(elem, k0);
        return (piece){base + at, 0, 1, moei_elem_bytes(elem, k1) - at};
    }
    return (piece){base + k0 * m->value_k_stride, m->value_k_stride, k1 - k0,
                   moe_dtype_bits(elem) / 8};
}

// A record's bytes, where they lie if they are there side by side; else gathered in `line`.
static const uint8_t *gather_codes(const moei_cpu_packed *p, const moei_matrices *m, int64_t n,
                                   int64_t k0, uint8_t line[RECORD_BYTES])
{
    if (m->value_k_stride == 0 && k0 + MOEI_CPU_RECORD <= m->k) {
        return m->values + n * m->value_n_stride + k0 / MOEI_CPU_RECORD * p->record;
    }
    const piece from = piece_of(m, n, k0);
    memset(line, 0, RECORD_BYTES);
    for (int64_t i = 0; i < from.count; i++) {
        memcpy(line + i * from.bytes, from.at + i * from.stride, (size_t)from.bytes);
    }
    return line;
}

// Records are a multiple of 8 bytes: two or four units.
static void pack_codes(const moei_cpu_packed *p, const moei_matrices *m, int64_t n, int64_t k0,
                       uint8_t *strip)
{
    uint8_t line[RECORD_BYTES];
    const uint8_t *from = gather_codes(p, m, n, k0, line);
    uint8_t *to = strip + n % MOEI_CPU_STRIP * p->unit;
    const bool four_bits = has_four_bits(m);
    for (int64_t at = 0; at < p->record; at += 8, from += 8) {
        if (p->unit == 2) {
            for (int i = 0; i < 8; i += 2, to += 2 * MOEI_CPU_STRIP) {
                memcpy(to, from + i, 2);
            }
            continue;
        }
        uint64_t codes;
        memcpy(&codes, from, 8);
        codes = four_bits ? part_nibbles(codes) : codes;
        const uint8_t *units = (const uint8_t *)&codes;
        memcpy(to, units, 4);
        memcpy(to + 4 * MOEI_CPU_STRIP, units + 4, 4);
        to += 8 * MOEI_CPU_STRIP;
    }
}

static void unpack_codes(const moei_cpu_packed *p, const moei_matrices *m, int64_t n, int64_t k0,
                         const uint8_t *strip)
{
    uint8_t line[RECORD_BYTES];
    const piece to = piece_of(m, n, k0);
    const uint8_t *from = strip + n % MOEI_CPU_STRIP * p->unit;
    const int64_t step = MOEI_CPU_STRIP * p->unit;
    for (int64_t u = 0; u < p->record / p->unit; u++) {
        uint32_t codes = 0;
        memcpy(&codes, from + u * step, (size_t)p->unit);
        codes = has_four_bits(m) ? join_nibbles(codes) : codes;
        memcpy(line + u * p->unit, &codes, (size_t)p->unit);
    }
    for (int64_t i = 0; i < to.count; i++) {
        memcpy(to.at + i * to.stride, line + i * to.bytes, (size_t)to.bytes);
    }
}

// ---- scales and zero points --------------------------------------------------------------------

// Set s of group g begins at this k; false where the matrix has ended.
static bool set_begins(const moei_cpu_packed *p, const moei_matrices *m, int64_t g, int64_t s,
                       int64_t *k)
{
    *k = g * p->group_records * MOEI_CPU_RECORD + s * m->block_k;
    return *k < m->k;
}

// `head`: of the group; outputs of the panel lie side by side in each set. `row`: where the scales
// of output n begin; a set is the next column of them.
static void pack_head(const moei_cpu_packed *p, const moei_matrices *m, int64_t n, int64_t row,
                      int64_t width, int64_t g, uint8_t *head)
{
    const int64_t o = n % MOEI_CPU_PANEL;
    uint8_t *zeros = head + p->sets * width * p->scale;
    int64_t k;
    for (int64_t s = 0; s < p->sets && set_begins(p, m, g, s, &k); s++) {
        const int64_t column = g * p->sets + s;
        const uint8_t *from =
            (const uint8_t *)m->scales + (row + column * m->scale_k_stride) * p->scale;
        uint8_t *to = head + (s * width + o) * p->scale;
        if (p->scale == 1) {
            *to = *from;
        } else {
            memcpy(to, from, (size_t)p->scale);
        }
        if (m->zeros != NULL) {
            zeros[s * width + o] = moei_zero_point(m, 0, n, column);
        }
    }
}

static void unpack_head(const moei_cpu_packed *p, const moei_matrices *m, int64_t n, int64_t width,
                        int64_t g, const uint8_t *head)
{
    const int64_t o = n % MOEI_CPU_PANEL;
    const uint8_t *from = head + p->sets * width * p->scale;
    uint8_t *zeros = (uint8_t *)(uintptr_t)m->zeros;
    int64_t k;
    for (int64_t s = 0; s < p->sets && set_begins(p, m, g, s, &k); s++) {
        uint8_t *to = (uint8_t *)(uintptr_t)m->scales + moei_w_scale_at(m, 0, n, k) * p->scale;
        memcpy(to, head + (s * width + o) * p->scale, (size_t)p->scale);
        if (zeros != NULL) { // canonical and compact: a byte each
            zeros[n * m->zero_n_stride + k / m->block_k] = from[s * width + o];
        }
    }
}

// ---- an expert ---------------------------------------------------------------------------------

static void pack_output(const moei_cpu_packed *p, const moei_matrices *from, int64_t n, uint8_t *to)
{
    const int64_t panel = n / MOEI_CPU_PANEL;
    const int64_t width = moei_cpu_panel_width(p, panel);
    const int64_t strip = n % MOEI_CPU_PANEL / MOEI_CPU_STRIP * MOEI_CPU_STRIP * p->record;
    const int64_t row = p->sets > 0 ? moei_w_scale_at(from, 0, n, 0) : 0;
    for (int64_t g = 0; g < p->groups; g++) {
        uint8_t *group = to + moei_cpu_group_at(p, panel, width, g);
        const int64_t first = g * p->group_records;
        const int64_t last = moei_i64_min(first + p->group_records, p->records);
        pack_head(p, from, n, row, width, g, group);
        for (int64_t r = first; r < last; r++) {
            uint8_t *record = group + width * (p->head + (r - first) * p->record);
            pack_codes(p, from, n, r * MOEI_CPU_RECORD, record + strip);
        }
    }
    if (p->scales_at < p->bytes) {
        const float scale =
            moei_load_one(from->scale_dtype, from->scales, moei_w_scale_at(from, 0, n, 0));
        memcpy(to + p->scales_at + n * (int64_t)sizeof scale, &scale, sizeof scale);
    }
}

static void pack_panel(const moei_cpu_packed *p, const moei_matrices *from, int64_t panel,
                       uint8_t *to)
{
    const int64_t n0 = panel * MOEI_CPU_PANEL;
    const int64_t n1 = moei_i64_min(n0 + MOEI_CPU_PANEL, from->n);
    const int64_t width = moei_cpu_panel_width(p, panel);
    memset(to + n0 * p->output, 0, (size_t)(width * p->output));
    if (p->scales_at < p->bytes) {
        memset(to + p->scales_at + n0 * (int64_t)sizeof(float), 0, (size_t)width * sizeof(float));
    }
    for (int64_t n = n0; n < n1; n++) {
        pack_output(p, from, n, to);
    }
}

void moei_cpu_pack_part(const moei_matrices *from, int64_t part, int64_t parts, uint8_t *to)
{
    const moei_cpu_packed p = moei_cpu_packed_of(from);
    const int64_t panels = moei_i64_ceil_div(p.outputs, MOEI_CPU_PANEL);
    for (int64_t i = part * panels / parts; i < (part + 1) * panels / parts; i++) {
        pack_panel(&p, from, i, to);
    }
    if (part == parts - 1) {
        memset(to + p.bytes, 0, (size_t)(moei_i64_round_up(p.bytes, ALIGN) - p.bytes));
    }
}

moe_status moei_cpu_pack(const moei_kernel *kernel, const moei_matrices *from, uint8_t *to)
{
    (void)kernel;
    moei_cpu_pack_part(from, 0, 1, to);
    return MOE_OK;
}

void moei_cpu_unpack(const moei_kernel *kernel, const uint8_t *from, const moei_matrices *to)
{
    const moei_cpu_packed p = moei_cpu_packed_of(to);
    (void)kernel;
    for (int64_t n = 0; n < to->n; n++) {
        const int64_t panel = n / MOEI_CPU_PANEL;
        const int64_t width = moei_cpu_panel_width(&p, panel);
        const int64_t strip = n % MOEI_CPU_PANEL / MOEI_CPU_STRIP * MOEI_CPU_STRIP * p.record;
        for (int64_t g = 0; g < p.groups; g++) {
            const uint8_t *group = from + moei_cpu_group_at(&p, panel, width, g);
            const int64_t first = g * p.group_records;
            const int64_t last = moei_i64_min(first + p.group_records, p.records);
            unpack_head(&p, to, n, width, g, group);
            for (int64_t r = first; r < last; r++) {
                const uint8_t *record = group + width * (p.head + (r - first) * p.record);
                unpack_codes(&p, to, n, r * MOEI_CPU_RECORD, record + strip);
            }
        }
        if (p.scales_at < p.bytes) {
            float scale;
            memcpy(&scale, from + p.scales_at + n * (int64_t)sizeof scale, sizeof scale);
            uint8_t *at = (uint8_t *)(uintptr_t)to->scales +
                          moei_w_scale_at(to, 0, n, 0) * moe_dtype_bits(to->scale_dtype) / 8;
            moei_store_f32(to->scale_dtype, at, 1, &scale);
        }
    }
}
