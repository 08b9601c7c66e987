/* A wall clock that a test sets, and a host that seems to sleep, for any process that this is preloaded into.
 *
 * $STEPPED_CLOCK names a file of two 64-bit numbers: what is added to the wall clock, and what the host has slept, ns.
 * Setting the machine's own clock would set everybody's. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const volatile int64_t none[2];
static const volatile int64_t *added = none;

__attribute__((constructor)) static void begin(void)
{
    const char *path = getenv("STEPPED_CLOCK");
    int file = path == NULL ? -1 : open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0)
        return;
    void *map = mmap(NULL, sizeof none, PROT_READ, MAP_SHARED, file, 0);
    if (map != MAP_FAILED)
        added = map;
    close(file);
}

static void add(struct timespec *at, int64_t more)
{
    int64_t total = (int64_t)at->tv_sec * 1000000000 + at->tv_nsec + more;
    at->tv_sec = total / 1000000000;
    at->tv_nsec = total % 1000000000;
}

int clock_gettime(clockid_t clock, struct timespec *at)
{
    int failed = (int)syscall(SYS_clock_gettime, clock, at);
    if (failed)
        return failed;
    if (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)
        add(at, added[0]);
    else if (clock == CLOCK_BOOTTIME)
        add(at, added[1]);
    return 0;
}

int gettimeofday(struct timeval *restrict at, void *restrict zone)
{
    struct timespec now;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &now);
    at->tv_sec = now.tv_sec;
    at->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *at)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (at != NULL)
        *at = now.tv_sec;
    return now.tv_sec;
}
