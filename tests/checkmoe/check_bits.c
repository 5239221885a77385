// SPDX-License-Identifier: Apache-2.0
// Checks kernel rows of the CPU, and layers, by libmoe alone, without files, and lists the bits
// that they give: a line per case on stdout. Two machines that give the same bits print the same
// lines, in an order that may differ; the report of the checks, on stderr, names each machine's own
// rows.
#include <stdlib.h>

#include "checkmoe/checkmoe.h"

int main(int argc, char **argv)
{
    moec_counts counts = {0};
    if (argc < 3) {
        (void)fprintf(stderr, "usage: check_bits EVERY GLOB...   kernel rows, one case in EVERY of "
                              "those; layer-0 and on\n");
        return 2;
    }
    for (int i = 2; i < argc; i++) {
        const moec_options options = {.kernel = argv[i],
                                      .every = (int32_t)strtol(argv[1], NULL, 10),
                                      .program = "moe",
                                      .bits = stdout};
        if (moec_kernels_run(&options, stderr, &counts) != 0 ||
            moec_layer_run(&options, stderr, &counts) != 0) {
            return 1;
        }
    }
    (void)fprintf(stderr, "%lu passed, %lu failed, %lu skipped\n", counts.passed, counts.failed,
                  counts.skipped);
    return counts.failed == 0 && counts.passed > 0 && fflush(stdout) == 0 ? 0 : 1;
}
