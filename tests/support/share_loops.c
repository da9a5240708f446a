// Pools of several sizes, one after the other and side by side: every part of every loop is done exactly once.
// With -fsanitize=thread it also tells of races.
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "runner.h"

enum { PARTS = 64, ROUNDS = 3000, A_NAP_EVERY = 500 };
typedef struct {
    void *sync_handle;
    int32_t num_task;
} Group;
extern int (*__TVMBackendParallelLaunch)(int (*)(int, Group *, void *), void *, int);
_Thread_local char failure[FAILURE];

bool fail(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(failure, sizeof failure, format, arguments);
    va_end(arguments);
    return false;
}

static int count(int number, Group *group, void *counts) { // as TVM has loops divide themselves
    int step = (PARTS + group->num_task - 1) / group->num_task;
    for (int part = number * step; part < (number + 1) * step && part < PARTS; part++)
        ((int *)counts)[part]++;
    return 0;
}

static int refuse(int number, Group *group, void *counts) { return group->num_task == 1 || number == 3 ? -1 : 0; }

static void *share(void *threads) {
    Pool *pool = pool_open((int)(intptr_t)threads, NULL, 0);
    int counts[PARTS] = {0};
    pool_use(pool);
    for (int round = 0; round < ROUNDS; round++) {
        if (__TVMBackendParallelLaunch(count, counts, 0))
            exit(fprintf(stderr, "a loop failed\n"));
        if (round % A_NAP_EVERY == 0) {
            usleep(5000); // long enough for threads to sleep
            if (!__TVMBackendParallelLaunch(refuse, counts, 0))
                exit(fprintf(stderr, "a failure is lost\n"));
        }
    }
    for (int part = 0; part < PARTS; part++)
        if (counts[part] != ROUNDS)
            exit(fprintf(stderr, "part %d was done %d times\n", part, counts[part]));
    pool_close(pool);
    return NULL;
}

int main(void) {
    static const intptr_t sizes[] = {1, 2, 3, 5, 16, 40, 100};
    for (size_t at = 0; at < sizeof sizes / sizeof sizes[0]; at++)
        share((void *)sizes[at]);
    pthread_t both[2];
    for (int at = 0; at < 2; at++)
        pthread_create(&both[at], NULL, share, (void *)sizes[at + 1]);
    for (int at = 0; at < 2; at++)
        pthread_join(both[at], NULL);
    return 0;
}
