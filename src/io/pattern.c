// SPDX-License-Identifier: Apache-2.0
// Regular expressions run on sets of positions: an atom maps the positions where it may begin to
// those where it may end. Nothing is backtracked over, and the steps are counted, because
// configurations come from anywhere.
#include "io/pattern.h"

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "core/check.h"
#include "io/text.h"

#define WORDS     (MOEI_MODULE_BYTES / 64)
#define MAX_DEPTH 16 // of parentheses

struct positions {
    uint64_t word[WORDS];
};

struct expression {
    const char *at;
    const char *name;
    size_t size;  // of the name
    size_t steps; // atoms that may still be tried, a class by its length
    int depth;
    bool bad;
};

static struct positions run_alternatives(struct expression *e, struct positions from);

static bool has(const struct positions *p, size_t i)
{
    return (p->word[i / 64] >> (i % 64) & 1) != 0;
}

static void add(struct positions *p, size_t i)
{
    p->word[i / 64] |= (uint64_t)1 << (i % 64);
}

static bool merge(struct positions *into, const struct positions *from)
{
    bool grew = false;
    for (size_t i = 0; i < WORDS; i++) {
        grew = grew || (from->word[i] & ~into->word[i]) != 0;
        into->word[i] |= from->word[i];
    }
    return grew;
}

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

static bool is_word(char c)
{
    return is_digit(c) || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
}

// What follows a backslash; letters that mean something else are not known.
static bool is_escaped(struct expression *e, char escape, char c)
{
    switch (escape) {
    case 'd':
        return is_digit(c);
    case 'w':
        return is_word(c);
    default:
        e->bad = e->bad || is_word(escape) || escape == '\0';
        return c == escape;
    }
}

// The class that begins at e->at, after '[': whether it holds c. Leaves e->at where it was.
static bool in_class(struct expression *e, char c)
{
    const char *at = e->at;
    const bool negated = *at == '^';
    bool found = false;
    at += negated;
    for (bool first = true; *at != '\0' && (*at != ']' || first); first = false) {
        if (*at == '\\') {
            found = is_escaped(e, at[1], c) || found;
            at += at[1] != '\0' ? 2 : 1;
        } else if (at[1] == '-' && at[2] != ']' && at[2] != '\0') {
            found = found || (c >= at[0] && c <= at[2]);
            at += 3;
        } else {
            found = found || c == *at;
            at++;
        }
    }
    return found != negated;
}

// The end of a class, past its ']'.
static const char *class_end(const char *at)
{
    at += *at == '^';
    at += *at == ']';
    while (*at != ']' && *at != '\0') {
        at += *at == '\\' && at[1] != '\0' ? 2 : 1;
    }
    return *at == ']' ? at + 1 : NULL;
}

static struct positions run_group(struct expression *e, struct positions from)
{
    struct positions none = {{0}};
    if (e->at[0] == '?' && e->at[1] == ':') {
        e->at += 2;
    }
    if (*e->at == '?' || ++e->depth > MAX_DEPTH) {
        e->bad = true;
        return none;
    }
    const struct positions to = run_alternatives(e, from);
    e->depth--;
    e->bad = e->bad || *e->at != ')';
    e->at += *e->at == ')';
    return to;
}

// One atom without its quantifier.
static struct positions run_atom(struct expression *e, struct positions from)
{
    struct positions to = {{0}};
    const char c = *e->at++;
    if (e->steps == 0 || strchr("*+?{", c) != NULL) {
        e->bad = true;
        return to;
    }
    e->steps--;
    if (c == '(') {
        return run_group(e, from);
    }
    if (c == '^' || c == '$') {
        const size_t place = c == '^' ? 0 : e->size;
        if (has(&from, place)) {
            add(&to, place);
        }
        return to;
    }
    const char *end = c == '[' ? class_end(e->at) : c == '\\' && *e->at != '\0' ? e->at + 1 : e->at;
    if (end == NULL || (size_t)(end - e->at) > e->steps) {
        e->bad = true;
        return to;
    }
    e->steps -= (size_t)(end - e->at);
    for (size_t i = 0; i < e->size; i++) {
        if (has(&from, i) && (c == '.'    ? true
                              : c == '['  ? in_class(e, e->name[i])
                              : c == '\\' ? is_escaped(e, *e->at, e->name[i])
                                          : c == e->name[i])) {
            add(&to, i + 1);
        }
    }
    e->bad = e->bad || (c == '\\' && *e->at != 'd' && *e->at != 'w' && is_word(*e->at));
    e->at = end;
    return to;
}

// An atom with its quantifier; lazy ones find the same ends.
static struct positions run_piece(struct expression *e, struct positions from)
{
    const char *atom = e->at;
    struct positions to = run_atom(e, from);
    const char *after = e->at;
    const char quantifier = *after;
    if (e->bad || quantifier == '\0' || strchr("*+?", quantifier) == NULL) {
        return to;
    }
    bool grew = quantifier != '?';
    while (grew && !e->bad) {
        e->at = atom;
        const struct positions more = run_atom(e, to);
        grew = merge(&to, &more);
    }
    if (quantifier != '+') {
        (void)merge(&to, &from);
    }
    e->at = after + 1;
    e->at += *e->at == '?';
    return to;
}

static struct positions run_alternatives(struct expression *e, struct positions from)
{
    struct positions all = {{0}};
    for (;;) {
        struct positions to = from;
        while (!e->bad && *e->at != '\0' && *e->at != '|' && *e->at != ')') {
            to = run_piece(e, to);
        }
        (void)merge(&all, &to);
        if (e->bad || *e->at != '|') {
            return all;
        }
        e->at++;
    }
}

static bool run_expression(const char *text, const char *name, bool *bad)
{
    // A quantifier tries its atom once per character of the name; quantifiers of quantifiers that
    // need much more are refused, so that long lists of them cannot stall a program.
    const size_t size = strlen(name);
    struct expression e = {
        .at = text, .name = name, .size = size, .steps = (size + 4) * (strlen(text) + 4)};
    struct positions from = {{0}};
    add(&from, 0);
    const struct positions to = run_alternatives(&e, from);
    *bad = e.bad || *e.at != '\0';
    bool any = false;
    for (size_t i = 0; i < WORDS; i++) {
        any = any || to.word[i] != 0;
    }
    return any;
}

// A shell pattern of * and ?; on a mismatch the last * takes one character more.
static bool run_shell(const char *pattern, const char *name)
{
    const char *star = NULL;
    const char *resume = NULL;
    while (*name != '\0') {
        if (*pattern == '*') {
            star = pattern++;
            resume = name;
        } else if (*pattern == '?' || *pattern == *name) {
            pattern++;
            name++;
        } else if (star != NULL) {
            pattern = star + 1;
            name = ++resume;
        } else {
            return false;
        }
    }
    while (*pattern == '*') {
        pattern++;
    }
    return *pattern == '\0';
}

static bool has_components(const char *name, const char *part)
{
    const size_t size = strlen(part);
    const char *at = size > 0 ? strstr(name, part) : NULL;
    while (at != NULL) {
        if ((at == name || at[-1] == '.') && (at[size] == '\0' || at[size] == '.')) {
            return true;
        }
        at = strstr(at + 1, part);
    }
    return false;
}

moe_status moei_pattern_match(const char *call, const char *entry, const char *module, int *matches)
{
    bool bad = strlen(module) >= MOEI_MODULE_BYTES;
    if (strncmp(entry, "re:", 3) == 0) {
        *matches = !bad && run_expression(entry + 3, module, &bad);
    } else if (strpbrk(entry, "*?") != NULL) {
        *matches = run_shell(entry, module);
    } else {
        *matches = has_components(module, entry);
    }
    MOE_REQUIRE(!bad, MOE_E_UNSUPPORTED,
                "%s: quantization_config: \"%s\" is no expression that is understood (module "
                "\"%s\")",
                call, moei_quote_head(entry, strlen(entry)).text,
                moei_quote_head(module, strlen(module)).text);
    return MOE_OK;
}
