// SPDX-License-Identifier: Apache-2.0
// Strings of strangers (names, paths, texts) as JSON and on a terminal.
#define _POSIX_C_SOURCE 200809L
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli.h"

void cli_json_text(const char *bytes, size_t size)
{
    (void)putchar('"');
    for (size_t i = 0; i < size; i++) {
        const unsigned char c = (unsigned char)bytes[i];
        if (c < 0x20 || c == 0x7F) {
            (void)printf("\\u%04x", (unsigned)c);
        } else {
            (void)printf("%s%c", c == '"' || c == '\\' ? "\\" : "", c);
        }
    }
    (void)putchar('"');
}

void cli_json_string(const char *text)
{
    cli_json_text(text, strlen(text));
}

void cli_plain_string(const char *text)
{
    for (const char *c = text; *c != '\0'; c++) {
        if ((unsigned char)*c < 0x20 || (unsigned char)*c >= 0x7F) {
            (void)printf("\\x%02x", (unsigned)(unsigned char)*c);
        } else {
            (void)putchar(*c);
        }
    }
}

bool cli_colour(FILE *stream)
{
    const char *off = getenv("NO_COLOR");
    return (off == NULL || off[0] == '\0') && isatty(fileno(stream));
}

const char *cli_size_text(uint64_t bytes, char text[32])
{
    static const char *const units[] = {"B", "kB", "MB", "GB", "TB"};
    double value = (double)bytes;
    size_t unit = 0;
    while (value >= 1000.0 && unit + 1 < sizeof units / sizeof units[0]) {
        value /= 1000.0;
        unit++;
    }
    (void)snprintf(text, 32, unit == 0 ? "%.0f %s" : "%.2f %s", value, units[unit]);
    return text;
}
