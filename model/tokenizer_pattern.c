// SPDX-License-Identifier: Apache-2.0
// Patterns: from Oniguruma's dialect to PCRE2's, and splitting text by them.
//
// The two dialects share most of their letters and not all of their meanings: ^ and $ are of lines
// in one and of the text in the other, \h is a hexadecimal digit or a blank, [a[b]] a set or three
// characters, {2}+ twice repeated or possessive, \s with or without U+180E. So a pattern is taken
// construct by construct: what means the same is copied, \s is written as what it means, all else
// is refused by name.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/tokenizer_internal.h"

#define MAX_GROUPS 100
#define MAX_REPEAT 64 // a counted item moves so far within one step

struct translation {
    const char *label;
    const char *in;
    size_t size;
    size_t at;
    moem_text out;
    int groups;
    int caseless; // number of the group that is (?i:, 0 outside it
    int before;   // the literal before, in such a group
};

static moe_status refuse(const struct translation *t, size_t length, const char *why)
{
    const size_t left = t->size - t->at;
    return moe_fail(MOE_E_UNSUPPORTED,
                    "moem_tokenizer_create: %s: pattern, byte %zu: \"%s\" is not supported: %s",
                    t->label, t->at, moem_quote(t->in + t->at, length < left ? length : left).text,
                    why);
}

static moe_status copy(struct translation *t, size_t length)
{
    MOEM_TRY(moem_text_append(&t->out, t->in + t->at, length));
    t->at += length;
    return MOE_OK;
}

// Whether the pattern goes on with these characters.
static bool ahead(const struct translation *t, const char *what)
{
    const size_t length = strlen(what);
    return t->size - t->at >= length && memcmp(t->in + t->at, what, length) == 0;
}

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

// \p{Lu}: general categories alone; scripts, blocks and their many spellings differ.
static moe_status property(struct translation *t)
{
    static const char *const known[] = {"L",  "Lu", "Ll", "Lt", "Lm", "Lo", "M",  "Mn", "Mc",
                                        "Me", "N",  "Nd", "Nl", "No", "P",  "Pc", "Pd", "Ps",
                                        "Pe", "Pi", "Pf", "Po", "S",  "Sm", "Sc", "Sk", "So",
                                        "Z",  "Zs", "Zl", "Zp", "C",  "Cc", "Cf", "Co", "Cn"};
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        char spelling[8];
        const int length = snprintf(spelling, sizeof spelling, "{%s}", known[i]);
        t->at += 2;
        const bool found = ahead(t, spelling);
        t->at -= 2;
        if (found) {
            return copy(t, 2 + (size_t)length);
        }
    }
    return refuse(t, 24, "properties are general categories, as in \\p{L} or \\P{Lu}");
}

// \x41 up to 7F (beyond, one of the two means a byte) and \x{...}.
static moe_status hexadecimal(struct translation *t)
{
    static const char digits[] = "0123456789abcdefABCDEF";
    const char *text = t->in + t->at + 2;
    const size_t left = t->size - t->at - 2;
    if (left >= 2 && text[0] >= '0' && text[0] <= '7' && strchr(digits, text[1]) != NULL) {
        return copy(t, 4);
    }
    size_t length = 1;
    while (left > 0 && text[0] == '{' && length < left && length < 8 &&
           strchr(digits, text[length]) != NULL) {
        length++;
    }
    if (length > 1 && length < left && text[length] == '}') {
        return copy(t, 2 + length + 1);
    }
    return refuse(t, 10, "characters by number are \\x00 to \\x7F or \\x{...}");
}

static moe_status escape(struct translation *t)
{
    char c = 0;
    if (t->size - t->at > 1) {
        c = t->in[t->at + 1];
    }
    if (t->caseless > 0) {
        return refuse(t, 2, "an escape in a group (?i:");
    }
    switch (c) {
    case 'p':
    case 'P':
        return property(t);
    case 's':
    case 'S':
        t->at += 2;
        return moem_text_append(&t->out, c == 's' ? "\\p{White_Space}" : "\\P{White_Space}", 15);
    case 'x':
        return hexadecimal(t);
    case 'd':
    case 'D':
    case 'r':
    case 'n':
    case 't':
    case 'f':
        return copy(t, 2);
    default:
        break;
    }
    if (c >= '!' && c <= '~' && strchr("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~", c) != NULL) {
        return copy(t, 2);
    }
    return refuse(t, 2, "an escape whose meanings differ");
}

// One character that stands for itself. Without case some pairs also match one character (ss is
// the sharp s) in one dialect and not in the other.
static moe_status literal(struct translation *t)
{
    static const char *const pairs[] = {"ss", "ff", "fi", "fl", "st"};
    const char c = t->in[t->at];
    if (t->caseless > 0) {
        const int now = c >= 'A' && c <= 'Z' ? c - 'A' + 'a' : c;
        for (size_t i = 0; i < sizeof pairs / sizeof pairs[0]; i++) {
            if (t->before == pairs[i][0] && now == pairs[i][1]) {
                return refuse(t, 1, "in a group (?i: it makes a pair that is also one character");
            }
        }
        if ((unsigned char)c >= 0x80) {
            return refuse(t, 1, "a character that is not ASCII in a group (?i:");
        }
        t->before = now;
    }
    return copy(t, 1);
}

static moe_status character_class(struct translation *t)
{
    MOEM_TRY(copy(t, ahead(t, "[^") ? 2 : 1));
    if (ahead(t, "]")) {
        return refuse(t, 1, "first in a class");
    }
    while (t->at < t->size && t->in[t->at] != ']') {
        const char c = t->in[t->at];
        if (c == '[') {
            return refuse(t, 8, "a class within a class");
        }
        if (ahead(t, "&&")) {
            return refuse(t, 2, "an intersection of classes");
        }
        t->before = 0;
        MOEM_TRY(c == '\\' ? escape(t) : literal(t));
    }
    t->before = 0;
    return t->at < t->size ? copy(t, 1) : MOE_OK; // PCRE2 says that the class does not end
}

static moe_status open_group(struct translation *t)
{
    static const char *const heads[] = {"(?:", "(?=", "(?!", "(?>", "(?<=", "(?<!", "(?i:"};
    size_t length = ahead(t, "(?") || ahead(t, "(*") ? 0 : 1;
    bool caseless = false;
    for (size_t i = 0; i < sizeof heads / sizeof heads[0]; i++) {
        if (ahead(t, heads[i])) {
            length = strlen(heads[i]);
            caseless = heads[i][2] == 'i';
        }
    }
    if (length == 0) {
        return refuse(t, 4, "a group of that kind");
    }
    if (t->caseless > 0) {
        return refuse(t, length, "a group within a group (?i:");
    }
    MOEM_REQUIRE(
        ++t->groups <= MAX_GROUPS, MOE_E_LIMIT,
        "moem_tokenizer_create: %s: pattern, byte %zu: groups nested %d deep, the limit is "
        "%d",
        t->label, t->at, t->groups, MAX_GROUPS);
    t->caseless = caseless ? t->groups : 0;
    t->before = 0;
    return copy(t, length);
}

// {n}, {n,} and {n,m}; a + or ? behind one is a second repetition in one dialect alone.
static moe_status repetition(struct translation *t)
{
    size_t length = 1;
    long numbers[2] = {0, 0};
    size_t digits[2] = {0, 0};
    size_t commas = 0;
    const char *text = t->in + t->at;
    const size_t left = t->size - t->at;
    while (length < left && commas < 2 && (is_digit(text[length]) || text[length] == ',')) {
        if (text[length] == ',') {
            commas++;
        } else {
            numbers[commas] = numbers[commas] * 10 + (text[length] - '0');
            if (++digits[commas] > 2 || numbers[commas] > MAX_REPEAT) {
                return refuse(t, length + 1, "repetitions are counted up to 64");
            }
        }
        length++;
    }
    if (digits[0] == 0 || length >= left || text[length] != '}') {
        return refuse(t, length + 1, "a brace that is no repetition; write \\{");
    }
    length++;
    if (length < left && (text[length] == '+' || text[length] == '?')) {
        return refuse(t, length + 1, "a repetition of a repetition");
    }
    t->before = 0;
    return copy(t, length);
}

static moe_status translate(struct translation *t)
{
    while (t->at < t->size) {
        const char c = t->in[t->at];
        switch (c) {
        case '\\':
            MOEM_TRY(escape(t));
            break;
        case '[':
            MOEM_TRY(character_class(t));
            break;
        case '(':
            MOEM_TRY(open_group(t));
            break;
        case ')':
            t->caseless = t->groups <= t->caseless ? 0 : t->caseless;
            t->groups -= t->groups > 0;
            MOEM_TRY(copy(t, 1));
            break;
        case '{':
            MOEM_TRY(repetition(t));
            break;
        case '^':
        case '$':
            return refuse(t, 1, "an anchor of lines");
        case '|':
        case '*':
        case '+':
        case '?':
        case '.':
            t->before = 0;
            MOEM_TRY(copy(t, 1));
            break;
        default:
            MOEM_TRY(literal(t));
        }
    }
    return MOE_OK;
}

static moe_status compile(const char *label, const moem_text *pattern, uint32_t options,
                          pcre2_code **out)
{
    int code = 0;
    size_t at = 0;
    pcre2_compile_context *context = pcre2_compile_context_create(NULL);
    MOEM_REQUIRE(context != NULL, MOE_E_NO_MEMORY, "moem_tokenizer_create: %s: no memory", label);
    (void)pcre2_set_newline(context, PCRE2_NEWLINE_LF);
    (void)pcre2_set_parens_nest_limit(context, MAX_GROUPS);
    // Callouts between items count the steps of a match (count_step).
    pcre2_code *compiled =
        pcre2_compile((PCRE2_SPTR)pattern->bytes, pattern->size,
                      PCRE2_UTF | PCRE2_AUTO_CALLOUT | options, &code, &at, context);
    pcre2_compile_context_free(context);
    if (compiled == NULL) {
        char text[128];
        (void)pcre2_get_error_message(code, (PCRE2_UCHAR *)text, sizeof text);
        return moe_fail(code == PCRE2_ERROR_HEAP_FAILED ? MOE_E_NO_MEMORY : MOE_E_MALFORMED,
                        "moem_tokenizer_create: %s: pattern \"%s\": %s", label,
                        moem_quote(pattern->bytes, pattern->size).text, text);
    }
    uint32_t matches_empty = 0;
    (void)pcre2_pattern_info(compiled, PCRE2_INFO_MATCHEMPTY, &matches_empty);
    if (matches_empty != 0) {
        pcre2_code_free(compiled);
        return moe_fail(MOE_E_UNSUPPORTED,
                        "moem_tokenizer_create: %s: pattern \"%s\" can match no characters at all",
                        label, moem_quote(pattern->bytes, pattern->size).text);
    }
    *out = compiled;
    return MOE_OK;
}

moe_status moem_pattern_compile(const char *label, const char *pattern, size_t size,
                                bool is_literal, pcre2_code **out)
{
    MOEM_REQUIRE(size > 0 && size <= MOEM_MAX_PATTERN, MOE_E_LIMIT,
                 "moem_tokenizer_create: %s: a pattern of %zu bytes, the limits are 1 and %u",
                 label, size, MOEM_MAX_PATTERN);
    struct translation t = {.label = label, .in = pattern, .size = size};
    moe_status status = is_literal ? copy(&t, size) : translate(&t);
    if (status == MOE_OK) {
        status = compile(label, &t.out, is_literal ? PCRE2_LITERAL : PCRE2_UCP, out);
    }
    moem_text_free(&t.out);
    return status;
}

// -- Matching -----------------------------------------------------------------------------------

// Called before each item of a pattern is tried: what bounds the time of a pattern that goes back
// and forth. PCRE2's own limit counts backtracking points, of which a long run of one class has
// none.
static int count_step(pcre2_callout_block *block, void *data)
{
    struct moem_matcher *m = data;
    const size_t now = block->current_position;
    m->steps += 1 + (now > m->at ? now - m->at : m->at - now);
    m->at = now;
    return m->steps > m->limit ? PCRE2_ERROR_CALLOUT : 0;
}

moe_status moem_matcher_init(struct moem_matcher *matcher)
{
    matcher->data = pcre2_match_data_create(1, NULL);
    matcher->context = pcre2_match_context_create(NULL);
    if (matcher->data == NULL || matcher->context == NULL) {
        moem_matcher_free(matcher);
        return moe_fail(MOE_E_NO_MEMORY, "moem_tokenizer_encode: no memory");
    }
    (void)pcre2_set_match_limit(matcher->context, 100000000);
    (void)pcre2_set_heap_limit(matcher->context, 65536); // KiB
    (void)pcre2_set_callout(matcher->context, count_step, matcher);
    return MOE_OK;
}

void moem_matcher_free(struct moem_matcher *matcher)
{
    pcre2_match_data_free(matcher->data);
    pcre2_match_context_free(matcher->context);
    *matcher = (struct moem_matcher){.data = NULL};
}

// The first match at or behind `from`; begin = end = size where there is none.
static moe_status next_match(const struct moem_split *split, struct moem_matcher *m,
                             const char *text, size_t size, size_t from, size_t *begin, size_t *end)
{
    m->at = from;
    const int rc = pcre2_match(split->code, (PCRE2_SPTR)text, size, from, PCRE2_NO_UTF_CHECK,
                               m->data, m->context);
    if (rc == PCRE2_ERROR_NOMATCH) {
        *begin = size;
        *end = size;
        return MOE_OK;
    }
    if (rc < 0) {
        char message[128];
        (void)pcre2_get_error_message(rc, (PCRE2_UCHAR *)message, sizeof message);
        MOEM_REQUIRE(rc != PCRE2_ERROR_CALLOUT, MOE_E_LIMIT,
                     "moem_tokenizer_encode: a pattern took %zu steps on a text of %zu bytes, the "
                     "limit is %zu",
                     m->steps, size, m->limit);
        return moe_fail(rc == PCRE2_ERROR_NOMEMORY ? MOE_E_NO_MEMORY : MOE_E_LIMIT,
                        "moem_tokenizer_encode: a pattern on a text of %zu bytes, at byte %zu: %s",
                        size, from, message);
    }
    const size_t *ovector = pcre2_get_ovector_pointer(m->data);
    *begin = ovector[0];
    *end = ovector[1];
    // moem_pattern_compile admits no pattern that could; a search that stood still would not end.
    MOEM_REQUIRE(*end > *begin, MOE_E_LIMIT,
                 "moem_tokenizer_encode: a pattern matched no characters at byte %zu", *begin);
    return MOE_OK;
}

// Whether a part goes with the one before it.
static bool joins(enum moem_behaviour behaviour, bool before, bool now)
{
    switch (behaviour) {
    case MOEM_CONTIGUOUS:
        return before == now;
    case MOEM_MERGED_WITH_PREVIOUS:
        return !before && now;
    case MOEM_MERGED_WITH_NEXT:
        return before && !now;
    default:
        return false;
    }
}

struct splitter {
    const struct moem_split *split;
    const char *text;
    size_t begin; // of the piece that grows; begin = end: none
    size_t end;
    bool match; // what its last part was
    moem_sink sink;
    void *self;
};

static moe_status flush(struct splitter *s)
{
    return s->end > s->begin ? s->sink(s->self, s->text + s->begin, s->end - s->begin) : MOE_OK;
}

static moe_status feed(struct splitter *s, size_t begin, size_t end, bool match)
{
    if (begin == end) {
        return MOE_OK;
    }
    match = match != s->split->invert;
    if (s->split->behaviour == MOEM_REMOVED && match) {
        return MOE_OK;
    }
    if (s->end > s->begin && joins(s->split->behaviour, s->match, match)) {
        s->end = end;
    } else {
        MOEM_TRY(flush(s));
        s->begin = begin;
        s->end = end;
    }
    s->match = match;
    return MOE_OK;
}

moe_status moem_split_run(const struct moem_split *split, struct moem_matcher *matcher,
                          const char *text, size_t size, moem_sink sink, void *self)
{
    struct splitter s = {.split = split, .text = text, .sink = sink, .self = self};
    matcher->steps = 0;
    matcher->limit = MOEM_MAX_PATTERN_STEPS * (size + 64);
    for (size_t at = 0; at < size;) {
        size_t begin = 0;
        size_t end = 0;
        MOEM_TRY(next_match(split, matcher, text, size, at, &begin, &end));
        MOEM_TRY(feed(&s, at, begin, false));
        MOEM_TRY(feed(&s, begin, end, true));
        at = end;
    }
    return flush(&s);
}
