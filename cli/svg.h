// SPDX-License-Identifier: Apache-2.0
// Pieces of SVG that several pictures need.
#ifndef MOE_CLI_SVG_H
#define MOE_CLI_SVG_H

#include <stdio.h>

/// <svg>, in the colours and letters of all our pictures.
static inline void svg_begin(int width, int height, FILE *out)
{
    (void)fprintf(out,
                  "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" width=\"%d\" "
                  "height=\"%d\" font-family=\"sans-serif\" font-size=\"11\">\n"
                  "<rect width=\"100%%\" height=\"100%%\" fill=\"#f4f4f4\"/>\n",
                  width, height, width, height);
}

/// Text between tags or quotes.
static inline void svg_text(const char *text, FILE *out)
{
    for (; *text != '\0'; text++) {
        const char *escaped = *text == '<'   ? "&lt;"
                              : *text == '>' ? "&gt;"
                              : *text == '&' ? "&amp;"
                                             : NULL;
        if (escaped != NULL) {
            (void)fputs(escaped, out);
        } else {
            (void)fputc(*text, out);
        }
    }
}

#endif
