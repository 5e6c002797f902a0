/* An NVTX injection library: writes every push and pop to the file that NVTX_SEEN names. */
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

typedef struct { size_t size; int (*table)(int, void ****, unsigned *); } callbacks_t;
enum { CALLBACKS = 1, CORE = 1, PUSH_A = 9, POP = 11 };

static FILE *seen;
static int depth;

static int push(const char *text)
{
    fprintf(seen, "%d %s\n", depth, text);
    fflush(seen);
    return depth++;
}

static int pop(void)
{
    fprintf(seen, "%d -\n", --depth);
    fflush(seen);
    return depth;
}

int InitializeInjectionNvtx2(const void *(*export_table)(uint32_t))
{
    const callbacks_t *callbacks = export_table(CALLBACKS);
    void ***functions = NULL;
    unsigned size = 0;
    seen = fopen(getenv("NVTX_SEEN"), "w");
    if (!seen || !callbacks || !callbacks->table(CORE, (void ****)&functions, &size)) return 0;
    *functions[PUSH_A] = (void *)push;
    *functions[POP] = (void *)pop;
    return 1;
}
